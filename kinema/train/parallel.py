"""Several processes that train together (torchrun): each draws batches of its own, and the gradients are
averaged."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together."""

    rank: int = 0
    num: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The same module, with gradients that are averaged over all processes in ``backward``."""
        if self.num == 1:
            return module
        # A batch may leave out parts of a network: which, chance decides. Buffers do not change in training.
        return DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag where it is set in any process, so that all do the same."""
        if self.num == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.bool().tolist()

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """The value that the first process computes, in all of them."""
        if self.num == 1:
            return compute()
        values = [compute() if self.is_first else None]
        distributed.broadcast_object_list(values)
        value = values[0]
        assert value is not None
        return value

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[bool]:
        """Let the first process work in here alone, the others wait until it is done; yields True in the
        first."""
        yield self.is_first
        if self.num > 1:
            distributed.barrier()


ALONE = Ranks()


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, if any, and leave them at the end; yields the place of this
    one and its device."""
    num = int(os.environ.get("WORLD_SIZE", "1"))
    if num == 1:
        yield ALONE, device
        return
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend)
    try:
        yield Ranks(distributed.get_rank(), num), device
    finally:
        distributed.destroy_process_group()
