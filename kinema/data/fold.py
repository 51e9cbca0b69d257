"""Folding staged episodes into the final files of a dataset.

Recording writes each finished episode into a folder of its own, ``.staging/00000012.part``, and renames that
folder to ``.staging/00000012``: from then on the episode survives a kill. Folding moves staged episodes into
the files of the format. Each step can be killed as well, because no file written earlier is changed in place:

1. Data and video files are written whole beside their place and renamed. A file that is continued is replaced
   by one that begins with the same rows and packets, so that the old metadata stays true.
2. The episodes table is renamed into place. That is the commit: before it the new rows belong to no episode,
   and folding again overwrites them; after it the staged episodes count as folded.
3. ``stats.json`` and ``info.json`` are computed from the episodes table. The staged folders are renamed to
   ``00000012.folded`` and deleted.

Nothing else is ever deleted: where a staged episode cannot be read, folding stops with an error that names
it, and changes nothing. Reading a dataset does not fold; the next ``DatasetWriter`` does, and ``recover``.
"""

import contextlib
import itertools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kinema.data import statistics, video
from kinema.data.files import opened
from kinema.data.layout import (
    EPISODES_PATH,
    INFO_DEFAULTS,
    INFO_PATH,
    STATS_PATH,
    DataError,
    arrow_schema,
    exists,
    format_path,
    from_arrow,
    open_parquet,
    read_json,
    read_parquet,
    read_tasks,
    write_json,
    write_tasks,
)

if sys.platform != "win32":
    import fcntl

STAGING = ".staging"
COLUMNS_FILE = "columns.parquet"
SUMMARY_FILE = "episode.json"
"""Written last: a folder that has it holds a whole episode."""
PART, FOLDED = ".part", ".folded"
"""Suffixes of the folders of an episode that is being written, and of one that is being deleted."""

COLUMNS_TO_CONTINUE = ("episode_index", "length", "dataset_to_index", "data/chunk_index", "data/file_index")
"""Columns of the episodes table that must be there for another episode to follow."""

Location = tuple[int, int]
"""Chunk index and file index."""
Summary = dict[str, Any]
"""``length``, ``task`` and ``stats`` of a staged episode."""


@contextlib.contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold the right to write to a dataset; the system releases it when the process ends, however it ends.

    Raises DataError where another writer holds it, and OSError where the folder cannot be written to.
    """
    is_new = not exists(root)
    staging = root / STAGING
    path = staging / "lock"
    busy = DataError("another process is recording into this dataset; wait for it to end", path=root)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115
    except FileNotFoundError as error:
        raise busy from error  # Its holder removes the folder just now.
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise busy from error
            # The last holder may have removed the file between our opening and our locking it.
            if not exists(path) or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise busy
        try:
            yield
        finally:
            # Each removes an empty folder only: whatever waits in them stays.
            with contextlib.suppress(OSError):
                path.unlink()
                staging.rmdir()
                if is_new:
                    root.rmdir()


def is_vacant(root: Path) -> bool:
    """Check that a folder holds no files but what an interrupted start of a recording leaves."""
    held = (path for path in root.rglob("*") if not path.is_dir())
    return not any(path.name != "lock" and not path.name.endswith(PART) for path in held)


def video_file(key: str) -> str:
    return f"{key}.mp4"


def list_folder(folder: Path) -> list[Path]:
    """List a folder in order of the names; one that does not exist is empty.

    Raises DataError where it cannot be read: ``Path.glob`` would take it for an empty one.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror}); make it readable", path=folder) from error


def staged_episodes(root: Path) -> list[Path]:
    """List the folders of the finished episodes that wait to be folded, in order. Raises DataError."""
    return [path for path in list_folder(root / STAGING) if path.name.isdigit()]


def recover(root: Path | str) -> int:
    """Fold the episodes that an interrupted recording left; returns how many.

    Raises DataError where another process records into the folder, or one of them cannot be read.
    """
    root = Path(root)
    if not list_folder(root / STAGING):
        return 0
    with lock(root):
        return fold(root)


def next_location(location: Location, chunks_size: int) -> Location:
    chunk, file = location
    return (chunk, file + 1) if file + 1 < chunks_size else (chunk + 1, 0)


