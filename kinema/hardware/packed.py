"""Linear maps and convolutions for inference on a CPU whose weights lie in the order in which the kernels
read them.

What one session computes is products of few rows, which wait for their weights. So weights are also kept in
half precision where that loses nothing; what is multiplied by them stays in single precision.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinema.hardware.machine import prefers_packed

MANY_ROWS = 32
"""From so many rows on products in single precision are made by packed weights where those are faster; below,
those that PyTorch makes anyway are as fast or faster."""

MOST_HALF_ROWS = {torch.bfloat16: 80, torch.float32: 256}
"""Fewer rows are multiplied by weights in half precision, in maps of each precision."""


@runtime_checkable
class Packable(Protocol):
    """A module that multiplies by other weights than those of linear maps."""

    def pack(self, dtype: torch.dtype) -> None:
        """Keep them packed as well. What has to be exact stays in single precision, else it is ``dtype``."""
        ...


class PackedLinear(nn.Module):
    """A linear map, with the weights as they were when it was made.

    Few rows are multiplied by weights in half precision (by FBGEMM), which gives single precision; in a map
    of single precision only where the weights are the same in half, as those of a world that was saved so.
    More rows are multiplied in the map's own precision: in bfloat16 by packed weights (oneDNN's), for to pack
    them at every call takes longer than the product; in single precision by such where they are faster.
    """

    _half: Tensor | None
    _packed: Tensor | None
    _plain: Tensor | None
    _bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        """``weight`` and ``bias`` are in single precision; ``dtype`` is that of the map."""
        super().__init__()
        self.dtype, self._num_outputs = dtype, len(weight)
        weight, bias = weight.detach().contiguous(), None if bias is None else bias.detach()
        is_single, is_empty = dtype == torch.float32, not weight.numel()
        is_half = can_halve(weight.device.type) and not (is_single and (weight.half() != weight).any())
        is_half &= not is_empty
        is_packed = not is_empty and (not is_single or prefers_packed(weight.device))
        # Buffers, so that a graph that is traced takes them for weights.
        for name, value in (
            ("_half", _halve(weight) if is_half else None),
            ("_half_bias", weight.new_zeros(len(weight)) if bias is None else bias.clone()),
            ("_packed", _pack(weight.to(dtype)) if is_packed else None),
            ("_plain", None if is_packed and (is_half or not is_single) else weight.to(dtype)),
            ("_bias", None if bias is None else bias.to(dtype)),
        ):
            self.register_buffer(name, value, persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing in it changes, and what is packed cannot be copied.
        return self

    def forward(self, x: Tensor) -> Tensor:
        products = _products()
        if self._half is not None:
            few = (self._half, self._half_bias, self._num_outputs)
            most = MOST_HALF_ROWS[self.dtype]
            if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
                # How many rows there are is asked whenever the graph is run.
                if self._packed is None:
                    return products.half_or_plain(x, *few, most, self._plain, self._bias)
                return products.half_or_packed(x, *few, most, self._packed, self._bias, self.dtype)
            if x.numel() < most * x.shape[-1]:
                return products.half(x, *few)
        x = x.to(self.dtype)
        is_few = self._plain is not None and x.numel() < MANY_ROWS * x.shape[-1]
        if self._packed is None or is_few:
            assert self._plain is not None
            return F.linear(x, self._plain, self._bias)
        return products.packed(x, self._packed, self._bias)


def pack_matrix(matrix: Tensor) -> PackedLinear | None:
    """A matrix ``I O`` by which rows are multiplied, as a map of single precision; None where there is
    nothing to pack, or it cannot be."""
    if not matrix.numel() or not can_pack(torch.float32, matrix.device.type):
        return None
    return PackedLinear(matrix.T, None, torch.float32)


class PackedConv2d(nn.Module):
    """A convolution over pictures of one size, with the weights as they were when it was made."""

    _packed: Tensor
    _bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int], dtype: torch.dtype):
        """``size``: rows and columns of the pictures; others take many times as long."""
        super().__init__()
        self._dtype, padding = dtype, convolution.padding
        assert not isinstance(padding, str)
        self._settings = (padding, convolution.stride, convolution.dilation, convolution.groups)
        weight, bias = convolution.weight.detach().to(dtype), convolution.bias
        shape = (1, convolution.in_channels, *size)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._settings, shape)
        self.register_buffer("_packed", packed, persistent=False)
        self.register_buffer("_bias", None if bias is None else bias.detach().to(dtype), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)
        return _products().convolved(x, self._packed, self._bias, *self._settings)


class _Pointwise(nn.Module):
    """A convolution with kernels of one pixel, which is a linear map. In what order oneDNN packs the weights
    of some such convolutions hangs on the number of threads, and in another they take ten times as long."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        self.linear = PackedLinear(convolution.weight.detach().flatten(1), convolution.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pack(module: nn.Module, dtype: torch.dtype) -> None:
    """Have what is linear within a module compute in a precision, by packed weights where there are such."""
    for child in list(module.modules()):
        if isinstance(child, Packable):
            child.pack(dtype)
    _pack_linears(module, dtype)
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            child.to(dtype)


