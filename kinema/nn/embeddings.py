"""Numbers as features: Fourier features of continuous values and rotary positions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """A value, and its sines and cosines at octaves, so that a small change of a number is easy to see."""

    frequencies: Tensor

    def __init__(self, num_octaves: int):
        super().__init__()
        self.num_octaves = num_octaves
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(num_octaves), persistent=False)

    def size(self, num_values: int) -> int:
        """Features that ``num_values`` values give."""
        return num_values * (1 + 2 * self.num_octaves)

    def forward(self, values: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch F"]:
        phases = (values.unsqueeze(-1) * self.frequencies.to(values.dtype)).flatten(-2)
        return torch.cat([values, phases.sin(), phases.cos()], dim=-1)


def rotary_table(positions: Float[Tensor, " T"], head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, ``T E/2`` each, for positions that may be negative or fractional.

    The slowest pair turns once in about 600 positions: windows are short, so a small base separates them better
    than the 10,000 usual for text.
    """
    rates = 100.0 ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    phases = positions[:, None].float() * rates
    return phases.cos(), phases.sin()


def rotate(
    x: Float[Tensor, "*batch T E"], cos: Float[Tensor, "T e"], sin: Float[Tensor, "T e"]
) -> Float[Tensor, "*batch T E"]:
    """Turn each pair (i, i + E/2) of the last axis by its position's angle (RoFormer, 2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
