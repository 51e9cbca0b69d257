"""Finding what is wrong with a dataset on disk.

Each check goes on after a defect, so that one run reports all of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from kinema.data import fold, video
from kinema.data.episodes import SpanCheck, VideoSpans, check_spans, read_columns
from kinema.data.layout import (
    INFO_PATH,
    POSITION_FEATURES,
    STATS_PATH,
    DataError,
    from_arrow,
    is_picture,
    picture_shape,
    row_shape,
)
from kinema.data.lerobot import TIMESTAMP_TOLERANCE, Dataset, load_data_file

OUTLIER_SPANS = 10.0
"""A value is a far outlier when it is this many times the spread from 1% to 99% away from that range."""
MIN_CONSTANT_ROWS = 10
"""Rows from which an episode whose action never changes is worth a word."""


Severity = Literal["error", "warning"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that is wrong, and where. An error makes training fail or learn something false; a warning is
    worth a look."""

    severity: Severity
    kind: str
    message: str
    file: str | None = None
    """Relative to the dataset."""
    episode: int | None = None
    key: str | None = None

    @classmethod
    def of(cls, error: DataError, root: Path, *, kind: str, severity: Severity = "error") -> Self:
        return cls(
            severity=severity,
            kind=kind,
            message=error.message,
            file=None if error.path is None else _relative(Path(error.path), root),
            episode=error.episode,
            key=error.key,
        )

    def __str__(self) -> str:
        places = [self.file, None if self.episode is None else f"episode {self.episode}", self.key]
        return f"{self.severity}: {', '.join(place for place in places if place)}: {self.message}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCheck:
    """Result of ``training_problems``."""

    fatal: list[Defect]
    """Reasons not to train: nothing is learned until each is mended."""
    left_out: list[Defect]
    """Reasons for episodes that are missing or are not used."""
    usable_episodes: np.ndarray
    """Positions in the dataset of the episodes to learn from, ``N`` int64, ascending."""


LEFT_OUT_KINDS = ("length", "data", "video", "timestamps", "order")
"""Kinds of defects that make an episode unreadable; the others can still be used."""
FATAL_KINDS = ("not-finite", "missing-values", "shape", "column", "empty")
"""Kinds of defects that concern how a dataset was made, or that would spoil the weights unnoticed."""


def training_problems(
    dataset: Dataset, *, segment_length: int, columns: Sequence[str], episodes: Sequence[int] | None = None
) -> TrainingCheck:
    """List the defects that would spoil a training, before anything is learned.

    Reads the columns in use and the headers of videos; no frame is decoded.

    Args:
        dataset: to be learned from.
        segment_length: rows of the longest segments; shorter episodes are left out.
        columns: keys of all features that are used: actions, proprioception, rewards, cameras.
        episodes: positions of the episodes in question; all by default.
    """
    table = dataset.table
    asked = np.arange(dataset.num_episodes) if episodes is None else np.unique(episodes).astype(np.int64)
    if not dataset.num_episodes:
        empty = Defect(severity="error", kind="empty", file=INFO_PATH, message="the dataset has no episodes")
        return TrainingCheck(fatal=[empty], left_out=[], usable_episodes=asked)
    left_out = [defect for defect in _check_totals(dataset) if defect.key != "total_tasks"]
    found = list(_check_rows(dataset, None, keys=columns))
    for camera in dataset.cameras:
        if camera in columns and dataset.features[camera]["dtype"] == "video":
            found += _check_videos(dataset, camera, None, is_decoding=False)
    fatal, is_usable = [], np.isin(np.arange(dataset.num_episodes), asked)
    for defect in found:
        positions = np.intersect1d(_positions(dataset, defect), asked)
        if defect.severity == "warning" or not len(positions):
            continue
        if defect.kind in FATAL_KINDS:
            fatal.append(defect)
        elif defect.kind in LEFT_OUT_KINDS and defect.key not in ("index", "episode_index"):
            left_out.append(defect)
            is_usable[positions] = False
    is_short = is_usable & (table.lengths < segment_length)
    longest = int(table.lengths[is_usable].max(initial=0))
    for number in np.flatnonzero(is_short).tolist():
        message = f"has {table.lengths[number]} rows, fewer than the {segment_length} of a segment"
        left_out.append(_table_defect("short", int(table.ids[number]), "length", message))
    is_usable &= ~is_short
    if not is_usable.any() and not fatal:
        reasons = "; ".join(map(str, left_out[:1]))
        message = f"no episode can be learned from ({len(asked)} are left out): {reasons}"
        if is_short.any():
            message = (
                f"segments of {segment_length} rows are needed, but the longest episode has {longest}; "
                "record longer episodes or choose a recipe with shorter segments"
            )
        fatal.append(Defect(severity="error", kind="empty", file="meta/episodes", message=message))
    return TrainingCheck(fatal=fatal, left_out=left_out, usable_episodes=np.flatnonzero(is_usable))