def pack_convolutions(module: nn.Module, run: Callable[[], object], dtype: torch.dtype) -> None:
    """Replace the convolutions within a module by packed ones, of the sizes that they are given when it is
    ``run``."""
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def note(convolution: nn.Module, given: tuple[Tensor]) -> None:
        sizes[convolution] = (given[0].shape[-2], given[0].shape[-1])

    found = [child for child in module.modules() if _is_packable(child, dtype)]
    if not found:
        return
    hooks = [convolution.register_forward_pre_hook(note) for convolution in found]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child in sizes:
                assert isinstance(child, nn.Conv2d)
                if _is_pointwise(child):
                    setattr(parent, name, _Pointwise(child, dtype))
                else:
                    setattr(parent, name, PackedConv2d(child, sizes[child], dtype))


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    is_each = convolution.kernel_size == convolution.stride == (1, 1)
    return is_each and convolution.padding == (0, 0) and convolution.groups == 1


def _is_packable(module: nn.Module, dtype: torch.dtype) -> bool:
    return isinstance(module, nn.Conv2d) and can_pack(dtype, module.weight.device.type)


def _pack_linears(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and can_pack(dtype, child.weight.device.type):
            setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
        else:
            _pack_linears(child, dtype)


@functools.cache
def can_pack(dtype: torch.dtype, device: str) -> bool:
    """Whether this PyTorch on this machine multiplies by packed weights, and gets what it gets else."""
    if device != "cpu":
        return False
    x, weight = (values.to(dtype) for values in _example())
    try:
        found = _products().packed(x, _pack(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(found.float(), F.linear(x, weight).float(), rtol=0.02, atol=0.02))


@functools.cache
def can_halve(device: str) -> bool:
    """The same of weights in half precision."""
    if device != "cpu":
        return False
    x, weight = _example()
    weight = weight.half().float()
    with warnings.catch_warnings():
        # It is said, once, that these may go; where they are not, they are not used.
        warnings.simplefilter("ignore")
        try:
            found = _products().half(x, _halve(weight), torch.zeros(len(weight)), len(weight))
        except (AttributeError, RuntimeError):
            return False
    return bool(torch.allclose(found, F.linear(x, weight), rtol=1e-4, atol=1e-5))


def _example() -> tuple[Tensor, Tensor]:
    x, weight = (torch.linspace(-1.0, 1.0, n).sin().view(-1, 32) for n in (96, 512))
    return x, weight


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _halve(weight: Tensor) -> Tensor:
    return torch.fbgemm_pack_gemm_matrix_fp16(weight)


@functools.cache
def _products() -> torch.jit.CompilationUnit:
    """The products as functions that can be traced: alone some operators cannot, since nothing tells what
    their empty lists are lists of; and which of two is made is decided when it is made."""
    return torch.jit.CompilationUnit("""
        def packed(x: Tensor, weight: Tensor, bias: Optional[Tensor]):
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

        def half(x: Tensor, weight: Tensor, bias: Tensor, num_outputs: int):
            x = x.float()
            return torch.ops._quantized.wrapped_fbgemm_linear_fp16_weight(x, weight, bias, num_outputs)

        def half_or_packed(
            x: Tensor, half_weight: Tensor, half_bias: Tensor, num_outputs: int, most_half: int,
            weight: Tensor, bias: Optional[Tensor], dtype: int
        ):
            if x.numel() < most_half * x.size(-1):
                return half(x, half_weight, half_bias, num_outputs)
            return packed(x.to(dtype), weight, bias)

        def half_or_plain(
            x: Tensor, half_weight: Tensor, half_bias: Tensor, num_outputs: int, most_half: int,
            weight: Tensor, bias: Optional[Tensor]
        ):
            if x.numel() < most_half * x.size(-1):
                return half(x, half_weight, half_bias, num_outputs)
            return torch.nn.functional.linear(x.float(), weight, bias)

        def convolved(
            x: Tensor, weight: Tensor, bias: Optional[Tensor],
            padding: List[int], stride: List[int], dilation: List[int], groups: int
        ):
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, padding, stride, dilation, groups, "none", [], ""
            )
    """)
