"""Small recordings whose every frame and number is different, so that a mix-up cannot go unseen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinema.data import Dataset, DatasetWriter

FPS = 10
TOP, SIDE = "observation.images.top", "observation.images.side"
TASKS = ("push the T", "pull the T")
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"

Recording = dict[str, Any]
"""Arguments of ``DatasetWriter.add``."""


def make_recording(number: int, length: int | None = None, size: tuple[int, int] = (24, 32)) -> Recording:
    """Episode ``number`` of a test: a square on a wandering background, seen by two cameras."""
    rng = np.random.default_rng(number)
    length = length or 6 + number % 3
    height, width = size
    frames = np.zeros((length, height, width, 3), np.uint8)
    for t in range(length):
        frames[t] = [number * 11 % 200, t * 7 % 250, 40]
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        frames[t, y : y + 4, x : x + 4] = [250, 250 - t, 10]
    is_last = np.arange(length) == length - 1
    return {
        "frames": {TOP: frames, SIDE: 255 - frames[:, :, ::-1]},
        "columns": {
            "action": rng.normal(size=(length, 2)).astype(np.float32),
            "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
            "next.reward": rng.normal(size=length).astype(np.float32),
            "next.terminated": is_last & bool(number % 2),
            "next.truncated": is_last & (not number % 2),
        },
        "task": TASKS[number % 2],
    }


def assert_holds(dataset: Dataset, recordings: list[Recording], *, tolerance: float = 0.0) -> None:
    """The dataset holds exactly these recordings, pictures within ``tolerance`` grey levels on average."""
    assert dataset.num_episodes == len(recordings)
    assert dataset.lengths().tolist() == [len(r["columns"]["action"]) for r in recordings]
    row = 0
    for index, expected in enumerate(recordings):
        episode = dataset.episode(index)
        length = len(expected["columns"]["action"])
        assert (episode.index, episode.task, len(episode)) == (index, expected["task"], length)
        for key, values in expected["columns"].items():
            np.testing.assert_array_equal(episode.columns[key], values, err_msg=f"{index} {key}", strict=True)
        np.testing.assert_allclose(episode.columns["timestamp"], np.arange(length) / dataset.fps, atol=1e-6)
        np.testing.assert_array_equal(episode.columns["frame_index"], np.arange(length))
        np.testing.assert_array_equal(episode.columns["index"], row + np.arange(length))
        np.testing.assert_array_equal(episode.columns["episode_index"], np.full(length, index))
        assert set(episode.frames) == set(expected["frames"])
        for key, frames in expected["frames"].items():
            assert episode.frames[key].dtype == np.uint8
            assert episode.frames[key].shape == frames.shape
            assert np.abs(episode.frames[key].astype(int) - frames).mean() <= tolerance, (index, key)
        row += length


def write(root: Path, recordings: list[Recording], **options: Any) -> Path:
    with DatasetWriter(root, fps=FPS, **options) as writer:
        for recording in recordings:
            writer.add(**recording)
    return root


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_parquet(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def edit_column(path: Path, key: str, change: Callable[[np.ndarray], object]) -> None:
    """Change a column of numbers in place."""
    table = pq.read_table(path)
    values = np.array(table[key].to_pylist())
    changed = change(values)
    values = values if changed is None else np.asarray(changed)
    number = table.column_names.index(key)
    pq.write_table(
        table.set_column(number, table.field(key), pa.array(values.tolist(), table.field(key).type)), path
    )


def put(path: Path, key: str, row: Any, value: Any) -> None:
    edit_column(path, key, lambda values: values.__setitem__(row, value))


def drop_columns(path: Path, name: str) -> None:
    """Drop the columns with this in their names, except statistics."""

    def change(table: pa.Table) -> pa.Table:
        return table.drop_columns([n for n in table.column_names if name in n and not n.startswith("stats/")])

    edit_parquet(path, change)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes without a defect; copy it before changing anything."""
    root = tmp_path_factory.mktemp("clean") / "dataset"
    with DatasetWriter(root, fps=FPS, robot_type="square") as writer:
        for number in range(4):
            writer.add(**make_recording(number))
    return root


@pytest.fixture
def dataset(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean dataset, to be changed at will."""
    return Path(shutil.copytree(clean, tmp_path / "dataset"))
