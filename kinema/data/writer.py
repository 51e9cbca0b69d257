"""Writing a LeRobotDataset v3.0, episode by episode.

``DatasetWriter.add`` returns when the episode is safe from a kill: it lies whole in the hidden folder
``.staging``, one folder an episode. ``close``, or a staging folder that has grown as large as a file of the
dataset may be, folds the staged episodes into the final files (``kinema.data.fold``), joining videos packet
by packet. After a kill the next ``DatasetWriter`` on the same folder, or ``recover``, folds what is left.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError

from kinema.data import fold, statistics, video
from kinema.data.files import ADVICE, opened
from kinema.data.layout import (
    DATA_PATH,
    INFO_DEFAULTS,
    INFO_PATH,
    POSITION_FEATURES,
    VERSION,
    VIDEO_PATH,
    DataError,
    Feature,
    arrow_schema,
    arrow_type,
    exists,
    is_picture,
    picture_shape,
    read_json,
    row_shape,
    to_arrow,
    write_json,
)

TIMESTAMP_TOLERANCE = 1e-4
"""Seconds by which a timestamp may be off, as in LeRobot."""

MAX_FPS = 10_000
"""Rows per second up to which timestamps of 32 bits and the clocks of videos keep rows apart."""

MAX_STAGED = 4096
"""Episodes after which the staged ones are folded, however small they are."""


class DatasetWriter:
    """Creates a dataset or continues one; a context manager, or call ``close`` at the end.

    ``features``: LeRobot's feature entries by key; ``video`` or ``image`` for cameras (shape ``H W C``), a
    numpy dtype or ``string`` for columns. Without it the first episode decides. The columns that follow from
    a row's position (timestamp, frame_index, ...) are added.

    ``codec``: ``auto`` (exact frames in H.264 up to 128 pixels, AV1 above, as LeRobot), ``av1``, ``h264``,
    ``lossless`` or ``image`` (PNG in the data files). A dataset that is continued keeps its own.

    ``is_locked``: the caller holds ``kinema.data.fold.lock`` of the folder already.

    Raises ValueError when the folder or an argument does not fit, DataError when writing fails; episodes that
    were added before are never lost by it.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        fps: float,
        features: Mapping[str, Feature] | None = None,
        robot_type: str = "unknown",
        codec: str = "auto",
        data_files_size_in_mb: float = 100,
        video_files_size_in_mb: float = 200,
        chunks_size: int = 1000,
        is_locked: bool = False,
    ) -> None:
        if not isinstance(fps, int | float) or not 0 < fps <= MAX_FPS:
            raise ValueError(f"fps must be positive, and at most {MAX_FPS}; got {fps!r}")
        if codec not in ("auto", "image", *video.CODECS):
            raise ValueError(f"codec must be auto, image, {', '.join(video.CODECS)}; got {codec!r}")
        self.root = Path(root)
        self.fps = int(fps) if float(fps).is_integer() else float(fps)
        self._codec = codec
        self._info: dict[str, Any] = {
            "codebase_version": VERSION,
            "robot_type": robot_type,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": chunks_size,
            "data_files_size_in_mb": data_files_size_in_mb,
            "video_files_size_in_mb": video_files_size_in_mb,
            "fps": self.fps,
            "splits": {},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": {},
        }
        self._num_folded, self._num_staged = 0, 0
        self._staged_bytes: dict[str, int] = {}
        self._is_closed = False
        # In this order: another writer may create its dataset between the two.
        if not fold.is_vacant(self.root) and not exists(self.root / INFO_PATH):
            raise ValueError(
                f"{self.root} is not empty and holds no dataset ({INFO_PATH}); choose another folder"
            )
        self._resources = contextlib.ExitStack()
        with self._explained(), contextlib.ExitStack() as stack:
            if not is_locked:
                stack.enter_context(fold.lock(self.root))
            if exists(self.root / INFO_PATH):
                self._info = read_json(self.root, INFO_PATH)
                self._check_continued(features)
                fold.fold(self.root)
                self._info = read_json(self.root, INFO_PATH)
                last = fold.last_episode(self.root)
                self._num_folded = 0 if last is None else last["episode_index"] + 1
            elif features is not None:
                self._create(features)
            self._resources = stack.pop_all()

    @property
    def num_episodes(self) -> int:
        """Finished episodes, those of earlier sessions included."""
        return self._num_folded + self._num_staged

    @property
    def features(self) -> dict[str, Feature]:
        """Feature entries by key; empty before the first episode when none were given."""
        return self._info["features"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(
        self, *, frames: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray], task: str = ""
    ) -> None:
        """Add a finished episode of ``T`` steps: frames ``T H W C`` uint8 and columns ``T ...`` by key.

        When this returns, the episode survives a kill of the process.
        """
        if self._is_closed:
            raise ValueError(f"the writer of {self.root} is closed; open another to add episodes")
        if not self.features:
            self._create(self._infer_features(frames, columns))
        length, rows, frames = self._checked(frames, columns)
        stats = {key: statistics.of_frames(values) for key, values in frames.items()}
        stats |= {
            key: statistics.of_column(values) for key, values in rows.items() if values.dtype.kind in "biuf"
        }
        with self._explained():
            self._stage(length, rows, frames, stats, task)
        info = INFO_DEFAULTS | self._info
        limits = {"data": info["data_files_size_in_mb"]}
        if self._num_staged >= MAX_STAGED or any(
            size >= limits.get(kind, info["video_files_size_in_mb"]) * 2**20
            for kind, size in self._staged_bytes.items()
        ):
            self._fold()

    def close(self) -> None:
        """Fold the staged episodes into the final files and release the dataset; may be called again."""
        if self._is_closed:
            return
        try:
            if fold.staged_episodes(self.root):
                self._fold()
        finally:
            self._is_closed = True
            self._resources.close()

    def _fold(self) -> None:
        with self._explained():
            fold.fold(self.root)
        self._info = read_json(self.root, INFO_PATH)
        self._num_folded, self._num_staged, self._staged_bytes = self.num_episodes, 0, {}

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of a failure inside that the finished episodes are safe, and how to go on."""
        try:
            yield
        except (OSError, FFmpegError, MemoryError, pa.ArrowException) as error:
            remedy = ADVICE.get(getattr(error, "errno", None) or 0, "remove the cause").partition(" and try")[
                0
            ]
            count = self.num_episodes
            safe = f"the {count} finished episodes are safe" if count else "no finished episode is lost"
            raise DataError(
                f"writing failed ({str(error) or type(error).__name__}); {safe}. {remedy.capitalize()}, then "
                "record into the same folder again to continue",
                path=self.root,
            ) from error

    def _create(self, features: Mapping[str, Feature]) -> None:
        """Start an empty dataset with these features on the disk."""
        entries: dict[str, Feature] = {}
        for key, given in features.items():
            if key in POSITION_FEATURES:
                continue
            missing = [name for name in ("dtype", "shape") if name not in given]
            if missing:
                raise ValueError(f"feature {key}: {' and '.join(missing)} missing; got {dict(given)}")
            entry = {
                "dtype": given["dtype"],
                "shape": [int(n) for n in given["shape"]],
                "names": given.get("names"),
            }
            if is_picture(entry):
                self._complete_camera(key, entry)
            else:
                _check_dtype(key, entry)
            entries[key] = entry
        self._info["features"] = entries | POSITION_FEATURES
        if any(entry["dtype"] == "video" for entry in entries.values()):
            self._info["video_path"] = VIDEO_PATH
        write_json(self.root / INFO_PATH, self._info)

    def _complete_camera(self, key: str, entry: Feature) -> None:
        if len(entry["shape"]) != 3:
            raise ValueError(
                f"feature {key}: a frame's shape is height, width, channels; got {entry['shape']}"
            )
        if self._codec == "image":
            entry["dtype"] = "image"
        height, width, num_channels = entry["shape"]
        possible = (3,) if entry["dtype"] == "video" else (1, 3, 4)
        if num_channels not in possible:
            raise ValueError(
                f"feature {key}: a {entry['dtype']} of shape height, width, channels has "
                f"{' or '.join(map(str, possible))} channels, got shape {entry['shape']}"
            )
        entry["names"] = entry["names"] or ["height", "width", "channels"]
        if entry["dtype"] == "video":
            codec = video.CODECS[video.choose_codec(self._codec, height, width)]
            # The rest of the entry is read from the first file; these two say how to go on.
            entry["info"] = {"video.codec": codec.name, "video.pix_fmt": codec.decoded_pix_fmt}

    def _infer_features(
        self, frames: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
    ) -> dict[str, Feature]:
        features: dict[str, Feature] = {}
        for key, values in frames.items():
            features[key] = {"dtype": "video", "shape": list(np.shape(values)[1:])}
        for key, values in columns.items():
            array = np.asarray(values)
            dtype = "string" if array.dtype.kind in "UO" else array.dtype.name
            features[key] = {"dtype": dtype, "shape": list(array.shape[1:]) or [1]}
        return features

    def _check_continued(self, features: Mapping[str, Feature] | None) -> None:
        """Check that the options of this session fit the dataset on disk."""
        version = str(self._info.get("codebase_version", VERSION))
        if not version.startswith("v3"):
            raise DataError(
                f"is LeRobotDataset {version}; only v3.0 can be continued", path=self.root / INFO_PATH
            )
        if abs(self._info["fps"] - self.fps) > 1e-6:
            raise ValueError(
                f"fps is {self.fps}, but {self.root} has {self._info['fps']}; choose another folder"
            )
        for key, given in (features or {}).items():
            known = self.features.get(key)
            if key in POSITION_FEATURES or known is None:
                continue
            kinds = {given["dtype"], known["dtype"]}
            same_kind = len(kinds) == 1 or kinds == {"image", "video"}
            if not same_kind or row_shape(given) != row_shape(known):
                raise ValueError(
                    f"feature {key} is {given['dtype']} {list(given['shape'])}, but {self.root} holds "
                    f"{known['dtype']} {known['shape']}; choose another folder"
                )
        for key, known in self.features.items():
            if self._codec == "auto" or not is_picture(known):
                continue
            stored = "image" if known["dtype"] == "image" else self._codec_of(key)
            if stored != self._codec:
                raise ValueError(
                    f"codec is {self._codec}, but {self.root} holds {stored} ({key}); leave it at auto"
                )
        if features is not None and self.features:
            differ = (set(features) ^ set(self.features)) - set(POSITION_FEATURES)
            if differ:
                raise ValueError(
                    f"features {sorted(differ)} are not both here and in {self.root}; choose another folder"
                )

    def _codec_of(self, key: str) -> str:
        """Find the codec in which a camera's videos go on: that of its files, where they say it."""
        entry = self.features[key]
        info = entry.get("info") or {}
        known = (info.get("video.codec"), info.get("video.pix_fmt"))
        for name, codec in video.CODECS.items():
            if known == (codec.name, codec.decoded_pix_fmt):
                return name
        return video.choose_codec("auto", *picture_shape(entry)[:2])

    def _checked(
        self, frames: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
    ) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Bring an episode to the dtypes and shapes of the features: its length, columns and frames."""
        cameras = {key for key, feature in self.features.items() if is_picture(feature)}
        wanted = set(self.features) - cameras - set(POSITION_FEATURES)
        for what, expected, got in (
            ("cameras", cameras, set(frames)),
            ("columns", wanted, set(columns) - set(POSITION_FEATURES)),
        ):
            if expected != got:
                raise ValueError(
                    f"episode {self.num_episodes}: expected {what} {sorted(expected)}, got {sorted(got)} "
                    f"(missing {sorted(expected - got)}, unknown {sorted(got - expected)})"
                )
        arrays = {key: np.asarray(values) for key, values in {**columns, **frames}.items()}
        lengths = {key: len(array) if array.ndim else -1 for key, array in arrays.items()}
        if len(set(lengths.values())) != 1 or min(lengths.values(), default=0) < 1:
            raise ValueError(
                f"episode {self.num_episodes}: every array needs the same T >= 1 rows, got {lengths}"
            )
        length = next(iter(lengths.values()))
        rows: dict[str, np.ndarray] = {}
        for key in self.features:
            if key in cameras or key in POSITION_FEATURES:
                continue
            rows[key] = self._checked_column(key, arrays[key])
        times = np.arange(length) / self.fps
        if (
            "timestamp" in arrays
            and np.abs(arrays["timestamp"] - times).max() > TIMESTAMP_TOLERANCE + 1e-6 * times[-1]
        ):
            raise ValueError(
                f"episode {self.num_episodes}, timestamp: row t must be at t/{self.fps} s; resample first"
            )
        rows |= {"timestamp": times.astype(np.float32), "frame_index": np.arange(length)}
        return (
            length,
            rows,
            {key: self._checked_frames(key, arrays[key]) for key in self.features if key in cameras},
        )

    def _checked_column(self, key: str, array: np.ndarray) -> np.ndarray:
        feature = self.features[key]
        shape = row_shape(feature)
        if array.shape[1:] not in (shape, tuple(feature["shape"])):
            raise ValueError(
                f"episode {self.num_episodes}, {key}: expected rows of shape {list(feature['shape'])}, "
                f"got {list(array.shape[1:])}"
            )
        array = array.reshape(len(array), *shape)
        if feature["dtype"] == "string":
            return array.astype(object)
        dtype = np.dtype(feature["dtype"])
        if not np.can_cast(array.dtype, dtype, casting="same_kind"):
            raise ValueError(
                f"episode {self.num_episodes}, {key}: expected {dtype}, got {array.dtype}; convert it first"
            )
        return array.astype(dtype)

    def _checked_frames(self, key: str, array: np.ndarray) -> np.ndarray:
        shape = picture_shape(self.features[key])
        if array.dtype != np.uint8 or array.shape[1:] != shape:
            raise ValueError(
                f"episode {self.num_episodes}, {key}: expected uint8 frames of shape {list(shape)}, "
                f"got {array.dtype} {list(array.shape[1:])}"
            )
        return array

    def _stage(
        self,
        length: int,
        rows: dict[str, np.ndarray],
        frames: dict[str, np.ndarray],
        stats: dict[str, statistics.Statistics],
        task: str,
    ) -> None:
        """Write the episode to a folder of its own and rename that into place."""
        staging = self.root / fold.STAGING
        folder = staging / f"{self.num_episodes:08d}"
        part = folder.with_suffix(fold.PART)
        sizes: dict[str, int] = {}
        try:
            part.mkdir(parents=True)
            columns = {key: to_arrow(column, self.features[key]) for key, column in rows.items()}
            for key, values in frames.items():
                if self.features[key]["dtype"] == "image":
                    columns[key] = _embedded(values, arrow_type(self.features[key]))
                    continue
                encoded = video.encode(values, fps=self.fps, codec=self._codec_of(key))
                (part / fold.video_file(key)).write_bytes(encoded)
                sizes[key] = len(encoded)
            schema = arrow_schema(self.features)
            schema = pa.schema([field for field in schema if field.name in columns])
            with open(part / fold.COLUMNS_FILE, "wb") as file:
                pq.write_table(pa.table([columns[name] for name in schema.names], schema=schema), file)
                sizes["data"] = file.tell()
            summary = {
                "length": length,
                "task": task,
                "stats": {
                    key: {name: value.tolist() for name, value in of_key.items()}
                    for key, of_key in stats.items()
                },
            }
            with opened(part / fold.SUMMARY_FILE) as file:
                file.write(json.dumps(summary).encode())
            os.rename(part, folder)
            self._num_staged += 1
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for kind, size in sizes.items():
            self._staged_bytes[kind] = self._staged_bytes.get(kind, 0) + size


def _check_dtype(key: str, entry: Feature) -> None:
    if entry["dtype"] == "string":
        if row_shape(entry):
            raise ValueError(f"feature {key}: strings are scalars (shape [1]), got shape {entry['shape']}")
        return
    try:
        kind = np.dtype(entry["dtype"]).kind
    except TypeError:
        kind = ""
    if kind not in tuple("biuf"):
        raise ValueError(
            f"feature {key}: dtype must be video, image, string, bool, or a numpy integer or float; "
            f"got {entry['dtype']!r}"
        )
    if any(n < 1 for n in entry["shape"]):
        raise ValueError(f"feature {key}: sizes must be positive, got shape {entry['shape']}")


def _embedded(frames: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Encode frames ``T H W C`` as PNG files inside an Arrow column."""
    rows = []
    for number, frame in enumerate(frames):
        buffer = io.BytesIO()
        PIL.Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"frame-{number:06d}.png"})
    return pa.array(rows, kind)
