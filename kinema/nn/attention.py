"""Attention, as fast as each device has it.

Shape letters in suffixes: R rows, H heads, T queries, S keys, E head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q_RHTE: Tensor, k_RHSE: Tensor, v_RHSE: Tensor, mask_TS: Tensor | None = None) -> Tensor:
    """Attention. On a CPU in single precision: over so few tokens that is several times faster than bf16."""
    if q_RHTE.device.type != "cpu":
        return F.scaled_dot_product_attention(q_RHTE, k_RHSE, v_RHSE, attn_mask=mask_TS)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q_RHTE.float(), k_RHSE.float(), v_RHSE.float()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS)
