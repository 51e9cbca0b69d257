import ctypes
import sys

import pytest
import torch

from kinema.hardware.machine import keep_freed_memory, one_thread, supports_fast_bfloat16, uses_bfloat16


def test_auto_is_what_the_hardware_does_fast() -> None:
    cpu = torch.device("cpu")
    assert uses_bfloat16("auto", cpu) == supports_fast_bfloat16(cpu)
    assert uses_bfloat16("bfloat16", cpu)
    assert not uses_bfloat16("float32", cpu)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc"
)
def test_freed_memory_is_kept() -> None:
    """A tensor of a megabyte no longer comes from a mapping of its own."""
    assert keep_freed_memory()

    class Statistics(ctypes.Structure):
        # Field 3 tells how many pieces are mapped each by itself.
        _fields_ = [(f"field{index}", ctypes.c_size_t) for index in range(10)]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Statistics
    before = mallinfo2().field3
    tensors = [torch.zeros(2**18) for _ in range(10)]
    assert mallinfo2().field3 == before
    del tensors


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(False):
            assert torch.get_num_threads() == 2
        with one_thread(True):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), one_thread(True):
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
