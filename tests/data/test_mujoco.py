"""MuJoCo's environments: drawn quickly and whole, at the right rate; clear errors where nothing can draw."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kinema.data import mujoco
from kinema.data.environment import Environment, make_environment
from kinema.data.spaces import RecordError
from kinema.kits import Environments, Kit

CARTPOLE = "dm_control/cartpole-swingup-v0"
ARGUMENTS: dict[str, Any] = {"environment_kwargs": {"control_timestep": 0.05}}


def make(name: str = CARTPOLE, arguments: dict[str, Any] = ARGUMENTS, **options: Any) -> Environment:
    return make_environment(name, arguments, **{"render": "auto", "frame_size": None, **options})


@pytest.fixture
def can_draw() -> None:
    pytest.importorskip("dm_control", reason="needs kinema[dmc]")
    mujoco.choose_backend()
    if os.environ.get("MUJOCO_GL") == "disabled":
        pytest.skip("no library that draws without a display is installed")


@pytest.fixture
def cartpole(can_draw: None) -> Iterator[Any]:
    made = make()
    assert made.is_rendered
    yield made.env
    made.env.close()


def test_pictures_show_the_pole(cartpole: Any) -> None:
    cartpole.reset(seed=1)
    picture = cartpole.render()
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    # It hangs from the cart in the middle; it and the cart are what is orange in the dark.
    is_orange = picture[..., 0].astype(int) - picture[..., 2] > 40
    rows = np.flatnonzero(is_orange.any(axis=1))
    assert 30 <= rows.min() <= 34
    assert 48 <= rows.max() <= 54
    # No gap, as there would be if a thin thing were drawn or not by chance.
    np.testing.assert_array_equal(rows, np.arange(rows.min(), rows.max() + 1))


def test_nothing_that_costs_time_is_drawn(cartpole: Any) -> None:
    physics = cartpole.unwrapped.physics
    assert physics.model.vis.quality.shadowsize == 0
    assert physics.model.vis.quality.offsamples == 0
    cartpole.reset(seed=1)
    assert (cartpole.render()[:8] == 0).all()  # No sky.


def test_its_rate_is_that_of_its_steps(cartpole: Any) -> None:
    assert cartpole.metadata["render_fps"] == pytest.approx(20.0)


def test_the_size_that_is_asked_for(can_draw: None) -> None:
    asked = make(frame_size=(32, 48)).env
    own = make(arguments={**ARGUMENTS, "render_kwargs": {"height": 20, "width": 30}}).env
    for env, shape in ((asked, (32, 48, 3)), (own, (20, 30, 3))):
        env.reset(seed=1)
        assert np.asarray(env.render()).shape == shape
        env.close()


def test_the_first_picture_takes_no_part_in_what_is_random(can_draw: None) -> None:
    drawn, plain = make().env, make(render="never").env
    for env in (drawn, plain):
        env.reset(seed=7)
    np.testing.assert_array_equal(
        drawn.unwrapped.physics.data.qpos,  # pyright: ignore[reportAttributeAccessIssue]
        plain.unwrapped.physics.data.qpos,  # pyright: ignore[reportAttributeAccessIssue]
    )
    for env in (drawn, plain):
        env.close()


def test_environments_of_gymnasium_itself(can_draw: None) -> None:
    made = make("InvertedPendulum-v5", {"width": 48, "height": 48})
    env: Any = made.env.unwrapped
    assert made.is_rendered
    assert env.model.vis.quality.shadowsize == 0
    assert not env.mujoco_renderer.viewer.scn.flags[sys.modules["mujoco"].mjtRndFlag.mjRND_SHADOW]
    made.env.reset(seed=0)
    assert np.asarray(made.env.render()).std() > 0
    made.env.close()


def test_a_backend_is_chosen_where_there_is_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="needs kinema[dmc]")
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems draw without a display by themselves")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    missing, there = ("libnothing.so.1",), ("libc.so.6",)
    for backends, chosen in (
        ({"egl": there, "osmesa": there}, "egl"),
        ({"egl": there + missing, "osmesa": missing + there}, "osmesa"),
        ({"egl": missing, "osmesa": missing}, "disabled"),
    ):
        monkeypatch.setattr(mujoco, "BACKENDS", backends)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        mujoco.choose_backend()
        assert os.environ["MUJOCO_GL"] == chosen
        advice = mujoco.missing_backend()
        assert (advice is not None) == (chosen == "disabled")
    assert advice is not None
    assert "`apt-get install libegl1 libopengl0 libgl1-mesa-dri` and MUJOCO_GL=egl" in advice
    # What is set stays.
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    mujoco.choose_backend()
    assert os.environ["MUJOCO_GL"] == "glfw"


def test_where_nothing_can_draw_it_says_what_to_install() -> None:
    pytest.importorskip("dm_control", reason="needs kinema[dmc]")
    command = ["record", CARTPOLE, "--max-steps", "5", "--episodes", "1", "--workers", "1", "--out", "never"]
    done = subprocess.run(
        [sys.executable, "-m", "kinema", *command],
        env={**os.environ, "MUJOCO_GL": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "MuJoCo cannot draw" in done.stderr
    assert "apt-get install libegl1" in done.stderr


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = Environments(
        namespace="dm_nothing",
        module="nothing_that_exists",
        requirement="kinema[dmc]",
        arguments=lambda given, size: (given, size),
    )
    monkeypatch.setattr("kinema.kits.kit.kits", lambda: (Kit(name="nothing", environments=environments),))
    with pytest.raises(
        RecordError, match=r"no environment 'dm_nothing/Task-v0'.*pip install 'kinema\[dmc\]'"
    ):
        make("dm_nothing/Task-v0", {})
