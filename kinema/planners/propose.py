"""Propose and check: a policy proposes actions, the world predicts their outcome.

Plans are drawn from a policy and simulated, the best are kept and changed a little, again and again (a search
that starts from a behaviour prior: MBOP, 2008.05556; proposals of a policy: TD-MPC2, 2310.16828). Actions
that the policy never takes are not tried, so the search stays where the world was trained.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kinema.planners.scores import WorldScore, normalize_actions, restore_actions
from kinema.planners.search import Planner, Score, SearchConfig, Solution, interpolate, rate
from kinema.simulation.session import SimulationBatch


@runtime_checkable
class Proposer(Protocol):
    """A policy as planners use it."""

    name: str

    @property
    def num_network_calls(self) -> int:
        """Calls of the dynamics for a proposal, whatever the number of sessions."""
        ...

    def propose(
        self, sessions: SimulationBatch, target: Float[Tensor, "1 G"] | None, rng: np.random.Generator
    ) -> Float[np.ndarray, "B C A"]:
        """Draw the next actions of each session, in the units of the dataset; equal sessions get different
        ones.

        Args:
            sessions: sessions to act in; they are not changed.
            target: the goal as ``kinema.model.goals.encode_goal`` gives it, or none.
            rng: source of all randomness.
        """
        ...


Propose = Callable[[int, np.random.Generator], Float[np.ndarray, "K H A"]]
"""Draws a number of plans from one state, normalised and within [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class ProposeAndCheck:
    """The planner before its state is known; ``at`` gives the planner of one state."""

    config: SearchConfig
    proposer: Proposer

    def at(self, score: WorldScore) -> Planner:
        """Return the planner at the session of a score, for its goal."""

        def propose(num: int, rng: np.random.Generator) -> np.ndarray:
            return roll_out(self.proposer, score, num, self.config.horizon, rng)

        return CheckProposals(self.config, propose)


@dataclasses.dataclass(frozen=True)
class CheckProposals:
    """A planner at one state. The first ``candidates`` are proposals and the start; in later iterations
    changes of the ``elites``, ever smaller, from a quarter of ``std`` to ``min_std``."""

    config: SearchConfig
    propose: Propose

    def plan(self, score: Score, start: Float[np.ndarray, "H A"], rng: np.random.Generator) -> Solution:
        config = self.config
        plans = self.propose(config.candidates - 1, rng)
        candidates = np.concatenate([np.clip(start, -1.0, 1.0)[None], plans])
        scores = rate(score, candidates)
        num_refined = config.iterations - 1
        for std in np.geomspace(max(config.std / 4, config.min_std), config.min_std, num_refined):
            best = np.argsort(scores)[-config.elites :]
            candidates, scores = candidates[best], scores[best]
            parents = rng.integers(0, config.elites, config.candidates)
            knots = std * rng.normal(size=(config.candidates, config.num_knots, start.shape[1]))
            changed = np.clip(candidates[parents] + interpolate(knots, config.horizon), -1.0, 1.0)
            candidates = np.concatenate([candidates, changed])
            scores = np.concatenate([scores, rate(score, changed)])
        top = int(scores.argmax())
        return Solution(candidates[top], float(scores[top]), config.candidates * config.iterations)


def roll_out(
    proposer: Proposer, score: WorldScore, num: int, horizon: int, rng: np.random.Generator
) -> Float[np.ndarray, "K H A"]:
    """Draw plans of ``horizon`` steps: a policy acts in futures of a score's session, and proposes again
    whenever its actions are executed. The steps are counted with those of the score."""
    world, target = score.session.world, score.goal.target
    if target is not None and not isinstance(target, Tensor):
        raise ValueError("a policy proposes plans for a goal frame, not for one that is given as a distance")
    sessions = score.fork(num)
    chunks: list[np.ndarray] = []
    num_actions = 0
    while True:
        score.num_other_calls += proposer.num_network_calls
        chunk = proposer.propose(sessions, target, rng)[:, : horizon - num_actions]
        chunk = np.clip(normalize_actions(world, chunk), -1.0, 1.0)
        chunks.append(chunk)
        num_actions += chunk.shape[1]
        if num_actions == horizon:
            return np.concatenate(chunks, axis=1)
        for actions in restore_actions(world, chunk).swapaxes(0, 1):
            sessions.step(actions, decode=False, judge=False)
        score.count(num, chunk.shape[1])
