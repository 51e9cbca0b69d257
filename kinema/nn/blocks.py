"""The transformer block of the dynamics: attention over space, sometimes over time, and a gated MLP.

Shape letters in suffixes: B batch, T time, N tokens of a frame, D width, H heads, E head size, S keys.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kinema.nn.attention import attend
from kinema.nn.cache import LayerCache
from kinema.nn.embeddings import rotate


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

    def project(self, x_RSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both normed: 2302.05442, section 2.2) and values, each ``R H S E``."""
        qkv = self.qkv(norm(x_RSD)).unflatten(-1, (3, self.num_heads, -1))
        q_RHSE, k_RHSE, v_RHSE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return norm(q_RHSE), norm(k_RHSE), v_RHSE

    def merge(self, y_RHSE: Tensor) -> Tensor:
        return self.out(y_RHSE.transpose(1, 2).flatten(2))


class SpaceAttention(_Attention):
    """Every token of a frame attends to every token of the same frame."""

    def forward(self, x_BTND: Tensor) -> Tensor:
        q, k, v = self.project(x_BTND.flatten(0, 1))
        y = attend(q, k, v)
        return self.merge(y).unflatten(0, x_BTND.shape[:2])


class TimeAttention(_Attention):
    """Every token attends to the same token of other frames."""

    def forward(self, x_BTND: Tensor, rotary: tuple[Tensor, Tensor], mask_TS: Tensor) -> Tensor:
        """The training path: all frames at once, who sees whom given by ``mask_TS``."""
        batch, _, tokens, _ = x_BTND.shape
        q, k, v = self.project(x_BTND.transpose(1, 2).flatten(0, 1))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        y = self.merge(attend(q, k, v, mask_TS))
        return y.unflatten(0, (batch, tokens)).transpose(1, 2)

    def step(self, x_BTND: Tensor, rotary: tuple[Tensor, Tensor], cache: LayerCache) -> Tensor:
        """The streaming path: new frames, which see the cached ones, those before them, and themselves."""
        q, k, v = self.project(x_BTND.transpose(1, 2).flatten(0, 1))
        y = self.merge(cache.attend(q, k, v, rotary))
        return y.unflatten(0, (len(x_BTND), -1)).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated MLP of 2002.05202."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Space attention, time attention if ``is_temporal``, MLP; each added to the stream."""

    def __init__(self, width: int, num_heads: int, hidden: int, is_temporal: bool):
        super().__init__()
        self.space = SpaceAttention(width, num_heads)
        self.time = TimeAttention(width, num_heads) if is_temporal else None
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x_BTND: Tensor, rotary: tuple[Tensor, Tensor], mask_TS: Tensor) -> Tensor:
        x_BTND = x_BTND + self.space(x_BTND)
        if self.time is not None:
            x_BTND = x_BTND + self.time(x_BTND, rotary, mask_TS)
        return x_BTND + self.mlp(x_BTND)

    def step(self, x_BTND: Tensor, rotary: tuple[Tensor, Tensor], cache: LayerCache | None) -> Tensor:
        x_BTND = x_BTND + self.space(x_BTND)
        if self.time is not None:
            assert cache is not None
            x_BTND = x_BTND + self.time.step(x_BTND, rotary, cache)
        return x_BTND + self.mlp(x_BTND)
