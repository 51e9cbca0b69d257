"""Codes of recorded frames, kept, to bring back what has come between them.

A manifold is smooth, and where recorded frames that look different have codes near each other (a thing, and
the same thing turned), it also shows what lies between, which never was. A network that is to undo that
learns the mean of both sides, which is in between again; the nearest of a finite number of codes is one of
them.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kinema.model.cubes import cubes

NUM_CELLS = 1024
"""Parts that the codes are sorted into, all of one size, so that few are compared with each one asked for."""
SEARCHED_CELLS = 12
"""Of these the nearest are searched."""
STEPS = 127
"""Codes are within (-1, 1), and are kept as whole numbers of 1 in so many."""
REACH_QUANTILE = 0.8
"""Share of recorded frames, of episodes left out, which are nearer to what is kept than ``reach``."""
LEFT_OUT = 20
"""One episode of so many is left out."""
MOST_ASKED = 4096
"""Codes of which ``reach`` is taken."""
MOST_AT_ONCE = 64
"""Codes that are searched for in one go: what is compared then fits a processor's cache."""


class RecordedCodes(nn.Module):
    """As many codes of recorded frames, spread evenly over where there are any."""

    kept: Int[Tensor, "C S K"]
    cells: Float[Tensor, "C S K"]
    centres: Float[Tensor, "C K"]
    reach: Tensor
    """The distance from which a code is too far from all that are kept; infinite before ``fit``."""

    def __init__(self, num: int, code_dim: int):
        """``num`` is a multiple of ``NUM_CELLS``."""
        super().__init__()
        shape = (NUM_CELLS, num // NUM_CELLS, code_dim)
        self.register_buffer("kept", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("reach", torch.tensor(torch.inf))
        self.register_buffer("cells", torch.zeros(shape), persistent=False)
        self.register_buffer("centres", torch.zeros(shape[0], code_dim), persistent=False)

    @property
    def is_fitted(self) -> bool:
        return bool(self.reach.isfinite())

    @property
    def codes(self) -> Float[Tensor, "M K"]:
        """What is kept, in no order."""
        return self.cells.flatten(0, 1)

    @torch.no_grad()
    def fit(self, code: Float[Tensor, "N K"], episode: Int[np.ndarray, " N"]) -> None:
        """Choose what is kept of the codes of recorded frames, and find ``reach``.

        Args:
            code: of the frames.
            episode: of which episode each is; some episodes are left out.
        """
        is_left_out = np.unique(episode, return_inverse=True)[1] % LEFT_OUT == LEFT_OUT - 1
        points = code.cpu().numpy()
        kept = _sorted_into_cells(_spread(points[~is_left_out], len(self.codes)))
        self.kept.copy_(torch.from_numpy(kept).mul(STEPS).round().view_as(self.kept))
        self._sort_in()
        # Without an episode to leave out, frames that were not chosen have to do.
        asked = points[is_left_out] if is_left_out.any() else points
        asked = asked[:: -(-len(asked) // MOST_ASKED)]
        distance, _ = self.nearest(torch.from_numpy(asked).to(self.reach.device), 1)
        self.reach.copy_(distance[:, 0].quantile(REACH_QUANTILE))

    def nearest(
        self, code: Float[Tensor, "N K"], num: int
    ) -> tuple[Float[Tensor, "N num"], Float[Tensor, "N num K"]]:
        """The kept codes that are nearest to each one, the nearest first, and how far they are.

        Far from all of them the nearest is not always found, but always one about as near.
        """
        distances, found = [], []
        for part in code.split(MOST_AT_ONCE):
            away = self.centres.square().sum(-1) - 2.0 * part @ self.centres.T
            cell = away.topk(SEARCHED_CELLS, largest=False)[1]
            candidates = self.cells[cell].flatten(1, 2)
            squares = (part[:, None] - candidates).square().sum(-1)
            least, index = squares.topk(min(num, squares.shape[1]), largest=False)
            distances.append(least.sqrt())
            found.append(candidates.gather(1, index[..., None].expand(-1, -1, code.shape[1])))
        return torch.cat(distances), torch.cat(found)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._sort_in()

    def _sort_in(self) -> None:
        self.cells.copy_(self.kept.to(self.cells.dtype) / STEPS)
        self.centres.copy_(self.cells.mean(1))


def _spread(points: Float[np.ndarray, "N K"], num: int) -> Float[np.ndarray, "num K"]:
    """So many of the points, spread evenly over where there are any: one of each cube. Fewer are repeated."""
    rng = np.random.default_rng(0)
    points = points[rng.permutation(len(points))]
    for cube in cubes(points, rng, is_shifted=True):
        chosen = np.unique(cube, return_index=True)[1]
        if len(chosen) <= num:
            return points[np.resize(np.sort(chosen), num)]
    raise AssertionError("there is a size at which all points lie in few cubes")


def _sorted_into_cells(points: Float[np.ndarray, "M K"]) -> Float[np.ndarray, "M K"]:
    """The same points in an order in which those of each cell follow each other: halved at the median, again
    and again, along what they differ in most."""
    cells = [points]
    while len(cells) < NUM_CELLS:
        halves = []
        for cell in cells:
            axis = np.ptp(cell, axis=0).argmax()
            order, middle = cell[:, axis].argsort(), len(cell) // 2
            halves += [cell[order[:middle]], cell[order[middle:]]]
        cells = halves
    return np.concatenate(cells)