def episode_files(root: Path) -> list[Path]:
    """List the files of the episodes table, in order. Raises DataError."""
    chunks = [path for path in list_folder(root / "meta" / "episodes") if path.is_dir()]
    return [path for chunk in chunks for path in list_folder(chunk) if path.suffix == ".parquet"]


def fold(root: Path) -> int:
    """Move the staged episodes into the final files; the caller holds the lock. Returns how many.

    Raises DataError, and changes nothing, where one of them cannot be read.
    """
    _finish_leftovers(root / STAGING)
    staged = staged_episodes(root)
    if not staged:
        return 0
    info = read_json(root, INFO_PATH)
    info |= {key: value for key, value in INFO_DEFAULTS.items() if info.get(key) is None}
    last = last_episode(root)
    num_before = 0 if last is None else last["episode_index"] + 1
    num_said = info.get("total_episodes")
    if isinstance(num_said, int) and num_said > num_before:
        raise DataError(
            f"says {num_said} episodes, but the table in meta/episodes ends after {num_before}: to add to it "
            "would overwrite the others. Restore the table from a copy, or correct total_episodes",
            path=root / INFO_PATH,
        )
    summaries = [_read_staged(path, info) for path in staged]
    new = [
        (path, summary)
        for path, summary in zip(staged, summaries, strict=True)
        if int(path.name) >= num_before or not _is_folded(root, int(path.name), summary)
    ]
    if new:
        paths = _renumber([path for path, _ in new], num_before)
        _commit(root, info, last, paths, [summary for _, summary in new])
    _summarise(root, info)
    for path in staged_episodes(root):
        shutil.rmtree(path.rename(path.with_suffix(FOLDED)), ignore_errors=True)
    return len(new)


def _finish_leftovers(staging: Path) -> None:
    """Delete what is folded or was never whole; complete an episode that lacks only its last rename."""
    for path in list_folder(staging):
        if not path.stem.isdigit():
            continue
        if path.suffix == FOLDED:
            shutil.rmtree(path)
        elif path.suffix == PART:
            if SUMMARY_FILE in os.listdir(path):
                path.rename(path.with_suffix(""))
            else:
                shutil.rmtree(path)


def _read_staged(path: Path, info: dict[str, Any]) -> Summary:
    """Check that a staged episode can be read whole; returns its summary. Raises DataError."""
    try:
        summary = json.loads((path / SUMMARY_FILE).read_text(encoding="utf-8"))
        with open_parquet(path / COLUMNS_FILE) as file:
            counts = {COLUMNS_FILE: file.metadata.num_rows}
        for key, feature in info["features"].items():
            if feature["dtype"] == "video":
                counts[video_file(key)] = video.probe(path / video_file(key)).num_frames
        for name, count in counts.items():
            if count != summary["length"]:
                raise ValueError(f"{name} holds {count} rows of {summary['length']}")
        return summary
    except (OSError, ValueError, KeyError, TypeError, MemoryError, pa.ArrowException) as error:
        raise DataError(
            f"this recorded episode cannot be read ({str(error) or type(error).__name__}). Nothing was "
            "deleted, and no staged episode was moved into the dataset. Make it readable (permissions, disk, "
            "memory) and record into the same folder again; if it is damaged for good, move it to another "
            "place first",
            path=path,
        ) from error


def _is_folded(root: Path, number: int, summary: Summary) -> bool:
    """Check that the episodes table holds this very episode under this number."""
    for path in episode_files(root):
        table = read_parquet(path)
        for row in table.filter(pa.array(from_arrow(table["episode_index"]) == number)).to_pylist():
            means = {key: of_key["mean"] for key, of_key in summary["stats"].items()}
            return row["length"] == summary["length"] and all(
                np.array_equal(np.ravel(row.get(f"stats/{key}/mean")), np.ravel(mean), equal_nan=True)
                for key, mean in means.items()
            )
    return False


