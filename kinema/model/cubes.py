"""Points sorted into cubes of a grid, to have few that stand for many."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

FINEST, COARSER = 0.02, 1.1
"""Side of the cubes at first, and by what it grows while these are too many."""


def cubes(
    points: Float[np.ndarray, "N V"], rng: np.random.Generator, *, is_shifted: bool = False
) -> Iterator[Int[np.ndarray, " N"]]:
    """For each point a number that stands for its cube; first for small cubes, then for larger and larger
    ones. The grid begins at the origin, or is shifted by shares of a cube's side, the same for all."""
    factors = rng.integers(1, 2**62, points.shape[1]) * 2 + 1
    shift = rng.random(points.shape[1]) if is_shifted else 0.0
    side = FINEST
    while True:
        places = np.floor(points / side + shift).astype(np.int64)
        with np.errstate(over="ignore"):
            yield (places * factors).sum(1)
        side *= COARSER
