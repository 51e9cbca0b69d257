"""The contract between planners and what they search in: candidates in, scores out.

Candidates are ``K H A``: ``K`` sequences of ``H`` normalised actions, all within [-1, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Score = Callable[[Float[np.ndarray, "K H A"]], Float[np.ndarray, " K"]]
"""How good each candidate is; more is better."""


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
    """Deviation that is never gone under."""
    momentum: float = 0.1
    """Share of the mean and deviation before that is kept in each iteration."""

    def __post_init__(self) -> None:
        for name, least in (
            ("horizon", 1),
            ("num_knots", 1),
            ("candidates", 2),
            ("iterations", 1),
            ("elites", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        if self.num_knots > self.horizon:
            raise ValueError(f"num_knots={self.num_knots}: a plan has only horizon={self.horizon} actions")
        if self.elites > self.candidates:
            raise ValueError(f"elites={self.elites}: there are only candidates={self.candidates}")
        if not 0.0 < self.min_std <= self.std:
            raise ValueError(f"min_std={self.min_std}, std={self.std}: 0 < min_std <= std is needed")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum={self.momentum}: it is a share, from 0 to below 1")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found."""

    actions: Float[np.ndarray, "H A"]
    """The best candidate of all that were tried."""
    score: float
    num_candidates: int
    """How many were tried."""


@runtime_checkable
class Planner(Protocol):
    """Searches for a good sequence of actions."""

    @property
    def config(self) -> SearchConfig:
        """How much it searches."""
        ...

    def plan(self, score: Score, start: Float[np.ndarray, "H A"], rng: np.random.Generator) -> Found:
        """The best that it found, searching around ``start``; all its randomness is from ``rng``."""
        ...


class WarmStart:
    """Where searches begin in closed loop: at what is left of the plan before."""

    def __init__(self) -> None:
        self._left: Float[np.ndarray, "H A"] | None = None

    def forget(self) -> None:
        """An episode begins."""
        self._left = None

    def keep(self, actions: Float[np.ndarray, "H A"], num_done: int) -> None:
        """Of a plan, the first actions will be done before the next."""
        self._left = actions[num_done:]

    def guess(self, horizon: int, last_action: Float[np.ndarray, " A"]) -> Float[np.ndarray, "H A"]:
        """What is left, its last action again and again; without a plan, the last action that was done."""
        left = self._left if self._left is not None and len(self._left) else last_action[None]
        return np.concatenate([left, np.repeat(left[-1:], horizon - len(left), axis=0)])


Refit = Callable[
    [Float[np.ndarray, "K N A"], Float[np.ndarray, " K"]],
    tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "N A"]],
]
"""Mean and deviation of the next knots, from those that were tried and their scores."""


def search(
    config: SearchConfig,
    score: Score,
    start: Float[np.ndarray, "H A"],
    rng: np.random.Generator,
    refit: Refit,
) -> Found:
    """Draw candidates around a mean, let them be scored, move the mean, and again. The mean itself is always
    one of the candidates, and so is the best one so far."""
    places = np.linspace(0.0, config.horizon - 1.0, config.num_knots)
    mean = np.clip(start[places.round().astype(int)], -1.0, 1.0)
    std = np.full_like(mean, config.std)
    best, best_score, best_knots = np.clip(start, -1.0, 1.0), -np.inf, mean
    for _ in range(config.iterations):
        knots = mean + std * rng.normal(size=(config.candidates, *mean.shape))
        knots[0], knots[1] = mean, best_knots
        knots = np.clip(knots, -1.0, 1.0)
        candidates = between(knots, config.horizon)
        scores = checked(score, candidates)
        top = int(scores.argmax())
        if scores[top] > best_score:
            best, best_score, best_knots = candidates[top], float(scores[top]), knots[top]
        new_mean, new_std = refit(knots, scores)
        keep = config.momentum
        mean = keep * mean + (1.0 - keep) * new_mean
        std = np.maximum(keep * std + (1.0 - keep) * new_std, config.min_std)
    return Found(best, best_score, config.candidates * config.iterations)


def checked(score: Score, candidates: Float[np.ndarray, "K H A"]) -> Float[np.ndarray, " K"]:
    """The scores of candidates. Raises ValueError where they are not one number for each."""
    scores = score(candidates)
    if scores.shape != (len(candidates),) or np.isnan(scores).any():
        raise ValueError(
            f"a score must give one number for each of {len(candidates)} candidates; got {scores!r}"
        )
    return scores


def between(knots: Float[np.ndarray, "K N A"], horizon: int) -> Float[np.ndarray, "K H A"]:
    """The actions of plans, on straight lines from knot to knot."""
    num_knots = knots.shape[1]
    if num_knots == 1:
        return np.repeat(knots, horizon, axis=1)
    place = np.linspace(0.0, num_knots - 1.0, horizon)
    left = np.minimum(place.astype(int), num_knots - 2)
    share = (place - left)[:, None]
    return knots[:, left] * (1.0 - share) + knots[:, left + 1] * share


def check_planner(planner: Planner) -> None:
    """Whether a planner keeps the contract, and finds the best actions where they are easy to find.

    Raises:
        AssertionError: says what is not so.
    """
    assert isinstance(planner, Planner)
    horizon = planner.config.horizon
    seen: list[np.ndarray] = []
    target = np.linspace(-0.5, 0.6, horizon)[:, None] * np.array([1.0, -1.0])

    def score(candidates: np.ndarray) -> np.ndarray:
        seen.append(candidates)
        return -((candidates - target) ** 2).mean(axis=(1, 2))

    start = np.zeros((horizon, 2))
    found = planner.plan(score, start, np.random.default_rng(0))
    tried = np.concatenate(seen)
    assert tried.shape == (found.num_candidates, horizon, 2), "candidates are K H A, and all are counted"
    assert np.abs(tried).max() <= 1.0, "candidates lie within [-1, 1]"
    assert found.actions.shape == (horizon, 2), "a plan is H A"
    scores = score(tried)
    assert np.isclose(found.score, scores.max()), "the best candidate is given, with its score"
    assert np.allclose(score(found.actions[None]), found.score), "the score is that of the actions"
    assert found.score > 0.5 * float(score(start[None])[0]), (
        "the plan is nearer to the best than the start is"
    )
    again = planner.plan(score, start, np.random.default_rng(0))
    assert np.array_equal(again.actions, found.actions), "the same generator gives the same plan"
