"""The causal diffusion transformer over blocks of tokens, one block for each frame, and its cache.

A block holds the latents of every camera (patched together), the proprioception, the action that led to the
frame, and a few registers. Each token carries its own noise level, so what is given and what is to be found is
decided by whoever calls, not by the network.
"""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.nn.blocks import Block, norm
from kinema.nn.cache import LayerCache
from kinema.nn.embeddings import FourierFeatures, rotary_table


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
    num_registers: int = 1
    """Tokens without input, for the network's own use and for the heads."""
    num_octaves: int = 6
    """Octaves of the Fourier features of actions and proprioception."""

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


@dataclasses.dataclass(frozen=True)
class Values:
    """What the tokens of some frames hold, clean or noised or predicted."""

    latents: Float[Tensor, "B T L Z"]
    """Latents of all cameras, one after the other."""
    proprio: Float[Tensor, "B T P"]
    """Normalised proprioception; P may be 0."""
    action: Float[Tensor, "B T A"]
    """Normalised action that led to the frame."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Values":
        """The same function of each part."""
        return Values(function(self.latents), function(self.proprio), function(self.action))


class Dynamics(nn.Module):
    """Predicts the clean values of noised frames from the frames before them.

    ``tau`` has one entry for each *modality* of a frame (``B T M``): the cameras in order, proprioception if there
    is any, the action. All tokens of a modality share it.
    """

    token_modality: Tensor

    def __init__(self, config: DynamicsConfig):
        super().__init__()
        self.config = config
        width = config.width
        patch_dim = config.patch**2 * config.latent_dim
        self.fourier = FourierFeatures(config.num_octaves)
        self.latents_in = nn.Linear(patch_dim, width)
        self.action_in = nn.Linear(self.fourier.size(config.action_dim), width)
        self.proprio_in = (
            nn.Linear(self.fourier.size(config.proprio_dim), width) if config.proprio_dim else None
        )
        self.tau_features = FourierFeatures(5)
        self.tau_in = nn.Linear(self.tau_features.size(1), width, bias=False)
        self.token_bias = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        hidden = 64 * round(width * 8 / 3 / 64)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, hidden, is_temporal=(i + 1) % config.time_every == 0)
            for i in range(config.depth)
        )
        self.latents_out = nn.Linear(width, patch_dim)
        self.action_out = nn.Linear(width, config.action_dim)
        self.proprio_out = nn.Linear(width, config.proprio_dim) if config.proprio_dim else None
        for head in (self.latents_out, self.action_out, self.proprio_out):
            if head is not None:
                nn.init.zeros_(head.weight)
        modality = [
            camera
            for camera, (rows, columns) in enumerate(config.grids)
            for _ in range(rows * columns // config.patch**2)
        ]
        num_cameras = len(config.grids)
        modality += [num_cameras] * (config.proprio_dim > 0)
        modality += [self.num_modalities - 1]
        self.register_buffer("token_modality", torch.tensor(modality), persistent=False)

    @property
    def num_modalities(self) -> int:
        """M: cameras, proprioception if there is any, action."""
        return len(self.config.grids) + (self.config.proprio_dim > 0) + 1

    def forward(
        self,
        context: Values,
        context_tau: Float[Tensor, "B T M"],
        target: Values,
        target_tau: Float[Tensor, "B U M"],
    ) -> Values:
        """The training path: clean values of every target frame, all at once.

        Target frame ``u`` is the frame at time ``T - U + 1 + u``: it sees the context frames before that time
        within the window, and itself; the context frames see only earlier context and themselves. So every
        target meets just what it will meet when the frames before it have been simulated and kept.
        """
        num_context, num_target = context_tau.shape[1], target_tau.shape[1]
        assert num_target <= num_context
        x = torch.cat([self._embed(context, context_tau), self._embed(target, target_tau)], dim=1)
        times, mask = two_stream_mask(num_context, num_target, self.config.window, x.device)
        rotary = rotary_table(times.float(), self.config.width // self.config.num_heads)
        for block in self.blocks:
            x = block(x, rotary, mask)
        return self._read(x[:, num_context:])

    def new_cache(self, batch: int, *, max_rewind: int = 0) -> list[LayerCache]:
        """An empty cache for ``batch`` sessions, one part for each block that sees time."""
        config = self.config
        return [
            LayerCache(
                rows=batch * config.num_tokens,
                num_heads=config.num_heads,
                head_dim=config.width // config.num_heads,
                window=config.window,
                max_rewind=max_rewind,
                like=self.token_bias,
            )
            for block in self.blocks
            if isinstance(block, Block) and block.time is not None
        ]

    def step(self, frame: Values, tau: Float[Tensor, "B 1 M"], cache: list[LayerCache]) -> Values:
        """The streaming path: clean values of one frame (T = 1) that sees the cache.

        The frame is written behind the cached ones but not kept; ``keep`` keeps it.
        """
        return self._read(self._stream(frame, tau, cache))

    def keep(self, frame: Values, tau: Float[Tensor, "B 1 M"], cache: list[LayerCache]) -> None:
        """Add one frame (T = 1) to the cache."""
        self._stream(frame, tau, cache)
        for layer in cache:
            layer.keep()

    def _stream(self, frame: Values, tau: Tensor, cache: list[LayerCache]) -> Tensor:
        x = self._embed(frame, tau).squeeze(1)
        layers = iter(cache)
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block.step(x, next(layers) if block.time is not None else None)
        return x.unsqueeze(1)

    def _embed(self, values: Values, tau: Tensor) -> Tensor:
        batch, time = tau.shape[:2]
        parts = [self.latents_in(self._patchify(values.latents))] if self.config.grids else []
        if self.proprio_in is not None:
            parts.append(self.proprio_in(self.fourier(values.proprio)).unsqueeze(2))
        parts.append(self.action_in(self.fourier(values.action)).unsqueeze(2))
        noise_levels = self.tau_in(self.tau_features(tau.unsqueeze(-1)))
        tokens = torch.cat(parts, dim=2) + noise_levels[:, :, self.token_modality]
        registers = tokens.new_zeros(batch, time, self.config.num_registers, self.config.width)
        return torch.cat([tokens, registers], dim=2) + self.token_bias

    def _read(self, x_BTND: Tensor) -> Values:
        x = norm(x_BTND)
        num_patches = self.config.num_patches
        latents = self._unpatchify(self.latents_out(x[:, :, :num_patches]))
        action_at = num_patches + (self.proprio_out is not None)
        proprio = x.new_zeros(*x.shape[:2], 0)
        if self.proprio_out is not None:
            proprio = self.proprio_out(x[:, :, num_patches])
        return Values(latents.float(), proprio.float(), self.action_out(x[:, :, action_at]).float())

    def _patchify(self, latents: Tensor) -> Tensor:
        patch, parts, start = self.config.patch, [], 0
        for rows, columns in self.config.grids:
            grid = latents[:, :, start : start + rows * columns].unflatten(
                2, (rows // patch, patch, columns // patch, patch)
            )
            parts.append(grid.transpose(3, 4).flatten(4).flatten(2, 3))
            start += rows * columns
        return torch.cat(parts, dim=2)

    def _unpatchify(self, patches: Tensor) -> Tensor:
        patch, parts, start = self.config.patch, [], 0
        for rows, columns in self.config.grids:
            size = rows * columns // patch**2
            grid = patches[:, :, start : start + size].unflatten(-1, (patch, patch, -1))
            grid = grid.unflatten(2, (rows // patch, columns // patch))
            parts.append(grid.transpose(3, 4).flatten(2, 5))
            start += size
        if not parts:
            return patches.new_zeros(*patches.shape[:2], 0, self.config.latent_dim)
        return torch.cat(parts, dim=2)


def two_stream_mask(
    num_context: int, num_target: int, window: int, device: torch.device
) -> tuple[Float[Tensor, " S"], Bool[Tensor, "S S"]]:
    """Times of context then target frames, and who sees whom (True: the row sees the column)."""
    context = torch.arange(num_context, device=device)
    times = torch.cat([context, torch.arange(num_context - num_target + 1, num_context + 1, device=device)])
    is_context = torch.arange(len(times), device=device) < num_context
    age = times[:, None] - times[None, :]
    sees_past = is_context[None, :] & (age > 0) & (age <= window)
    return times, sees_past | torch.eye(len(times), dtype=torch.bool, device=device)
