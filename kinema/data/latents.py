"""Rows of numbers on disk: shards (safetensors) that are memory mapped, so that a dataset of any size takes
little memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from kinema.data.files import write_tensors
from kinema.types import DataError

SHARD_BYTES = 128 * 2**20
"""About so large is a shard, which is in memory while it is written."""
BATCH_ROWS = 256
"""Rows that are computed together."""


class Rows:
    """Rows ``N *V``, one part after the other, each a tensor in memory or memory mapped."""

    def __init__(self, parts: Sequence[Float[Tensor, "_ *V"]]):
        self._parts = [part.numpy() for part in parts]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.shape = (int(self._starts[-1]), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | Tensor | slice) -> Float[Tensor, "*_"]:
        """Rows by their numbers, of any shape, or a slice of them."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        return torch.from_numpy(self.read(np.asarray(rows)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The same without PyTorch, for threads beside training."""
        part = np.searchsorted(self._starts, rows, side="right") - 1
        chosen = np.empty((*rows.shape, *self.shape[1:]), self._parts[0].dtype)
        for index in np.unique(part):
            is_here = part == index
            chosen[is_here] = self._parts[index][rows[is_here] - self._starts[index]]
        return chosen

    def followed_by(self, other: "Rows") -> "Rows":
        """These rows, then others."""
        return Rows([torch.from_numpy(part) for part in (*self._parts, *other._parts)])


def write_rows(
    folder: Path, shape: tuple[int, ...], compute: Callable[[slice], Float[Tensor, "_ *V"]], what: str
) -> Rows:
    """Rows ``N *V`` in half precision, computed where ``folder`` does not hold them yet.

    Args:
        folder: of the shards. A shard that was damaged is written anew.
        shape: of all rows.
        compute: makes up to ``BATCH_ROWS`` rows.
        what: names the work, for the bar.

    Raises:
        FileError: a shard cannot be written.
    """
    row_bytes = 2 * int(np.prod(shape[1:]))
    num_each = BATCH_ROWS * max(1, SHARD_BYTES // (BATCH_ROWS * max(1, row_bytes)))
    shards: list[Tensor] = []
    bar = tqdm(total=shape[0], desc=what, unit="frame", disable=None)
    for index, start in enumerate(range(0, shape[0], num_each)):
        path, stop = folder / f"{index:05d}.safetensors", min(start + num_each, shape[0])
        shard = _read_shard(path, (stop - start, *shape[1:]))
        if shard is None:
            pieces = []
            for first in range(start, stop, BATCH_ROWS):
                pieces.append(compute(slice(first, min(first + BATCH_ROWS, stop))).half().cpu())
                bar.update(len(pieces[-1]))
            write_tensors(path, {"rows": torch.cat(pieces)})
            shard = _read_shard(path, (stop - start, *shape[1:]))
        if shard is None:
            raise DataError("was written, but cannot be read back", path=path)
        shards.append(shard)
    bar.close()
    return Rows(shards)


def _read_shard(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """A memory-mapped shard; None where it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        rows = load_file(path)["rows"]
    except (SafetensorError, OSError, KeyError):
        return None
    return rows if tuple(rows.shape) == shape else None
