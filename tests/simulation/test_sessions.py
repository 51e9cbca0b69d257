"""Sessions side by side: forks that remember less, and new sessions in the places of old ones."""

import numpy as np
import pytest
import torch

from kinema.model.world import WorldError
from kinema.simulation.session import MAX_REWIND, SimulationBatch
from kinema.simulation.world import World

from ..worlds import random_actions, random_frames, random_world


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(proprio_dim=2)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents(sessions: SimulationBatch, actions: np.ndarray) -> torch.Tensor:
    """``T+1 B L Z`` before and after some steps, ``actions`` being ``T B A``."""
    found = [sessions.latents]
    for action in actions:
        sessions.step(action, decode=False)
        found.append(sessions.latents)
    return torch.stack(found)


@pytest.mark.parametrize("num_before", [0, 2, 30])
@pytest.mark.parametrize("max_rewind", [0, 3])
def test_a_fork_that_remembers_less_goes_on_the_same(world: World, num_before: int, max_rewind: int) -> None:
    sessions = world.start_batch(random_frames(2, 4), random_actions(2, 3))
    latents(sessions, random_actions(num_before, 2))
    # More steps than its smaller rings hold.
    actions = np.repeat(random_actions(20, 2, seed=1), 3, axis=1)
    whole, small = sessions.fork(3), sessions.fork(3, max_rewind=max_rewind)
    torch.testing.assert_close(latents(small, actions), latents(whole, actions), atol=1e-4, rtol=1e-4)
    size = sum(ring.buffer.numel() for ring in small._cache.rings)
    assert size < 0.1 * sum(ring.buffer.numel() for ring in whole._cache.rings)


def test_a_fork_goes_back_as_far_as_it_was_made_for(world: World) -> None:
    sessions = world.start_batch(random_frames(1, 4), random_actions(1, 3))
    latents(sessions, random_actions(10, 1))
    fork = sessions.fork(1, max_rewind=3)
    actions = random_actions(8, 1, seed=1)
    first = latents(fork, actions)
    fork.rewind(3)
    torch.testing.assert_close(latents(fork, actions[5:]), first[5:], atol=1e-5, rtol=1e-5)
    with pytest.raises(WorldError, match=r"rewind\(4\): this session can go back by 0 to 3 steps"):
        fork.rewind(4)
    stuck = sessions.fork(1, max_rewind=0)
    stuck.step(actions[0])
    with pytest.raises(WorldError, match="can go back by 0 to 0 steps"):
        stuck.rewind(1)


@pytest.mark.parametrize("max_rewind", [-1, MAX_REWIND + 1])
def test_no_session_remembers_more_than_there_is(world: World, max_rewind: int) -> None:
    session = world.start(random_frames(1))
    with pytest.raises(
        WorldError, match=f"max_rewind={max_rewind}: expected a whole number from 0 to {MAX_REWIND}"
    ):
        session.fork(2, max_rewind=max_rewind)
    with pytest.raises(WorldError, match=f"max_rewind={max_rewind}"):
        world.start_batch(random_frames(1, 1), max_rewind=max_rewind)


def test_new_sessions_take_the_place_of_old_ones(world: World) -> None:
    """Each goes on as it would alone, those that stay and those that come."""
    context = {"old": random_frames(3, 5), "new": random_frames(2, 5, seed=1)}
    between = {"old": random_actions(3, 4), "new": random_actions(2, 4, seed=1)}
    before, after = random_actions(7, 3, seed=2), random_actions(6, 3, seed=3)

    def old(*which: int) -> SimulationBatch:
        picked = list(which)
        return world.start_batch(
            context["old"][picked], between["old"][picked], generators=seeded(*picked), max_rewind=4
        )

    def new(*which: int) -> SimulationBatch:
        picked = list(which)
        seeds = [10 + index for index in picked]
        return world.start_batch(context["new"][picked], between["new"][picked], generators=seeded(*seeds))

    together = old(0, 1, 2)
    latents(together, before)
    # One that comes has already made a step elsewhere.
    coming = new(0, 1)
    coming.step(random_actions(2, seed=4))
    together.replace([2, 0], coming)
    found = latents(together, after)

    stayed = old(1)
    latents(stayed, before[:, 1:2])
    torch.testing.assert_close(found[:, 1:2], latents(stayed, after[:, 1:2]), atol=2e-2, rtol=1e-3)
    for place, index in ((2, 0), (0, 1)):
        alone = new(index)
        alone.step(random_actions(2, seed=4)[index : index + 1])
        expected = latents(alone, after[:, place : place + 1])
        torch.testing.assert_close(found[:, place : place + 1], expected, atol=2e-2, rtol=1e-3)
        one = together[place]
        assert one.step(after[0, place]).trust == pytest.approx(
            float(alone.step(after[:1, place]).trust[0]), abs=1e-3
        )


def test_what_was_before_a_replacement_is_forgotten(world: World) -> None:
    together = world.start_batch(random_frames(2, 4), random_actions(2, 3))
    latents(together, random_actions(3, 2))
    together.replace([1], world.start_batch(random_frames(1, 4, seed=1), random_actions(1, 3)))
    with pytest.raises(WorldError, match="can go back by 0 to 0 steps"):
        together.rewind(1)
    assert len(together.pictures(0)) == 1


def test_what_cannot_be_replaced_is_explained(world: World) -> None:
    least = world.config.dynamics.frames_to_fill
    full = world.start_batch(random_frames(2, least), random_actions(2, least - 1))
    short = world.start_batch(random_frames(1, least - 1), random_actions(1, least - 2))
    with pytest.raises(WorldError, match=f"all sessions must have seen {least} frames or more"):
        full.replace([0], short)
    with pytest.raises(WorldError, match=r"replace: 2 sessions for the places \[0\]"):
        full.replace([0], full)
    with pytest.raises(WorldError, match=r"replace: 2 sessions for the places \[1, 1\]"):
        full.replace([1, 1], full)