def _renumber(paths: list[Path], start: int) -> list[Path]:
    """Rename staged episodes so that their numbers follow ``start`` without holes."""
    targets = [path.with_name(f"{start + index:08d}") for index, path in enumerate(paths)]
    pairs = list(zip(paths, targets, strict=True))
    down = [(path, target) for path, target in pairs if path > target]
    up = [(path, target) for path, target in pairs if path < target]
    # In this order no target is the name of one that is still to be renamed.
    for path, target in down + up[::-1]:
        path.rename(target)
    return targets


def last_episode(root: Path) -> dict[str, Any] | None:
    """Read the last row of the episodes table without its statistics; None without any. Raises DataError."""
    for path in reversed(episode_files(root)):
        table = read_parquet(path, with_statistics=False)
        names = table.column_names
        if len(table):
            missing = set(COLUMNS_TO_CONTINUE) - set(names)
            if missing:
                raise DataError(
                    f"the columns {sorted(missing)} are missing, so that nothing can be added; copy the "
                    "episodes into a new dataset",
                    path=path,
                )
            return table.slice(len(table) - 1).to_pylist()[0]
    return None


def _commit(
    root: Path,
    info: dict[str, Any],
    last: dict[str, Any] | None,
    new: list[Path],
    summaries: list[Summary],
) -> None:
    """Write data, videos, tasks and, as the last thing, the episodes table."""
    lengths = np.array([summary["length"] for summary in summaries])
    first_episode = 0 if last is None else last["episode_index"] + 1
    first_row = 0 if last is None else last["dataset_to_index"]
    tasks = read_tasks(root)
    for summary in summaries:
        if summary["task"] not in tasks:
            tasks.append(summary["task"])
    task_indices = np.array([tasks.index(summary["task"]) for summary in summaries])
    to_index = first_row + np.cumsum(lengths)

    columns: dict[str, Any] = {
        "episode_index": first_episode + np.arange(len(new)),
        "tasks": pa.array([[summary["task"]] for summary in summaries]),
        "length": lengths,
    }
    places = _fold_data(root, info, last, new, columns["episode_index"], to_index - lengths, task_indices)
    columns["data/chunk_index"], columns["data/file_index"] = np.array(places).T
    columns["dataset_from_index"], columns["dataset_to_index"] = to_index - lengths, to_index
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            columns |= _fold_videos(root, info, last, new, key, lengths)
    columns |= _statistics(info, summaries, columns, task_indices)
    if tasks != read_tasks(root):
        write_tasks(root, tasks)
    _append_episodes(root, info, last, pa.table(columns))


def _statistics(
    info: dict[str, Any], summaries: list[Summary], columns: dict[str, Any], task_indices: np.ndarray
) -> dict[str, pa.Array]:
    """Make columns of the episodes' statistics; those of an episode's position are computed here."""
    stats: list[dict[str, Any]] = []
    for number, summary in enumerate(summaries):
        length = summary["length"]
        position = {
            "episode_index": np.full(length, columns["episode_index"][number]),
            "index": columns["dataset_from_index"][number] + np.arange(length),
            "task_index": np.full(length, task_indices[number]),
        }
        of_position = {key: statistics.of_column(values) for key, values in position.items()}
        stats.append(summary["stats"] | of_position)
    return {
        f"stats/{key}/{name}": _nested(np.array([of_episode[key][name] for of_episode in stats]))
        for key in info["features"]
        if key in stats[0]
        for name in statistics.NAMES
    }


