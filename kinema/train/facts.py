"""Checks before a training: the output folder, the data, the disk."""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinema.data.defects import Defect, training_problems
from kinema.data.files import write_json
from kinema.data.lerobot import Dataset
from kinema.train.loop import CHECKPOINT, Run
from kinema.types import CheckpointError, DataError

WHOLE_BYTES = 4 * 2**20
"""Files up to this size are hashed whole, larger ones at both ends."""
END_BYTES = 2**18


def check_output(out: Path, datasets: Iterable[Path]) -> None:
    """Check that a folder can hold a world.

    Raises:
        ValueError: it is a file, or lies in a dataset.
    """
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {out}: {path} is a file; name a folder for the world")
    for root in datasets:
        if out.resolve() == root.resolve() or root.resolve() in out.resolve().parents:
            raise ValueError(f"--out {out}: it lies in the dataset {root}; name a folder of its own")


def check_disk(out: Path, num_bytes: int) -> int:
    """Check that there is room for the files of a run; return the free bytes.

    Raises:
        ValueError: there is too little.
    """
    folder = next(path for path in (out, *out.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"--out {out}: training needs about {size(num_bytes)} of disk there, and {size(free)} are free; "
            "make room, or choose another --out"
        )
    return free


def size(num_bytes: float) -> str:
    """Return bytes in words."""
    power = min(4, max(1, int(math.log10(max(1.0, num_bytes)) / 3)))
    return f"{num_bytes / 1000.0**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


@dataclasses.dataclass(frozen=True)
class Identity:
    """Everything that decides the weights of a run. A folder holds one run of each kind."""

    kind: str
    """Name of its file in the folder of checkpoints."""
    options: dict[str, Any]
    prints: list[dict[str, str]]
    """Fingerprint of each dataset."""

    def check(self, out: Path, datasets: Sequence[Dataset]) -> bool:
        """Check that a folder holds this run (True), or none of the kind.

        Raises:
            CheckpointError: it holds another run, or the data changed since it began.
        """
        path = self._path(out)
        if not path.is_file():
            return False
        kept = json.loads(path.read_text())
        if kept["options"] != json.loads(json.dumps(self.options)):
            raise CheckpointError(
                f"{out}: it holds another run (recipe, data, seed or another option differs: {path}); choose "
                "another --out"
            )
        for dataset, one, now in zip(datasets, kept["prints"], self.prints, strict=True):
            changed = list(_differences(one, now))
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise CheckpointError(
                    f"{dataset.root}: the data changed since the run in {out} began ({changed[0]}{more}); "
                    "put the data back, or choose another --out"
                )
        return True

    def keep(self, run: Run) -> None:
        """Write the identity into the folder of a run."""
        path = self._path(run.config.out)
        if run.ranks.is_first and not path.is_file():
            write_json(path, {"options": self.options, "prints": self.prints})

    @classmethod
    def kept_options(cls, out: Path, kind: str) -> dict[str, Any]:
        """The options of the run of a kind in a folder; empty where there is none."""
        path = cls(kind, {}, [])._path(out)
        return json.loads(path.read_text())["options"] if path.is_file() else {}

    def _path(self, out: Path) -> Path:
        return out / CHECKPOINT / f"{self.kind}.json"


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """Digests of a dataset's files, by their names: whole small files, both ends and the size of large ones.
    A copy has the same."""
    root = dataset.root
    files = sorted(path for name in ("meta", "data", "videos") for path in (root / name).rglob("*"))
    return {
        path.relative_to(root).as_posix(): _digest(path)
        for path in files
        if path.is_file() and path.name != "stats.json"
    }


def _digest(path: Path) -> str:
    num_bytes = path.stat().st_size
    digest = hashlib.blake2b(str(num_bytes).encode(), digest_size=12)
    with path.open("rb") as file:
        if num_bytes <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(END_BYTES))
            file.seek(-END_BYTES, 2)
            digest.update(file.read())
    return digest.hexdigest()


def _differences(one: dict[str, str], other: dict[str, str]) -> Iterator[str]:
    for name in sorted(one.keys() | other.keys()):
        if name not in one:
            yield f"{name} is new"
        elif name not in other:
            yield f"{name} is gone"
        elif one[name] != other[name]:
            yield f"{name} differs"


def name_of(prints: dict[str, str], episodes: np.ndarray) -> str:
    """Return one word for episodes of a dataset with these digests."""
    text = json.dumps([prints, episodes.tolist()])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Positions of the episodes of a dataset that are used."""

    learned: np.ndarray
    held_out: np.ndarray


def check_data(
    dataset: Dataset, *, segment_length: int, columns: Sequence[str], num_held_out: int
) -> Episodes:
    """Choose the episodes to learn from, and print in one line which are left out and why.

    Args:
        dataset: to learn from.
        segment_length: frames of the longest segments.
        columns: keys of all features in use.
        num_held_out: episodes, the last that can be used, for evaluation alone.

    Raises:
        DataError: a defect would spoil what is learned, or no episode can be used.
    """
    if dataset.older_version:
        print(f"{dataset.root}: {dataset.older_version}", file=sys.stderr)
    check = training_problems(dataset, segment_length=segment_length, columns=columns)
    if check.fatal:
        raise DataError(
            f"{_place(check.fatal[0])}{_more(check.fatal)}; `kinema data {dataset.root}` lists every defect",
            path=dataset.root,
        )
    usable = check.usable_episodes
    num_left_out = dataset.num_episodes - len(usable)
    if check.left_out:
        print(
            f"{dataset.root}: {num_left_out} of {dataset.num_episodes} episodes are left out: "
            f"{_place(check.left_out[0])}{_more(check.left_out)}; `kinema data {dataset.root}` lists all",
            file=sys.stderr,
        )
    if len(usable) <= num_held_out:
        print(
            f"{dataset.root}: too few usable episodes ({len(usable)}) to hold {num_held_out} out, so numbers "
            "called held-out are of episodes that are learned from",
            file=sys.stderr,
        )
    return Episodes(
        usable[: max(1, len(usable) - num_held_out)], usable[max(0, len(usable) - num_held_out) :]
    )


def _place(defect: Defect) -> str:
    """A defect in one line, with its place."""
    episode = None if defect.episode is None else f"episode {defect.episode}"
    place = ", ".join(part for part in (defect.file, episode, defect.key) if part)
    return f"{place}: {defect.message}"


def _more(defects: Sequence[Defect]) -> str:
    return f" (and {len(defects) - 1} more)" if len(defects) > 1 else ""
