"""Propose and check: what a policy proposes is simulated, and the best of it refined."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.model.goals import encode_goal
from kinema.model.parts import save_part
from kinema.model.world import WorldError
from kinema.planners import (
    PROPOSE,
    CheckProposals,
    Controller,
    Goal,
    ProposeAndCheck,
    Proposer,
    SearchConfig,
    WorldScore,
    check_planner,
    find_proposer,
    make_planner,
)
from kinema.planners.propose import roll_out
from kinema.policies.cloned import CLONE_FILE, CloneConfig, CloneProposer, new_clone
from kinema.simulation.session import SimulationBatch
from kinema.simulation.starts import History
from kinema.simulation.world import World
from kinema.types import Seen

from ..worlds import random_frames, random_heads, random_world, randomize

SMALL = SearchConfig(horizon=6, num_knots=3, candidates=8, iterations=3, elites=3)


@pytest.fixture(scope="module")
def world() -> World:
    return random_heads(random_world(proprio_dim=2))


@pytest.fixture(scope="module")
def proposer(world: World) -> CloneProposer:
    clone = new_clone(world, CloneConfig(width=16, depth=1, chunk=4, num_modes=2))
    randomize(clone)
    return CloneProposer(clone.eval())


@dataclasses.dataclass
class Counter:
    """Proposes two actions that say how often it was asked, and remembers where."""

    name = "counter"
    num_network_calls = 7
    places: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def propose(
        self, sessions: SimulationBatch, target: torch.Tensor | None, rng: np.random.Generator
    ) -> np.ndarray:
        self.places.append(sessions.latents)
        low, high = sessions.world.action_normalizer.restore(torch.tensor([[-1.0], [1.0]])).numpy()
        share = len(self.places) / 10
        return np.broadcast_to(low + share * (high - low), (len(sessions), 2, 2)).copy()


SIZES = {"horizon": 20, "num_knots": 5}


def uniform(num: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (num, 20, 2))


def test_it_keeps_the_contract_of_planners() -> None:
    check_planner(CheckProposals(SearchConfig(**SIZES, candidates=32, iterations=8), uniform))


def test_the_right_proposal_is_found_and_refined() -> None:
    """One proposal in sixteen is nearly right; a search around the mean of all would not find it."""
    target = np.sign(np.sin(np.arange(20.0)))[:, None] * np.array([0.5, -0.5])

    def propose(num: int, rng: np.random.Generator) -> np.ndarray:
        plans = rng.choice([-0.9, 0.9], (num, 20, 2))
        plans[3] = target + 0.2
        return plans

    def score(candidates: np.ndarray) -> np.ndarray:
        return -np.abs(candidates - target).mean(axis=(1, 2))

    found = {}
    for iterations in (1, 8):
        planner = CheckProposals(SearchConfig(**SIZES, candidates=16, iterations=iterations), propose)
        found[iterations] = planner.plan(score, np.zeros((20, 2)), np.random.default_rng(0)).score
    assert found[1] == pytest.approx(-0.2)
    assert found[8] > -0.12


def test_the_plan_at_hand_is_a_candidate() -> None:
    def score(candidates: np.ndarray) -> np.ndarray:
        return -np.abs(candidates - 0.123).mean(axis=(1, 2))

    planner = CheckProposals(SearchConfig(**SIZES, candidates=32, iterations=1), uniform)
    found = planner.plan(score, np.full((20, 2), 0.123), np.random.default_rng(0))
    assert found.score == 0.0


def test_a_policy_is_asked_again_where_its_actions_led(world: World) -> None:
    counter = Counter()
    assert isinstance(counter, Proposer)
    session = world.start(random_frames(1), proprio=np.zeros((1, 2)))
    score = WorldScore(session, Goal(reward_weight=1.0))
    plans = roll_out(counter, score, 3, 5, np.random.default_rng(0))
    expected = np.array([-0.8, -0.8, -0.6, -0.6, -0.4])[:, None].repeat(2, axis=1)
    np.testing.assert_allclose(plans, np.stack([expected] * 3), atol=1e-5)
    # It is where the first two actions lead in the future that the score will look at.
    futures = session.fork(3, max_rewind=0)
    for _ in range(2):
        done = world.action_normalizer.restore(torch.full((3, 2), -0.8)).numpy()
        futures.step(done, decode=False)
    torch.testing.assert_close(counter.places[1], futures.latents, rtol=1e-3, atol=1e-3)
    assert (score.num_steps, score.num_batched_steps) == (12, 4)
    # It was asked three times; each of four steps is one call.
    assert score.num_network_calls == 3 * 7 + 4
    assert session.num_steps == 0


def test_a_clone_proposes_for_a_goal(world: World, proposer: CloneProposer) -> None:
    session = world.start(random_frames(2), proprio=np.zeros((2, 2)))
    goals = [encode_goal(world, frame) for frame in random_frames(2, seed=3)]
    drawn = [
        proposer.propose(session.fork(5), goal, np.random.default_rng(0)) for goal in (*goals, None, goals[0])
    ]
    assert drawn[0].shape == (5, 4, 2)
    np.testing.assert_array_equal(drawn[0], drawn[3])
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3


def test_a_controller_plans_with_proposals(world: World, proposer: CloneProposer) -> None:
    history = History(world, 3)
    history.begin(Seen(frames={world.cameras[0]: random_frames()}, proprio=np.zeros(2, np.float32)))
    goal = Goal(target=encode_goal(world, random_frames(seed=5)))
    planner = ProposeAndCheck(SMALL, proposer)
    plan = Controller(world, planner, goal, chunk=2).plan(history, np.random.default_rng(0))
    assert plan.actions.shape == (6, 2)
    # Three times eight candidates of six steps, and four steps until the clone was asked again, for seven.
    assert (plan.num_candidates, plan.num_steps) == (24, 3 * 8 * 6 + 7 * 4)
    again = Controller(world, planner, goal, chunk=2).plan(history, np.random.default_rng(0))
    np.testing.assert_array_equal(plan.actions, again.actions)


def test_who_proposes_is_found_beside_the_world(
    world: World, proposer: CloneProposer, tmp_path: Path
) -> None:
    assert find_proposer(world, tmp_path) is None
    with pytest.raises(WorldError, match=r"no policy that could propose plans; .* --clone"):
        make_planner(PROPOSE, SMALL, None)
    save_part(tmp_path / CLONE_FILE, proposer.clone.config, proposer.clone)
    found = find_proposer(world, tmp_path)
    assert isinstance(found, CloneProposer)
    assert isinstance(make_planner(PROPOSE, SMALL, found), ProposeAndCheck)
