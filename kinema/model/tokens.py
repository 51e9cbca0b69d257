"""A frame as a block of tokens: sizes, values, and the layers that make tokens of vectors."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.model.attention import KeysValues
from kinema.model.embeddings import FourierFeatures

NUM_BEFORE = 2
"""Frames before its own that a token is given at the input: with two it knows where things are and how fast
they move."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of latents of each camera; empty for a world of vectors alone."""
    latent_dim: int
    """Channels Z of a latent."""
    action_dim: int
    """Numbers A in an action."""
    proprio_dim: int = 0
    """Numbers P of proprioception; 0 for none."""
    patch: int = 1
    """Latents are joined into tokens of ``patch`` by ``patch``."""
    width: int = 256
    """Width D of the network."""
    depth: int = 6
    """Blocks."""
    num_heads: int = 4
    """Heads of each attention."""
    time_every: int = 2
    """Every how many blocks there is attention over time."""
    window: int = 8
    """Past frames that attention over time sees."""
    memory: int = 0
    """Past frames that the registers see in attention over time; 0 for as many as ``window``."""
    has_goals: bool = False
    """A goal frame may be given as context."""
    num_registers: int = 1
    """Tokens without input, for the network's own use and for the heads."""
    num_octaves: int = 6
    """Octaves of the Fourier features of actions and proprioception."""
    num_directions: int = 96
    """Random directions of the same."""
    noise_dim: int = 16
    """Numbers of noise by which possible futures of a frame differ, beside the noise that is denoised; 0 for
    a network that predicts one of them."""
    motion_directions: int = 0
    """Random features of the motion of the robot, in which its response is linear; 0 where it follows its
    commands linearly, as under position control."""

    def __post_init__(self) -> None:
        for rows, columns in self.grids:
            if rows % self.patch or columns % self.patch:
                raise ValueError(f"patch={self.patch}: it must divide the latent grid, here {rows}x{columns}")
        if not self.grids and not self.proprio_dim:
            raise ValueError("grids=() and proprio_dim=0: a world needs a camera or proprioception")
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width={self.width}: it must be a multiple of 2 * num_heads={2 * self.num_heads}"
            )
        if self.window < NUM_BEFORE:
            raise ValueError(f"window={self.window}: at least {NUM_BEFORE} is needed")
        if self.depth < self.time_every:
            raise ValueError(f"time_every={self.time_every}: no block of depth={self.depth} would see time")

    @property
    def num_latents(self) -> int:
        """L, latents of all cameras."""
        return sum(rows * columns for rows, columns in self.grids)

    @property
    def num_patches(self) -> int:
        """Tokens that carry latents."""
        return self.num_latents // self.patch**2

    @property
    def num_tokens(self) -> int:
        """N, tokens of a block."""
        return self.num_patches + (self.proprio_dim > 0) + 1 + self.num_registers

    @property
    def num_agent_tokens(self) -> int:
        """K, tokens of a block that do not carry latents: those of vectors, and registers. They come last."""
        return self.num_tokens - self.num_patches

    @property
    def num_modalities(self) -> int:
        """M: cameras, proprioception if there is any, action."""
        return len(self.grids) + (self.proprio_dim > 0) + 1

    @property
    def frame_sizes(self) -> list[int]:
        """Numbers of a frame that is kept: latents, proprioception, action, and noise levels by modality."""
        num_latents = self.num_latents * self.latent_dim
        return [num_latents, self.proprio_dim, self.action_dim, self.num_modalities]

    @property
    def noise_size(self) -> int:
        """Numbers O of noise in place of the observations of a frame, and of ``noise_dim`` behind them."""
        observed = self.num_latents * self.latent_dim if self.grids else self.proprio_dim
        return observed + self.noise_dim

    @property
    def frames_to_fill(self) -> int:
        """Frames to show a session until its windows are full."""
        return self.window

    @property
    def num_observed(self) -> int:
        """Modalities, the first ones, that a frame is remembered without: the cameras, or proprioception in a
        world without them."""
        return len(self.grids) or 1

    @property
    def reach(self) -> int:
        """Past frames that can matter: each block that sees time hands on what the one before it saw, and
        the oldest frame seen was given those before it."""
        return max(self.window, self.memory) * (self.depth // self.time_every) + NUM_BEFORE


@dataclasses.dataclass(frozen=True)
class Values:
    """What the tokens of some frames hold, clean or noised or predicted."""

    latents: Float[Tensor, "B T L Z"]
    """Latents of all cameras, one after the other."""
    proprio: Float[Tensor, "B T P"]
    """Normalised proprioception; P may be 0."""
    action: Float[Tensor, "B T A"]
    """Normalised action that led to the frame."""

    def pack(self) -> Float[Tensor, "B T V"]:
        """All parts of a frame as one vector."""
        return torch.cat([self.latents.flatten(2), self.proprio, self.action], dim=-1)

    def unpack(self, packed: Float[Tensor, "B T V"]) -> "Values":
        """The parts of packed frames, sized as these are; what is packed behind them is left out."""
        sizes = [self.latents.shape[2] * self.latents.shape[3], self.proprio.shape[2], self.action.shape[2]]
        latents, proprio, action = packed[..., : sum(sizes)].split(sizes, dim=-1)
        return Values(latents.unflatten(2, self.latents.shape[2:]), proprio, action)

    def followed_by(self, other: "Values") -> "Values":
        """These frames, then others."""
        latents = torch.cat([self.latents, other.latents], dim=1)
        proprio = torch.cat([self.proprio, other.proprio], dim=1)
        return Values(latents, proprio, torch.cat([self.action, other.action], dim=1))

    def zip(self, *others: "Values | Callable[..., Tensor]") -> "Values":
        """The result of a function, the last argument, of each part of these and other frames."""
        *values, function = (self, *others)
        assert callable(function)
        names = ("latents", "proprio", "action")
        return Values(*(function(*(getattr(each, name) for each in values)) for name in names))

    def to(self, device: torch.device) -> "Values":
        """The same on another device."""
        return self.map(lambda x: x.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Values":
        """The same function of each part."""
        return Values(function(self.latents), function(self.proprio), function(self.action))


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal frame for each segment, and the target frames that see it."""

    frame: Values
    """Clean, normalised frames (T = 1)."""
    knows_proprio: Bool[Tensor, " B"]
    is_shown: Bool[Tensor, "B U"]


@dataclasses.dataclass(frozen=True)
class Past:
    """What is known of some frames from those before them."""

    frames: Sequence[Values]
    """The frames before, the last first."""
    prior: Values
    """The frames themselves as the linear response has them; where too little is known for that, the last."""
    proprio_error: Float[Tensor, "B T P"]
    """About how far the prior of proprioception is off."""
    action_error: Float[Tensor, "B T A"]
    """About how far the prior of the action is off, which is 0 where nothing is known of it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Past":
        """The same function of each part."""
        return Past(
            [frame.map(function) for frame in self.frames],
            self.prior.map(function),
            function(self.proprio_error),
            function(self.action_error),
        )


@dataclasses.dataclass(frozen=True)
class Memory:
    """What is left of frames for who chooses what to do after each of them: see ``kinema.model.acting``.
    ``K`` are the tokens of a frame that do not carry latents, ``R`` those of all sessions or segments."""

    tokens: Float[Tensor, "B T K D"]
    """Tokens of the frame that comes next, as far as the network knows them."""
    last_action: Float[Tensor, "B T A"]
    """Normalised action that led to the frame; zero where it is not known."""
    keys_values: Sequence[KeysValues]
    """In each block that sees time."""
    rotary: tuple[Tensor, Tensor]
    """Rotation of the frame that comes next."""
    mask: Bool[Tensor, "T S"] | None
    """Which of the frames, and of the next ones, it sees; None for all."""


class VectorInput(nn.Module):
    """A token from a vector and those of the frames before, and how it changed last."""

    CHANGE_SCALE = 10.0
    """Changes from frame to frame are about this much smaller than values."""

    def __init__(self, num_values: int, config: DynamicsConfig):
        super().__init__()
        self.features = FourierFeatures(num_values, config.num_octaves, config.num_directions)
        self.linear = nn.Linear((1 + NUM_BEFORE) * self.features.size + num_values, config.width)

    def forward(self, seen: Sequence[Float[Tensor, "B T V"]]) -> Float[Tensor, "B T D"]:
        """``seen``: the vector, the one before, the one before that."""
        change = self.CHANGE_SCALE * (seen[1] - seen[2])
        features = self.features(torch.stack(list(seen), dim=-2)).flatten(-2)
        return self.linear(torch.cat([features, change], dim=-1))


class TokenInput(nn.Module):
    """What every token is given of the vectors: each weighs the same features of them in its own way, so that
    what is near it can matter to it alone (a bilinear map)."""

    def __init__(self, num_values: int, num_tokens: int, width: int):
        super().__init__()
        self.features = nn.Linear(num_values, 4 * width, bias=False)
        self.weights = nn.Parameter(torch.randn(num_tokens, 4 * width))
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, vectors: Float[Tensor, "B T V"]) -> Float[Tensor, "B T N D"]:
        return self.out(self.features(vectors).unsqueeze(2) * self.weights)


def combine(expected: Tensor, error: Tensor, noised: Tensor, tau: Tensor) -> Tensor:
    """The mean of what is expected with some error and is seen noised, were both normally distributed."""
    gain = error**2 * tau / (error**2 * tau**2 + (1.0 - tau) ** 2).clamp_min(1e-6)
    return expected + gain * (noised - tau * expected)
