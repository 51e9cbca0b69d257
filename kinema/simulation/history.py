"""The last moments of sessions, in as little memory as they take."""

import torch
from torch import Tensor

FIRST_ROOM = 64
"""Moments for which there is room at first."""


class Moments:
    """The last ``most`` of something that is told in tensors, one row each, in rings that grow until they are
    full: a row takes what its numbers take, where a tensor of its own would take a kilobyte more."""

    def __init__(self, most: int):
        self._most = most
        self._rings: list[Tensor] = []
        self._first = self._num = 0

    def __len__(self) -> int:
        return self._num

    @torch.inference_mode()
    def append(self, *parts: Tensor) -> None:
        """Add a moment, of parts shaped and typed as those of the first; where there are ``most`` already,
        the first one goes."""
        room = len(self._rings[0]) if self._rings else 0
        if self._num == room < self._most:
            rows = self[:]
            room = min(self._most, max(FIRST_ROOM, 2 * room))
            self._rings = [part.new_empty(room, *part.shape) for part in parts]
            self._first = 0
            for ring, kept in zip(self._rings, rows, strict=False):
                ring[: self._num] = kept
        place = (self._first + self._num) % room
        for ring, part in zip(self._rings, parts, strict=True):
            ring[place] = part
        if self._num == room:
            self._first = (self._first + 1) % room
        else:
            self._num += 1

    def __getitem__(self, rows: slice) -> list[Tensor]:
        """Some rows of all parts, copied, the oldest first."""
        if not self._rings:
            return []
        places = torch.tensor(range(*rows.indices(self._num)), dtype=torch.long)
        places = (self._first + places) % len(self._rings[0])
        return [ring[places.to(ring.device)] for ring in self._rings]

    def pop(self, num: int) -> None:
        """Forget the last ``num``."""
        assert 0 <= num <= self._num
        self._num -= num

    def clear(self) -> None:
        """Forget all."""
        self._first = self._num = 0

    def select(self, indices: Tensor, most: int, last: int) -> "Moments":
        """The same of some entries of every row, of the ``last`` rows at most."""
        other = Moments(most)
        kept = self[max(0, self._num - min(last, most)) :]
        if kept:
            other._rings = [part[:, indices.to(part.device)] for part in kept]
            other._num = len(other._rings[0])
        return other
