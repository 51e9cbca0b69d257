"""The past of streaming sessions in constant memory."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kinema.model.attention import attend
from kinema.model.embeddings import rotary_table, rotate
from kinema.model.tokens import NUM_BEFORE, DynamicsConfig, Values


class Ring:
    """The last frames of something, along the last axis but one; sessions are the axis ``session_axis``.

    The buffer holds more than the window. The window is the slice before ``end``; when ``end`` nears the end
    of the buffer, what is still needed moves to the front. So a window is always one contiguous view,
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
        """Write a frame behind the past ones, without keeping it, and give the window and it."""
        self.buffer[..., self.end : self.end + 1, :] = frame
        return self._past_and_next()

    @property
    def next_frame(self) -> Tensor:
        """The frame written last, which is not kept yet."""
        return self.buffer[..., self.end : self.end + 1, :]

    def _past_and_next(self) -> Tensor:
        """The window, and the frame written last."""
        return self.buffer[..., max(0, self.end - self.window) : self.end + 1, :]

    def past(self) -> Tensor:
        """The window: ``window`` frames, or those that there are."""
        return self.buffer[..., max(0, self.end - self.window) : self.end, :]

    def full_window(self) -> Tensor:
        """The window, with zeros in place of frames that there are not."""
        past = self.past()
        missing = self.window - past.shape[-2]
        return F.pad(past, (0, 0, missing, 0)) if missing else past

    def keep(self) -> None:
        """Keep the frame written last."""
        self.end += 1
        if self.end == self.buffer.shape[-2]:
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

    @classmethod
    def gather(cls, rings: Sequence[Self], session_axis: int) -> Self:
        """The windows of sessions that have a ring each, side by side, for one frame more. Where some have
        seen fewer frames than others, there are zeros before theirs."""
        pasts = [ring.past() for ring in rings]
        other = object.__new__(cls)
        other.__dict__.update(rings[0].__dict__)
        other.end = max(past.shape[-2] for past in pasts)
        shape = list(pasts[0].shape)
        # Room for a frame, which is kept without a turn of the ring.
        shape[session_axis], shape[-2] = len(rings), other.end + 2
        other.buffer = pasts[0].new_zeros(shape)
        for index, past in enumerate(pasts):
            place = other.buffer.narrow(session_axis, index, 1)
            place[..., other.end - past.shape[-2] : other.end, :] = past
        return other

    def scatter(self, rings: Sequence[Self], session_axis: int) -> None:
        """Keep in each of the rings that were gathered the frame that was kept here last."""
        last = self.buffer[..., self.end - 1 : self.end, :]
        for ring, frame in zip(rings, last.split(1, session_axis), strict=True):
            ring.with_frame(frame)
            ring.keep()

    def replace(self, indices: Tensor, other: "Ring", session_axis: int) -> None:
        """Give some sessions the window of those of another ring, in their order."""
        indices = indices.to(self.buffer.device)
        self.past().index_copy_(session_axis, indices, other.past())


