"""Keys and values of past frames for streaming, in constant memory."""

import torch
from torch import Tensor

from kinema.nn.embeddings import rotary_table


class LayerCache:
    """Keys (not rotated) and values of the past frames in one layer, for ``R = B * N`` rows.

    The buffer holds more than the window. The window is the slice before ``end``; when ``end`` reaches the end
    of the buffer, what is still needed moves to the front. So a window is always one contiguous view,
    appending costs one frame, and going back by up to ``max_rewind`` frames only moves ``end``.
    """

    def __init__(
        self, *, rows: int, num_heads: int, head_dim: int, window: int, max_rewind: int, like: Tensor
    ):
        self.window = window
        self.num_kept = window + max_rewind
        self.end = 0
        self.buffer = like.new_zeros(2, rows, num_heads, 2 * self.num_kept + 1, head_dim)
        ages = torch.arange(-window, 1, device=like.device, dtype=torch.float32)
        self._cos, self._sin = (table.to(like.dtype) for table in rotary_table(ages, head_dim))

    def with_frame(
        self, key_RH1E: Tensor, value_RH1E: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Write one frame behind the past ones, without keeping it, and give all that it attends to: keys and
        values ``R H S E`` and the rotation of their ages.
        """
        start, stop = max(0, self.end - self.window), self.end + 1
        self.buffer[0, :, :, self.end : stop] = key_RH1E
        self.buffer[1, :, :, self.end : stop] = value_RH1E
        keys, values = self.buffer[:, :, :, start:stop].unbind(0)
        size = stop - start
        return keys, values, (self._cos[-size:], self._sin[-size:])

    def keep(self) -> None:
        """Keep the frame written last."""
        self.end += 1
        if self.end == self.buffer.shape[3] - 1:
            kept = self.buffer[:, :, :, self.end - self.num_kept : self.end].clone()
            self.buffer[:, :, :, : self.num_kept] = kept
            self.end = self.num_kept

    def rewind(self, num_frames: int) -> None:
        self.end -= num_frames
        assert self.end >= 0

    def repeat(self, num_copies: int, tokens: int) -> "LayerCache":
        """The same past for ``num_copies`` sessions a session, which then go their own ways."""
        return self._with(
            self.buffer.unflatten(1, (-1, tokens)).repeat_interleave(num_copies, 1).flatten(1, 2)
        )

    def select(self, indices: Tensor, tokens: int) -> "LayerCache":
        """The past of some of the sessions."""
        return self._with(self.buffer.unflatten(1, (-1, tokens))[:, indices].flatten(1, 2))

    def _with(self, buffer: Tensor) -> "LayerCache":
        other = object.__new__(LayerCache)
        other.__dict__.update(self.__dict__)
        other.buffer = buffer
        return other
