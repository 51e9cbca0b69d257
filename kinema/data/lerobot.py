"""Reading a LeRobotDataset (v3.0, v2.1 or v2.0) from a folder or from the Hugging Face Hub."""

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL.Image
import pyarrow as pa

from kinema.data import fold, lerobot_v2, statistics
from kinema.data.episodes import EpisodeTable, SpanCheck, VideoSpans, check_spans, read_episodes
from kinema.data.layout import (
    INFO_PATH,
    POSITION_FEATURES,
    STATS_PATH,
    VERSION,
    DataError,
    Feature,
    from_arrow,
    is_depth,
    is_picture,
    picture_shape,
    read_json,
    read_parquet,
    read_task_texts,
    row_shape,
)
from kinema.data.video import VideoReader
from kinema.types import Episode

__all__ = ["DataError", "Dataset"]

TIMESTAMP_TOLERANCE = 1e-4
"""Seconds by which a frame may be away from its row's timestamp without a warning, as in LeRobot."""


class Dataset:
    """Recorded episodes, read only; nothing is decoded before ``episode`` asks for it.

    ``root``: its folder. ``info``: ``meta/info.json``. ``fps``: rows a second. ``features``: LeRobot's
    entries by key. ``cameras``: keys of the features that are pictures. ``tasks``: instructions by
    ``task_index``. ``stats``: statistics over the dataset, by key and name (see ``kinema.data.statistics``).
    ``notes``: what was missing on disk and how it was filled in, each also given as a warning.
    """

    def __init__(self, root: Path) -> None:
        """Use ``Dataset.open``."""
        self.root = root
        self.info = _read_info(root)
        self.fps = float(self.info["fps"])
        self.features: dict[str, Feature] = self.info["features"]
        pictured = [key for key, feature in self.features.items() if is_picture(feature)]
        self.cameras = tuple(key for key in pictured if not is_depth(self.features[key]))
        self.table: EpisodeTable = read_episodes(root, self.info)
        self.notes: list[DataError] = list(self.table.notes)
        for key in pictured:
            if key not in self.cameras:
                message = "depth of more than 8 bits is not a camera; it is left out"
                self.notes.append(DataError(message, path=INFO_PATH, key=key))
        self.task_texts = self._read_tasks()
        self.tasks = tuple(self.task_texts.values())
        self.stats = self._read_stats()
        self._loaded: tuple[Path, pa.Table, dict[int, slice]] | None = None
        self._readers: dict[str, VideoReader] = {}
        self._warned: set[str] = set()
        self._files: dict[str, dict[Path, list[int]]] = {}
        self._checked: dict[tuple[str, Path], SpanCheck] = {}

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Open a folder, or a dataset of the Hub by its id ``owner/name`` (needs ``huggingface_hub``).

        Nothing in the folder is changed: of episodes that an interrupted recording left there a warning says
        how to add them. Raises DataError.
        """
        root = Path(source)
        if not root.is_dir():
            root = _download(str(source))
        try:
            staged = len(fold.staged_episodes(root))
        except DataError as error:
            staged = 0
            warnings.warn(str(error), stacklevel=2)
        if staged:
            warnings.warn(
                f"{root}: left out {staged} episodes of an interrupted or running recording; the same "
                f"`kinema record` command, or kinema.data.recover({str(root)!r}), adds them",
                stacklevel=2,
            )
        dataset = cls(root)
        for note in dataset.notes:
            warnings.warn(str(note), stacklevel=2)
        return dataset

    @property
    def older_version(self) -> str | None:
        """One line about a dataset of an older version; None of the present one."""
        version = str(self.info.get("codebase_version", VERSION))
        if version.startswith("v3"):
            return None
        return (
            f"LeRobotDataset {version} is an older version, read as it is; for tools that read {VERSION} "
            "alone convert it with LeRobot's convert_dataset_v21_to_v30"
        )

    @property
    def num_episodes(self) -> int:
        return len(self.table.lengths)

    @property
    def num_frames(self) -> int:
        return int(self.table.lengths.sum())

    def __len__(self) -> int:
        return self.num_episodes

    def __repr__(self) -> str:
        size = f"{self.num_episodes} episodes, {self.num_frames} frames, {self.fps:g} fps"
        return f"Dataset({str(self.root)!r}, {size})"

    def __getstate__(self) -> dict[str, Any]:
        # Open video files stay with the process that opened them.
        return self.__dict__ | {"_readers": {}, "_loaded": None}

    def lengths(self) -> np.ndarray:
        """Rows of each episode, ``N`` int64."""
        return self.table.lengths.copy()

    def episode(self, index: int, cameras: Sequence[str] | None = None) -> Episode:
        """The episode at a position in the dataset, with all its pictures or those of some cameras.

        ``action`` and ``observation.*`` are at least ``T 1``; other features of shape ``(1,)`` are ``T``.
        Raises IndexError, and DataError where something is missing, does not fit or cannot be decoded.
        """
        if not 0 <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes} in {self.root}")
        wanted = self.cameras if cameras is None else tuple(cameras)
        for key in wanted:
            if key not in self.cameras:
                raise DataError(
                    f"no such camera; the dataset has {list(self.cameras)}", path=self.root, key=key
                )
        rows = self.rows(index)
        columns = {
            key: self._column(index, rows, key)
            for key, feature in self.features.items()
            if not is_picture(feature) and key in rows.column_names
        }
        frames = {key: self.pictures(index, key) for key in wanted}
        return Episode(
            index=index, fps=self.fps, task=self._task(index, columns), frames=frames, columns=columns
        )

    def rows(self, index: int) -> pa.Table:
        """The rows of an episode as they lie in the data file. Raises DataError."""
        path, episode = self.table.data_paths[index], int(self.table.ids[index])
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = (path, *load_data_file(path))
        _, table, slices = self._loaded
        if episode not in slices:
            raise DataError(
                "has no rows in the file that the episodes table names", path=path, episode=episode
            )
        part = slices[episode]
        rows = table.slice(part.start, part.stop - part.start)
        if len(rows) != self.table.lengths[index]:
            raise DataError(
                f"has {len(rows)} rows, but the episodes table says {self.table.lengths[index]}; "
                f"kinema data {self.root} lists every such place",
                path=path,
                episode=episode,
            )
        return rows

    def video_span(self, index: int, camera: str) -> tuple[Path, float, float]:
        """File in which an episode's video lies, and where in it: from, to, in seconds. Raises DataError."""
        spans = self.table.videos[camera]
        if not isinstance(spans, VideoSpans):
            raise spans
        return spans.paths[index], float(spans.starts[index]), float(spans.ends[index])

    def _column(self, index: int, rows: pa.Table, key: str) -> np.ndarray:
        feature = self.features.get(key) or POSITION_FEATURES[key]
        path, episode = self.table.data_paths[index], int(self.table.ids[index])
        try:
            values = from_arrow(rows[key])
        except (ValueError, pa.ArrowException) as error:
            raise DataError(str(error), path=path, episode=episode, key=key) from error
        shape = row_shape(feature)
        if values.size != len(values) * int(np.prod(shape)):
            raise DataError(
                f"rows have shape {list(values.shape[1:])}, but {INFO_PATH} says {feature['shape']}; "
                "correct it there",
                path=path,
                episode=episode,
                key=key,
            )
        values = values.reshape(len(values), *shape)
        if feature["dtype"] == "string" or values.dtype == object:
            return values
        if not shape and (key == "action" or key.startswith("observation.")):
            values = values[:, None]
        # A reader may change what it got; Arrow's memory is not to be written to.
        return np.array(values, dtype=np.dtype(feature["dtype"]))

    def pictures(self, index: int, camera: str) -> np.ndarray:
        """An episode's pictures of one camera, ``T H W C`` uint8. Raises DataError."""
        episode = int(self.table.ids[index])
        rows = self.rows(index)
        if self.features[camera]["dtype"] == "image":
            return self._embedded(index, rows, camera)
        path, start, _ = self.video_span(index, camera)
        times = self._times(index, rows)
        try:
            reader = self._readers.get(camera)
            if reader is None or reader.path != path:
                if reader is not None:
                    reader.close()
                reader = self._readers[camera] = VideoReader(path)
            checked = self._check_file(camera, path, reader)
            if index in checked.wrong:
                raise DataError(checked.wrong[index][1])
            # Up to half a frame the nearest one is the only candidate.
            pictures, worst = reader.read(start + checked.offset + times, tolerance=0.5 / self.fps)
            height, width, _ = picture_shape(self.features[camera])
            if pictures.shape[1:3] != (height, width):
                raise DataError(
                    f"frames are {reader.height} x {reader.width}, but {INFO_PATH} says {height} x {width}; "
                    "correct it there"
                )
        except DataError as error:
            self._readers.pop(camera, None)
            raise DataError(error.message, path=path, episode=episode, key=camera) from error
        if worst > TIMESTAMP_TOLERANCE + 1e-6 * float(times[-1]) and camera not in self._warned:
            self._warned.add(camera)
            message = f"frames are up to {worst:.4f} s away from the rows' timestamps; took the nearest"
            warnings.warn(str(DataError(message, path=path, episode=episode, key=camera)), stacklevel=3)
        return pictures

    def _times(self, index: int, rows: pa.Table) -> np.ndarray:
        """Seconds of the rows of an episode since its first one. Raises DataError."""
        right = np.arange(len(rows)) / self.fps
        if "timestamp" not in rows.column_names:
            return right
        times = self._column(index, rows, "timestamp").astype(np.float64)
        times = times - times[:1]
        wrong = np.flatnonzero(~(np.abs(times - right) <= 0.5 / self.fps + 1e-4))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"is {times[row]:.4f} s after the first row's in row {row}, expected {right[row]:.4f} s; "
                f"rows cannot be told their frames ({len(wrong)} rows)",
                path=self.table.data_paths[index],
                episode=int(self.table.ids[index]),
                key="timestamp",
            )
        return times

    def _check_file(self, camera: str, path: Path, reader: VideoReader) -> SpanCheck:
        """The spans of all episodes in a video file, checked once."""
        spans = self.table.videos[camera]
        assert isinstance(spans, VideoSpans)
        if camera not in self._files:
            files = self._files[camera] = {}
            for number, its_path in enumerate(spans.paths):
                files.setdefault(its_path, []).append(number)
        if (camera, path) not in self._checked:
            self._checked[camera, path] = check_spans(
                spans,
                self._files[camera][path],
                ids=self.table.ids,
                lengths=self.table.lengths,
                fps=self.fps,
                num_frames=reader.num_frames,
                first_time=reader.start,
            )
        return self._checked[camera, path]

    def _embedded(self, index: int, rows: pa.Table, camera: str) -> np.ndarray:
        path, episode = self.table.data_paths[index], int(self.table.ids[index])
        if camera not in rows.column_names:
            raise DataError("the data file has no such column", path=path, episode=episode, key=camera)
        mode = {1: "L", 4: "RGBA"}.get(picture_shape(self.features[camera])[2], "RGB")
        pictures = []
        for number, cell in enumerate(rows[camera].to_pylist()):
            try:
                content = (
                    cell["bytes"] if cell["bytes"] is not None else (self.root / cell["path"]).read_bytes()
                )
                image = PIL.Image.open(io.BytesIO(content))
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        "frames have more than 8 bits, as depth has; a camera has 8: take the feature out of "
                        f"{INFO_PATH}, or set its info to {{'video.is_depth_map': true}}",
                        path=path,
                        episode=episode,
                        key=camera,
                    )
                picture = np.asarray(image.convert(mode))
            except (OSError, TypeError, KeyError) as error:
                raise DataError(
                    f"the picture of row {number} cannot be read ({error})",
                    path=path,
                    episode=episode,
                    key=camera,
                ) from error
            pictures.append(picture.reshape(*picture.shape[:2], -1))
        height, width, _ = picture_shape(self.features[camera])
        for number, picture in enumerate(pictures):
            if picture.shape[:2] != (height, width):
                raise DataError(
                    f"the frame of row {number} is {picture.shape[0]} x {picture.shape[1]}, but {INFO_PATH} "
                    f"says {height} x {width}; all frames of a camera must have one size",
                    path=path,
                    episode=episode,
                    key=camera,
                )
        return np.stack(pictures)

    def _task(self, index: int, columns: Mapping[str, np.ndarray]) -> str | None:
        number = int(columns["task_index"][0]) if len(columns.get("task_index", ())) else -1
        if number in self.task_texts:
            return self.task_texts[number] or None
        listed = self.table.tasks[index]
        return listed[0] or None if listed else None

    def _read_tasks(self) -> dict[int, str]:
        try:
            is_v2 = lerobot_v2.is_v2(self.root, self.info)
            return (lerobot_v2.read_task_texts if is_v2 else read_task_texts)(self.root)
        except DataError as error:
            self.notes.append(error)
            return {}

    def _read_stats(self) -> dict[str, statistics.Statistics]:
        if not self.num_episodes and not (self.root / STATS_PATH).is_file():
            return {}
        try:
            if (self.root / lerobot_v2.STATS_PATH).is_file():
                return lerobot_v2.read_statistics(self.root)
            content = read_json(self.root, STATS_PATH)
            return {
                key: {name: np.array(value) for name, value in of_key.items()}
                for key, of_key in content.items()
            }
        except (DataError, AttributeError, ValueError) as error:
            reason = error.message if isinstance(error, DataError) else "is not statistics by key and name"
            self.notes.append(
                DataError(f"{reason}; going on without statistics", path=self.root / STATS_PATH)
            )
            return {}


