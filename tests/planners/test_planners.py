"""Planners where the best plan is known, and scores against sessions stepped one by one."""

import dataclasses

import numpy as np
import pytest
import torch

from kinema.model.goals import encode_goal
from kinema.model.world import WorldError
from kinema.planners import (
    PLANNERS,
    Controller,
    CrossEntropy,
    Goal,
    Planner,
    SearchConfig,
    WorldScore,
    check_planner,
)
from kinema.planners.scores import Measure, normalize_actions, restore_actions
from kinema.planners.search import WarmStart, interpolate
from kinema.simulation.starts import History
from kinema.simulation.world import World
from kinema.types import Seen

from ..worlds import HIGH, LOW, random_actions, random_frames, random_heads, random_world

SMALL = SearchConfig(horizon=6, num_knots=3, candidates=8, iterations=2, elites=3)


@pytest.fixture(scope="module")
def world() -> World:
    return random_heads(random_world(proprio_dim=2))


@pytest.mark.parametrize("name", list(PLANNERS))
def test_planners_keep_the_contract(name: str) -> None:
    check_planner(PLANNERS[name](SearchConfig()))


@pytest.mark.parametrize("name", list(PLANNERS))
def test_planners_reach_the_optimum(name: str) -> None:
    """A point is moved by its actions to a goal; the best plan goes straight there, as fast as it can."""
    goal = np.array([3.0, -1.5])

    def score(candidates: np.ndarray) -> np.ndarray:
        places = candidates.cumsum(axis=1)
        return -np.linalg.norm(places - goal, axis=-1).mean(axis=1)

    settings = SearchConfig(
        horizon=8, num_knots=8, candidates=256, iterations=40, elites=32, std=0.8, min_std=0.005, momentum=0.3
    )
    found = PLANNERS[name](settings).plan(score, np.zeros((8, 2)), np.random.default_rng(1))
    best = np.array([[1.0, -0.5]] * 3 + [[0.0, 0.0]] * 5)
    assert found.score > 1.05 * float(score(best[None])[0])


@pytest.mark.parametrize("name", list(PLANNERS))
def test_two_equal_ways_are_not_averaged(name: str) -> None:
    """The middle between two good plans is bad: one of the two must be given."""

    def score(candidates: np.ndarray) -> np.ndarray:
        last = candidates[:, -1, 0]
        return -np.minimum(np.abs(last - 0.8), np.abs(last + 0.8))

    settings = SearchConfig(horizon=4, num_knots=2, candidates=64, iterations=8, elites=8)
    found = PLANNERS[name](settings).plan(score, np.zeros((4, 1)), np.random.default_rng(0))
    assert abs(abs(found.actions[-1, 0]) - 0.8) < 0.1


def test_a_check_finds_what_breaks_the_contract() -> None:
    @dataclasses.dataclass
    class Lazy:
        config: SearchConfig

        def plan(self, score, start, rng):  # pyright: ignore[reportMissingParameterType]
            found = CrossEntropy(self.config).plan(score, start, rng)
            return dataclasses.replace(found, actions=start)

    lazy = Lazy(SearchConfig())
    assert isinstance(lazy, Planner)
    with pytest.raises(AssertionError, match="the score is that of the actions"):
        check_planner(lazy)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="one number for each of 8 candidates"):
        CrossEntropy(SMALL).plan(
            lambda c: np.full(len(c), np.nan), np.zeros((6, 2)), np.random.default_rng(0)
        )


def test_actions_between_knots_are_on_straight_lines() -> None:
    knots = np.array([[[0.0], [1.0], [-1.0]]])
    np.testing.assert_allclose(interpolate(knots, 5)[0, :, 0], [0.0, 0.5, 1.0, 0.0, -1.0])
    np.testing.assert_allclose(interpolate(knots[:, :1], 3)[0, :, 0], 0.0)
    np.testing.assert_allclose(interpolate(knots, 3), knots)


