"""The past of streaming sessions in constant memory."""

from typing import Self

import torch
from torch import Tensor

from kinema.nn.embeddings import rotary_table


class Ring:
    """The last frames of something, along the last axis but one; sessions are the axis ``session_axis``.

    The buffer holds more than the window. The window is the slice before ``end``; when ``end`` reaches the
    end of the buffer, what is still needed moves to the front. So a window is always one contiguous view,
    appending costs one frame, and going back by up to ``max_rewind`` frames only moves ``end``.
    """

    def __init__(self, shape: tuple[int, ...], *, window: int, max_rewind: int, like: Tensor):
        """An empty ring of things of a ``shape`` that has 1 where the frames go."""
        self.window = window
        self.num_kept = window + max_rewind
        self.end = 0
        self._has_forgotten = False
        self.buffer = like.new_zeros(*shape[:-2], 2 * self.num_kept + 1, shape[-1])

    def with_frame(self, frame: Tensor) -> Tensor:
        """Write one frame behind the past ones, without keeping it, and give the window and it."""
        self.buffer[..., self.end : self.end + 1, :] = frame
        return self.buffer[..., max(0, self.end - self.window) : self.end + 1, :]

    def past(self) -> Tensor:
        """The window: ``window`` frames, or those that there are."""
        return self.buffer[..., max(0, self.end - self.window) : self.end, :]

    def keep(self) -> None:
        """Keep the frame written last."""
        self.end += 1
        if self.end == self.buffer.shape[-2] - 1:
            kept = self.buffer[..., self.end - self.num_kept : self.end, :].clone()
            self.buffer[..., : self.num_kept, :] = kept
            self.end = self.num_kept
            self._has_forgotten = True

    @property
    def num_rewindable(self) -> int:
        """Frames that ``rewind`` can take back: at least ``max_rewind`` right after as many were kept, fewer
        when some were taken back already. A full window stays where there was one."""
        return self.end - self.window if self._has_forgotten else self.end

    def rewind(self, num_frames: int) -> None:
        """Take back the frames kept last."""
        assert 0 <= num_frames <= self.num_rewindable
        self.end -= num_frames

    def select(self, indices: Tensor, session_axis: int, max_rewind: int | None = None) -> Self:
        """The past of some of the sessions; with ``max_rewind`` in a ring of that size, which is cheaper
        where it is smaller."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        indices = indices.to(self.buffer.device)
        if max_rewind is None:
            other.buffer = self.buffer.index_select(session_axis, indices)
            return other
        other.num_kept = self.window + max_rewind
        first = max(0, self.end - other.num_kept)
        kept = self.buffer[..., first : self.end, :].index_select(session_axis, indices)
        other.end = self.end - first
        other._has_forgotten = self._has_forgotten or first > 0
        room = 2 * other.num_kept + 1 - other.end
        other.buffer = torch.cat([kept, kept.new_zeros(*kept.shape[:-2], room, kept.shape[-1])], dim=-2)
        return other

    def replace(self, indices: Tensor, other: "Ring", session_axis: int) -> None:
        """Give some sessions the window of those of another ring, in their order."""
        indices = indices.to(self.buffer.device)
        self.past().index_copy_(session_axis, indices, other.past())


class LayerCache(Ring):
    """Keys (not rotated) and values of the past frames in one layer: ``2 B N H S E``."""

    def __init__(
        self,
        *,
        batch: int,
        tokens: int,
        num_heads: int,
        head_dim: int,
        window: int,
        max_rewind: int,
        like: Tensor,
    ):
        shape = (2, batch, tokens, num_heads, 1, head_dim)
        super().__init__(shape, window=window, max_rewind=max_rewind, like=like)
        ages = torch.arange(-window, 1, device=like.device, dtype=torch.float32)
        self._cos, self._sin = (table.to(like.dtype) for table in rotary_table(ages, head_dim))

    def attended(self, key_RH1E: Tensor, value_RH1E: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Write one frame without keeping it, and give all that it attends to: keys and values ``R H S E``
        (``R`` is ``B * N``) and the rotation of their ages.
        """
        frame = torch.stack([key_RH1E, value_RH1E]).unflatten(1, self.buffer.shape[1:3])
        keys, values = self.with_frame(frame).flatten(1, 2).unbind(0)
        size = keys.shape[-2]
        return keys, values, (self._cos[-size:], self._sin[-size:])
