"""The verbs of a session beside simulate: generate, act, imagine."""

from typing import Any

import numpy as np
import pytest

from kinema.simulation.session import Simulation
from kinema.simulation.step import Step
from kinema.simulation.world import World

from ..worlds import random_actions, random_frames, random_world

KINDS: dict[str, dict[str, int]] = {
    "camera": {"num_cameras": 1},
    "cameras and proprioception": {"num_cameras": 2, "proprio_dim": 3, "memory": 6},
    "vectors": {"num_cameras": 0, "proprio_dim": 3},
}


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    return random_world(has_goals=True, **KINDS[request.param])


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-5, 20, (*shape, 3)).astype(np.float32)


def start(world: World) -> Simulation:
    frames = {key: random_frames(3) for key in world.cameras}
    return world.start(frames or None, random_actions(2), proprio=vectors(3) if world.proprio_dim else None)


def goal_of(world: World, seed: int) -> Any:
    if not world.cameras:
        return vectors(seed=seed)
    frames = {key: random_frames(seed=seed) for key in world.cameras}
    return frames if len(frames) > 1 else frames[world.cameras[0]]


def numbers(step: Step) -> np.ndarray:
    """All that a step shows, as one vector."""
    frames = step.frame.values() if isinstance(step.frame, dict) else [step.frame]
    parts = [*frames, step.proprio]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts if part is not None])


def test_video_is_generated_without_actions(world: World) -> None:
    videos = []
    for seed in (0, 0, 7):
        sim = start(world)
        sim.change(seed=seed)
        videos.append([numbers(sim.generate()) for _ in range(4)])
    for first, same, other in zip(*videos, strict=True):
        assert np.array_equal(first, same)
        assert not np.array_equal(first, other)


def test_actions_go_on_from_generated_frames(world: World) -> None:
    sim = start(world)
    before = numbers(sim.look())
    sim.generate()
    sim.step(random_actions(1)[0])
    sim.rewind(2)
    assert np.array_equal(numbers(sim.look()), before)


def test_actions_depend_on_the_goal_and_the_session_stays(world: World) -> None:
    sim, other = start(world), start(world)
    assert sim.act().shape == (8, 2)
    towards = [sim.act(goal_of(world, seed), 3) for seed in (1, 2)]
    assert not np.allclose(towards[0], towards[1])
    assert np.array_equal(towards[0], sim.act(goal_of(world, 1), 3))
    action = random_actions(1)[0]
    assert np.array_equal(numbers(sim.step(action)), numbers(other.step(action)))


def test_imagined_frames_are_those_that_the_imagined_actions_simulate(world: World) -> None:
    sim = start(world)
    actions, steps = sim.imagine(goal_of(world, 1), 5)
    for action, imagined in zip(actions, steps, strict=True):
        np.testing.assert_allclose(numbers(sim.step(action)), numbers(imagined), rtol=1e-3, atol=1.01)


def test_a_session_of_a_batch_acts_as_alone(world: World) -> None:
    goal, batch = goal_of(world, 1), start(world).fork(3)
    together = batch.act(goal, 2)
    for index in range(3):
        np.testing.assert_allclose(batch[index].act(goal, 2), together[index], rtol=1e-3, atol=1e-3)