def load_data_file(path: Path, columns: Iterable[str] | None = None) -> tuple[pa.Table, dict[int, slice]]:
    """Read a data file, or those of some columns that it has, and the rows of each episode in it.

    Raises DataError.
    """
    try:
        table = read_parquet(path, columns).combine_chunks()
    except FileNotFoundError as error:
        raise DataError("is missing; download or copy the dataset again", path=path) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as parquet ({error})", path=path) from error
    if "episode_index" not in table.column_names:
        raise DataError(
            "the column is missing, so that rows cannot be told apart", path=path, key="episode_index"
        )
    ids = from_arrow(table["episode_index"])
    changes = np.flatnonzero(np.diff(ids)) + 1
    bounds = np.concatenate([[0], changes, [len(ids)]]) if len(ids) else np.zeros(1, int)
    slices: dict[int, slice] = {}
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        episode = int(ids[start])
        if episode in slices:
            raise DataError("its rows are not together", path=path, episode=episode, key="episode_index")
        slices[episode] = slice(start, stop)
    return table, slices


def _read_info(root: Path) -> dict[str, Any]:
    """``meta/info.json``, with what everything else rests on checked."""
    path = root / INFO_PATH
    if not path.is_file():
        raise DataError(
            f"is not a LeRobotDataset, since {INFO_PATH} is missing; make one with kinema record",
            path=root,
        )
    info = read_json(root, INFO_PATH)
    version = str(info.get("codebase_version", VERSION))
    if not version.startswith(("v3", "v2")):
        raise DataError(
            f"is LeRobotDataset {version}, expected {VERSION}, v2.1 or v2.0; convert it with LeRobot's "
            "conversion scripts",
            path=path,
        )
    fps = info.get("fps")
    if not isinstance(fps, int | float) or not fps > 0:
        raise DataError(f"must be a positive number, got {fps!r}", path=path, key="fps")
    features = info.get("features")
    if not isinstance(features, dict) or not features:
        raise DataError("no features are listed", path=path, key="features")
    for key, feature in features.items():
        if not isinstance(feature, dict) or "dtype" not in feature or "shape" not in feature:
            raise DataError(f"needs dtype and shape, got {feature!r}", path=path, key=key)
        if is_picture(feature):
            try:
                picture_shape(feature)
            except DataError as error:
                raise DataError(error.message, path=path, key=key) from error
    if lerobot_v2.is_v2(root, info):
        defaults = {"data_path": lerobot_v2.DATA_PATH, "video_path": lerobot_v2.VIDEO_PATH}
        given = {key: value for key, value in info.items() if value is not None}
        info = {"chunks_size": 1000, **defaults, **given}
    return info


def _download(source: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise DataError("no such folder (a dataset of the Hub is named owner/name)", path=source)
    try:
        import huggingface_hub
    except ImportError as error:
        raise DataError(
            "no such folder; to read it as a dataset of the Hub, pip install 'kinema[hub]'", path=source
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(source, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"no such folder, and the Hub gave no dataset of this name ({error})", path=source
        ) from error
