"""Attention, as fast as each device has it.

Shape letters in suffixes: R rows, H heads, T queries, S keys, E head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MANY_ROWS = 128
"""From this many independent rows and heads on, plain products of matrices are faster on a CPU than the fused
kernel, which makes each one a task of its own."""


def attend(q_RHTE: Tensor, k_RHSE: Tensor, v_RHSE: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention; ``mask`` (``T S``, or ``R 1 T S``) is True where a query sees a key. On a CPU in single
    precision: over so few tokens that is several times faster than bf16."""
    if q_RHTE.device.type != "cpu":
        return F.scaled_dot_product_attention(q_RHTE, k_RHSE, v_RHSE, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q_RHTE.float(), k_RHSE.float(), v_RHSE.float()
        if torch.is_grad_enabled() or q.shape[0] * q.shape[1] < MANY_ROWS:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores_RHTS = (q * q.shape[-1] ** -0.5) @ k.mT
        if mask is not None:
            scores_RHTS = scores_RHTS.masked_fill(~mask, -torch.inf)
        return scores_RHTS.softmax(-1) @ v
