"""Scores of candidates: all are simulated in a world at once, in latents."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.model.world import WorldError, WorldModel
from kinema.simulation.session import Simulation, SimulationBatch
from kinema.simulation.step import Step

Measure = Literal["steps", "codes", "latents"]
MeasureOrAuto = Literal["auto", "steps", "codes", "latents"]
Distance = Callable[[SimulationBatch], Float[np.ndarray, " B"]]
"""Measures the distance of the present frames of sessions from a goal."""
Execute = Callable[[Callable[[], Any]], Any]
"""Executes a piece of work, at a time of its own choosing, and returns its result."""
END_SHARE = 0.5
PROPRIO_WEIGHT = 2.0
"""Weight of proprioception beside a code, both root mean squares of numbers within [-1, 1]."""


def resolve_measure(world: WorldModel, measure: MeasureOrAuto) -> Measure:
    """Resolve ``auto``: steps where the world has heads, else codes where it has a manifold, else latents."""
    if measure != "auto":
        return measure
    if world.heads is not None:
        return "steps"
    return "latents" if not world.has_trust else "codes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal frame, a reward, or both."""

    target: Float[Tensor, "1 G"] | Distance | None = None
    """The goal as ``kinema.model.goals.encode_goal`` gives it, or a function that measures the distance."""
    measure: Measure = "steps"
    """Distance of a frame from the target: the steps that the heads predict; or, without heads, the root mean
    square difference of codes in the manifold, with that of proprioception beside it; or that of latents (of
    proprioception, in a world without cameras), in which small things hardly count."""
    reward_weight: float = 0.0
    """Weight of the sum of rewards, beside a weight of one for the distance."""
    end_share: float = END_SHARE
    """Share of the distance at the last step; the rest is the mean over the steps, so that the faster of two
    plans that arrive is better."""
    min_trust: float | None = None
    """While trust is under this, a candidate counts as far from the goal as it ever was, and gets no
    reward."""

    def __post_init__(self) -> None:
        if self.target is None and not self.reward_weight:
            raise ValueError(
                "target=None and reward_weight=0: there is nothing to plan for; give one of them"
            )
        if not 0.0 <= self.end_share <= 1.0:
            raise ValueError(f"end_share={self.end_share}: it is a share, from 0 to 1")

    def check(self, world: WorldModel) -> None:
        """Raise WorldError where the world lacks a part that the goal needs."""
        if self.reward_weight or (isinstance(self.target, Tensor) and self.measure == "steps"):
            world.require_heads()
        if isinstance(self.target, Tensor) and self.measure == "codes" and not world.has_trust:
            raise WorldError(f"world '{world.name}' has no manifold, so no codes: take the measure 'latents'")
        if self.min_trust is not None and not world.has_trust:
            raise WorldError(f"min_trust={self.min_trust}: world '{world.name}' does not compute trust")

    def distance(self, world: WorldModel, sessions: SimulationBatch) -> Float[np.ndarray, " B"]:
        """Measure the distance of the present frames of sessions from the target."""
        assert self.target is not None
        if not isinstance(self.target, Tensor):
            return self.target(sessions)
        return self.distance_from(world, world.place(sessions.latents, sessions.normalized_proprio))

    def distance_from(self, world: WorldModel, here: Float[Tensor, "B G"]) -> Float[np.ndarray, " B"]:
        """Measure the distance of state features, as ``WorldModel.place`` gives them, from the target."""
        assert isinstance(self.target, Tensor)
        target = self.target.expand(len(here), -1)
        if self.measure != "steps":
            latents, proprio, code = (here - target).split(world.place_sizes, dim=-1)
            if self.measure == "codes":
                distance = _size(code) + PROPRIO_WEIGHT * _size(proprio)
            else:
                distance = _size(latents if latents.shape[-1] else proprio)
            return distance.cpu().numpy()
        with torch.inference_mode():
            return world.require_heads().distance(here, target).cpu().numpy()


