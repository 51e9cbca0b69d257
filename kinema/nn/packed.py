"""Linear maps for inference on a CPU whose weights lie in the order in which the kernel reads them."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_ROWS = 32
"""From so many rows on products in single precision are made by packed weights; below, those that PyTorch
makes anyway are as fast or faster."""


class PackedLinear(nn.Module):
    """A linear map whose weights are brought into the kernel's order once.

    In bfloat16 that is done at every call else, and takes longer than the product itself while there are few
    rows. In single precision it is another kernel (oneDNN's), which pays for many rows where MKL's is slow.
    The weights are those at the time it was made.
    """

    _packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias
        # A buffer, so that a graph that is traced takes it for a weight.
        self.register_buffer("_packed", _pack(weight.detach()), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        # What is packed is opaque, and cannot be copied.
        return PackedLinear(copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if x.dtype == torch.float32 and x.numel() < MANY_ROWS * x.shape[-1]:
            return F.linear(x, self.weight, self.bias)
        return _product()(x, self._packed, self.bias)


def to_packed_bfloat16(module: nn.Module) -> None:
    """Have the linear maps and convolutions within a module compute in bfloat16, with packed weights where
    there are such."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            child.to(torch.bfloat16)
    pack_linears(module)


def pack_linears(module: nn.Module) -> None:
    """Replace the linear maps within a module by packed ones, those of types that can be packed here."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and can_pack(child.weight.dtype, child.weight.device.type):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)


@functools.cache
def can_pack(dtype: torch.dtype, device: str) -> bool:
    """Whether this PyTorch on this machine multiplies by packed weights, and gets what it gets else."""
    if device != "cpu":
        return False
    x, weight = (torch.linspace(-1.0, 1.0, n).sin().view(-1, 32).to(dtype) for n in (96, 512))
    try:
        found = _product()(x, _pack(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(found.float(), F.linear(x, weight).float(), rtol=0.02, atol=0.02))


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


@functools.cache
def _product() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """``x``, packed weights and bias to their product, so that it can be traced: alone the operator cannot,
    since nothing tells what its empty list is a list of."""
    unit = torch.jit.CompilationUnit("""
        def multiply(x: Tensor, packed: Tensor, bias: Optional[Tensor]):
            return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    """)
    return unit.multiply
