"""What a world says of its frames beside their pictures: reward, termination, and steps to a goal.

The heads read latents and proprioception of a world that no longer learns. Numbers are predicted as
distributions over bins that are evenly spaced after ``symlog`` (two-hot targets: DreamerV3, 2301.04104,
appendix B), so that large and small ones are learned alike.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.model.embeddings import FourierFeatures

Frame = tuple[Tensor, Tensor]
"""Latents ``N L Z`` and normalised proprioception ``N P`` of frames."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    width: int = 256
    """Width of the residual MLPs."""
    depth: int = 2
    """Their blocks."""
    num_bins: int = 65
    """Bins of the distributions."""
    max_steps: int = 100
    """Steps to a goal are told up to this many."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Least and largest reward that was recorded; no other is predicted."""

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 1), ("num_bins", 2), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        if not self.reward_range[0] <= self.reward_range[1]:
            raise ValueError(f"reward_range={self.reward_range}: the least comes first")


def symlog(x: Tensor) -> Tensor:
    """Logarithmic for large numbers, nearly the number itself for small ones, on both sides of zero."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Undoes ``symlog``."""
    return x.sign() * x.abs().expm1()


class PlaceSizes(NamedTuple):
    """Numbers in a place, which is a frame as one vector: its latents, its normalised proprioception, and its
    code in the manifold, which tells in few numbers how things stand."""

    latents: int
    proprio: int
    code: int


