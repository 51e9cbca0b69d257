"""Sessions that step in changing company are the sessions that they are alone."""

import numpy as np
import pytest
import torch

from kinema.model.world import WorldError
from kinema.simulation.batching import step_together
from kinema.simulation.session import Simulation
from kinema.simulation.step import Step
from kinema.simulation.world import World

from ..worlds import CAMERA, SECOND_CAMERA, random_actions, random_frames, random_world

NUM_SESSIONS, NUM_STEPS = 4, 16


@pytest.fixture(scope="module", params=["camera", "two cameras and proprioception", "vectors"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "camera":
        return random_world(num_denoising_steps=2, memory=5)
    world = random_world(num_cameras=2 * (request.param != "vectors"), proprio_dim=3)
    response = world.dynamics.response
    assert response is not None
    # Exact once two frames are known: what young sessions are given then differs from what older ones are.
    response.proprio_error.fill_(1e-6)
    return world


def start(world: World, index: int) -> Simulation:
    """Sessions of several ages: with one frame to start from, two, three, ..."""
    num, more = index + 1, {}
    if world.proprio_dim:
        more = {"proprio": np.random.default_rng(index).uniform(-5, 20, (num, 3)).astype(np.float32)}
    frames = {key: random_frames(num, seed=index) for key in world.cameras}
    generator = torch.Generator().manual_seed(index)
    return world.start(frames or None, random_actions(num - 1, seed=index), generator=generator, **more)


def assert_same_steps(got: list[Step], expected: list[Step]) -> None:
    for one, other in zip(got, expected, strict=True):
        for key in (CAMERA, SECOND_CAMERA):
            if isinstance(other.frame, dict):
                assert np.abs(one.frame[key].astype(int) - other.frame[key]).max() <= 1
        if isinstance(other.frame, np.ndarray):
            assert np.abs(one.frame.astype(int) - other.frame).max() <= 1
        if other.proprio is not None:
            np.testing.assert_allclose(one.proprio, other.proprio, rtol=1e-4, atol=1e-4)
        if other.trust is not None:
            assert one.trust == pytest.approx(other.trust, rel=1e-3)


def test_changing_company_changes_nothing(world: World) -> None:
    """Members come and go at random, one goes back, one is forked: each is as it was alone."""
    rng = np.random.default_rng(0)
    actions = random_actions(NUM_SESSIONS, NUM_STEPS)
    alone = [start(world, index) for index in range(NUM_SESSIONS)]
    expected = [[sim.step(action) for action in actions[i]] for i, sim in enumerate(alone)]
    together = [start(world, index) for index in range(NUM_SESSIONS)]
    got: list[list[Step]] = [[] for _ in together]
    sizes = set()
    for turn in range(24):
        ready = [i for i in rng.permutation(NUM_SESSIONS) if rng.random() < 0.6 and len(got[i]) < NUM_STEPS]
        sizes.add(len(ready))
        steps = step_together([together[i] for i in ready], [actions[i, len(got[i])] for i in ready])
        for i, step in zip(ready, steps, strict=True):
            got[i].append(step)
        if turn == 12:
            back = min(4, len(got[0]))
            together[0].rewind(back)
            del got[0][len(got[0]) - back :]
    assert {1, 2, 3, 4} <= sizes
    for mine, theirs in zip(got, expected, strict=True):
        assert len(mine) > 8
        assert_same_steps(mine, theirs[: len(mine)])
    # What they remember is what was seen, and what they fork into goes on from there.
    for i, sim in enumerate(together):
        assert sim.num_steps == len(got[i])
        pictures = sim.pictures()
        if isinstance(pictures, np.ndarray):
            seen = np.stack([step.frame for step in got[i]])
            assert np.abs(pictures[1:].astype(int) - seen).max() <= 2
    one, other = together[1].fork(1)[0], together[2].fork(1)[0]
    plain_one, plain_other = together[1].fork(1)[0], together[2].fork(1)[0]
    then = random_actions(2, seed=9)
    assert_same_steps(step_together([one, other], then), [plain_one.step(then[0]), plain_other.step(then[1])])


def test_without_pictures(world: World) -> None:
    sims, plain = ([start(world, index) for index in range(2)] for _ in range(2))
    actions = random_actions(2, 2)
    for step in step_together(sims, actions[0], decode=False):
        assert step.frame is None
    for sim, action in zip(plain, actions[0], strict=True):
        sim.step(action, decode=False)
    expected = [sim.step(action) for sim, action in zip(plain, actions[1], strict=True)]
    assert_same_steps(step_together(sims, actions[1]), expected)


def test_a_mistake_leaves_all_as_they_were() -> None:
    world = random_world()
    sims, plain = ([start(world, index) for index in range(2)] for _ in range(2))
    other = start(random_world(seed=1), 0)
    slow = world.start(random_frames(1), num_denoising_steps=3)
    actions = random_actions(2)
    for members, given, message in (
        ([sims[0], sims[0]], actions, "stands twice"),
        ([sims[0], other], actions, "different worlds"),
        ([sims[0], slow], actions, "differ in num_denoising_steps"),
        (sims, actions[:1], r"actions: expected shape \(2, 2\) .* got \(1, 2\)"),
        (sims, actions * np.nan, "not finite"),
        (sims[:1], actions, r"actions: expected shape \(1, 2\) .* got \(2, 2\)"),
    ):
        with pytest.raises(WorldError, match=message):
            step_together(members, given)
    expected = [sim.step(action) for sim, action in zip(plain, actions, strict=True)]
    assert_same_steps(step_together(sims, actions), expected)


def test_seeds_and_kept_pictures_are_those_asked_for() -> None:
    world = random_world()
    frames = random_frames(2, 1)
    batch = world.start_batch(frames, seeds=[5, 6], max_pictures=4)
    again = world.start_batch(frames[::-1].copy(), seeds=[6, 5], max_pictures=4)
    for action in random_actions(6):
        one, other = batch.step([action, action]), again.step([action, action])
        assert np.abs(one.frame[::-1].astype(int) - other.frame).max() <= 1
    pictures = batch.pictures(0)
    assert isinstance(pictures, np.ndarray)
    assert len(pictures) == len(batch.fork(2).pictures(3)) == 4
    with pytest.raises(WorldError, match="this session can go back by 0 to 3 steps"):
        batch.rewind(4)
    with pytest.raises(WorldError, match="seeds: 2 sessions need 2, got 1"):
        world.start_batch(frames, seeds=[5])