def _positions(dataset: Dataset, defect: Defect) -> np.ndarray:
    """Positions of the episodes that a defect concerns: the one that it names, or all of its file."""
    if defect.episode is not None:
        return np.flatnonzero(dataset.table.ids == defect.episode)
    spans = dataset.table.videos.get(defect.key or "")
    paths = spans.paths if isinstance(spans, VideoSpans) else dataset.table.data_paths
    files = [_relative(path, dataset.root) for path in paths]
    if defect.file not in files:
        return np.arange(dataset.num_episodes)
    return np.flatnonzero([file == defect.file for file in files])


def find_defects(
    root: Path | str, *, is_decoding: bool = True, is_showing_progress: bool = False
) -> list[Defect]:
    """Every defect of the dataset in a folder, in the order of the checks: tables, rows, values, videos.

    Nothing on disk is changed. ``is_decoding``: decode every frame; otherwise only headers are read.
    """
    root = Path(root)
    try:
        dataset = Dataset(root)
    except DataError as error:
        return [Defect.of(error, root, kind="unreadable")]
    found = [Defect.of(note, root, kind="incomplete", severity="warning") for note in dataset.notes]
    found += _check_tables(dataset)
    if not dataset.num_episodes:
        return found
    values = _Values(dataset)
    found += _check_rows(dataset, values)
    found += values.check()
    bar = tqdm(total=dataset.num_frames * len(dataset.cameras), unit="frame", disable=not is_showing_progress)
    with bar:
        for camera in dataset.cameras:
            if dataset.features[camera]["dtype"] == "video":
                found += _check_videos(dataset, camera, bar, is_decoding=is_decoding)
            elif is_decoding:
                found += _check_embedded(dataset, camera, bar)
    return found


def _relative(path: Path, root: Path) -> str:
    """The path within the dataset; the folder of the dataset itself as it was given."""
    return str(path.relative_to(root)) if path.is_relative_to(root) and path != root else str(path)