class TwoHot(nn.Module):
    """Numbers as weights of bins, and back."""

    bins: Tensor

    def __init__(self, low: float, high: float, num_bins: int):
        """Bins from ``low`` to ``high``, evenly spaced after ``symlog``."""
        super().__init__()
        ends = symlog(torch.tensor([low, high]))
        # A single recorded value would leave no room between the bins.
        high_end = torch.maximum(ends[1], ends[0] + 1e-3)
        steps = torch.linspace(0.0, 1.0, num_bins)
        self.register_buffer("bins", torch.lerp(ends[0], high_end, steps), persistent=False)

    def encode(self, values: Float[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """Weights that sum to one, of the two bins next to each number; numbers beyond the ends count as the
        end."""
        last = len(self.bins) - 1
        place = (symlog(values) - self.bins[0]) / (self.bins[-1] - self.bins[0]) * last
        place = place.clamp(0.0, float(last))
        below = place.floor().clamp(max=last - 1)
        weight = (place - below).unsqueeze(-1)
        one_hot = F.one_hot(below.long(), last + 1).to(place.dtype)
        return one_hot * (1.0 - weight) + one_hot.roll(1, -1) * weight

    def decode(self, logits: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
        """The mean of the numbers that the bins stand for."""
        return (logits.float().softmax(-1) * symexp(self.bins)).sum(-1)

    def loss(self, logits: Float[Tensor, "N K"], values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Cross entropy."""
        return -(self.encode(values) * logits.float().log_softmax(-1)).sum(-1)


class ResidualMLP(nn.Module):
    """A vector to a vector by residual blocks."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int, depth: int):
        super().__init__()
        self.first = nn.Linear(num_inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, num_outputs)
        # Every answer is equally likely at first.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "N V"]) -> Float[Tensor, "N W"]:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(self.norm(x))


class PlaceFeatures(nn.Module):
    """Features of places: see ``PlaceSizes``."""

    def __init__(self, sizes: PlaceSizes):
        super().__init__()
        self.sizes = sizes
        self.proprio = FourierFeatures(sizes.proprio, 4)
        self.code = FourierFeatures(sizes.code, 3)
        self.size = sizes.latents + self.proprio.size + self.code.size

    def forward(self, place: Float[Tensor, "*batch G"]) -> Float[Tensor, "*batch F"]:
        latents, proprio, code = place.split(self.sizes, dim=-1)
        return torch.cat([latents, self.proprio(proprio), self.code(code)], dim=-1)

    @property
    def aim_size(self) -> int:
        """Features of an aim."""
        return 2 * self.size + 2 * sum(self.sizes) + 1

    def of_aim(
        self,
        before: Float[Tensor, "*batch G"],
        now: Float[Tensor, "*batch G"],
        goal: Float[Tensor, "*batch G"],
        has_goal: Bool[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch F"]:
        """What policies read: the frame before, the present one, and the goal where there is any."""
        known = has_goal.unsqueeze(-1).to(goal.dtype)
        parts = [self(now), now - before, known * self(goal), known * (goal - now), known]
        return torch.cat(parts, dim=-1)


class Heads(nn.Module):
    """Reward and termination of a step, the steps from a place to a goal, and proprioception by sight."""

    def __init__(self, config: HeadsConfig, *, sizes: PlaceSizes, action_dim: int):
        super().__init__()
        self.config = config
        size, proprio_dim = sizes.latents, sizes.proprio
        self.proprio_features = FourierFeatures(proprio_dim, 4)
        self.action_features = FourierFeatures(action_dim, 2)
        self.place_features = PlaceFeatures(sizes)
        self.reward_bins = TwoHot(*config.reward_range, config.num_bins)
        self.distance_bins = TwoHot(0.0, float(config.max_steps), config.num_bins)
        frame = size + self.proprio_features.size
        step = 2 * frame + self.action_features.size
        shape = (config.width, config.depth)
        self.step = ResidualMLP(step, config.num_bins + 1, *shape)
        self.to_goal = ResidualMLP(2 * self.place_features.size + sum(sizes), config.num_bins, *shape)
        self.to_proprio = ResidualMLP(size, proprio_dim, *shape) if size and proprio_dim else None

    def judge(
        self, before: Frame, after: Frame, action: Float[Tensor, "N A"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Expected reward of the step from one frame to the next by an action (normalised), and the
        probability that it ended the episode."""
        reward, termination = self.step_logits(before, after, action)
        return self.reward_bins.decode(reward), termination.float().sigmoid()

    def distance(self, here: Float[Tensor, "N G"], goal: Float[Tensor, "N G"]) -> Float[Tensor, " N"]:
        """Expected steps from places to goals, for one who acts as the recordings do; ``max_steps`` at
        most."""
        return self.distance_bins.decode(self.distance_logits(here, goal))

    def locate(self, latents: Float[Tensor, "N L Z"]) -> Float[Tensor, "N P"]:
        """The normalised proprioception that a picture shows, where none is told: a goal is only a
        picture."""
        if self.to_proprio is None:
            return latents.new_zeros(len(latents), self.place_features.sizes.proprio)
        return self.to_proprio(latents.flatten(1)).float()

    def step_logits(
        self, before: Frame, after: Frame, action: Tensor
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"]]:
        """Logits of the reward's bins and of termination."""
        features = [self._frame(before), self._frame(after), self.action_features(action)]
        found = self.step(torch.cat(features, dim=-1))
        return found[:, :-1], found[:, -1]

    def distance_logits(self, here: Tensor, goal: Tensor) -> Float[Tensor, "N K"]:
        """Logits of the bins of the steps to goals."""
        features = [self.place_features(here), self.place_features(goal), goal - here]
        return self.to_goal(torch.cat(features, dim=-1))

    def _frame(self, frame: Frame) -> Float[Tensor, "N V"]:
        return torch.cat([frame[0].flatten(1), self.proprio_features(frame[1])], dim=-1)


def to_device(batch: Any, device: torch.device) -> dict[str, Any]:
    """The fields of a dataclass of tensors and frames, on another device."""
    moved = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        is_frame = isinstance(value, tuple)
        moved[field.name] = tuple(x.to(device) for x in value) if is_frame else value.to(device)
    return moved


@dataclasses.dataclass(frozen=True)
class HeadsBatch:
    """Steps to judge, and pairs of a frame and a goal."""

    before: Frame
    after: Frame
    action: Float[Tensor, "N A"]
    """Normalised action that led from one to the other."""
    reward: Float[Tensor, " N"]
    is_terminal: Bool[Tensor, " N"]
    """Whether the step ended the episode for good."""
    start: Float[Tensor, "N G"]
    goal: Float[Tensor, "N G"]
    steps: Float[Tensor, " N"]
    """Steps from start to goal, as it turned out."""

    def to(self, device: torch.device) -> "HeadsBatch":
        """The same on another device."""
        return HeadsBatch(**to_device(self, device))


class HeadsObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``. Latents are noised a little, since simulated ones are never quite
    as those that were recorded."""

    NOISE = 0.05
    """Deviation of that noise, at most."""
    LOCATE_WEIGHT = 10.0
    """Weight of the error of proprioception by sight, a square in halves of its range."""

    def __init__(self, heads: Heads):
        super().__init__()
        self.heads = heads

    def forward(
        self, batch: HeadsBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = self.heads
        before, after = (self._noised(frame, generator) for frame in (batch.before, batch.after))
        start, goal = (self._noised_place(place, generator) for place in (batch.start, batch.goal))
        reward, termination = heads.step_logits(before, after, batch.action)
        distance = heads.distance_logits(start, goal)
        reward_loss = heads.reward_bins.loss(reward, batch.reward).mean()
        termination_loss = F.binary_cross_entropy_with_logits(termination.float(), batch.is_terminal.float())
        distance_loss = heads.distance_bins.loss(distance, batch.steps).mean()
        with torch.no_grad():
            reward_error = (heads.reward_bins.decode(reward) - batch.reward).abs().mean()
            distance_error = (heads.distance_bins.decode(distance) - batch.steps).abs().mean()
        metrics = {
            "reward_error": reward_error,
            "termination": termination_loss.detach(),
            "distance_error": distance_error,
        }
        loss = reward_loss + termination_loss + distance_loss
        if heads.to_proprio is not None:
            offset = heads.locate(after[0]) - after[1]
            loss = loss + self.LOCATE_WEIGHT * offset.square().mean()
            metrics["locate_error"] = offset.detach().abs().mean()
        return loss, metrics

    def _noised_place(self, place: Tensor, generator: torch.Generator | None) -> Tensor:
        level = torch.rand(len(place), 1, generator=generator, device=place.device)
        noise = torch.randn(place.shape, generator=generator, device=place.device)
        # Proprioception is known exactly, and in finer units.
        latents, proprio, code = noise.split(self.heads.place_features.sizes, dim=-1)
        return place + self.NOISE * level * torch.cat([latents, 0.1 * proprio, 0.2 * code], dim=-1)

    def _noised(self, frame: Frame, generator: torch.Generator | None) -> Frame:
        latents, proprio = frame
        level = torch.rand(len(latents), 1, 1, generator=generator, device=latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        return latents + self.NOISE * level * noise, proprio
