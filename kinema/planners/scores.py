"""How good candidates are: simulated in a world, in latents, all at once."""

import dataclasses
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.simulation import Simulation, SimulationBatch
from kinema.world_model import WorldError, WorldModel

Measure = Literal["steps", "latents"]
END_SHARE = 0.5


def resolve_measure(world: WorldModel, measure: Literal["auto", "steps", "latents"]) -> Measure:
    """``auto`` is steps where the world has heads to tell them, else latents."""
    if measure != "auto":
        return measure
    return "latents" if world.heads is None else "steps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted: a goal picture, reward, or both."""

    target: Float[Tensor, "1 G"] | None = None
    """The goal as ``kinema.policies.cloned.encode_goal`` gives it."""
    measure: Measure = "steps"
    """How far a frame is from the target: the steps that the heads foretell, or the root mean square
    difference of latents (of proprioception, in a world without cameras), which needs no heads."""
    reward_weight: float = 0.0
    """Weight of the sum of rewards, beside a weight of one for the distance."""
    end_share: float = END_SHARE
    """How much of the distance is that of the last step; the rest is the mean over the steps, so that of two
    plans that arrive the faster one is better."""
    min_trust: float | None = None
    """From the step on where trust falls under this, a candidate counts as far from the goal as it has been
    at most, and as without reward."""

    def __post_init__(self) -> None:
        if self.target is None and not self.reward_weight:
            raise ValueError(
                "target=None and reward_weight=0: there is nothing to plan for; give one of them"
            )
        if not 0.0 <= self.end_share <= 1.0:
            raise ValueError(f"end_share={self.end_share}: it is a share, from 0 to 1")

    def check(self, world: WorldModel) -> None:
        """Raises WorldError where the world has not what this needs."""
        if self.reward_weight or (self.target is not None and self.measure == "steps"):
            world.require_heads()
        if self.min_trust is not None and world.manifold is None:
            raise WorldError(f"min_trust={self.min_trust}: world '{world.name}' does not tell trust")

    def distance(self, world: WorldModel, sessions: SimulationBatch) -> Float[np.ndarray, " B"]:
        """How far the present frames of sessions are from the target."""
        assert self.target is not None
        here = world.place(sessions.latents, sessions.normalized_proprio)
        target = self.target.expand(len(sessions), -1)
        if self.measure == "latents":
            sizes = world.place_sizes
            offset = (here - target)[:, : sizes.latents or sizes.proprio]
            return offset.square().mean(-1).sqrt().cpu().numpy()
        with torch.inference_mode():
            return world.require_heads().distance(here, target).cpu().numpy()


class WorldScore:
    """Scores candidates by simulating them from where a session is; the session is not changed."""

    def __init__(self, session: Simulation | SimulationBatch, goal: Goal, *, max_batch: int = 256):
        """``max_batch`` candidates are simulated together; more are done in parts.

        Raises:
            WorldError: the world has not the heads that the goal needs.
        """
        goal.check(session.world)
        self.session, self.goal, self.max_batch = session, goal, max_batch
        self.num_steps = 0
        """Steps simulated so far, those of all candidates together."""
        self.num_batched_steps = 0
        """Steps simulated so far, those of a batch counted once."""
        self.num_other_calls = 0
        """Calls of the dynamics so far that simulated nothing, but proposed what to do."""

    @property
    def num_network_calls(self) -> int:
        """Calls of the dynamics so far: one to keep each frame, beside those that find it, and those of
        proposals."""
        batch = self.session.world.config.num_denoising_steps
        return self.num_batched_steps * (batch + 1) + self.num_other_calls

    def count(self, num: int, horizon: int) -> None:
        """So many more steps of so many sessions were simulated."""
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
        sessions = self.session.fork(num, max_rewind=0)
        alive = np.ones(num)
        rewards, distances = np.zeros(num), []
        for t in range(horizon):
            step = sessions.step(actions[:, t], decode=False)
            is_lost = np.zeros(num, dtype=bool)
            if goal.min_trust is not None:
                is_lost = step.trust < goal.min_trust
            if goal.reward_weight:
                rewards += alive * ~is_lost * step.reward
                alive *= 1.0 - step.termination
            if goal.target is not None:
                distance = goal.distance(world, sessions)
                if distances:
                    distance = np.where(is_lost, np.max(distances, axis=0), distance)
                distances.append(distance)
        self.count(num, horizon)
        scores = goal.reward_weight * rewards
        if distances:
            each = np.stack(distances)
            scores = scores - goal.end_share * each[-1] - (1.0 - goal.end_share) * each.mean(axis=0)
        return scores


def restore_actions(
    world: WorldModel, actions: Float[np.ndarray, "*batch A"]
) -> Float[np.ndarray, "*batch A"]:
    """Normalised actions in the units of the dataset."""
    tensor = torch.from_numpy(np.asarray(actions, dtype=np.float32)).to(world.device)
    return world.action_normalizer.restore(tensor).cpu().numpy()


def normalize_actions(
    world: WorldModel, actions: Float[np.ndarray, "*batch A"]
) -> Float[np.ndarray, "*batch A"]:
    """Actions in the units of the dataset, normalised."""
    tensor = torch.from_numpy(np.asarray(actions, dtype=np.float32)).to(world.device)
    return world.action_normalizer.normalize(tensor).cpu().double().numpy()