class LayerCache(Ring):
    """Keys (rotated) and values of the past frames in one layer: ``2 B N H S E``."""

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
        is_far: bool = False,
    ):
        """``is_far``: the window is long, and full from the start with frames that are not there, so that
        sessions of any age stand side by side."""
        self.num_tokens = tokens
        self._num_missing: Tensor | None = None
        """Places at the front of the buffer that hold nothing, by session; None where all hold something."""
        shape = (2, batch, tokens, num_heads, 1, head_dim)
        super().__init__(shape, window=window, max_rewind=max_rewind, like=like)
        if is_far:
            self.end, self._has_forgotten = window, True
            self._num_missing = torch.full((batch,), window, device=like.device)

    def num_missing(self, batch: int) -> Int[Tensor, " B"]:
        """Places of the full window that hold nothing, by session."""
        length = self.past().shape[-2]
        missing = torch.full((batch,), self.window - length, device=self.buffer.device)
        if self._num_missing is not None:
            missing = missing + (self._num_missing - (self.end - length)).clamp_min(0)
        return missing

    def _missing_in_window(self) -> Int[Tensor, " B"] | None:
        if self._num_missing is None:
            return None
        return (self._num_missing - max(0, self.end - self.window)).clamp_min(0)

    def keep(self) -> None:
        end = self.end + 1
        super().keep()
        if self._num_missing is not None and self.end != end:
            self._num_missing = (self._num_missing - (end - self.end)).clamp_min(0)

    def select(self, indices: Tensor, session_axis: int, max_rewind: int | None = None) -> Self:
        other = super().select(indices, session_axis, max_rewind)
        if self._num_missing is not None:
            kept = self._num_missing[indices.to(self._num_missing.device)]
            other._num_missing = (kept - (self.end - other.end)).clamp_min(0)
        return other

    def replace(self, indices: Tensor, other: Ring, session_axis: int) -> None:
        super().replace(indices, other, session_axis)
        if self._num_missing is not None:
            assert isinstance(other, LayerCache)
            missing = other._missing_in_window()
            assert missing is not None
            places = indices.to(missing.device)
            first = max(0, self.end - self.window)
            self._num_missing = self._num_missing.index_copy(0, places, missing + first)

    def attend(
        self, q_BNH1E: Tensor, k_BNH1E: Tensor, v_BNH1E: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Write a frame without keeping it, and attend from it to those before it within the window and to
        itself.

        Keys are written rotated by the frame's number in its session: only differences matter, so a key is
        turned once and for all.
        """
        written = self.buffer[..., self.end : self.end + 1, :]
        written[0] = rotate(k_BNH1E, *rotary)
        written[1] = v_BNH1E
        keys, values = self._past_and_next().unbind(0)
        is_there = None
        if self._num_missing is not None:
            num_keys = keys.shape[-2]
            place = torch.arange(num_keys, device=keys.device) + self.end + 1 - num_keys
            is_there = (place >= self._num_missing[:, None]).view(-1, 1, 1, 1, num_keys)
        return attend(rotate(q_BNH1E, *rotary), keys, values, is_there)

    @classmethod
    def of_sessions(cls, rings: Sequence[Self]) -> Self:
        """The windows of sessions that have a cache each; what is not there is not seen."""
        other = cls.gather(rings, 1)
        num_missing = [other.end - ring.past().shape[-2] for ring in rings]
        missing = torch.tensor(num_missing, device=other.buffer.device)
        if (of_rings := [ring._missing_in_window() for ring in rings])[0] is not None:
            missing = missing + torch.cat([each for each in of_rings if each is not None])
        other._num_missing = missing if missing.any() else None
        return other


class Cache:
    """What streaming sessions remember: keys and values of each block that sees time, and the last frames."""

    def __init__(self, config: DynamicsConfig, batch: int, max_rewind: int, like: Tensor):
        num_layers = config.depth // config.time_every

        def layer(tokens: int, window: int, *, is_far: bool = False) -> LayerCache:
            return LayerCache(
                batch=batch,
                tokens=tokens,
                num_heads=config.num_heads,
                head_dim=config.width // config.num_heads,
                window=window,
                max_rewind=max_rewind,
                like=like,
                is_far=is_far,
            )

        self.layers = [layer(config.num_tokens, config.window) for _ in range(num_layers)]
        self.far_layers = [
            layer(config.num_registers, config.memory, is_far=True)
            for _ in range(num_layers if config.memory else 0)
        ]
        """The same of the registers, which see farther."""
        self.latents = (config.num_latents, config.latent_dim)
        self.sizes = config.frame_sizes
        self.frames = Ring(
            (batch, 1, sum(self.sizes)),
            window=NUM_BEFORE,
            max_rewind=self._frames_rewind(config.window, max_rewind),
            like=like,
        )
        self.holds_next = False
        """True where keys and values of the next frame are there already, as they will be kept."""
        self._held: list[Tensor] | None = None
        """Keys and values of the next frame by layer, where the layers were written again since."""
        self.num_frames = torch.zeros(batch, dtype=torch.long, device=like.device)
        """Frames that each session has kept so far."""

    @staticmethod
    def _frames_rewind(window: int, max_rewind: int) -> int:
        """How far the frames must be able to go back: as far as the layers, whose window is another."""
        return max_rewind + max(window - NUM_BEFORE, 0)

    def rotary(self) -> tuple[Tensor, Tensor]:
        """Rotation ``B 1 1 1 E`` of the next frame, by its number in its session."""
        cos, sin = rotary_table(self.num_frames[:, None], self.layers[0].buffer.shape[-1])
        return cos[:, None, None], sin[:, None, None]

    def past(self) -> tuple[Values, Float[Tensor, "B T M"]]:
        """The frames kept last, ``NUM_BEFORE`` if there are as many, and their noise levels."""
        latents, proprio, action, tau = self.frames.past().split(self.sizes, dim=-1)
        return Values(latents.unflatten(-1, self.latents), proprio, action), tau

    @property
    def last_latents(self) -> Float[Tensor, "B L Z"]:
        """Latents of the frame kept last."""
        return self.frames.past()[:, -1, : self.sizes[0]].unflatten(-1, self.latents)

    @property
    def last_proprio(self) -> Float[Tensor, "B P"]:
        """Proprioception of the frame kept last."""
        return self.frames.past()[:, -1, self.sizes[0] : self.sizes[0] + self.sizes[1]]

    def hold_next(self) -> None:
        """Put the keys and values of the next frame aside before the layers are written again."""
        if self._held is None:
            self._held = [layer.next_frame.clone() for layer in self.all_layers]

    def keep(self, frame: Values, tau: Float[Tensor, "B 1 M"]) -> None:
        """Keep a frame whose keys and values are there."""
        assert self.holds_next
        if self._held is not None:
            for layer, held in zip(self.all_layers, self._held, strict=True):
                layer.with_frame(held)
            self._held = None
        self.frames.with_frame(torch.cat([frame.pack(), tau], dim=-1))
        for ring in self.rings:
            ring.keep()
        self.num_frames = self.num_frames + 1
        self.holds_next = False

    @property
    def all_layers(self) -> list[LayerCache]:
        """The layers of all tokens, then those of the registers."""
        return [*self.layers, *self.far_layers]

    @property
    def rings(self) -> list[Ring]:
        return [*self.all_layers, self.frames]

    @property
    def num_rewindable(self) -> int:
        """Frames that ``rewind`` can take back."""
        return min(ring.num_rewindable for ring in self.rings)

    def rewind(self, num_frames: int) -> None:
        """Take back the frames kept last."""
        for ring in self.rings:
            ring.rewind(num_frames)
        self.num_frames = self.num_frames - num_frames
        self.holds_next, self._held = False, None

    @property
    def is_full(self) -> bool:
        """Whether the window of every block that sees time is full."""
        return all(ring.end >= ring.window for ring in self.rings)

    def select(self, indices: Tensor, max_rewind: int | None = None) -> "Cache":
        """The past of some of the sessions; with ``max_rewind`` in a cache made for that, which is cheaper
        where it is less."""
        other = object.__new__(Cache)
        other.__dict__.update(self.__dict__)
        other.layers = [layer.select(indices, 1, max_rewind) for layer in self.layers]
        other.far_layers = [layer.select(indices, 1, max_rewind) for layer in self.far_layers]
        of_frames = None if max_rewind is None else self._frames_rewind(self.layers[0].window, max_rewind)
        other.frames = self.frames.select(indices, 0, of_frames)
        other.num_frames = self.num_frames[indices.to(self.num_frames.device)]
        other.holds_next, other._held = False, None
        return other

    def replace(self, indices: Tensor, other: "Cache") -> None:
        """Give some sessions the past of those of another cache, in their order; both must be full."""
        assert self.is_full
        assert other.is_full
        for layer, new in zip(self.all_layers, other.all_layers, strict=True):
            layer.replace(indices, new, 1)
        self.frames.replace(indices, other.frames, 0)
        places = indices.to(self.num_frames.device)
        self.num_frames = self.num_frames.index_copy(0, places, other.num_frames)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(ring.buffer.nbytes for ring in self.rings)

    @classmethod
    def gather(cls, caches: "Sequence[Cache]") -> "Cache":
        """What sessions with a cache each need for their next frame, as one cache. The caches stay as they
        are until ``scatter``."""
        other = object.__new__(cls)
        other.__dict__.update(caches[0].__dict__)
        for name in ("layers", "far_layers"):
            layers = zip(*(getattr(cache, name) for cache in caches), strict=True)
            setattr(other, name, [LayerCache.of_sessions(of_sessions) for of_sessions in layers])
        other.frames = Ring.gather([cache.frames for cache in caches], 0)
        other.num_frames = torch.cat([cache.num_frames for cache in caches])
        other.holds_next, other._held = False, None
        return other

    def scatter(self, caches: "Sequence[Cache]") -> None:
        """Keep in each of the caches that were gathered the frame that was kept here last."""
        of_caches = zip(*(cache.all_layers for cache in caches), strict=True)
        for layer, of_sessions in zip(self.all_layers, of_caches, strict=True):
            layer.scatter(of_sessions, 1)
        self.frames.scatter([cache.frames for cache in caches], 0)
        for cache in caches:
            cache.num_frames = cache.num_frames + 1
