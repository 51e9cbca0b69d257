"""What a long measurement has found so far, in a file, so that the same command goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn


class Journal:
    """Found numbers by their keys: one line of JSON each, written as soon as it is there.

    A measurement that goes on finds its own lines again; those of another one are refused, and left as they
    are.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        """``identity`` says what is measured, in values that JSON has.

        Raises:
            ValueError: the file is of another measurement.
        """
        self._path = path
        self._found: dict[str, Any] = {}
        head = json.dumps({"of": identity}, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().split("\n") if path.is_file() else [""]
        if lines[0] not in ("", head):
            raise ValueError(
                f"{path}: it holds what another measurement has found so far (world, data or settings "
                "differ); choose another --out, or delete the file"
            )
        # What a sudden end left behind the last line break is no line.
        for line in lines[1:-1]:
            entry = json.loads(line)
            self._found[entry["key"]] = entry["found"]
        path.write_text("\n".join([head, *lines[1:-1], ""]))
        self._file = path.open("a")

    def find(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was found under a key, or is now; ``measure`` gives what JSON has."""
        if key not in self._found:
            found = measure()
            self._file.write(json.dumps({"key": key, "found": found}) + "\n")
            self._file.flush()
            # As it will be read again, so that going on is the same as not having stopped.
            self._found[key] = json.loads(json.dumps(found))
        return self._found[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finish(self) -> None:
        """Delete the file: all that it holds is in a result."""
        self._file.close()
        self._path.unlink()


def fingerprint(*networks: nn.Module | None) -> str:
    """What tells networks from others: a digest of their weights."""
    digest = hashlib.blake2b(digest_size=12)
    for network in networks:
        for key, tensor in ({} if network is None else network.state_dict()).items():
            digest.update(key.encode() + tensor.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
