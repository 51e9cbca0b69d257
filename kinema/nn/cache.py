"""The past of streaming sessions in constant memory."""

from typing import Self

import torch
from torch import Tensor

from kinema.nn.attention import attend
from kinema.nn.embeddings import rotary_table, rotate


class Ring:
    """The last frames of something, along the last axis but one; sessions are the axis ``session_axis``.

    The buffer holds more than the window. The window is the slice before ``end``; when ``end`` nears the end
    of the buffer, what is still needed moves to the front. So a window is always one contiguous view,
    appending costs one frame, and going back by up to ``max_rewind`` frames only moves ``end``.
    """

    MAX_FRAMES = 2
    """Most frames that are written at a time."""

    def __init__(self, shape: tuple[int, ...], *, window: int, max_rewind: int, like: Tensor):
        """An empty ring of things of a ``shape`` that has 1 where the frames go."""
        self.window = window
        self.num_kept = window + max_rewind
        self.end = 0
        self._has_forgotten = False
        self.buffer = like.new_zeros(*shape[:-2], 2 * self.num_kept + self.MAX_FRAMES, shape[-1])

    def with_frames(self, frames: Tensor) -> Tensor:
        """Write frames behind the past ones, without keeping them, and give the window and them."""
        end = self.end + frames.shape[-2]
        self.buffer[..., self.end : end, :] = frames
        return self.buffer[..., max(0, self.end - self.window) : end, :]

    def past(self) -> Tensor:
        """The window: ``window`` frames, or those that there are."""
        return self.buffer[..., max(0, self.end - self.window) : self.end, :]

    def keep(self) -> None:
        """Keep the first of the frames written last."""
        self.end += 1
        if self.end > self.buffer.shape[-2] - self.MAX_FRAMES:
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

    def select(self, indices: Tensor, session_axis: int) -> Self:
        """The past of some of the sessions."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.buffer = self.buffer.index_select(session_axis, indices.to(self.buffer.device))
        return other


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
        ages = torch.arange(window + self.MAX_FRAMES - 1, -1, -1, device=like.device)
        self._cos, self._sin = (table.to(like.dtype) for table in rotary_table(-ages.float(), head_dim))
        gap = ages[-self.MAX_FRAMES :, None] - ages
        self._is_seen = (gap <= 0) & (gap >= -window)

    def attend(self, q_RHTE: Tensor, k_RHTE: Tensor, v_RHTE: Tensor) -> Tensor:
        """Write frames without keeping them, and attend from each to those before it within the window and to
        itself. ``R`` is ``B * N``.

        Keys are written before rotation and turned by their age, counted from the last frame, so positions
        never grow.
        """
        frames = torch.stack([k_RHTE, v_RHTE]).unflatten(1, self.buffer.shape[1:3])
        keys, values = self.with_frames(frames).flatten(1, 2).unbind(0)
        num_frames, num_keys = q_RHTE.shape[-2], keys.shape[-2]
        keys = rotate(keys, self._cos[-num_keys:], self._sin[-num_keys:])
        if num_frames == 1:
            # Of age 0, so not turned, and all there is may be seen.
            return attend(q_RHTE, keys, values)
        queries = rotate(q_RHTE, self._cos[-num_frames:], self._sin[-num_frames:])
        return attend(queries, keys, values, self._is_seen[-num_frames:, -num_keys:])
