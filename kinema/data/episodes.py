"""The table of episodes of a dataset: which rows of which files are whose.

Published sets leave columns out. What the files themselves say without a doubt is filled in, with a note;
for the rest the place where it is missing is remembered, and raised when it is asked for.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kinema.data import lerobot_v2, video
from kinema.data.fold import episode_files
from kinema.data.layout import (
    DATA_PATH,
    INFO_PATH,
    VIDEO_PATH,
    DataError,
    format_path,
    from_arrow,
    read_parquet,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSpans:
    """Where the episodes of one camera lie."""

    paths: list[Path]
    starts: np.ndarray
    """Seconds in the file, ``N``."""
    ends: np.ndarray
    """Seconds in the file, ``N``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCheck:
    """Result of ``check_spans`` for one video file."""

    offset: float
    """Seconds to add to the times of all episodes: the file's first frame is the first one recorded."""
    wrong: dict[int, tuple[str, str]]
    """By position of an episode: kind of its defect, and why its frames cannot be told from others'."""


def check_spans(
    spans: VideoSpans,
    numbers: Sequence[int],
    *,
    ids: np.ndarray,
    lengths: np.ndarray,
    fps: float,
    num_frames: int,
    first_time: float,
) -> SpanCheck:
    """Check that the episodes of one video file have frames of their own.

    Args:
        spans: of the camera.
        numbers: positions of the episodes that lie in the file.
        ids: ``episode_index`` by position.
        lengths: rows by position.
        fps: rows a second.
        num_frames: frames in the file; 0 where its header does not say.
        first_time: time of its first frame in seconds.
    """
    ordered = sorted(numbers, key=lambda number: float(spans.starts[number]))
    half, wrong, first_gap = 0.5 / fps, {}, None
    for place, number in enumerate(ordered):
        start, end = float(spans.starts[number]), float(spans.ends[number])
        frames = (end - start) * fps
        if not abs(frames - lengths[number]) <= 0.5:
            reason = f"spans {frames:.1f} frames of the video, but has {lengths[number]} rows"
            wrong[number] = ("length", reason)
        before = ordered[place - 1] if place else None
        its_end = 0.0 if before is None else float(spans.ends[before])
        if before is not None and start < its_end - half:
            reason = f"starts at {start:.3f} s, before episode {ids[before]} ends ({its_end:.3f} s)"
            wrong.setdefault(number, ("order", reason))
            reason = f"ends at {its_end:.3f} s, after episode {ids[number]} starts ({start:.3f} s)"
            wrong.setdefault(before, ("order", reason))
        if start > its_end + half and first_gap is None:
            first_gap = place
    offset, last = 0.0, max(float(spans.ends[number]) for number in ordered)
    begin = float(spans.starts[ordered[0]])
    if first_time > begin + half:
        if wrong or first_gap is not None or num_frames != int(lengths[ordered].sum()):
            reason = f"the video's first frame is at {first_time:.3f} s, but episodes start at {begin:.3f} s"
            return SpanCheck(offset=0.0, wrong=dict.fromkeys(ordered, ("video", reason)))
        offset = first_time - begin
    file_end = first_time + num_frames / fps
    if num_frames and first_gap is not None and last + offset > file_end + half:
        reason = f"the episodes leave a gap and end at {last:.3f} s, but the video ends at {file_end:.3f} s"
        wrong |= {number: ("order", reason) for number in ordered[first_gap:] if number not in wrong}
    return SpanCheck(offset=offset, wrong=wrong)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """``N`` episodes in ascending order."""

    ids: np.ndarray
    """Their ``episode_index``, ``N`` int64."""
    lengths: np.ndarray
    """Rows, ``N`` int64."""
    from_index: np.ndarray
    """First row in the dataset, ``N`` int64."""
    data_paths: list[Path]
    tasks: list[list[str]]
    videos: dict[str, VideoSpans | DataError]
    """By camera; an error where the files do not say whose frames are whose."""
    notes: list[DataError]
    """What was missing and how it was filled in."""