def test_a_warm_start_goes_on_with_the_last_plan() -> None:
    warm, last = WarmStart(), np.array([0.3])
    np.testing.assert_array_equal(warm.start(3, last)[:, 0], [0.3, 0.3, 0.3])
    warm.keep(np.array([[0.1], [0.2], [0.4]]), 1)
    np.testing.assert_array_equal(warm.start(4, last)[:, 0], [0.2, 0.4, 0.4, 0.4])
    warm.reset()
    np.testing.assert_array_equal(warm.start(2, last)[:, 0], [0.3, 0.3])


def test_units_of_actions_go_back_and_forth(world: World) -> None:
    actions = random_actions(5)
    normalized = normalize_actions(world, actions)
    assert np.abs(normalized).max() < 1.3
    np.testing.assert_allclose(restore_actions(world, normalized), actions, atol=1e-4)


def candidates_of(num: int, horizon: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num, horizon, 2))


@pytest.mark.parametrize("max_batch", [256, 2])
@pytest.mark.parametrize("measure", ["steps", "codes", "latents"])
def test_a_candidate_is_scored_by_what_its_session_comes_to(
    world: World, measure: Measure, max_batch: int
) -> None:
    session = world.start(random_frames(3), random_actions(2))
    target = encode_goal(world, random_frames(1, seed=5)[0])
    goal = Goal(target=target, measure=measure, reward_weight=0.7, end_share=0.25)
    score = WorldScore(session, goal, max_batch=max_batch)
    candidates = candidates_of(5)
    scores = score(candidates)
    actions = restore_actions(world, candidates)
    # The forks of a session have noise of their own, and parts of a batch are forks as well.
    children = [child % max_batch for child in range(5)]
    for index, child in enumerate(children):
        one = session.fork(max(children) + 1 if max_batch == 256 else 2)[child]
        alive, reward, distances = 1.0, 0.0, []
        for t in range(4):
            step = one.step(actions[index, t])
            reward += alive * step.reward
            alive *= 1 - step.termination
            distances.append(float(goal.distance(world, one._batch)[0]))
        expected = 0.7 * reward - 0.25 * distances[-1] - 0.75 * np.mean(distances)
        assert scores[index] == pytest.approx(expected, abs=0.02 * abs(expected) + 1e-3)
    assert score.num_steps == 20
    parts = 1 if max_batch == 256 else 3
    assert score.num_batched_steps == 4 * parts
    assert score.num_network_calls == 4 * parts
    # The session itself has not moved.
    assert session.num_steps == 0


@pytest.mark.parametrize("measure", ["codes", "latents"])
def test_distance_is_small_at_the_goal_alone(world: World, measure: Measure) -> None:
    frames = random_frames(1)
    session = world.start(frames)
    there = Goal(target=encode_goal(world, frames[0]), measure=measure)
    elsewhere = Goal(target=encode_goal(world, 255 - frames[0]), measure=measure)
    assert there.distance(world, session._batch)[0] == pytest.approx(0.0, abs=1e-5)
    assert elsewhere.distance(world, session._batch)[0] > 0.1


def test_what_cannot_be_trusted_brings_nothing(world: World) -> None:
    session = world.start(random_frames(3), random_actions(2))
    target = encode_goal(world, random_frames(1, seed=5)[0])
    free = Goal(target=target, measure="latents", reward_weight=1.0, end_share=1.0)
    strict = dataclasses.replace(free, min_trust=0.999)
    candidates = candidates_of(6)
    # Every step of this world is far from its manifold: there is no reward, and the goal only gets farther.
    lost = WorldScore(session, strict)(candidates)
    sessions = session.fork(6)
    distances = [free.distance(world, sessions)]
    for actions in restore_actions(world, candidates).transpose(1, 0, 2):
        sessions.step(actions)
        distances.append(free.distance(world, sessions))
    np.testing.assert_allclose(lost, -np.max(distances, axis=0), atol=2e-3)
    assert (lost <= -distances[-1] + 2e-3).all()
    assert (np.diff(WorldScore(session, free)(candidates) - lost) != 0.0).any()


