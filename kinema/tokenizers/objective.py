"""What a tokenizer is trained on: the picture back again, with the things that move counted most.

A plain pixel loss buys background: small moving things vanish from the pictures. So a pixel that differs
between two moments of one episode counts ``motion_weight`` times more.
"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kinema.tokenizers.convolutional import ConvTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerObjectiveConfig:
    motion_weight: float = 16.0
    """How much more a moving pixel counts than a still one."""
    motion_threshold: float = 0.08
    """Least difference of a pixel (of a range of 2) between two moments that counts as motion."""
    coherent_weight: float = 10.0
    """Weight of errors that neighbouring pixels share, the largest counted most: a small thing that is
    missing is such an error, the jagged edge of a large one is not."""
    noise: float = 0.1
    """Deviation of the noise on the raw latents, which have a deviation of about 1."""
    latent_penalty: float = 1e-3
    """Weight of the mean square of the raw latents: with the noise, it keeps them smooth and small."""


def motion_mask(first: Tensor, second: Tensor, threshold: float) -> Float[Tensor, "B 1 H W"]:
    """1 where two pictures of one episode differ, grown by a pixel, else 0."""
    moving = ((first - second).abs().amax(1, keepdim=True) > threshold).to(first.dtype)
    return F.max_pool2d(moving, 3, stride=1, padding=1)


class TokenizerObjective(nn.Module):
    """``module(pixels) -> (loss, metrics)`` over pairs of moments of one episode."""

    def __init__(self, tokenizer: ConvTokenizer, config: TokenizerObjectiveConfig):
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config

    def forward(
        self, pairs: UInt8[Tensor, "B 2 H W 3"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch.

        Both pictures of a pair are reconstructed; each tells where the other one moves.
        """
        config = self.config
        pixels = pairs.permute(1, 0, 4, 2, 3).flatten(0, 1).float() / 127.5 - 1.0
        first, second = pixels.chunk(2)
        mask = motion_mask(first, second, config.motion_threshold).repeat(2, 1, 1, 1)
        raw = self.tokenizer.encode_raw(pixels)
        noise = torch.randn(raw.shape, generator=generator, device=raw.device, dtype=raw.dtype)
        error = self.tokenizer.decode_raw(raw + config.noise * noise).float() - pixels
        weight = 1.0 + config.motion_weight * mask
        weight = weight / weight.mean()
        reconstruction = (weight * (error.abs() + error.square())).mean()
        coherent = F.avg_pool2d(error, 3, stride=1).square().square().mean().add(1e-12).sqrt()
        penalty = raw.float().square().mean()
        moving_error = (mask * error.square()).sum() / (3.0 * mask.sum()).clamp_min(1.0)
        metrics = {
            "psnr": -10.0 * torch.log10(error.square().mean() / 4.0),
            "psnr_moving": -10.0 * torch.log10(moving_error / 4.0),
            "coherent_error": coherent,
            "latent_rms": penalty.sqrt(),
        }
        loss = reconstruction + config.coherent_weight * coherent + config.latent_penalty * penalty
        return loss, {name: value.detach() for name, value in metrics.items()}