def read_episodes(root: Path, info: Mapping[str, Any]) -> EpisodeTable:
    """Read the episodes table. Raises DataError when even the rows cannot be told apart."""
    notes: list[DataError] = []
    columns = read_columns(root, info)
    if "episode_index" not in columns or "length" not in columns:
        columns = _from_data(root, info, columns, notes)
    if lerobot_v2.is_v2(root, info):
        columns = lerobot_v2.add_locations(columns, info)
    order = np.argsort(columns["episode_index"], kind="stable")
    columns = {key: values[order] for key, values in columns.items()}
    ids, lengths = columns["episode_index"].astype(np.int64), columns["length"].astype(np.int64)
    if len(np.unique(ids)) != len(ids):
        twice = int(ids[:-1][ids[1:] == ids[:-1]][0])
        raise DataError("stands twice in the episodes table", path=root / "meta/episodes", episode=twice)
    if "dataset_from_index" in columns:
        from_index = columns["dataset_from_index"].astype(np.int64)
    else:
        from_index = np.cumsum(lengths) - lengths
    tasks = [
        [str(task) for task in listed] for listed in columns.get("tasks", np.array([[]] * len(ids), object))
    ]
    videos: dict[str, VideoSpans | DataError] = {}
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            try:
                videos[key] = _video_spans(root, info, key, columns, notes)
            except DataError as error:
                videos[key] = error
    return EpisodeTable(
        ids=ids,
        lengths=lengths,
        from_index=from_index,
        data_paths=_data_paths(root, info, columns, notes),
        tasks=tasks,
        videos=videos,
        notes=notes,
    )


