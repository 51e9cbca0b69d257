"""LeRobotDataset v3.0 on disk: paths, features, and how columns look in Arrow.

meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
data/chunk-000/file-000.parquet
videos/{video_key}/chunk-000/file-000.mp4
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kinema.data.files import opened, write_text
from kinema.types import DataError

VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

Feature = dict[str, Any]
"""``dtype``, ``shape``, ``names`` and, for videos, ``info``."""

POSITION_FEATURES: dict[str, Feature] = {
    key: {"dtype": dtype, "shape": [1], "names": None}
    for key, dtype in {
        "timestamp": "float32",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }.items()
}
"""Columns that every dataset has and that follow from the position of a row."""

PICTURE_DTYPES = ("video", "image")
CHANNELS = (1, 3, 4)
"""Channels that frames may have: grey, colours, colours with alpha."""

INFO_DEFAULTS: dict[str, Any] = {
    "chunks_size": 1000,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "data_path": DATA_PATH,
    "video_path": VIDEO_PATH,
}
"""What holds where ``info.json`` does not say."""


def format_path(template: str, *, chunk: int, file: int, key: str = "") -> str:
    """Fill a path template, under the official names of its fields or the ones that published sets use."""
    names = {
        "chunk_index": chunk,
        "chunk": chunk,
        "episode_chunk": chunk,
        "file_index": file,
        "file": file,
        "episode_file": file,
        "episode_index": file,
        "video_key": key,
        "key": key,
        "camera": key,
        "image_key": key,
    }
    try:
        return template.format(**names)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"the path template {template!r} cannot be filled ({error}); the fields of v3.0 are "
            "{chunk_index}, {file_index} and {video_key}",
            path=INFO_PATH,
        ) from error


def is_picture(feature: Mapping[str, Any]) -> bool:
    return feature["dtype"] in PICTURE_DTYPES


def picture_shape(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width, channels of a camera, however its feature spells them: channels last, first or left out.

    ``names`` says where the channels are, also nested (``{"axes": [...]}``); where it does not, or says what
    cannot be, their number does. Raises DataError.
    """
    try:
        sizes = [int(n) for n in feature["shape"]]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) == 2:
        sizes = [*sizes, 1]
    if len(sizes) != 3 or min(sizes) < 1 or not {sizes[0], sizes[2]} & set(CHANNELS):
        raise DataError(
            f"shape {feature['shape']} is not that of a camera; expected [height, width, channels] with "
            f"{', '.join(map(str, CHANNELS))} channels",
            path=INFO_PATH,
        )
    names = [name.lower() for name in _flat_names(feature.get("names"))]
    is_first = len(names) == 3 and (names[0].startswith("channel") or names[0] in ("c", "ch", "rgb"))
    is_last = len(names) == 3 and (names[2].startswith("channel") or names[2] in ("c", "ch", "rgb"))
    if (
        sizes[0] in CHANNELS
        and (is_first or sizes[2] not in CHANNELS)
        and not (is_last and sizes[2] in CHANNELS)
    ):
        sizes, names = [sizes[1], sizes[2], sizes[0]], [*names[1:], *names[:1]]
    if len(names) == 3 and names[0].startswith("w") and names[1].startswith("h"):
        sizes = [sizes[1], sizes[0], sizes[2]]
    stored = _details(feature)
    encoded = [stored.get("video.height"), stored.get("video.width")]
    if encoded == [sizes[1], sizes[0]]:
        sizes = [*encoded, sizes[2]]  # The file itself has the last word.
    return sizes[0], sizes[1], sizes[2]


def dimension_names(feature: Mapping[str, Any]) -> list[str]:
    """Names of the numbers of a vector, also nested (``[[...]]``, ``{"motors": [...]}``); their positions
    where there is not one name of its own for each."""
    names, count = _flat_names(feature.get("names")), int(np.prod(feature["shape"], dtype=int))
    return names if len(set(names)) == count else [str(index) for index in range(count)]


def _flat_names(names: object) -> list[str]:
    """Names without the lists and mappings around them."""
    while isinstance(names, Mapping | list) and len(names) == 1:
        names = next(iter(names.values())) if isinstance(names, Mapping) else names[0]
    if isinstance(names, str):
        return [names]
    return [str(name) for name in names] if isinstance(names, list) else []


