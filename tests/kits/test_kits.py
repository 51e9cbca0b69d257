"""Kits are found by entry point, keep their contract, and bring their world into every protocol."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.data.record import RecordConfig, record
from kinema.evaluation.floor import find_floor
from kinema.evaluation.tasks import Judge, SimulatorScore, TaskEnvironment, draw_tasks
from kinema.kits import KitError, check_kit, find_kit, kit_of_environment, kits
from kinema.model.world import CameraConfig
from kinema.serve.beside import find_beside
from kinema.serve.goals import StateReader
from kinema.simulation.world import BUNDLED_WORLDS, World, default_world
from kinema.types import Episode

from ..evaluation.drawn import tiny_config
from . import slider


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package with the kit, and one whose kit is broken."""
    site = tmp_path_factory.mktemp("site")
    for name, value in {"slider": "tests.kits.slider:KIT", "broken": "no_such_module:KIT"}.items():
        folder = site / f"{name}_kit-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-kit\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[kinema.kits]\n{name} = {value}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        kits.cache_clear()
        with pytest.warns(UserWarning, match="kit 'broken' cannot be imported from no_such_module:KIT"):
            assert "slider" in [kit.name for kit in kits()]
        yield
    kits.cache_clear()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Dataset:
    out = tmp_path_factory.mktemp("slider") / "data"
    record(RecordConfig(env="kinema_slider/Slide-v0", episodes=2, out=out, info_keys=("slide",), workers=1))
    return Dataset.open(out)


@pytest.fixture(scope="module")
def world() -> World:
    cameras = (CameraConfig(key=slider.CAMERA, native_height=slider.SIZE, native_width=slider.SIZE),)
    config = tiny_config(
        cameras=cameras, size=slider.SIZE, action_dim=1, proprio_key="observation.state", proprio_dim=1
    )
    return World(config).eval()


def first(dataset: Dataset) -> Episode:
    return dataset.episode(0, cameras=dataset.cameras)


def test_kits_are_found_by_name_by_columns_and_by_environment(recording: Dataset) -> None:
    assert find_kit("slider") is slider.KIT
    assert find_kit("mine", recording.features) is slider.KIT
    assert find_kit("mine") is None
    assert find_kit("slider", candidates=()) is None
    assert kit_of_environment("kinema_slider/Slide-v0") is slider.KIT
    assert kit_of_environment("module:kinema_slider/Slide-v0") is slider.KIT
    assert kit_of_environment("Pendulum-v1") is None
    assert (
        {"coin", "dmc", "pusht", "screen", "slider"}
        >= {kit.name for kit in kits()}
        >= {"dmc", "pusht", "slider"}
    )


def test_bundled_kits_keep_the_contract() -> None:
    bundled = Dataset.open(BUNDLED_WORLDS / default_world() / "recording")
    kit = find_kit(default_world())
    assert kit is not None
    assert kit.probe is not None
    check_kit(kit, first(bundled))
    # Kits with a probe are checked with an episode of their world, beside their own tests.
    others = [other for other in kits() if other.probe is None]
    assert others
    for other in others:
        check_kit(other, first(bundled))


def test_a_kit_of_another_package_keeps_the_contract(recording: Dataset) -> None:
    check_kit(slider.KIT, first(recording))


class Late(slider.SlideProbe):
    """Reads the state of the row before."""

    def recorded(self, episode: Episode) -> Any:
        columns = {key: np.roll(values, 8, axis=0) for key, values in episode.columns.items()}
        return super().recorded(dataclasses.replace(episode, columns=columns))


class Together(slider.SlideProbe):
    """Reads frames against the mean of all."""

    def read(self, frames: Any) -> Any:
        reading = super().read(frames)
        place = reading.values["bar"]
        return dataclasses.replace(reading, values={"bar": place - place.mean()})


class Forgetful(slider.SlideTwin):
    """Leaves the speed out of its state."""

    def set_state(self, state: np.ndarray) -> None:
        self.env.unwrapped.state = np.array([state[0], self.env.unwrapped.state[1]])

    def get_state(self) -> np.ndarray:
        return self.env.unwrapped.state[:1]

    def recorded_states(self, columns: Any) -> np.ndarray:
        return super().recorded_states(columns)[:, :1]


class Backwards(slider.SlideTwin):
    def advance(self, action: np.ndarray) -> None:
        super().advance(-action)


SIMULATOR, SUCCESS = slider.KIT.simulator, slider.KIT.success
assert SIMULATOR is not None
assert SUCCESS is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name: '' is not matched"),
        ({"probe": lambda cameras: None}, "probe: there is none for the cameras"),
        ({"probe": lambda cameras: Late()}, "frames and the recorded state disagree in 'bar'"),
        ({"probe": lambda cameras: Together()}, "depends on the frames that are read with it"),
        ({"named_goals": {"up": {"height": 1.0}}}, r"'up' has \['height'\]"),
        ({"simulator": None}, "success: it judges states, which need a simulator"),
        (
            {"simulator": dataclasses.replace(SIMULATOR, columns=("info.x",))},
            r"lacks the columns \['info",
        ),
        ({"simulator": dataclasses.replace(SIMULATOR, wrap=Forgetful)}, "simulator: states lack a part"),
        (
            {"simulator": dataclasses.replace(SIMULATOR, wrap=Backwards)},
            "does not lead to the recorded",
        ),
        (
            {"success": dataclasses.replace(SUCCESS, is_met=lambda states, goal: states[..., 0] > 9)},
            "success: a goal that was reached is not met",
        ),
    ],
)
def test_what_breaks_the_contract_is_named(changes: dict[str, Any], message: str, recording: Dataset) -> None:
    with pytest.raises(KitError, match=message):
        check_kit(dataclasses.replace(slider.KIT, **changes), first(recording))


def test_protocols_work_in_the_world_of_any_kit(world: World, recording: Dataset) -> None:
    kit = find_kit(world.name, recording.features)
    judge = Judge(kit, world.name)
    (task,) = draw_tasks(world, judge, recording, num=1, distances=(6,), context=2, seed=0)[6]
    columns = first(recording).columns if task.episode == 0 else recording.episode(1, cameras=()).columns
    env = TaskEnvironment(world, judge)
    env.begin(task, 2)
    assert not env.has_met(task)
    for row in range(task.row, task.row + 6):
        env.step(columns["action"][row].reshape(1))
    assert env.has_met(task)
    env.close()
    score = SimulatorScore(judge, np.array([-1.0]), np.array([1.0]), end_share=1.0)
    score.set(np.array([0.3, 0.0]), np.array([0.6, 0.0]))
    right, left = score(np.stack([np.ones((5, 1)), -np.ones((5, 1))]))
    assert right > left
    score.close()
    assert kit is not None
    probe = kit.find_probe(world.cameras)
    floor = find_floor(kit, probe, recording, num_rollouts=1, num_restarts=2, seed=0)
    assert floor is not None
    floor.close()
    beside = find_beside(world, kit, first(recording), first=0, last=5)
    assert beside is not None
    real = first(recording).columns["info.slide"]
    proprio = beside.proprio()
    assert proprio is not None
    np.testing.assert_allclose(proprio, real[5, :1], atol=1e-5)
    beside.step(first(recording).columns["action"][5].reshape(1))
    beside.rewind(1)
    again = beside.copy().proprio()
    assert again is not None
    np.testing.assert_allclose(again, proprio)
    beside.close()
    reader = StateReader(kit, world.cameras)
    assert reader.named_goals == {"middle": {"bar": 16.0}}
    assert reader.pointer is None