def _nested(values: np.ndarray) -> pa.Array:
    """Make lists of lists of an array ``N ...``, as LeRobot stores statistics."""
    column = pa.array(values.reshape(-1))
    for depth in reversed(range(1, values.ndim)):
        offsets = np.arange(0, len(column) + 1, values.shape[depth], dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def _place(
    root: Path,
    prefix: str,
    sizes: Sequence[int],
    last: Location | None,
    last_size: int,
    limit: int,
    chunks_size: int,
    can_follow: Sequence[bool],
) -> list[Location]:
    """Choose the file of each episode: the last one until it is full, then new ones.

    ``prefix``: of the two columns of the episodes table that say which files hold episodes already.
    ``can_follow[i]``: whether episode ``i`` can stand in one file with what is before it.
    """
    taken = _locations(root, prefix)
    places: list[Location] = []
    place, size = last, last_size
    for episode_size, follows in zip(sizes, can_follow, strict=True):
        if place is None or not follows or (size and size + episode_size > limit):
            place, size = (0, 0) if place is None else next_location(place, chunks_size), 0
            while place in taken:
                place = next_location(place, chunks_size)
        places.append(place)
        size += episode_size
    return places


def _locations(root: Path, prefix: str) -> set[Location]:
    """Files that hold episodes, by the episodes table."""
    names = [f"{prefix}/chunk_index", f"{prefix}/file_index"]
    locations: set[Location] = set()
    for path in episode_files(root):
        table = read_parquet(path, columns=names)
        if set(names) <= set(table.column_names):
            locations.update(zip(*(table[name].to_pylist() for name in names), strict=True))
    return locations


def _fold_data(
    root: Path,
    info: dict[str, Any],
    last: dict[str, Any] | None,
    new: list[Path],
    episodes: np.ndarray,
    first_rows: np.ndarray,
    task_indices: np.ndarray,
) -> list[Location]:
    schema = arrow_schema(info["features"])
    before = None if last is None else (last["data/chunk_index"], last["data/file_index"])
    old = None if before is None else root / format_path(info["data_path"], chunk=before[0], file=before[1])
    is_alike = False
    if old is not None and exists(old):
        with open_parquet(old) as file:
            is_alike = file.schema_arrow.equals(schema)
    places = _place(
        root,
        "data",
        [_parquet_size(path / COLUMNS_FILE) for path in new],
        before,
        old.stat().st_size if old is not None and is_alike else 0,
        int(info["data_files_size_in_mb"] * 2**20),
        info["chunks_size"],
        [is_alike or number > 0 for number in range(len(new))],
    )
    for place in dict.fromkeys(places):
        path = root / format_path(info["data_path"], chunk=place[0], file=place[1])
        with opened(path) as file, pq.ParquetWriter(file, schema, compression="snappy") as writer:
            if place == before:
                with open_parquet(path) as kept:
                    for group in range(kept.num_row_groups):
                        rows = kept.read_row_group(group)
                        rows = rows.filter(pa.array(from_arrow(rows["episode_index"]) < episodes[0]))
                        if len(rows):
                            writer.write_table(rows)
            for number, staged in enumerate(new):
                if places[number] == place:
                    rows = read_parquet(staged / COLUMNS_FILE)
                    position = {
                        "index": first_rows[number] + np.arange(len(rows)),
                        "episode_index": np.full(len(rows), episodes[number]),
                        "task_index": np.full(len(rows), task_indices[number]),
                    }
                    columns = [
                        pa.array(position[name]) if name in position else rows[name] for name in schema.names
                    ]
                    writer.write_table(pa.table(columns, schema=schema))
    return places


def _parquet_size(path: Path) -> int:
    """Count the bytes of a staged episode's columns, without the footer, which the final file has once."""
    with open_parquet(path) as file:
        group = file.metadata.row_group(0)
        return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


def _fold_videos(
    root: Path,
    info: dict[str, Any],
    last: dict[str, Any] | None,
    new: list[Path],
    key: str,
    lengths: np.ndarray,
) -> dict[str, np.ndarray]:
    """Join the episodes' videos of one camera into the final files; returns the columns of the episodes."""
    sources = [path / video_file(key) for path in new]
    headers = [video.probe(source) for source in sources]
    fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    names = {name: f"videos/{key}/{name}" for name in fields}
    before, old, end = None, None, None
    if last is not None and names["chunk_index"] in last:
        before = (last[names["chunk_index"]], last[names["file_index"]])
        path = root / format_path(info["video_path"], chunk=before[0], file=before[1], key=key)
        end = Fraction(last[names["to_timestamp"]]).limit_denominator(100_000)
        old = path if exists(path) else None
    follows = [old is not None and headers[0].can_follow(video.probe(old))]
    follows += [after.can_follow(header) for header, after in itertools.pairwise(headers)]
    places = _place(
        root,
        f"videos/{key}",
        [source.stat().st_size for source in sources],
        before,
        old.stat().st_size if old is not None else 0,
        int(info["video_files_size_in_mb"] * 2**20),
        info["chunks_size"],
        follows,
    )
    starts: list[float] = []
    for place in dict.fromkeys(places):
        path = root / format_path(info["video_path"], chunk=place[0], file=place[1], key=key)
        group = [source for source, its_place in zip(sources, places, strict=True) if its_place == place]
        continued = [path] if place == before else []
        with opened(path) as file:
            times, num_frames = video.concatenate(
                continued + group, file, end_of_first=end if continued else None
            )
            file.flush()
            if video.probe(Path(file.name)).num_frames != num_frames:
                raise DataError(f"could not be written whole ({num_frames} frames)", path=path, key=key)
        starts += [float(time) for time in times[len(continued) :]]
    if "video.height" not in (info["features"][key].get("info") or {}):
        info["features"][key]["info"] = headers[0].as_feature(info["fps"])
    return {
        names["chunk_index"]: np.array([chunk for chunk, _ in places]),
        names["file_index"]: np.array([file for _, file in places]),
        names["from_timestamp"]: np.array(starts),
        names["to_timestamp"]: np.array(starts) + lengths / info["fps"],
    }


def _append_episodes(root: Path, info: dict[str, Any], last: dict[str, Any] | None, rows: pa.Table) -> None:
    place, old = (0, 0), None
    path = root / format_path(EPISODES_PATH, chunk=0, file=0)
    if last is not None:
        path = episode_files(root)[-1]
        place = (last.get("meta/episodes/chunk_index", 0), last.get("meta/episodes/file_index", 0))
        old = read_parquet(path)
        if path.stat().st_size > info["data_files_size_in_mb"] * 2**20:
            old = None
            while exists(path):
                place = next_location(place, info["chunks_size"])
                path = root / format_path(EPISODES_PATH, chunk=place[0], file=place[1])
    rows = rows.append_column("meta/episodes/chunk_index", pa.array(np.full(len(rows), place[0])))
    rows = rows.append_column("meta/episodes/file_index", pa.array(np.full(len(rows), place[1])))
    if old is not None:
        # The table of another program may lack a statistic or have one of its own.
        names = set(rows.column_names)
        columns = [
            rows[field.name].cast(field.type) if field.name in names else pa.nulls(len(rows), field.type)
            for field in old.schema
        ]
        rows = pa.concat_tables([old, pa.table(columns, schema=old.schema)])
    with opened(path) as file:
        pq.write_table(rows, file)


def _summarise(root: Path, info: dict[str, Any]) -> None:
    """Write ``stats.json`` and ``info.json`` from the episodes table."""
    parts: dict[str, list[statistics.Statistics]] = {}
    num_episodes, num_frames = 0, 0
    for path in episode_files(root):
        table = read_parquet(path)
        num_episodes += len(table)
        num_frames += int(from_arrow(table["length"]).sum())
        for key in info["features"]:
            stacked = {
                name: from_arrow(table[f"stats/{key}/{name}"])
                for name in statistics.NAMES
                if f"stats/{key}/{name}" in table.column_names and not table[f"stats/{key}/{name}"].null_count
            }
            if {"min", "max", "mean", "std", "count"} <= stacked.keys():
                parts.setdefault(key, []).append(statistics.aggregate(stacked))
    merged = {key: statistics.aggregate(statistics.stack(group)) for key, group in parts.items()}
    stats = {key: {name: value.tolist() for name, value in of_key.items()} for key, of_key in merged.items()}
    before = read_json(root, STATS_PATH) if exists(root / STATS_PATH) else {}
    stale = sorted(set(before) - set(stats))
    if stale:
        # Written by a program that keeps no statistics by episode: there is nothing to compute new ones from.
        warnings.warn(
            f"{root / STATS_PATH}: {', '.join(stale)} still describe the old episodes", stacklevel=2
        )
    write_json(root / STATS_PATH, before | stats)
    splits = info.get("splits") or {}
    if set(splits) <= {"train"}:
        info["splits"] = {"train": f"0:{num_episodes}"}
    info |= {
        "total_episodes": num_episodes,
        "total_frames": num_frames,
        "total_tasks": len(read_tasks(root)),
    }
    write_json(root / INFO_PATH, info)
