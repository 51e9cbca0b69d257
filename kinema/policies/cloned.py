"""Behaviour cloning: a small policy that acts as the recordings do, with or without a goal.

It reads the latents and the proprioception of the last two frames and gives a mixture of normal distributions
over the next few actions, since recordings act differently in the same state (as BC-GMM in robomimic,
2108.03298). Goals are later frames of the same episode (relabelled in hindsight, as in 1903.01973).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.model.goals import encode_goal, encode_place
from kinema.model.heads import PlaceFeatures, PlaceSizes, ResidualMLP, to_device
from kinema.model.parts import load_part
from kinema.model.world import WorldError
from kinema.options import at_least
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World, load
from kinema.types import Seen

Mixture = torch.distributions.MixtureSameFamily
CLONE_FILE = "clone.safetensors"
"""File of the policy in the world's folder, written by ``kinema train --clone``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloneConfig:
    width: int = 384
    """Width of the residual MLP."""
    depth: int = 3
    """Blocks of the residual MLP."""
    chunk: int = 8
    """Actions that are predicted together."""
    num_modes: int = 5
    """Normal distributions of the mixture."""
    max_steps: int = 100
    """Most steps to a goal."""
    goal_dropout: float = 0.2
    """Share of the examples without a goal, so that the policy can also act without one."""

    def __post_init__(self) -> None:
        at_least(self, width=1, depth=1, chunk=1, num_modes=1, max_steps=1)
        if not 0.0 <= self.goal_dropout <= 1.0:
            raise ValueError(f"goal_dropout={self.goal_dropout}: it is a share, from 0 to 1")


class Clone(nn.Module):
    """Predicts a mixture over the next actions from state features."""

    LOWEST_LOG_STD = -4.0

    def __init__(self, config: CloneConfig, *, sizes: PlaceSizes, action_dim: int):
        super().__init__()
        self.config = config
        self.action_dim = action_dim
        self.features = PlaceFeatures(sizes)
        self.num_numbers = config.chunk * action_dim
        num_outputs = config.num_modes * (2 * self.num_numbers + 1)
        self.network = ResidualMLP(self.features.aim_size, num_outputs, config.width, config.depth)
        # Modes that begin alike stay alike.
        nn.init.normal_(self.network.last.bias, std=0.3)

    def forward(
        self,
        before: Float[Tensor, "N G"],
        now: Float[Tensor, "N G"],
        goal: Float[Tensor, "N G"],
        has_goal: Bool[Tensor, " N"],
    ) -> Mixture:
        """Return the distribution of the next actions, normalised and flat (``chunk * A``)."""
        outputs = self.network(self.features.of_aim(before, now, goal, has_goal)).float()
        outputs = outputs.unflatten(-1, (self.config.num_modes, -1))
        logits, means, log_stds = outputs.split((1, self.num_numbers, self.num_numbers), dim=-1)
        stds = log_stds.clamp(self.LOWEST_LOG_STD, 1.0).exp()
        parts = torch.distributions.Independent(torch.distributions.Normal(means, stds), 1)
        return Mixture(torch.distributions.Categorical(logits=logits[..., 0]), parts)


@dataclasses.dataclass(frozen=True)
class CloneBatch:
    """State features of recorded frames and their goals, and the recorded actions."""

    before: Float[Tensor, "N G"]
    now: Float[Tensor, "N G"]
    goal: Float[Tensor, "N G"]
    actions: Float[Tensor, "N C A"]
    """Normalised actions from ``now`` on."""

    def to(self, device: torch.device) -> "CloneBatch":
        """Move all to a device."""
        return CloneBatch(**to_device(self, device))


class CloneObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: the likelihood of the recorded actions."""

    def __init__(self, clone: Clone):
        super().__init__()
        self.clone = clone

    def forward(
        self, batch: CloneBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device = batch.goal.device
        draws = torch.rand(len(batch.goal), generator=generator, device=device)
        has_goal = draws >= self.clone.config.goal_dropout
        mixture = self.clone(batch.before, batch.now, batch.goal, has_goal)
        loss = -mixture.log_prob(batch.actions.flatten(1)).mean() / self.clone.num_numbers
        error = (most_likely(mixture) - batch.actions.flatten(1)).abs().mean()
        return loss, {"action_error": error.detach()}


def most_likely(mixture: Mixture) -> Float[Tensor, "N V"]:
    """Return the mean of the likeliest mode."""
    means = mixture.component_distribution.mean
    best = mixture.mixture_distribution.logits.argmax(-1)
    return means[torch.arange(len(means), device=means.device), best]


class ClonedPolicy:
    """Acts by a clone: in real environments, in a world, and for ``kinema record``."""

    needs_frame = True

    def __init__(
        self,
        world: World,
        clone: Clone,
        *,
        observation_space: Any = None,
        goal: np.ndarray | None = None,
        noise: float = 0.0,
        is_greedy: bool = True,
    ):
        """Make a policy for one episode after the other.

        Args:
            world: the world whose latents the clone reads.
            clone: the network.
            observation_space: that of the environment; ``act`` needs it.
            goal: frame ``H W 3``, or none.
            noise: deviation of normal noise on every action, in halves of the range of the recorded ones.
            is_greedy: take the most likely actions; else draw them.
        """
        self.world, self.clone, self.noise, self.is_greedy = world, clone, noise, is_greedy
        self._reader: Any = None
        if observation_space is not None:
            from kinema.data.spaces import ObservationReader

            self._reader = ObservationReader(observation_space)
        self.set_goal(goal)
        self.begin(np.random.default_rng(0))

    @property
    def actions_per_look(self) -> int:
        """Executed actions of a chunk."""
        return self.clone.config.chunk - self.clone.config.chunk // 2

    def set_goal(self, goal: Any) -> None:
        """Set the goal: a frame ``H W 3``, or several by camera; None for no goal.

        Raises:
            WorldError: the frame does not fit the world.
        """
        self._goal = None if goal is None else encode_goal(self.world, goal)

    def begin(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._rng = rng
        self._last: Tensor | None = None
        self._plan: list[np.ndarray] = []

    def choose(self, seen: Seen) -> Float[np.ndarray, " A"]:
        """Return the action for an observation, in the units of the dataset. Half of a chunk is executed
        before the next is predicted."""
        here = encode_place(self.world, seen)
        if len(self._plan) <= self.clone.config.chunk - self.actions_per_look:
            before = here if self._last is None else self._last
            self._plan = list(self.predict(before, here, self._goal))
        self._last = here
        return self._plan.pop(0)

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        self.begin(rng)

    def act(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        if self._reader is None:
            raise ValueError("a cloned policy needs the observation_space of the environment to act in it")
        frames, vectors = self._reader.frames(observation), self._reader.vectors(observation)
        frames |= {key: info[key] for key in self.world.cameras if key in info}
        proprio = vectors.get(self.world.config.proprio_key) if self.world.config.proprio_key else None
        return self.choose(Seen(frames=frames, proprio=proprio))

    @torch.inference_mode()
    def predict(
        self, before: Float[Tensor, "1 G"], here: Float[Tensor, "1 G"], goal: Float[Tensor, "1 G"] | None
    ) -> Float[np.ndarray, "C A"]:
        """Predict the next actions, in the units of the dataset, from the state features (``World.place``)
        of two consecutive frames."""
        has_goal = torch.tensor([goal is not None], device=self.world.device)
        mixture = self.clone(before, here, here if goal is None else goal, has_goal)
        actions = most_likely(mixture) if self.is_greedy else draw(mixture, self._rng)
        actions = actions.unflatten(-1, (-1, self.clone.action_dim))[0]
        actions = actions + self.noise * torch.from_numpy(self._rng.normal(size=actions.shape)).to(actions)
        return self.world.action_normalizer.restore(actions.clamp(-1.0, 1.0)).cpu().numpy()


class CloneProposer:
    """Draws the next chunk of actions from a clone, for planners, by the last two frames of each session."""

    name = "cloned"
    num_network_calls = 0

    def __init__(self, clone: Clone):
        self.clone = clone

    @torch.inference_mode()
    def propose(
        self, sessions: SimulationBatch, target: Float[Tensor, "1 G"] | None, rng: np.random.Generator
    ) -> Float[np.ndarray, "B C A"]:
        world = sessions.world
        now = world.place(sessions.latents, sessions.normalized_proprio)
        before = world.place(*sessions.frame_before)
        goal = now if target is None else target.expand(len(now), -1)
        has_goal = torch.full((len(now),), target is not None, device=world.device)
        actions = draw(self.clone(before, now, goal, has_goal), rng).unflatten(
            -1, (-1, self.clone.action_dim)
        )
        return world.action_normalizer.restore(actions.clamp(-1.0, 1.0)).cpu().numpy()


def draw(mixture: Mixture, rng: np.random.Generator) -> Float[Tensor, "N V"]:
    """Draw once from each distribution."""
    parts = mixture.component_distribution
    probabilities = mixture.mixture_distribution.probs.cpu().double().numpy()
    shares = (probabilities / probabilities.sum(-1, keepdims=True)).cumsum(-1)
    modes = (rng.random((len(shares), 1)) > shares).sum(-1).clip(max=shares.shape[-1] - 1)
    rows = torch.arange(len(modes), device=parts.mean.device)
    modes = torch.from_numpy(modes).to(parts.mean.device)
    normal = torch.from_numpy(rng.normal(size=(len(modes), parts.mean.shape[-1]))).to(parts.mean)
    return parts.mean[rows, modes] + parts.stddev[rows, modes] * normal


def new_clone(world: World, config: CloneConfig) -> Clone:
    """Make a network of the right size for a world, untrained."""
    return Clone(config, sizes=world.place_sizes, action_dim=world.config.dynamics.action_dim)


def find_clone(world: World, folder: str | Path) -> Clone | None:
    """Load the cloned policy beside a world; None without one. Raises PartError where it is corrupt."""
    return load_clone(world, folder) if (Path(folder) / CLONE_FILE).is_file() else None


def load_clone(world: World, folder: str | Path) -> Clone:
    """Load the policy that ``kinema train --clone`` wrote into a folder. Raises as ``load_policy``."""
    learn = f"learn one from recordings: kinema train DATA --out {folder} --clone"
    return load_policy(world, Path(folder) / CLONE_FILE, f"there is no cloned policy; {learn}")


def load_policy(world: World, path: Path, advice: str) -> Clone:
    """Load the network of a policy.

    Raises:
        WorldError: there is no file; it gives ``advice``.
        PartError: the file is corrupt or belongs to another world.
    """
    if not path.is_file():
        raise WorldError(f"{path}: {advice}")
    return load_part(path, CloneConfig, lambda config: new_clone(world, config)).to(world.device)


def make(observation_space: Any, *, world: str, goal: str | None = None, noise: float = 0.0) -> ClonedPolicy:
    """Make the policy from the arguments of ``kinema record --policy cloned --policy-args``: the folder of a
    world with a clone, the file of a goal frame, and the deviation of noise on the actions."""
    from kinema.data.drawing import read_frame

    loaded = load(world)
    frame = None if goal is None else read_frame(goal)
    return ClonedPolicy(
        loaded, load_clone(loaded, world), observation_space=observation_space, goal=frame, noise=noise
    )
