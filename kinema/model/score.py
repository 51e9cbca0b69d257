"""The energy score: a loss of two samples whose optimum is the distribution of the data.

``(d(a, x) + d(b, x)) / 2 - d(a, b) / 2``, where ``a`` and ``b`` are independent samples and ``x`` data, is
least in the mean when samples and data have the same distribution (Gneiting and Raftery 2007, section 4.3;
for denoisers 2502.02483). In a world where all is certain it is a plain distance.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def distance(
    first: Float[Tensor, "*batch V"], second: Float[Tensor, "*batch V"], smoothness: float
) -> Float[Tensor, "*batch"]:
    """Root mean square difference, quadratic below ``smoothness``: a multiquadric, so the score is proper."""
    square = (first - second).square().mean(-1)
    return (square + smoothness**2).sqrt() - smoothness


def energy_score(
    samples: tuple[Float[Tensor, "*batch V"], Float[Tensor, "*batch V"]],
    data: Float[Tensor, "*batch V"],
    smoothness: float,
) -> Float[Tensor, "*batch"]:
    """Energy score of two samples against the data; each is a vector along the last axis."""
    first, second = samples
    error = distance(first, data, smoothness) + distance(second, data, smoothness)
    return (error - distance(first, second, smoothness)) / 2


def is_plausible(
    sample: Float[Tensor, "*batch V"],
    other: Float[Tensor, "*batch V"],
    data: Float[Tensor, "*batch V"],
    tolerance: float,
) -> Tensor:
    """True where the data is no further from a sample than ``tolerance`` times another sample is."""
    return torch.linalg.vector_norm(sample - data, dim=-1) <= tolerance * torch.linalg.vector_norm(
        sample - other, dim=-1
    )
