"""What the machine does fast, and how to let it."""

import contextlib
import ctypes
import functools
import logging
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kinema.types import Precision, WorldError

logger = logging.getLogger(__name__)

LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest piece of memory that is kept once freed."""
MOST_KEPT = 512 * 2**20
"""Bytes of freed memory that are kept in all."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def find_device(name: str | torch.device = "auto") -> torch.device:
    """Check the name of a device; ``auto`` is CUDA, MPS or the CPU, the first of these that is there.

    Raises:
        WorldError: the name is none of a device, or the device is not there; the message lists the devices
            that are.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there = ["mps", *there]
    if torch.cuda.is_available():
        there = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *there]
    if str(name) == "auto":
        logger.info("device: %s", there[0])
        return torch.device(there[0])
    if str(name) not in there:
        raise WorldError(f"device {str(name)!r}: not on this machine; choose auto or {', '.join(there)}")
    return torch.device(name)


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether large matrix products are to be in bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and supports_fast_bfloat16(device))


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """What large matrix products are to be in."""
    return torch.bfloat16 if uses_bfloat16(precision, device) else torch.float32


def supports_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than single precision."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def prefers_packed(device: torch.device) -> bool:
    """Whether large products in single precision are faster by packed weights than as PyTorch makes them: so
    it is where that is by MKL and the processor is AMD's."""
    return device.type == "cpu" and torch.backends.mkl.is_available() and _is_amd()


@functools.cache
def _is_amd() -> bool:
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        described = platform.processor()
    return "AuthenticAMD" in described


@contextlib.contextmanager
def one_thread(is_wanted: bool) -> Iterator[None]:
    """Where it is wanted, PyTorch runs on one thread in here: what is small takes less time than waking
    others up for it."""
    num_threads = torch.get_num_threads()
    if not is_wanted or num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def leave_threads() -> int:
    """Have the calling thread, and those that begin later, compute on one thread of PyTorch's, so that
    another may have them all; how many these are.

    Every Python thread that computes gets PyTorch's threads anew, and once a process has more of them than
    there are processors, GNU OpenMP's no longer wait actively for one another: a batch that is many small
    operators then takes half as long again.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return num_threads


def exact(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Products in here are in the precision of what is multiplied, whatever is the case around it."""
    # To switch off what is off already takes longer than many an operator.
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep the memory that tensors free, for the whole process; whether it will.

    Without, glibc gives large pieces back to the system at once and asks for them again in the next step:
    clearing and mapping them anew takes a third of a step's time. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None
        and mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT) == 1
        and mallopt(_M_TRIM_THRESHOLD, MOST_KEPT) == 1
    )
