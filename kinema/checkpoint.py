"""The state of a training run on disk: safetensors and JSON, complete or absent.

Each checkpoint is a folder of its own, written beside and renamed when complete; the one before is kept until then.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint is corrupt or belongs to another run."""


def save_checkpoint(
    folder: Path,
    *,
    state: dict[str, Any],
    module: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write ``folder`` with the run's progress (``state``, JSON), weights, moving average and optimizer moments."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
    tensors |= {f"ema.{key}": value for key, value in ema.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    save_file(
        {key: value.detach().clone().contiguous() for key, value in tensors.items()},
        partial / "tensors.safetensors",
    )
    (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    previous = folder.with_name(folder.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The progress that a checkpoint holds, or None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    folder = complete_folder(folder)
    if not folder.exists():
        return None
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'}: cannot be read ({error}); remove {folder} to begin anew"
        ) from error


def load_checkpoint(
    folder: Path, *, module: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Put weights, moving average and optimizer moments back in place.

    Raises:
        CheckpointError: the file is corrupt or does not fit the module.
    """
    path = complete_folder(folder) / "tensors.safetensors"
    try:
        tensors = load_file(path)
        module.load_state_dict(_under("module.", tensors))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be used ({error}); remove {path.parent} to begin anew"
        ) from error
    for key, value in _under("ema.", tensors).items():
        ema[key].copy_(value)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def complete_folder(folder: Path) -> Path:
    """The checkpoint, or the one before it if the run was stopped between the two renames."""
    previous = folder.with_name(folder.name + ".previous")
    return previous if previous.exists() and not folder.exists() else folder


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