def test_the_world_must_have_what_the_goal_needs() -> None:
    world = random_world(proprio_dim=2)
    session = world.start(random_frames(1))
    target = encode_goal(world, random_frames(1)[0])
    with pytest.raises(WorldError, match="has no heads"):
        WorldScore(session, Goal(target=target))
    with pytest.raises(WorldError, match="has no heads"):
        WorldScore(session, Goal(reward_weight=1.0))
    WorldScore(session, Goal(target=target, measure="latents"))
    with pytest.raises(ValueError, match="there is nothing to plan for"):
        Goal()
    vectors = random_world(num_cameras=0, proprio_dim=2)
    start = vectors.start(None, proprio=np.zeros((1, 2)))
    with pytest.raises(WorldError, match="no manifold, so no codes"):
        WorldScore(start, Goal(target=torch.zeros(1, 2), measure="codes"))
    with pytest.raises(WorldError, match="does not compute trust"):
        WorldScore(start, Goal(target=torch.zeros(1, 2), measure="latents", min_trust=0.5))


def test_a_controller_plans_from_what_was_seen(world: World) -> None:
    frames, actions = random_frames(4), random_actions(3)
    proprio = np.random.default_rng(0).uniform(-5, 20, (4, 2)).astype(np.float32)
    history = History(world, 3)
    history.begin(Seen(frames={world.cameras[0]: frames[0]}, proprio=proprio[0]))
    for t in range(3):
        history.add(actions[t], Seen(frames={world.cameras[0]: frames[t + 1]}, proprio=proprio[t + 1]))
    # Only the last three are kept: a session from here is one from those.
    direct = world.start(
        frames[1:], actions[1:], proprio=proprio[1:], generator=torch.Generator().manual_seed(9)
    )
    then = random_actions(seed=4)
    assert np.array_equal(history.start(seed=9).step(then).frame, direct.step(then).frame)
    goal = Goal(target=encode_goal(world, random_frames(1, seed=5)[0]))
    controller = Controller(world, CrossEntropy(SMALL), goal, chunk=2)
    plan = controller.plan(history, np.random.default_rng(0))
    assert plan.actions.shape == (6, 2)
    low, high = world.action_normalizer.restore(torch.tensor([[-1.0], [1.0]])).numpy()
    assert (plan.actions >= low - 1e-3).all()
    assert (plan.actions <= high + 1e-3).all()
    assert (plan.num_candidates, plan.num_steps, plan.num_network_calls) == (16, 96, 12)
    assert plan.milliseconds > 0
    again = Controller(world, CrossEntropy(SMALL), goal, chunk=2).plan(history, np.random.default_rng(0))
    np.testing.assert_array_equal(plan.actions, again.actions)
    # The next search begins at what is left of this plan.
    score = plan.score
    assert controller.plan(history, np.random.default_rng(1)).score >= score - 5.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"num_knots": 9, "horizon": 8}, "a plan has only horizon=8"),
        ({"elites": 50}, "there are only candidates=40"),
        ({"min_std": 0.0}, "0 < min_std <= std"),
        ({"momentum": 1.0}, "momentum=1.0"),
    ],
)
def test_settings_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**fields)


def test_other_settings_are_checked(world: World) -> None:
    goal = Goal(reward_weight=1.0)
    with pytest.raises(ValueError, match="chunk=9: it must be from 1 to horizon=6"):
        Controller(world, CrossEntropy(SMALL), goal, chunk=9)
    with pytest.raises(ValueError, match="temperature=0"):
        PLANNERS["mppi"](SMALL, temperature=0.0)
    with pytest.raises(ValueError, match="end_share=2"):
        Goal(reward_weight=1.0, end_share=2.0)
    assert (LOW < HIGH).all()
