"""A small convolutional tokenizer: one grid of latents for each picture, trained from scratch.

The decoder is small because in real time it is a large part of the cost of a frame, and it is trained on
noised latents because noised latents are what it will see.
"""

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinema.hardware.packed import pack_convolutions

STRIDE = 16
"""Pixels in height and in width of a frame for each latent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvTokenizerConfig:
    height: int
    """Height of frames in pixels, a multiple of 16; of the first camera where sizes differ."""
    width: int
    """Width of frames in pixels, a multiple of 16; of the first camera where sizes differ."""
    latent_dim: int = 16
    """Channels Z of each latent."""
    guide_dim: int = 0
    """Channels G of a guide that the decoder is given beside each latent: something else that is known of the
    picture; 0 for none."""
    encoder_widths: tuple[int, int, int] = (64, 128, 192)
    """Channels at 1/4, 1/8 and 1/16 of the picture's size."""
    decoder_widths: tuple[int, int, int] = (64, 128, 192)
    """The same for the decoder, which runs for every simulated frame."""
    encoder_blocks: tuple[int, int, int] = (1, 1, 1)
    """Residual blocks at 1/4, 1/8 and 1/16 of the picture's size."""
    decoder_blocks: tuple[int, int, int] = (1, 1, 1)
    """The same for the decoder. Those at 1/4 draw the detail: how one small thing covers another."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < STRIDE or value % STRIDE:
                raise ValueError(
                    f"{name}={value}: the convolutional tokenizer needs a positive multiple of 16"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents."""
        return self.height // STRIDE, self.width // STRIDE


class _Residual(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(max(1, width // 16), width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm(x), inplace=True))
        return self.conv2(F.silu(h, inplace=True)).add_(x)


class ConvTokenizer(nn.Module):
    """Pixels to a grid of latents with unit variance, and back."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ConvTokenizerConfig, grids: Iterable[tuple[int, int]] = ()):
        """``grids``: rows and columns of latents of every camera, where they are not all ``config.grid``."""
        super().__init__()
        self.config = config
        self._has_one_grid = {config.grid, *grids} == {config.grid}
        fine, middle, coarse = config.encoder_widths
        num_fine, num_middle, num_coarse = config.encoder_blocks
        self.encoder = nn.Sequential(
            nn.Conv2d(3, fine, 7, stride=4, padding=3),
            *(_Residual(fine) for _ in range(num_fine)),
            nn.Conv2d(fine, middle, 4, stride=2, padding=1),
            *(_Residual(middle) for _ in range(num_middle)),
            nn.Conv2d(middle, coarse, 4, stride=2, padding=1),
            *(_Residual(coarse) for _ in range(num_coarse)),
            nn.SiLU(),
            nn.Conv2d(coarse, config.latent_dim, 1),
        )
        fine, middle, coarse = config.decoder_widths
        num_fine, num_middle, num_coarse = config.decoder_blocks
        guided = nn.Conv2d(config.latent_dim + config.guide_dim, coarse, 1)
        nn.init.zeros_(guided.weight[:, config.latent_dim :])
        self.decoder = nn.Sequential(
            guided,
            *(_Residual(coarse) for _ in range(num_coarse)),
            nn.Conv2d(coarse, 4 * middle, 1),
            nn.PixelShuffle(2),
            *(_Residual(middle) for _ in range(num_middle)),
            nn.Conv2d(middle, 4 * fine, 1),
            nn.PixelShuffle(2),
            *(_Residual(fine) for _ in range(num_fine)),
            nn.SiLU(),
            nn.Conv2d(fine, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))

    def encode_raw(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Z h w"]:
        """The grid before it is brought to unit variance; training works on this."""
        return self.encoder(pixels.contiguous(memory_format=torch.channels_last))

    def decode_raw(
        self, latents: Float[Tensor, "B Z h w"], guide: Float[Tensor, "B G h w"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Pixels of raw latents; a guide that is not given is zero."""
        if self.config.guide_dim:
            if guide is None:
                guide = latents.new_zeros(len(latents), self.config.guide_dim, *latents.shape[2:])
            latents = torch.cat([latents, guide], dim=1).contiguous(memory_format=torch.channels_last)
        return self.decoder(latents)

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L Z"]:
        """Pixels in [-1, 1] to latents of zero mean and unit variance over the training data."""
        grid = self.encode_raw(pixels)
        return (grid.flatten(2).transpose(1, 2) - self.latent_mean) / self.latent_std

    def decode(
        self,
        latents: Float[Tensor, "B L Z"],
        guide: Float[Tensor, "B L G"] | None = None,
        *,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Latents to pixels, about [-1, 1] (not clipped).

        ``grid``: rows and columns of the latents; ``config.grid`` by default.
        """
        grid = grid or self.config.grid
        raw = latents * self.latent_std + self.latent_mean
        return self.decode_raw(_as_grid(raw, grid), None if guide is None else _as_grid(guide, grid))

    def pack(self, dtype: torch.dtype) -> None:
        """Have the decoder compute by packed convolutions, which are fast for one size of frames."""
        if not self._has_one_grid:
            return
        grid = self.latent_mean.new_zeros(1, self.config.latent_dim, *self.config.grid)
        pack_convolutions(self.decoder, lambda: self.decode_raw(grid), dtype)

    @torch.no_grad()
    def set_statistics(self, *samples: Float[Tensor, "_ Z _ _"]) -> None:
        """Set the mean and deviation of the latents from samples of raw ones, one for each size of frames."""
        grid = samples[0]
        if len(samples) > 1:
            grid = torch.cat([sample.transpose(0, 1).flatten(1) for sample in samples], 1)[None, :, :, None]
        self.latent_mean.copy_(grid.mean((0, 2, 3)))
        self.latent_std.copy_(grid.std((0, 2, 3)).clamp_min(1e-6))


def _as_grid(values: Float[Tensor, "B L V"], grid: tuple[int, int]) -> Float[Tensor, "B V h w"]:
    return values.transpose(1, 2).unflatten(2, grid)
