"""The contract between planners and scores: candidates in, one number for each out.

Candidates are ``K H A``: ``K`` sequences of ``H`` normalised actions, all within [-1, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from kinema.options import at_least

Score = Callable[[Float[np.ndarray, "K H A"]], Float[np.ndarray, " K"]]
"""Rates each candidate; more is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    horizon: int = 10
    """Steps H of a plan."""
    num_knots: int = 3
    """Actions of a plan that are searched for, evenly spread; those between are on straight lines."""
    candidates: int = 40
    """Plans that are tried in an iteration."""
    iterations: int = 2
    """Times that candidates are drawn."""
    elites: int = 6
    """Best candidates that the next ones are drawn around."""
    std: float = 0.4
    """Deviation of the first candidates, in halves of the range of the actions."""
    min_std: float = 0.03
    """Least deviation of later candidates."""
    momentum: float = 0.1
    """Share of the last mean and deviation that is kept in each iteration."""

    def __post_init__(self) -> None:
        at_least(self, horizon=1, num_knots=1, candidates=2, iterations=1, elites=2)
        if self.num_knots > self.horizon:
            raise ValueError(f"num_knots={self.num_knots}: a plan has only horizon={self.horizon} actions")
        if self.elites > self.candidates:
            raise ValueError(f"elites={self.elites}: there are only candidates={self.candidates}")
        if not 0.0 < self.min_std <= self.std:
            raise ValueError(f"min_std={self.min_std}, std={self.std}: 0 < min_std <= std is needed")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum={self.momentum}: it is a share, from 0 to below 1")


@dataclasses.dataclass(frozen=True)
class Solution:
    """The best candidate of a search."""

    actions: Float[np.ndarray, "H A"]
    score: float
    num_candidates: int
    """Candidates that were tried."""


@runtime_checkable
class Planner(Protocol):
    """Searches for a good sequence of actions."""

    @property
    def config(self) -> SearchConfig:
        """Settings of the search."""
        ...

    def plan(self, score: Score, start: Float[np.ndarray, "H A"], rng: np.random.Generator) -> Solution:
        """Search around ``start`` and return the best candidate; all randomness is from ``rng``."""
        ...


class WarmStart:
    """The rest of the last plan, around which the next search begins."""

    def __init__(self) -> None:
        self._rest: Float[np.ndarray, "H A"] | None = None

    def reset(self) -> None:
        """Begin an episode, without a plan."""
        self._rest = None

    def keep(self, actions: Float[np.ndarray, "H A"], num_done: int) -> None:
        """Keep a plan of which the first ``num_done`` actions are executed before the next search."""
        self._rest = actions[num_done:]

    def start(self, horizon: int, last_action: Float[np.ndarray, " A"]) -> Float[np.ndarray, "H A"]:
        """Return the rest of the plan, its last action repeated; without one, ``last_action`` repeated."""
        rest = self._rest if self._rest is not None and len(self._rest) else last_action[None]
        return np.concatenate([rest, np.repeat(rest[-1:], horizon - len(rest), axis=0)])


Refit = Callable[
    [Float[np.ndarray, "K N A"], Float[np.ndarray, " K"]],
    tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "N A"]],
]
"""Computes mean and deviation of the next knots from the last ones and their scores."""


def search(
    config: SearchConfig,
    score: Score,
    start: Float[np.ndarray, "H A"],
    rng: np.random.Generator,
    refit: Refit,
) -> Solution:
    """Draw candidates around a mean, score them, move the mean, and repeat. The mean itself and the best
    candidate so far are always among the candidates."""
    knot_steps = np.linspace(0.0, config.horizon - 1.0, config.num_knots)
    mean = np.clip(start[knot_steps.round().astype(int)], -1.0, 1.0)
    std = np.full_like(mean, config.std)
    best, best_score, best_knots = np.clip(start, -1.0, 1.0), -np.inf, mean
    for _ in range(config.iterations):
        knots = mean + std * rng.normal(size=(config.candidates, *mean.shape))
        knots[0], knots[1] = mean, best_knots
        knots = np.clip(knots, -1.0, 1.0)
        candidates = interpolate(knots, config.horizon)
        scores = rate(score, candidates)
        top = int(scores.argmax())
        if scores[top] > best_score:
            best, best_score, best_knots = candidates[top], float(scores[top]), knots[top]
        new_mean, new_std = refit(knots, scores)
        keep = config.momentum
        mean = keep * mean + (1.0 - keep) * new_mean
        std = np.maximum(keep * std + (1.0 - keep) * new_std, config.min_std)
    return Solution(best, best_score, config.candidates * config.iterations)


def rate(score: Score, candidates: Float[np.ndarray, "K H A"]) -> Float[np.ndarray, " K"]:
    """Score candidates. Raises ValueError where the score does not give one number for each."""
    scores = score(candidates)
    if scores.shape != (len(candidates),) or np.isnan(scores).any():
        raise ValueError(
            f"a score must give one number for each of {len(candidates)} candidates; got {scores!r}"
        )
    return scores


def interpolate(knots: Float[np.ndarray, "K N A"], horizon: int) -> Float[np.ndarray, "K H A"]:
    """Return the actions of plans, on straight lines from knot to knot."""
    num_knots = knots.shape[1]
    if num_knots == 1:
        return np.repeat(knots, horizon, axis=1)
    position = np.linspace(0.0, num_knots - 1.0, horizon)
    left = np.minimum(position.astype(int), num_knots - 2)
    share = (position - left)[:, None]
    return knots[:, left] * (1.0 - share) + knots[:, left + 1] * share


def check_planner(planner: Planner) -> None:
    """Check the contract of a planner, and that it finds the best actions of an easy score.

    Raises:
        AssertionError: names the rule that is broken.
    """
    assert isinstance(planner, Planner)
    horizon = planner.config.horizon
    tried: list[np.ndarray] = []
    target = np.linspace(-0.5, 0.6, horizon)[:, None] * np.array([1.0, -1.0])

    def score(candidates: np.ndarray) -> np.ndarray:
        tried.append(candidates)
        return -((candidates - target) ** 2).mean(axis=(1, 2))

    start = np.zeros((horizon, 2))
    plan = planner.plan(score, start, np.random.default_rng(0))
    candidates = np.concatenate(tried)
    assert candidates.shape == (plan.num_candidates, horizon, 2), "candidates are K H A, and all are counted"
    assert np.abs(candidates).max() <= 1.0, "candidates lie within [-1, 1]"
    assert plan.actions.shape == (horizon, 2), "a plan is H A"
    assert np.isclose(plan.score, score(candidates).max()), "the best candidate is given, with its score"
    assert np.allclose(score(plan.actions[None]), plan.score), "the score is that of the actions"
    assert plan.score > 0.5 * float(score(start[None])[0]), "the plan is nearer to the best than the start is"
    again = planner.plan(score, start, np.random.default_rng(0))
    assert np.array_equal(again.actions, plan.actions), "the same generator gives the same plan"
