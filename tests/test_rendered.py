"""Environments that draw their picture apart from the observation: policies that look at pictures see it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from kinema.data.environment import Mixed, make_policy
from kinema.data.record import EpisodeRecorder, RecordConfig
from kinema.data.spaces import RENDER_KEY
from kinema.evaluation.policy import PolicyConfig, run_real, run_simulated
from kinema.model.parts import save_part
from kinema.policies.cloned import CLONE_FILE, CloneConfig, ClonedPolicy, load_clone, new_clone
from kinema.simulation.real_env import Arena
from kinema.simulation.world import World, load
from kinema.types import Seen

from .worlds import random_heads, random_world, randomize

ENVIRONMENT = "kinema_tests/Rendered-v0"


class Rendered(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes two numbers, and draws them."""

    metadata = {"render_fps": 10, "render_modes": ["rgb_array"]}  # noqa: RUF012 (as in gymnasium.Env)
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = None, scale: int = 1):
        self.render_mode, self.scale = render_mode, scale

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.state, {"known": 1}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state = np.clip(self.state + 0.2 * action, -1.0, 1.0).astype(np.float32)
        return self.state, float(self.state[0]), False, False, {"known": 1}

    def render(self) -> Any:
        picture = np.zeros((48 * self.scale, 64 * self.scale, 3), np.uint8)
        picture[:, : picture.shape[1] // 2, 0], picture[..., 1] = np.round(127.0 * (self.state + 1.0))
        return picture


gymnasium.register(ENVIRONMENT, Rendered)


class Looks:
    """Does what its pictures show, and remembers them."""

    needs_frame = True

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []

    def reset(self, rng: np.random.Generator, info: Any) -> None:
        self.shown = []

    def act(self, observation: np.ndarray, info: Any) -> np.ndarray:
        self.shown.append(dict(info))
        return np.array([info[RENDER_KEY][0, 0, 0] / 255.0, 0.0], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered")
    world = random_heads(random_world(proprio_dim=2, recorded_size=(48, 64)))
    cameras = tuple(dataclasses.replace(camera, key=RENDER_KEY) for camera in world.config.cameras)
    world.config = dataclasses.replace(world.config, cameras=cameras)
    world.save(root)
    world.save_parts(root)
    clone = new_clone(world, CloneConfig(width=16, depth=1, chunk=2, num_modes=2))
    randomize(clone, 0)
    save_part(root / CLONE_FILE, clone.config, clone)
    return root


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return load(folder)


@pytest.fixture
def arena(world: World) -> Iterator[Arena]:
    made = Arena(world, ENVIRONMENT)
    yield made
    made.close()


def test_what_is_recorded_is_what_the_policy_saw() -> None:
    config = RecordConfig(
        env=ENVIRONMENT, out=Path("never"), policy=f"{__name__}:Looks", episodes=1, max_steps=3
    )
    for sized in (config, dataclasses.replace(config, camera_size=(24, 32))):
        recorder = EpisodeRecorder(sized)
        recording = recorder(0)
        policy: Any = recorder.policy
        assert len(policy.shown) == 3
        for shown, picture in zip(policy.shown, recording.frames[RENDER_KEY], strict=True):
            np.testing.assert_array_equal(shown[RENDER_KEY], picture)
            assert shown["known"] == 1
        np.testing.assert_allclose(
            recording.columns["action"][:, 0], recording.frames[RENDER_KEY][:, 0, 0, 0] / 255.0
        )


def test_a_clone_acts_by_what_is_drawn(world: World, folder: Path, arena: Arena) -> None:
    policy = make_policy("cloned", {"world": str(folder)}, arena.env)
    observation, info = arena.env.reset(seed=3)
    policy.reset(np.random.default_rng(0), info)
    acted = policy.act(observation, arena.info_for(policy, info))
    alone = ClonedPolicy(world, load_clone(world, folder))
    seen = Seen(frames={RENDER_KEY: np.asarray(arena.env.render())}, proprio=np.asarray(observation))
    np.testing.assert_allclose(acted, alone.choose(seen), rtol=1e-6)
    blank = dataclasses.replace(seen, frames={RENDER_KEY: np.zeros_like(seen.frames[RENDER_KEY])})
    alone.begin(np.random.default_rng(0))
    assert not np.allclose(acted, alone.choose(blank), rtol=1e-3)
    # Who does not look costs no picture.
    assert arena.info_for(make_policy("random", {}, arena.env), info) is info


def test_clones_are_graded_in_both(world: World, folder: Path, arena: Arena) -> None:
    config = PolicyConfig(
        world=str(folder),
        policies=("cloned", "cloned@0.5", "random", "zero"),
        env=ENVIRONMENT,
        episodes=2,
        steps=3,
    )
    policy = make_policy("cloned", {"world": str(folder)}, arena.env)
    for one in (policy, Mixed(policy, arena.env.action_space, 0.5)):
        assert run_real(arena, one, config).shape == (2,)
        assert np.isfinite(run_simulated(world, arena, one, config)).all()


def test_pictures_of_another_size_come_to_that_of_the_recordings(world: World, arena: Arena) -> None:
    large = Arena(world, ENVIRONMENT, {"scale": 3})
    for one in (large, arena):
        seen, _ = one.reset(5)
        assert seen.frames[RENDER_KEY].shape == (48, 64, 3)
    np.testing.assert_array_equal(large.reset(5)[0].frames[RENDER_KEY], arena.reset(5)[0].frames[RENDER_KEY])
    large.close()
