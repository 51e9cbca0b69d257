"""The state of a training run on disk: safetensors and JSON, complete or absent.

Each checkpoint is a folder of its own, written beside and renamed when complete; the one before is kept until
then.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kinema.data.files import replacing, write_tensors, write_text
from kinema.train.optim import MovingAverage
from kinema.types import CheckpointError, FileError


def save_checkpoint(
    folder: Path,
    *,
    state: dict[str, Any],
    module: nn.Module,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write ``folder``: the state of the loader (JSON), weights, moving average and optimizer moments.

    Raises:
        CheckpointError: it cannot be written, on a full disk for instance; the one before is kept.
    """
    tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
    tensors |= {f"ema.{key}": value for key, value in average.tensors.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    try:
        with replacing(folder) as part:
            part.mkdir()
            write_tensors(part / "tensors.safetensors", tensors)
            write_text(part / "state.json", json.dumps(state, indent=2) + "\n")
    except FileError as error:
        raise CheckpointError(
            f"{error}; the checkpoint before is kept, and training goes on from it"
        ) from error


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state of the loader that a checkpoint holds, or None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    folder = complete_folder(folder)
    if not folder.exists():
        return None
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        if not isinstance(state, dict) or not isinstance(state.get("update"), int):
            raise ValueError("it does not say after which update it was written")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be used ({error}); remove {folder} to begin anew") from error
    return state


def load_checkpoint(
    folder: Path, *, module: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer
) -> None:
    """Put weights, moving average and optimizer moments back in place.

    Raises:
        CheckpointError: the file is corrupt or does not fit the module.
    """
    path = complete_folder(folder) / "tensors.safetensors"
    try:
        tensors = load_file(path)
        module.load_state_dict(_under("module.", tensors))
        for key, value in average.tensors.items():
            value.copy_(tensors[f"ema.{key}"])
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be used ({error}); remove {path.parent} to begin anew"
        ) from error
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, of_parameter in optimizer.state.items():
        for name, value in of_parameter.items():
            if value.shape == parameter.shape:
                # The fused kernel walks through memory as it lies, so moments must lie as their parameter
                # does (channels last, for convolutions).
                of_parameter[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def complete_folder(folder: Path) -> Path:
    """The checkpoint, or the one before it if the run was stopped between the two renames."""
    previous = folder.with_name(folder.name + ".previous")
    return previous if previous.exists() and not folder.exists() else folder


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