def _check_tables(dataset: Dataset) -> Iterator[Defect]:
    """``info.json`` and the episodes table against each other."""
    root, table = dataset.root, dataset.table
    staged: list[Path] = []
    try:
        staged = fold.staged_episodes(root)
    except DataError as error:
        yield Defect.of(error, root, kind="unreadable", severity="warning")
    if staged:
        yield Defect(
            severity="warning",
            kind="interrupted",
            file=fold.STAGING,
            message=f"{len(staged)} episodes of an interrupted or running recording wait "
            f"here; the same `kinema record` command, or kinema.data.recover({str(root)!r}), adds them",
        )
    if not dataset.num_episodes:
        yield Defect(severity="error", kind="empty", file=INFO_PATH, message="the dataset has no episodes")
    yield from _check_totals(dataset)
    if "action" not in dataset.features:
        message = "there is no such feature; a world learned from this goes on by itself"
        yield Defect(severity="warning", kind="no-action", file=INFO_PATH, key="action", message=message)
    columns = read_columns(root, dataset.info)
    ids = columns.get("episode_index", table.ids)
    for number in np.flatnonzero(np.diff(ids) <= 0).tolist():
        message = f"does not ascend: {ids[number + 1]} follows {ids[number]}"
        yield _table_defect("order", int(ids[number + 1]), "episode_index", message)
    if len(table.ids) and not np.array_equal(table.ids, np.arange(len(table.ids))):
        number = int(np.flatnonzero(table.ids != np.arange(len(table.ids)))[0])
        message = f"expected {number} in its place: episodes are not numbered 0 to {len(table.ids) - 1}"
        yield dataclasses.replace(
            _table_defect("order", int(table.ids[number]), "episode_index", message), severity="warning"
        )
    for number, length in enumerate(table.lengths.tolist()):
        if length < 1:
            yield _table_defect("length", int(table.ids[number]), "length", f"is {length}")
    starts, ends = columns.get("dataset_from_index"), columns.get("dataset_to_index")
    if starts is not None and ends is not None and "length" in columns:
        for number in np.flatnonzero(ends - starts != columns["length"]).tolist():
            message = (
                f"rows {starts[number]} to {ends[number]}, but the length is {columns['length'][number]}"
            )
            yield _table_defect("length", int(ids[number]), "dataset_to_index", message)
        for number in np.flatnonzero(starts[1:] != ends[:-1]).tolist():
            message = f"starts at row {starts[number + 1]}, but the episode before it ends at {ends[number]}"
            yield _table_defect("order", int(ids[number + 1]), "dataset_from_index", message)


def _check_totals(dataset: Dataset) -> Iterator[Defect]:
    """Counts in ``info.json`` against the tables."""
    totals = {
        "total_episodes": dataset.num_episodes,
        "total_frames": dataset.num_frames,
        "total_tasks": len(dataset.tasks),
    }
    for key, counted in totals.items():
        if dataset.info.get(key, counted) != counted:
            message = f"says {dataset.info[key]}, but the tables hold {counted}"
            yield Defect(severity="error", kind="totals", file=INFO_PATH, key=key, message=message)


def _table_defect(kind: str, episode: int, key: str, message: str) -> Defect:
    return Defect(
        severity="error", kind=kind, file="meta/episodes", episode=episode, key=key, message=message
    )


