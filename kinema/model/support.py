"""Where vectors were recorded, and the way back to it.

What a network makes of a vector that lies outside of all that it learned from may be anything. Commands are
easily given beyond what was ever commanded, to a corner of the table for instance; they are then taken for
the nearest that was.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kinema.model.cubes import cubes

THIN = 0.2
"""Cubes with fewer than this share of the mean number of vectors do not count."""
REACH_QUANTILE = 0.99
"""Share of recorded vectors, of episodes left out, that stay as they are; the others hardly move."""
LEFT_OUT = 20
"""One episode of so many is left out; of a single one, the last of so many parts."""
MOST_FITTED = 400_000
"""Most vectors to choose the points from."""
MOST_ASKED = 16_384
"""Most vectors of which the reach is taken."""


class Support(nn.Module):
    """Points among recorded vectors, and how far from one of them a vector may be."""

    points: Tensor
    reach: Tensor
    """Infinite before ``fit``: then all vectors are left as they are."""

    def __init__(self, num: int, size: int):
        super().__init__()
        self.register_buffer("points", torch.zeros(num, size))
        self.register_buffer("reach", torch.tensor(torch.inf))

    @property
    def is_fitted(self) -> bool:
        return bool(self.reach.isfinite())

    @torch.no_grad()
    def fit(self, vectors: Float[np.ndarray, "N V"], episode: Int[np.ndarray, " N"]) -> None:
        """Choose the points and the reach; ``episode`` tells which vectors are of the same one."""
        part = np.unique(episode, return_inverse=True)[1]
        if part[-1] < LEFT_OUT - 1:
            part = np.arange(len(vectors)) * LEFT_OUT // len(vectors)
        is_left_out = part % LEFT_OUT == LEFT_OUT - 1
        kept, asked = vectors[~is_left_out], vectors[is_left_out]
        kept = kept[:: -(-len(kept) // MOST_FITTED)]
        self.points.copy_(torch.from_numpy(_means(kept, len(self.points))))
        asked = torch.from_numpy(asked[:: -(-len(asked) // MOST_ASKED)]).to(self.points.device)
        away = torch.cat([self._nearest(part)[0] for part in asked.split(1024)])
        self.reach.copy_(away.quantile(REACH_QUANTILE))

    def hold(self, vectors: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Vectors, those that are out of reach brought back to where they are within."""
        flat = vectors.flatten(0, -2)
        away, nearest = self._nearest(flat)
        share = (self.reach / away.clamp_min(1e-9)).unsqueeze(-1)
        held = torch.where(share < 1.0, torch.lerp(nearest, flat, share.clamp_max(1.0)), flat)
        return held.view_as(vectors)

    def _nearest(self, vectors: Float[Tensor, "N V"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
        """The nearest of the points, and how far it is."""
        # Along points: to sum along an axis of a few numbers takes longer than all else.
        squares = (vectors.unsqueeze(-1) - self.points.T.contiguous()).square().sum(-2)
        least, index = squares.min(-1)
        return least.sqrt(), self.points[index]


def _means(vectors: Float[np.ndarray, "N V"], num: int) -> Float[np.ndarray, "num V"]:
    """The means of the vectors in each of up to so many cubes; fewer are repeated."""
    for places in cubes(vectors, np.random.default_rng(0)):
        _, cube, counts = np.unique(places, return_inverse=True, return_counts=True)
        is_enough = counts >= THIN * counts.mean()
        if is_enough.sum() <= num:
            sums = np.stack([np.bincount(cube, column, len(counts)) for column in vectors.T], axis=1)
            means = (sums / counts[:, None])[is_enough].astype(np.float32)
            return means[np.resize(np.arange(len(means)), num)]
    raise AssertionError("there is a size at which all vectors lie in few cubes")
