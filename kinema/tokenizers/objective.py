"""What a tokenizer is trained on: the picture back again, with what is small counted most.

A plain pixel loss buys background: small moving things vanish from the pictures. So a pixel that differs
between two moments of one episode counts ``motion_weight`` times more, and one of a colour that is rare in
the recorded pictures more than one of a common colour. The second keeps a small thing in front of a large
one that moves with it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kinema.tokenizers.convolutional import ConvTokenizer

COLOUR_LEVELS = 16
"""Steps of red, of green and of blue in which colours are counted."""
LEAST_COLOUR_SHARE = 1e-4
"""Added to the share of pixels that a colour has: colours rarer than this weigh about the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerObjectiveConfig:
    motion_weight: float = 16.0
    """How much more a moving pixel counts than a still one."""
    motion_threshold: float = 0.08
    """Least difference of a pixel (of a range of 2) between two moments that counts as motion."""
    rarity_power: float = 0.5
    """A colour weighs its share of all pixels to the power of minus this; 0 weighs all alike."""
    coherent_weight: float = 10.0
    """Weight of errors that neighbouring pixels share, the largest counted most: a small thing that is
    missing is such an error, the jagged edge of a large one is not."""
    hard_share: float = 1.0
    """Share of the pairs of a batch that are learned from: those with the largest coherent errors."""
    noise: float = 0.1
    """Deviation of the noise on the raw latents, which have a deviation of about 1."""
    latent_penalty: float = 1e-3
    """Weight of the mean square of the raw latents: with the noise, it keeps them smooth and small."""

    def __post_init__(self) -> None:
        if not 0 < self.hard_share <= 1:
            raise ValueError(f"hard_share={self.hard_share}: it must be above 0 and at most 1")


def motion_mask(first: Tensor, second: Tensor, threshold: float) -> Float[Tensor, "B 1 H W"]:
    """1 where two pictures of one episode differ, grown by a pixel, else 0."""
    moving = ((first - second).abs().amax(1, keepdim=True) > threshold).to(first.dtype)
    return F.max_pool2d(moving, 3, stride=1, padding=1)


class PictureLoss(nn.Module):
    """What reconstructed pictures cost."""

    rarity: Tensor

    def __init__(self, config: TokenizerObjectiveConfig):
        super().__init__()
        self.config = config
        self.register_buffer("rarity", torch.ones(COLOUR_LEVELS**3))

    @torch.no_grad()
    def fit_rarity(self, *samples: UInt8[Tensor, "_ _ _ 3"]) -> None:
        """Count how common each colour is, its neighbours with it, in samples of the recorded frames, one for
        each size."""
        counts = torch.zeros(COLOUR_LEVELS**3, dtype=torch.float64)
        for piece in itertools.chain.from_iterable(frames.split(256) for frames in samples):
            counts += torch.bincount(_colour_index(piece).flatten(), minlength=len(counts))
        share = (counts / counts.sum()).view(1, 1, COLOUR_LEVELS, COLOUR_LEVELS, COLOUR_LEVELS)
        share = 27.0 * F.avg_pool3d(share, 3, stride=1, padding=1).flatten()
        self.rarity.copy_((share + LEAST_COLOUR_SHARE).pow(-self.config.rarity_power))

    def forward(
        self, decoded: Float[Tensor, "N 3 H W"], pairs: UInt8[Tensor, "B 2 H W 3"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of both pictures of all pairs (``N = 2 B``); each picture tells where the other
        one moves."""
        config = self.config
        pixels = to_pixels(pairs)
        first, second = pixels.unflatten(0, (-1, 2)).unbind(1)
        mask = motion_mask(first, second, config.motion_threshold).repeat_interleave(2, 0)
        rarity = self._rarity(pairs)
        weight = (1.0 + config.motion_weight * mask) * rarity
        weight = weight / weight.mean()
        error = decoded.float() - pixels
        reconstruction = (weight * (error.abs() + error.square())).mean()
        coherent = _coherent(error, rarity).mean().add(1e-12).sqrt()
        moving_error = (mask * error.square()).sum() / (3.0 * mask.sum()).clamp_min(1.0)
        metrics = {
            "psnr": -10.0 * torch.log10(error.square().mean() / 4.0),
            "psnr_moving": -10.0 * torch.log10(moving_error / 4.0),
            "coherent_error": coherent,
        }
        loss = reconstruction + config.coherent_weight * coherent
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def hardest(
        self, decode: Callable[[], Float[Tensor, "N 3 H W"]], pairs: UInt8[Tensor, "B 2 H W 3"]
    ) -> Tensor:
        """Indices of the pairs to learn from, of ``hard_share`` of them; ``decode`` makes the pictures where
        they are needed for it."""
        if self.config.hard_share == 1.0:
            return torch.arange(len(pairs), device=pairs.device)
        errors = _coherent(decode().float() - to_pixels(pairs), self._rarity(pairs))
        count = math.ceil(self.config.hard_share * len(pairs))
        return errors.unflatten(0, (-1, 2)).sum(1).topk(count).indices

    def _rarity(self, pairs: Tensor) -> Float[Tensor, "N 1 H W"]:
        """How much each pixel weighs for its colour, 1 on average."""
        rarity = self.rarity[_colour_index(pairs.flatten(0, 1))].unsqueeze(1)
        return rarity / rarity.mean()


class TokenizerObjective(nn.Module):
    """``module(pairs) -> (loss, metrics)`` over pictures of pairs of moments of one episode."""

    def __init__(self, tokenizer: ConvTokenizer, config: TokenizerObjectiveConfig):
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.loss = PictureLoss(config)

    def forward(
        self, pairs: UInt8[Tensor, "B 2 H W 3"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch."""
        tokenizer = self.tokenizer
        pairs = pairs[
            self.loss.hardest(lambda: tokenizer.decode_raw(tokenizer.encode_raw(to_pixels(pairs))), pairs)
        ]
        raw = tokenizer.encode_raw(to_pixels(pairs))
        noise = torch.randn(raw.shape, generator=generator, device=raw.device, dtype=raw.dtype)
        loss, metrics = self.loss(tokenizer.decode_raw(raw + self.config.noise * noise), pairs)
        penalty = raw.float().square().mean()
        metrics["latent_rms"] = penalty.sqrt().detach()
        return loss + self.config.latent_penalty * penalty, metrics


def to_pixels(pictures: UInt8[Tensor, "*batch H W 3"]) -> Float[Tensor, "N 3 H W"]:
    """Pictures one after the other, in [-1, 1]."""
    return pictures.flatten(0, -4).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _coherent(error: Tensor, weight: Tensor) -> Float[Tensor, " N"]:
    """Mean fourth power, by picture, of what 3x3 pixels have in common of their weighted errors."""
    return F.avg_pool2d(weight.sqrt() * error, 3, stride=1).square().square().mean((1, 2, 3))


def _colour_index(pictures: Tensor) -> Tensor:
    """``uint8`` ``N H W 3`` to the index of each pixel's colour, ``N H W``."""
    red, green, blue = (pictures.long() // (256 // COLOUR_LEVELS)).unbind(-1)
    return (red * COLOUR_LEVELS + green) * COLOUR_LEVELS + blue