class _Values:
    """The numbers of every feature, gathered for the checks that need all of them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.keys = [
            key
            for key, feature in dataset.features.items()
            if key not in POSITION_FEATURES and not is_picture(feature) and feature["dtype"] != "string"
        ]
        self._parts: dict[str, list[tuple[int, np.ndarray]]] = {key: [] for key in self.keys}

    def add(self, number: int, key: str, values: np.ndarray) -> None:
        """Values ``T ...`` of the episode at a position."""
        self._parts.setdefault(key, []).append((number, values.reshape(len(values), -1)))

    def check(self) -> Iterator[Defect]:
        for key, parts in self._parts.items():
            if not parts:
                continue
            values = np.concatenate([part for _, part in parts])
            # Rewards and flags may well be constant, or rare and large.
            if values.dtype.kind in "iuf" and (key == "action" or key.startswith("observation.")):
                yield from self._check_constant(key, values)
                yield from self._check_outliers(key, values.astype(np.float64))
            yield from self._check_range(key)

    def _place(self, key: str, row: int) -> tuple[int, int]:
        """Position of the episode, and the row in it, of a row of all gathered ones."""
        for number, part in self._parts[key]:
            if row < len(part):
                return number, row
            row -= len(part)
        raise IndexError(row)

    def _defect(self, severity: Severity, kind: str, key: str, number: int | None, message: str) -> Defect:
        table = self.dataset.table
        return Defect(
            severity=severity,
            kind=kind,
            key=key,
            message=message,
            file="data" if number is None else _relative(table.data_paths[number], self.dataset.root),
            episode=None if number is None else int(table.ids[number]),
        )

    def _check_constant(self, key: str, values: np.ndarray) -> Iterator[Defect]:
        is_constant = (values == values[:1]).all(axis=0)
        if len(values) > 1 and is_constant.all():
            severity = "error" if key == "action" else "warning"
            message = f"is {values[0].tolist()} in all {len(values)} rows of the dataset"
            yield self._defect(severity, "constant", key, None, message)
            return
        if key != "action":
            return
        for dimension in np.flatnonzero(is_constant).tolist():
            message = f"dimension {dimension} is {values[0, dimension]} in every row of the dataset"
            yield self._defect("warning", "constant", key, None, message)
        for number, part in self._parts[key]:
            if len(part) >= MIN_CONSTANT_ROWS and (part == part[:1]).all():
                message = f"is {part[0].tolist()} in all {len(part)} rows of the episode"
                yield self._defect("warning", "constant", key, number, message)

    def _check_outliers(self, key: str, values: np.ndarray) -> Iterator[Defect]:
        finite = np.where(np.isfinite(values), values, np.nan)
        usable = ~np.isnan(finite).all(axis=0)
        for dimension in np.flatnonzero(usable).tolist():
            column = finite[:, dimension]
            low, high = np.nanquantile(column, [0.01, 0.99])
            # Where nearly all values are one, a rare other one is an event and not an outlier.
            if high <= low:
                continue
            distance = np.maximum(low - column, column - high) / (high - low)
            far = np.flatnonzero(distance > OUTLIER_SPANS)
            if len(far):
                row = int(far[np.argmax(distance[far])])
                number, place = self._place(key, row)
                message = (
                    f"dimension {dimension} is {column[row]:g} in row {place}; 98% of its values lie in "
                    f"{low:g} to {high:g} ({len(far)} rows as far out in the dataset)"
                )
                yield self._defect("warning", "outlier", key, number, message)

    def _check_range(self, key: str) -> Iterator[Defect]:
        stats = self.dataset.stats.get(key)
        if stats is None or "min" not in stats or "max" not in stats:
            if self.dataset.stats:
                message = "has no min and max"
                yield Defect(severity="warning", kind="statistics", file=STATS_PATH, key=key, message=message)
            return
        low, high = (np.ravel(stats[name]).astype(np.float64) for name in ("min", "max"))
        slack = 1e-4 * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high))
        for number, part in self._parts[key]:
            if part.shape[1] != len(low):
                message = f"describes {len(low)} dimensions, but the data has {part.shape[1]}"
                yield Defect(severity="error", kind="statistics", file=STATS_PATH, key=key, message=message)
                return
            is_out = (part < low - slack) | (part > high + slack)
            if is_out.any():
                row, dimension = np.argwhere(is_out)[0].tolist()
                message = (
                    f"dimension {dimension} is {part[row, dimension]:g} in row {row}, outside the range "
                    f"{low[dimension]:g} to {high[dimension]:g} of {STATS_PATH} ({int(is_out.sum())} values)"
                )
                yield self._defect("error", "range", key, number, message)


def _check_rows(
    dataset: Dataset, values: _Values | None, *, keys: Sequence[str] | None = None
) -> Iterator[Defect]:
    """Check every data file, episode by episode; numbers are added to ``values``.

    ``keys``: features to check besides the positions of rows; all by default.
    """
    root, table = dataset.root, dataset.table
    columns = None
    if keys is not None:
        columns = {*POSITION_FEATURES, *(key for key in keys if key not in dataset.cameras)}
    numbers: dict[Path, list[int]] = {}
    for number, path in enumerate(table.data_paths):
        numbers.setdefault(path, []).append(number)
    for path, its_numbers in numbers.items():
        try:
            rows, slices = load_data_file(path, columns)
        except DataError as error:
            message = f"{error.message} (episodes {_ranges([int(table.ids[n]) for n in its_numbers])})"
            episode = int(table.ids[its_numbers[0]]) if len(its_numbers) == 1 else error.episode
            yield dataclasses.replace(Defect.of(error, root, kind="data"), message=message, episode=episode)
            continue
        file = _relative(path, root)
        for episode in sorted(set(slices) - set(table.ids.tolist())):
            message = "has rows here, but the episodes table does not know it"
            yield Defect(severity="error", kind="length", file=file, episode=episode, message=message)
        with path.open("rb") as data:
            stored = pq.read_schema(data).names
        for key, feature in dataset.features.items():
            if keys is not None and key not in keys:
                continue
            if feature["dtype"] != "video" and key not in stored:
                message = f"is a feature in {INFO_PATH}, but the file has no such column"
                yield Defect(severity="error", kind="column", file=file, key=key, message=message)
        for number in its_numbers:
            episode = int(table.ids[number])
            if episode not in slices:
                message = f"has no rows, but the episodes table says {table.lengths[number]}"
                yield Defect(severity="error", kind="length", file=file, episode=episode, message=message)
                continue
            part = slices[episode]
            yield from _check_episode(
                dataset, number, file, rows.slice(part.start, part.stop - part.start), values
            )


def _check_episode(
    dataset: Dataset, number: int, file: str, rows: pa.Table, values: _Values | None
) -> Iterator[Defect]:
    """The rows of one episode."""
    episode, length = int(dataset.table.ids[number]), len(rows)

    def defect(kind: str, key: str, message: str) -> Defect:
        return Defect(severity="error", kind=kind, file=file, episode=episode, key=key, message=message)

    if length != dataset.table.lengths[number]:
        yield defect(
            "length", "length", f"{length} rows, but the episodes table says {dataset.table.lengths[number]}"
        )
    columns: dict[str, np.ndarray] = {}
    for key in rows.column_names:
        if key not in dataset.features or is_picture(dataset.features[key]):
            continue
        try:
            columns[key] = from_arrow(rows[key])
        except (ValueError, pa.ArrowException) as error:
            yield defect("missing-values", key, str(error))
            continue
        shape = row_shape(dataset.features[key])
        if columns[key].size != length * int(np.prod(shape)):
            got = list(columns[key].shape[1:])
            yield defect("shape", key, f"rows have shape {got}, but {INFO_PATH} says {list(shape) or [1]}")
            del columns[key]
    expected = {
        "frame_index": np.arange(length),
        "index": dataset.table.from_index[number] + np.arange(length),
    }
    for key, right in expected.items():
        wrong = np.flatnonzero(columns[key].ravel() != right) if key in columns else []
        if len(wrong):
            row = int(wrong[0])
            yield defect("order", key, f"is {columns[key].ravel()[row]} in row {row}, expected {right[row]}")
    if "timestamp" in columns:
        times = columns["timestamp"].ravel().astype(np.float64)
        right = np.arange(length) / dataset.fps
        if length and abs(times[0]) > TIMESTAMP_TOLERANCE:
            message = f"starts at {times[0]:.4f} s instead of 0; taken from its first row on"
            yield dataclasses.replace(defect("timestamps", "timestamp", message), severity="warning")
            right = right + times[0]
        wrong = np.flatnonzero(~(np.abs(times - right) <= TIMESTAMP_TOLERANCE + 1e-6 * right))
        if len(wrong):
            row = int(wrong[0])
            message = f"is {times[row]:.4f} s in row {row}, expected {right[row]:.4f} s ({len(wrong)} rows)"
            is_far = bool((~(np.abs(times - right) <= 0.5 / dataset.fps + 1e-4)).any())
            yield dataclasses.replace(
                defect("timestamps", "timestamp", message), severity="error" if is_far else "warning"
            )
    if "task_index" in columns and dataset.tasks:
        tasks = columns["task_index"].ravel()
        wrong = np.flatnonzero(~np.isin(tasks, list(dataset.task_texts)))
        if len(wrong):
            message = f"is {tasks[wrong[0]]}, but there are {len(dataset.tasks)} tasks"
            yield defect("task", "task_index", message)
    for key in columns:
        if key in POSITION_FEATURES or columns[key].dtype.kind not in "biuf":
            continue
        column = columns[key].reshape(length, -1)
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            row, dimension = np.argwhere(~np.isfinite(column))[0].tolist()
            message = (
                f"dimension {dimension} is {column[row, dimension]} in row {row} "
                f"({int((~np.isfinite(column)).sum())} values)"
            )
            is_last = key == "action" and np.isfinite(column[:-1]).all()
            yield dataclasses.replace(
                defect("not-finite", key, message), severity="warning" if is_last else "error"
            )
        if values is not None:
            values.add(number, key, column)
    for key in ("next.terminated", "next.truncated", "next.done"):
        early = np.flatnonzero(columns[key].ravel()[:-1]) if key in columns else []
        if len(early):
            message = f"is true in row {early[0]} of {length}: the episode goes on after its end"
            yield dataclasses.replace(defect("order", key, message), severity="warning")


def _check_videos(dataset: Dataset, camera: str, bar: tqdm | None, *, is_decoding: bool) -> Iterator[Defect]:
    """The video files of one camera, and in each the spans of its episodes."""
    root, table, spans = dataset.root, dataset.table, dataset.table.videos[camera]
    if not isinstance(spans, VideoSpans):
        yield Defect.of(spans, root, kind="video")
        return
    if (count := len(set(spans.paths))) > 1 and not any(path.is_file() for path in spans.paths):
        message = f"none of the {count} videos of this camera is there; download or copy the dataset again"
        file = _relative(spans.paths[0].parent, root)
        yield Defect(severity="error", kind="video", file=file, key=camera, message=message)
        return
    numbers: dict[Path, list[int]] = {}
    for number in np.lexsort([spans.starts]).tolist():
        numbers.setdefault(spans.paths[number], []).append(number)
    for path, its_numbers in sorted(numbers.items()):
        episodes = [int(table.ids[number]) for number in its_numbers]
        try:
            if not path.is_file():
                raise DataError("is missing", path=path)
            header = video.probe(path)
            reader = video.VideoReader(path)
        except DataError as error:
            message = f"{error.message} (episodes {_ranges(episodes)})"
            episode = episodes[0] if len(episodes) == 1 else None
            yield dataclasses.replace(
                Defect.of(error, root, kind="video"), message=message, key=camera, episode=episode
            )
            if bar is not None:
                bar.update(int(table.lengths[its_numbers].sum()))
            continue
        checked = check_spans(
            spans,
            its_numbers,
            ids=table.ids,
            lengths=table.lengths,
            fps=dataset.fps,
            num_frames=header.num_frames,
            first_time=header.start,
        )
        yield from _check_spans(dataset, camera, path, its_numbers, header, checked, is_decoding=is_decoding)
        if is_decoding:
            for number in its_numbers:
                if number not in checked.wrong:
                    yield from _check_frames(dataset, camera, number, reader, checked.offset)
                if bar is not None:
                    bar.update(int(table.lengths[number]))
        reader.close()


def _check_spans(
    dataset: Dataset,
    camera: str,
    path: Path,
    numbers: list[int],
    header: video.VideoInfo,
    checked: SpanCheck,
    *,
    is_decoding: bool,
) -> Iterator[Defect]:
    """What the header of a video says, against the episodes that are said to lie in it."""
    table, spans = dataset.table, dataset.table.videos[camera]
    assert isinstance(spans, VideoSpans)

    def defect(kind: str, message: str, number: int | None = None) -> Defect:
        return Defect(
            severity="error",
            kind=kind,
            file=_relative(path, dataset.root),
            episode=None if number is None else int(table.ids[number]),
            key=camera,
            message=message,
        )

    height, width, _ = picture_shape(dataset.features[camera])
    if (header.height, header.width) != (height, width):
        message = f"pictures are {header.height} x {header.width}, but {INFO_PATH} says {height} x {width}"
        yield defect("shape", message)
    num_rows = int(table.lengths[numbers].sum())
    if header.num_frames and header.num_frames < num_rows and is_decoding:
        yield defect("length", f"has {header.num_frames} frames, but its episodes have {num_rows} rows")
    elif header.num_frames > num_rows and abs(header.fps - dataset.fps) < 0.01:
        message = f"has {header.num_frames} frames, but its episodes have only {num_rows} rows"
        yield dataclasses.replace(defect("length", message), severity="warning")
    if checked.offset:
        message = f"the first frame is at {header.start:.3f} s; episodes are read from there on"
        yield dataclasses.replace(defect("timestamps", message), severity="warning")
    for number, (kind, message) in checked.wrong.items():
        yield defect(kind, message, number)
    if not is_decoding and header.num_frames:
        # Decoding finds the same, frame by frame.
        end = header.start + header.num_frames / dataset.fps
        for number in numbers:
            last = spans.starts[number] + checked.offset + (table.lengths[number] - 0.5) / dataset.fps
            if number not in checked.wrong and last > end:
                yield defect("length", f"has no frames from {end:.3f} s on, where the video ends", number)


def _check_frames(
    dataset: Dataset, camera: str, number: int, reader: video.VideoReader, offset: float
) -> Iterator[Defect]:
    """Decode one episode of a video."""
    spans = dataset.table.videos[camera]
    assert isinstance(spans, VideoSpans)
    file, episode = _relative(reader.path, dataset.root), int(dataset.table.ids[number])
    times = np.arange(dataset.table.lengths[number]) / dataset.fps
    try:
        pictures, worst = reader.read(spans.starts[number] + offset + times, tolerance=0.5 / dataset.fps)
    except DataError as error:
        yield dataclasses.replace(
            Defect.of(error, dataset.root, kind="video"), episode=episode, key=camera, file=file
        )
        return
    if worst > TIMESTAMP_TOLERANCE + 1e-6 * float(spans.ends[number]):
        message = f"frames are up to {worst:.4f} s away from the timestamps of the rows"
        yield Defect(
            severity="error", kind="timestamps", file=file, episode=episode, key=camera, message=message
        )
    yield from _check_blank(pictures, file, episode, camera)


def _check_embedded(dataset: Dataset, camera: str, bar: tqdm) -> Iterator[Defect]:
    """The pictures of one camera that are embedded in the data files."""
    table = dataset.table
    for number in range(dataset.num_episodes):
        episode = int(table.ids[number])
        bar.update(int(table.lengths[number]))
        try:
            pictures = dataset.pictures(number, camera)
        except DataError as error:
            # The rows were checked on their own; what is new here concerns the pictures.
            if error.key == camera:
                yield Defect.of(error, dataset.root, kind="picture")
            continue
        yield from _check_blank(pictures, _relative(table.data_paths[number], dataset.root), episode, camera)


def _check_blank(pictures: np.ndarray, file: str, episode: int, camera: str) -> Iterator[Defect]:
    if len(pictures) and (pictures == pictures[:1, :1, :1]).all():
        message = f"every picture of the episode is one colour, {pictures[0, 0, 0].tolist()}"
        yield Defect(
            severity="warning", kind="blank", file=file, episode=episode, key=camera, message=message
        )


def _ranges(numbers: list[int]) -> str:
    """``0 to 3, 7``."""
    ordered = sorted(numbers)
    parts: list[list[int]] = []
    for number in ordered:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join(" to ".join(map(str, part)) for part in parts)