def read_columns(root: Path, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every column but the statistics, over all files of the table."""
    if lerobot_v2.is_v2(root, info):
        return lerobot_v2.read_columns(root)
    tables = []
    for path in episode_files(root):
        try:
            tables.append(read_parquet(path, with_statistics=False))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"cannot be read as parquet ({error}); restore it from a copy", path=path
            ) from error
    if not tables:
        return {}
    table = pa.concat_tables(tables, promote_options="permissive")
    columns: dict[str, np.ndarray] = {}
    for name in table.column_names:
        if name == "tasks":
            columns[name] = np.empty(len(table), object)
            columns[name][:] = [listed or [] for listed in table[name].to_pylist()]
        elif table[name].null_count == 0:
            columns[name] = from_arrow(table[name])
    return columns


def _data_files(root: Path) -> list[Path]:
    return sorted((root / "data").rglob("*.parquet"))


def _rows_of_files(root: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """Data files with the ``episode_index`` of each of their rows."""
    for path in _data_files(root):
        try:
            yield path, from_arrow(read_parquet(path, ["episode_index"])["episode_index"])
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"its rows cannot be told apart ({error})", path=path, key="episode_index"
            ) from error


def _from_data(
    root: Path, info: Mapping[str, Any], columns: dict[str, np.ndarray], notes: list[DataError]
) -> dict[str, np.ndarray]:
    """Episodes and lengths counted from the data files, where the table is missing or lacks them."""
    if not columns and not _data_files(root):
        if info.get("total_episodes"):
            raise DataError(
                f"{INFO_PATH} announces {info['total_episodes']} episodes, but the folders meta/episodes and "
                "data are empty; download the dataset again",
                path=root,
            )
        return {"episode_index": np.zeros(0, np.int64), "length": np.zeros(0, np.int64)}
    rows = [values for _, values in _rows_of_files(root)]
    ids, counts = np.unique(np.concatenate(rows) if rows else np.zeros(0, np.int64), return_counts=True)
    notes.append(
        DataError(
            "no episodes with their lengths; they were counted from the data files",
            path=root / "meta/episodes",
        )
    )
    if columns and len(next(iter(columns.values()))) != len(ids):
        columns = {}
    return columns | {"episode_index": ids, "length": counts}


def _data_paths(
    root: Path, info: Mapping[str, Any], columns: Mapping[str, np.ndarray], notes: list[DataError]
) -> list[Path]:
    ids = columns["episode_index"]
    if "data/chunk_index" in columns and "data/file_index" in columns:
        template = info.get("data_path") or DATA_PATH
        places = zip(columns["data/chunk_index"], columns["data/file_index"], strict=True)
        paths = [root / format_path(template, chunk=int(chunk), file=int(file)) for chunk, file in places]
        return _found_files(root, info, "data", paths, ids, notes)
    if not len(ids):
        return []
    homes: dict[int, Path] = {}
    for path, rows in _rows_of_files(root):
        for episode in np.unique(rows).tolist():
            if homes.setdefault(episode, path) != path:
                raise DataError("stands in two data files", path=path, episode=episode)
    for episode in ids.tolist():
        if episode not in homes:
            raise DataError("is in none of the data files", path=root / "data", episode=episode)
    notes.append(
        DataError(
            "data/chunk_index and data/file_index are missing; each episode was looked up in the data files",
            path=root / "meta/episodes",
        )
    )
    return [homes[episode] for episode in ids.tolist()]


def _video_spans(
    root: Path,
    info: Mapping[str, Any],
    key: str,
    columns: Mapping[str, np.ndarray],
    notes: list[DataError],
) -> VideoSpans:
    chunk, file, start, end = (
        columns.get(f"videos/{key}/{name}")
        for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    )
    durations = columns["length"] / info["fps"]
    if chunk is not None and file is not None:
        template = info.get("video_path") or VIDEO_PATH
        paths = [
            root / format_path(template, chunk=int(c), file=int(f), key=key)
            for c, f in zip(chunk, file, strict=True)
        ]
        paths = _found_files(root, info, "videos", paths, columns["episode_index"], notes, key)
        if start is None:
            _note(root, key, "from_timestamp is missing; episodes were laid one after the other", notes)
    else:
        paths = _guess_paths(root, key, columns["length"])
        _note(
            root,
            key,
            "chunk_index and file_index are missing; there is only one way to assign the files",
            notes,
        )
    if start is None:
        start = np.zeros(len(durations))
        ends_of: dict[Path, float] = {}
        for number, path in enumerate(paths):
            start[number] = ends_of.get(path, 0.0)
            ends_of[path] = start[number] + durations[number]
    return VideoSpans(paths=paths, starts=start, ends=end if end is not None else start + durations)


def _found_files(
    root: Path,
    info: Mapping[str, Any],
    folder: str,
    paths: list[Path],
    numbers: np.ndarray,
    notes: list[DataError],
    key: str = "",
) -> list[Path]:
    """Files of the episodes of v2, where they are if not where the template says."""
    if not lerobot_v2.is_v2(root, info):
        return paths
    found = lerobot_v2.find_files(root / folder, paths, numbers.tolist(), key)
    if found != paths:
        message = "no file is where the template says; each was found by the number in its name"
        notes.append(DataError(message, path=root / folder, key=key or None))
    return found


def _note(root: Path, key: str, message: str, notes: list[DataError]) -> None:
    notes.append(DataError(message, path=root / "meta/episodes", key=f"videos/{key}"))


def _guess_paths(root: Path, key: str, lengths: np.ndarray) -> list[Path]:
    """Whose video is which file, when the table does not say: one file holds all, or each holds one."""
    files = sorted((root / "videos" / key).rglob("*.mp4"))
    frames = [video.probe(path).num_frames for path in files]
    if len(files) == 1 and frames[0] == lengths.sum():
        return files * len(lengths)
    if files and frames == lengths.tolist():
        return files
    raise DataError(
        "the episodes table does not say where this camera's videos are, and its "
        f"{len(files)} files ({sum(frames)} frames) do not fit the {len(lengths)} episodes ({lengths.sum()} "
        "frames); read the dataset without this camera, or write it again",
        path=root / "meta/episodes",
        key=key,
    )
