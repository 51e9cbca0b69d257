"""Networks that stand beside a world in its folder: one file each, so that it is there as a whole or not."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from kinema.data.files import write_tensors
from kinema.types import FileError, PartError

FORMAT = 1

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)


def save_part(path: Path, config: Any, module: nn.Module) -> None:
    """Write a module with its configuration (a dataclass, as JSON in the file's metadata), beside and then
    renamed.

    Raises:
        PartError: it cannot be written, on a full disk for instance; what was there is kept.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    # One entry, since several would be written in any order, and the same module as different bytes.
    content = json.dumps({"format": FORMAT, "config": dataclasses.asdict(config)})
    try:
        write_tensors(path, tensors, metadata={"kinema": content})
    except FileError as error:
        raise PartError(str(error)) from error


def load_part(path: Path, config_class: type[Config], build: Callable[[Config], Module]) -> Module:
    """The module that ``save_part`` wrote; ``build`` makes one for its configuration.

    Raises:
        PartError: the file is corrupt, of another version, or does not fit what is built.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["kinema"])
        if content["format"] != FORMAT:
            raise ValueError(f"written by another version of kinema; this one reads format {FORMAT}")
        fields = content["config"].items()
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields}
        module = build(config_class(**fields))
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise PartError(f"{path}: cannot be used ({error}); train it again, or remove it") from error
    return module.eval()


def add_weights(digest: "hashlib.blake2b", network: nn.Module) -> None:
    """Let a digest depend on the weights of a network."""
    for key, tensor in network.state_dict().items():
        digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())


def fingerprint(*networks: nn.Module | None) -> str:
    """What tells networks from others: a digest of their weights."""
    digest = hashlib.blake2b(digest_size=12)
    for network in networks:
        if network is not None:
            add_weights(digest, network)
    return digest.hexdigest()
