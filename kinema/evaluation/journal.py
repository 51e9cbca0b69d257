"""What a long measurement has found so far, in a file, so that the same command goes on where it stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from kinema.evaluation.result import plain
from kinema.model.parts import fingerprint
from kinema.simulation.world import World


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
        text = path.read_text() if path.is_file() else ""
        # What a sudden end left behind the last line break is no line.
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        if lines and lines[0] != head:
            raise ValueError(
                f"{path}: it holds what another measurement has found so far (world, data or settings "
                "differ); choose another --out, or delete the file"
            )
        for line in lines[1:]:
            entry = json.loads(line)
            self._found[entry["key"]] = entry["found"]
        self._file = path.open("a")
        self._file.truncate(len(whole.encode()))
        if not lines:
            self._write(head)

    def find(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was found under a key, or is now; ``measure`` gives what JSON has."""
        if key not in self._found:
            found = measure()
            self._write(json.dumps({"key": key, "found": found}))
            # As it will be read again, so that going on is the same as not having stopped.
            self._found[key] = json.loads(json.dumps(found))
        return self._found[key]

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finish(self) -> None:
        """Delete the file: all that it holds is in a result."""
        self._file.close()
        self._path.unlink()


def identify(config: Any, world: World) -> dict[str, Any]:
    """What tells a measurement of a world from others: its settings, but where and how its result is written,
    and the weights."""
    return {**plain(config), "out": "", "json": False, "world": fingerprint(world, world.heads)}
