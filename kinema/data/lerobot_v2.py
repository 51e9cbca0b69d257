"""LeRobotDataset v2.0 and v2.1, of which every episode has files of its own, with the columns of v3.0.

meta/info.json  meta/episodes.jsonl  meta/tasks.jsonl  meta/episodes_stats.jsonl (v2.0: meta/stats.json)
data/chunk-000/episode_000000.parquet
videos/chunk-000/{video_key}/episode_000000.mp4
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinema.data import statistics
from kinema.data.layout import DataError, exists

EPISODES_PATH = "meta/episodes.jsonl"
TASKS_PATH = "meta/tasks.jsonl"
STATS_PATH = "meta/episodes_stats.jsonl"
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def is_v2(root: Path, info: Mapping[str, Any]) -> bool:
    """Check that each episode has files of its own: by the tables there are, else by the version."""
    if exists(root / EPISODES_PATH) or exists(root / "meta/episodes"):
        return exists(root / EPISODES_PATH)
    return str(info.get("codebase_version")).startswith("v2")


def read_columns(root: Path) -> dict[str, np.ndarray]:
    """Columns of the episodes table: ``episode_index``, ``length``, ``tasks``; empty without a table.

    Raises DataError.
    """
    path = root / EPISODES_PATH
    if not exists(path):
        return {}
    rows = _read_lines(path, ("episode_index", "length"))
    tasks = np.empty(len(rows), object)
    tasks[:] = [row.get("tasks") or [] for row in rows]
    numbers = {key: np.array([row[key] for row in rows], np.int64) for key in ("episode_index", "length")}
    return {**numbers, "tasks": tasks}


def add_locations(columns: dict[str, np.ndarray], info: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Add the columns of v3.0 that say which files hold an episode: it fills one of each kind."""
    numbers = columns["episode_index"]
    chunks = numbers // int(info["chunks_size"])
    columns = columns | {"data/chunk_index": chunks, "data/file_index": numbers}
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            columns |= {f"videos/{key}/chunk_index": chunks, f"videos/{key}/file_index": numbers}
            columns |= {f"videos/{key}/from_timestamp": np.zeros(len(numbers))}
    return columns


def find_files(folder: Path, paths: Sequence[Path], numbers: Sequence[int], key: str = "") -> list[Path]:
    """Find the files of episodes below ``folder``, by the number at the end of their names, where not one of
    ``paths`` is there, as where the template is of another layout.

    ``key``: camera, a folder on the way to the file. A file that cannot be found keeps its path.
    """
    if not paths or any(map(exists, paths)):
        return list(paths)
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{paths[0].suffix}")):
        number = re.search(r"(\d+)$", path.stem)
        if number and (not key or key in path.relative_to(folder).parts):
            found.setdefault(int(number[1]), []).append(path)
    candidates = [found.get(int(number), []) for number in numbers]
    return [each[0] if len(each) == 1 else path for each, path in zip(candidates, paths, strict=True)]


def read_task_texts(root: Path) -> dict[int, str]:
    """Task texts by ``task_index``, ascending; empty without a table. Raises DataError."""
    path = root / TASKS_PATH
    rows = _read_lines(path, ("task_index", "task")) if exists(path) else []
    return dict(sorted((int(row["task_index"]), str(row["task"])) for row in rows))


def read_statistics(root: Path) -> dict[str, statistics.Statistics]:
    """Statistics over the dataset from those of its episodes. Raises DataError."""
    path = root / STATS_PATH
    parts: dict[str, list[statistics.Statistics]] = {}
    for row in _read_lines(path, ("stats",)):
        for key, stats in row["stats"].items():
            parts.setdefault(key, []).append({name: np.array(value) for name, value in stats.items()})
    try:
        return {key: statistics.aggregate(statistics.stack(each)) for key, each in parts.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("is not statistics by episode, key and name", path=path) from error


def _read_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Objects of a file, one a line, each with these keys. Raises DataError."""
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                row = json.loads(line)
                missing = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
                if missing:
                    raise DataError(f"line {number} has no {' and no '.join(missing)}", path=path)
                rows.append(row)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=path) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"is not valid JSON ({error}); restore it from a copy", path=path) from error
    return rows