class WorldScore:
    """Scores candidates by simulating them from where a session is; the session is not changed."""

    def __init__(
        self,
        session: Simulation | SimulationBatch,
        goal: Goal,
        *,
        max_batch: int = 256,
        run: Execute = lambda work: work(),
    ):
        """Let candidates start at the present state of ``session``.

        Args:
            session: one session, or a batch of one.
            goal: the goal.
            max_batch: candidates that are simulated together; more are simulated in parts.
            run: executes every piece of the work, one step of one part; a server serves others between.

        Raises:
            WorldError: the world lacks the heads that the goal needs.
        """
        goal.check(session.world)
        self.session, self.goal, self.max_batch, self._run = session, goal, max_batch, run
        self.num_steps = 0
        """Simulated steps so far, those of all candidates together."""
        self.num_batched_steps = 0
        """Simulated steps so far, those of a batch counted once."""
        self.num_other_calls = 0
        """Calls of the dynamics so far that proposed actions."""

    @property
    def num_network_calls(self) -> int:
        """Calls of the dynamics so far: those that denoise each frame, one more to commit it where there are
        several, and those of proposals."""
        calls = self.session.world.config.num_denoising_steps
        return self.num_batched_steps * (calls + (calls > 1)) + self.num_other_calls

    def count(self, num: int, horizon: int) -> None:
        """Count ``horizon`` more steps of ``num`` sessions."""
        self.num_steps += num * horizon
        self.num_batched_steps += horizon

    def __call__(self, candidates: Float[np.ndarray, "K H A"]) -> Float[np.ndarray, " K"]:
        parts = [
            self._score(candidates[first : first + self.max_batch])
            for first in range(0, len(candidates), self.max_batch)
        ]
        return np.concatenate(parts)

    def _score(self, candidates: np.ndarray) -> np.ndarray:
        world, goal = self.session.world, self.goal
        num, horizon, _ = candidates.shape
        actions = restore_actions(world, candidates)
        sessions = self._run(lambda: self.fork(num))
        alive, most = np.ones(num), np.full(num, -np.inf)
        if goal.min_trust is not None and goal.target is not None:
            most = self._run(lambda: goal.distance(world, sessions))
        rewards, distances = np.zeros(num), []
        for t in range(horizon):
            step, distance = self._run(lambda t=t: self._advance(sessions, actions[:, t]))
            is_lost = np.zeros(num, dtype=bool)
            if goal.min_trust is not None:
                is_lost = step.trust < goal.min_trust
            if goal.reward_weight:
                rewards += alive * ~is_lost * step.reward
                alive *= 1.0 - step.termination
            if distance is not None:
                distance = np.where(is_lost, np.maximum(distance, most), distance)
                most = np.maximum(distance, most)
                distances.append(distance)
        self.count(num, horizon)
        scores = goal.reward_weight * rewards
        if distances:
            scores = scores + worth(np.stack(distances, axis=1), goal.end_share)
        return scores

    def fork(self, num: int) -> SimulationBatch:
        """Fork futures for ``num`` candidates from the session."""
        return self.session.fork(num, max_rewind=0)

    def _advance(self, sessions: SimulationBatch, actions: np.ndarray) -> tuple[Step, np.ndarray | None]:
        """Simulate one step of every candidate, and measure its distance from the target."""
        step = sessions.step(actions, decode=False, judge=bool(self.goal.reward_weight))
        if self.goal.target is None:
            return step, None
        return step, self.goal.distance(self.session.world, sessions)


def worth(distances: Float[np.ndarray, "*batch T"], end_share: float) -> Float[np.ndarray, "*batch"]:
    """Return minus the distance from a goal, of which ``end_share`` is that of the last step and the rest the
    mean over the steps."""
    return -end_share * distances[..., -1] - (1.0 - end_share) * distances.mean(axis=-1)


def _size(offsets: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """Return root mean squares; zero without numbers."""
    return offsets.square().sum(-1).div(max(1, offsets.shape[-1])).sqrt()


def restore_actions(
    world: WorldModel, actions: Float[np.ndarray, "*batch V"]
) -> Float[np.ndarray, "*batch A"]:
    """Return normalised actions in the units of the dataset."""
    tensor = torch.from_numpy(np.asarray(actions, dtype=np.float32)).to(world.device)
    return world.action_normalizer.restore(tensor).cpu().numpy()


def normalize_actions(
    world: WorldModel, actions: Float[np.ndarray, "*batch A"]
) -> Float[np.ndarray, "*batch V"]:
    """Return actions in the units of the dataset, normalised."""
    tensor = torch.from_numpy(np.asarray(actions, dtype=np.float32)).to(world.device)
    return world.action_normalizer.normalize(tensor).cpu().double().numpy()
