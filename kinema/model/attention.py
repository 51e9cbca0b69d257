"""Attention, as fast as each device has it.

Shape letters in suffixes: R rows, H heads, T queries, S keys, E head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kinema.hardware.machine import exact

KeysValues = tuple[Tensor, Tensor]
"""Keys, rotated, and values of frames, each ``R H S E`` for ``R`` tokens of all sessions or segments."""

FEW_QUERIES = 4
"""For so few queries plain products of matrices are faster on a CPU than the fused kernel, which makes each
row and head a task of its own."""


def attend(q_RHTE: Tensor, k_RHSE: Tensor, v_RHSE: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention; ``mask`` (``T S``, or ``R 1 T S``) is True where a query sees a key. ``R`` may be several
    axes. On a CPU in single precision: over so few tokens that is several times faster than bf16."""
    if q_RHTE.device.type != "cpu":
        return _fused(q_RHTE, k_RHSE, v_RHSE, mask)
    with exact(q_RHTE.device):
        q, k, v = q_RHTE.float(), k_RHSE.float(), v_RHSE.float()
        if torch.is_grad_enabled() or q.shape[-2] > FEW_QUERIES:
            return _fused(q, k, v, mask)
        scores_RHTS = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores_RHTS = scores_RHTS.masked_fill(~mask, -torch.inf)
        return scores_RHTS.softmax(-1) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The fused kernel, which takes rows along one axis only."""
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    rows = q.shape[:-3]
    if mask is not None and mask.ndim > 2:
        mask = mask.expand(*rows, *mask.shape[-3:]).flatten(0, -4)
    q, k, v = (x.flatten(0, -4) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(0, rows)
