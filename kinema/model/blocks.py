"""The transformer block of the dynamics: attention over space, sometimes over time, and a gated MLP.

Shape letters in suffixes: B batch, T time, N tokens of a frame, D width, H heads, E head size, S keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinema.model.attention import KeysValues, attend
from kinema.model.cache import LayerCache
from kinema.model.embeddings import rotate

Far = tuple[int, Tensor]
"""How many of the last tokens of a frame see far, and whom (``T S``)."""
Context = tuple[Tensor, Tensor]
"""Indices of the frames, of all batch and time, that have a context, and its tokens ``R C D``."""


def norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without gain or bias: the next linear map has them.

    Not a root-mean-square norm: on a CPU that is six operators where this is one.
    """
    return F.layer_norm(x, (x.shape[-1],))


class _Attention(nn.Module):
    """Projections common to attention over space and over time."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def project(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both normed: 2302.05442, section 2.2) and values, each ``... H E`` for ``... D``."""
        qkv = self.qkv(norm(x_D))
        qkv = qkv.view(*qkv.shape[:-1], 3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))
        # Normed as they lie: once heads come before tokens every norm would begin with a copy.
        q_HE, k_HE = norm(qkv[..., :2, :, :]).unbind(-3)
        return q_HE, k_HE, qkv[..., 2, :, :]


class SpaceAttention(_Attention):
    """Every token of a frame attends to every token of the same frame."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.project(x_BTND.flatten(0, 1)))
        y_RHNE = attend(q, k, v)
        return self.out(y_RHNE.transpose(1, 2).reshape(x_BTND.shape))


class TimeAttention(_Attention):
    """Every token attends to the same token of other frames."""

    def forward(
        self,
        x_BTND: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_TS: Tensor | None,
        past: KeysValues | None = None,
        far: Far | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The training path: all frames at once, who sees whom given by ``mask_TS`` (without it all see all).
        They also see the frames of ``past``, which come first in the mask; the last tokens of a frame see as
        ``far`` says. Their own keys and values are given too."""
        batch, _, tokens, _ = x_BTND.shape
        x_RTD = x_BTND.transpose(1, 2).flatten(0, 1)
        q, k, v = (part.transpose(1, 2) for part in self.project(x_RTD))
        own = rotate(k, *rotary), v
        k, v = own if past is None else (torch.cat(pair, dim=2) for pair in zip(past, own, strict=True))
        q = rotate(q, *rotary)
        y_RHTE = attend(q, k, v, mask_TS)
        if far is not None:
            num_far, far_TS = far
            q, k, v, y = (x.unflatten(0, (batch, tokens)) for x in (q, k, v, y_RHTE))
            q, k, v = (x[:, -num_far:].flatten(0, 1) for x in (q, k, v))
            y_far = attend(q, k, v, far_TS)
            y_far = y_far.unflatten(0, (batch, num_far)).to(y.dtype)
            y_RHTE = torch.cat([y[:, :-num_far], y_far], dim=1).flatten(0, 1)
        y_RTD = self.out(y_RHTE.transpose(1, 2).flatten(2))
        return y_RTD.unflatten(0, (batch, tokens)).transpose(1, 2), own

    def step(
        self,
        x_BTND: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache,
        far: LayerCache | None = None,
    ) -> Tensor:
        """The streaming path: one new frame, which sees the cached ones and itself; ``far`` is the cache of
        its last tokens, if they see farther."""
        q, k, v = (part.permute(0, 2, 3, 1, 4) for part in self.project(x_BTND))
        y_BNHTE = cache.attend(q, k, v, rotary)
        if far is not None:
            num_near = q.shape[1] - far.num_tokens
            q, k, v = (part[:, num_near:] for part in (q, k, v))
            y_far = far.attend(q, k, v, rotary)
            y_BNHTE = torch.cat([y_BNHTE[:, :num_near], y_far], dim=1)
        return self.out(y_BNHTE.permute(0, 3, 1, 2, 4).flatten(3))


class ContextAttention(nn.Module):
    """Every token of a frame attends to the tokens of its context."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_RND: Tensor, context_RCD: Tensor) -> Tensor:
        heads = (self.num_heads, x_RND.shape[-1] // self.num_heads)
        q_RHNE = norm(self.query(norm(x_RND)).unflatten(-1, heads)).transpose(1, 2)
        k_RCHE, v_RCHE = self.keys_values(norm(context_RCD)).unflatten(-1, (2, *heads)).unbind(2)
        y_RHNE = attend(q_RHNE, norm(k_RCHE).transpose(1, 2), v_RCHE.transpose(1, 2))
        return self.out(y_RHNE.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The gated MLP of 2002.05202."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class Block(nn.Module):
    """Space attention, time attention if ``is_temporal``, attention to a context if ``has_context``, MLP;
    each added to the stream."""

    def __init__(
        self, width: int, num_heads: int, hidden: int, *, is_temporal: bool, has_context: bool = False
    ):
        super().__init__()
        self.space = SpaceAttention(width, num_heads)
        self.time = TimeAttention(width, num_heads) if is_temporal else None
        self.context = ContextAttention(width, num_heads) if has_context else None
        self.mlp = SwiGLU(width, hidden)

    def forward(
        self,
        x_BTND: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_TS: Tensor | None,
        past: KeysValues | None = None,
        far: Far | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, KeysValues | None]:
        """The training path, and the keys and values of the frames if the block sees time: see
        ``TimeAttention.forward``."""
        x_BTND, own = x_BTND + self.space(x_BTND), None
        if self.time is not None:
            y_BTND, own = self.time(x_BTND, rotary, mask_TS, past, far)
            x_BTND = x_BTND + y_BTND
        x_BTND = self._with_context(x_BTND, context)
        return x_BTND + self.mlp(x_BTND), own

    def step(
        self,
        x_BTND: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache | None,
        far: LayerCache | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """The streaming path: one new frame, changed in place."""
        x_BTND.add_(self.space(x_BTND))
        if self.time is not None:
            assert cache is not None
            x_BTND.add_(self.time.step(x_BTND, rotary, cache, far))
        x_BTND = self._with_context(x_BTND, context)
        return x_BTND.add_(self.mlp(x_BTND))

    def _with_context(self, x_BTND: Tensor, context: Context | None) -> Tensor:
        if context is None or self.context is None:
            return x_BTND
        rows, context_RCD = context
        x_FND = x_BTND.flatten(0, 1)
        y_RND = self.context(x_FND[rows], context_RCD)
        return x_FND.index_add(0, rows, y_RND.to(x_FND.dtype)).view_as(x_BTND)
