"""Numbers as features: Fourier features of continuous values and rotary positions."""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """A vector, and sines and cosines of it: along each axis at octaves, and along random directions
    (2006.10739), so that what happens at one place of a plane is a linear function of the features.
    """

    frequencies: Tensor

    def __init__(self, num_values: int, num_octaves: int, num_directions: int = 0):
        super().__init__()
        num_directions *= num_values > 0
        octaves = torch.pi * 2.0 ** torch.arange(num_octaves)
        axes = torch.eye(num_values)[:, :, None] * octaves
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(num_values, num_directions, generator=generator)
        lengths = torch.pi * 2.0 ** (torch.rand(num_directions, generator=generator) * (num_octaves - 1))
        directions = directions / directions.norm(dim=0, keepdim=True) * lengths
        self.register_buffer("frequencies", torch.cat([axes.flatten(1), directions], 1))

    @property
    def size(self) -> int:
        """Features of a vector."""
        return self.frequencies.shape[0] + 2 * self.frequencies.shape[1]

    def forward(self, values: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch F"]:
        if not values.shape[-1]:
            return values
        # A sum of products and not a matrix product: that would lose the phases' precision under autocast.
        phases = (values.unsqueeze(-1) * self.frequencies).sum(-2)
        return torch.cat([values, phases.sin(), phases.cos()], dim=-1)


@functools.cache
def _speeds(head_dim: int, device: torch.device) -> Float[Tensor, " pairs"]:
    """By how much pairs turn from one position to the next."""
    with torch.inference_mode(False):
        pairs = torch.arange(0, head_dim, 2, device=device, dtype=torch.float64)
        return 100.0 ** (-pairs / head_dim)


def rotary_table(
    positions: Float[Tensor, "*batch T"] | Int[Tensor, "*batch T"], head_dim: int
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``rotate``, ``*batch T E`` each, of positions that may be negative or fractional.

    Both of a pair have the same cosine; the sine of the first has the other sign.
    The slowest pair turns once in about 600 positions: windows are short, so a small base separates them
    better than the 10,000 usual for text. In double precision, so that positions may grow without end.
    """
    phases = positions.unsqueeze(-1) * _speeds(head_dim, positions.device)
    cos, sin = phases.cos().float(), phases.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(
    x: Float[Tensor, "*batch T E"], cos: Float[Tensor, "*_ T E"], sin: Float[Tensor, "*_ T E"]
) -> Float[Tensor, "*batch T E"]:
    """Turn each pair (i, i + E/2) of the last axis by its position's angle (RoFormer, 2104.09864)."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.shape[-1] // 2, -1), sin.to(x.dtype))