def _details(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    """Entries about how frames are stored."""
    return feature.get("info") or feature.get("video_info") or {}


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Tell whether a feature says that its frames are depth, of more than 8 bits."""
    info = _details(feature)
    pixels = str(info.get("video.pix_fmt", ""))
    return bool(info.get("video.is_depth_map")) or bool(re.match(r"gray(9|1\d)", pixels))


def row_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of one row in numpy; ``(1,)`` and ``()`` are both a scalar, as LeRobot stores them."""
    shape = tuple(int(n) for n in feature["shape"])
    return () if shape == (1,) else shape


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """Column type of a feature, as LeRobot has it through the ``datasets`` library."""
    if feature["dtype"] == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    element = pa.string() if feature["dtype"] == "string" else pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    shape = row_shape(feature)
    if len(shape) == 1:
        return pa.list_(element, shape[0])
    for _ in shape:
        element = pa.list_(element)
    return element


def arrow_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Schema of the data files: every feature but the videos, with the note that ``datasets`` reads."""
    columns = {key: feature for key, feature in features.items() if feature["dtype"] != "video"}
    note = {"info": {"features": {key: _datasets_feature(feature) for key, feature in columns.items()}}}
    return pa.schema(
        [(key, arrow_type(feature)) for key, feature in columns.items()],
        metadata={"huggingface": json.dumps(note)},
    )


def _datasets_feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    value = {"dtype": feature["dtype"], "_type": "Value"}
    shape = row_shape(feature)
    if not shape:
        return value
    if len(shape) == 1:
        return {"feature": value, "length": shape[0], "_type": "List"}
    return {"shape": list(shape), "dtype": feature["dtype"], "_type": f"Array{len(shape)}D"}


def to_arrow(array: np.ndarray, feature: Mapping[str, Any]) -> pa.Array:
    """A column ``T ...`` as Arrow; the array has the dtype and row shape of the feature."""
    if feature["dtype"] == "string":
        return pa.array(array.tolist(), pa.string())
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    shape = array.shape[1:]
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(column, shape[0])
    for depth in reversed(range(len(shape))):
        offsets = np.arange(0, len(column) + 1, shape[depth], dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def from_arrow(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as numpy, ``T ...``; lists of any Arrow kind, provided that every row has the same length.

    Raises ValueError for missing values and ragged lists.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} values are missing (null)")
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        lengths = {kind.list_size}
    else:
        lengths = set(array.value_lengths().to_pylist()) or {0}
    if len(lengths) > 1:
        raise ValueError(f"rows differ in length ({min(lengths)} to {max(lengths)} values)")
    inner = from_arrow(array.flatten())
    return inner.reshape(len(array), *lengths, *inner.shape[1:])


def exists(path: Path) -> bool:
    """Check that a path exists.

    Raises OSError where that cannot be seen: pathlib says no from Python 3.14 on.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; pyarrow alone takes a relative path with a colon for the address of a server."""
    with open(path, "rb") as file, pq.ParquetFile(file) as parquet:
        yield parquet


def read_parquet(
    path: Path, columns: Iterable[str] | None = None, *, with_statistics: bool = True
) -> pa.Table:
    """Read a parquet file: those of some columns that it has, or all, on demand without the statistics."""
    with open_parquet(path) as file:
        names = file.schema_arrow.names if columns is None else set(columns) & set(file.schema_arrow.names)
        return file.read([name for name in names if with_statistics or not name.startswith("stats/")])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=4))


def read_json(root: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((root / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=root / name) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"is not valid JSON ({error}); restore it from a copy", path=root / name) from error
    if not isinstance(content, dict):
        raise DataError(f"holds a {type(content).__name__}, expected an object", path=root / name)
    return content


def read_tasks(root: Path) -> list[str]:
    """Task texts in the order of their index; empty without a table."""
    return list(read_task_texts(root).values())


def read_task_texts(root: Path) -> dict[int, str]:
    """Task texts by ``task_index``, ascending; empty without a table. Raises DataError."""
    path = root / TASKS_PATH
    if not exists(path):
        return {}
    try:
        table = read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as parquet ({error})", path=path) from error
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or not texts:
        raise DataError(
            f"expected a column task_index and the tasks' texts, found {table.column_names}", path=path
        )
    name = "task" if "task" in texts else texts[0]
    numbers = table["task_index"].to_pylist()
    if None in numbers or len(set(numbers)) < len(numbers):
        raise DataError("each task needs a number of its own", path=path, key="task_index")
    pairs = sorted(zip(numbers, table[name].to_pylist(), strict=True))
    return {int(number): "" if text is None else str(text) for number, text in pairs}


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """The tasks as pandas writes a frame whose index is the text, which is how LeRobot reads it back."""
    name = "__index_level_0__"
    note = {
        "index_columns": [name],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "str",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {
                "name": None,
                "field_name": name,
                "pandas_type": "object",
                "numpy_type": "str",
                "metadata": None,
            },
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": np.arange(len(tasks)), name: pa.array(tasks, pa.large_string())})
    with opened(root / TASKS_PATH) as file:
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(note)}), file)
