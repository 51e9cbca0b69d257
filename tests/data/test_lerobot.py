"""Reading: what LeRobot wrote, round trips, bad input, and what published sets do differently."""

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kinema.data import DataError, Dataset, DatasetWriter, video
from kinema.data.defects import find_defects

from .conftest import (
    DATA,
    EPISODES,
    FPS,
    SIDE,
    TOP,
    VIDEO,
    Recording,
    assert_holds,
    drop_columns,
    edit_json,
    edit_parquet,
    make_recording,
    write,
)

# What LeRobot wrote


@pytest.mark.parametrize("camera", ["exterior_1", "exterior_2", "wrist"])
def test_droid_every_frame(droid: Path, camera: str) -> None:
    key = f"observation.images.{camera}"
    dataset = Dataset.open(droid)
    assert key in dataset.cameras
    starts = pq.read_table(droid / EPISODES)[f"videos/{key}/from_timestamp"].to_pylist()
    num_frames = 0
    with av.open(str(droid / f"videos/{key}/chunk-000/file-000.mp4")) as container:
        decoded = container.decode(video=0)
        for index in range(11):
            episode = dataset.episode(index, cameras=[key])
            assert set(episode.frames) == {key}
            assert episode.frames[key].shape == (len(episode), 192, 320, 3)
            for picture, time in zip(episode.frames[key], episode.columns["timestamp"], strict=True):
                frame = next(decoded)
                assert frame.time == pytest.approx(starts[index] + time, abs=1e-4)
                np.testing.assert_array_equal(picture, frame.to_ndarray(format="rgb24"))
                num_frames += 1
        assert next(decoded, None) is None
    assert num_frames == 854


def test_droid_every_number(droid: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = Dataset.open(droid)
    rows = pd.read_parquet(droid / DATA)
    tasks = pd.read_parquet(droid / "meta/tasks.parquet")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (11, 854, 5.0)
    assert dataset.tasks == tuple(tasks.index)
    assert len(dataset.cameras) == 3
    for index, (_, expected) in enumerate(rows.groupby("episode_index")):
        episode = dataset.episode(index, cameras=())
        assert episode.frames == {}
        assert set(episode.columns) == set(rows.columns)
        for key in rows.columns:
            values = np.stack(expected[key].to_list())
            np.testing.assert_array_equal(episode.columns[key], values, err_msg=key)
            assert episode.columns[key].dtype == dataset.features[key]["dtype"]
        assert episode.columns["action"].shape == (len(expected), 7)
        assert episode.columns["next.success"].shape == (len(expected),)
        np.testing.assert_allclose(episode.columns["timestamp"], np.arange(len(expected)) / 5, atol=1e-5)
        assert episode.task == tasks.index[expected["task_index"].iloc[0]]
    actions = np.stack(rows["action"].to_list()).astype(np.float64)
    for name, expected in (("min", actions.min(0)), ("max", actions.max(0)), ("mean", actions.mean(0))):
        np.testing.assert_allclose(dataset.stats["action"][name], expected, atol=1e-5)


# Round trips


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("auto", 0), ("lossless", 0), ("image", 0), ("av1", 8), ("h264", 8)]
)
def test_round_trip(tmp_path: Path, codec: str, tolerance: float) -> None:
    recordings = [make_recording(number, size=(48, 64)) for number in range(3)]
    dataset = Dataset.open(write(tmp_path / "d", recordings, codec=codec))
    assert_holds(dataset, recordings, tolerance=tolerance)
    assert find_defects(dataset.root) == []
    assert {dataset.features[key]["dtype"] for key in dataset.cameras} == {
        "image" if codec == "image" else "video"
    }
    assert (dataset.root / "videos").exists() == (codec != "image")


DTYPES = ["float32", "float64", "int64", "int32", "uint8", "bool", "int8", "uint16"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip_of_any_columns(data: st.DataObject) -> None:
    shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
    kinds = data.draw(
        st.dictionaries(
            st.sampled_from(["action", "observation.state", "next.reward", "grid", "x y/z", "é"]),
            st.tuples(st.sampled_from(DTYPES), shapes),
            min_size=1,
        )
    )
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    recordings: list[Recording] = []
    for length in lengths:
        columns = {
            key: data.draw(npst.arrays(dtype, (length, *shape))) for key, (dtype, shape) in kinds.items()
        }
        columns["text"] = np.array(data.draw(st.lists(texts, min_size=length, max_size=length)), object)
        recordings.append({"frames": {}, "columns": columns, "task": data.draw(texts)})
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.open(write(Path(folder) / "d", recordings))
        assert dataset.lengths().tolist() == lengths
        for index, expected in enumerate(recordings):
            episode = dataset.episode(index)
            assert episode.task == (expected["task"] or None)
            for key, values in expected["columns"].items():
                # A scalar and a vector of one are the same on disk; the key decides what comes back.
                shape = () if values.shape[1:] == (1,) else values.shape[1:]
                if key == "action" or key.startswith("observation."):
                    shape = shape or (1,)
                assert episode.columns[key].dtype == values.dtype
                np.testing.assert_array_equal(
                    episode.columns[key], values.reshape(len(values), *shape), strict=True, err_msg=key
                )


@settings(max_examples=10, deadline=None)
@given(
    size=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    fps=st.sampled_from([1, 10, 29.97, 50]),
    codec=st.sampled_from(["lossless", "image"]),
)
def test_round_trip_of_any_pictures(
    size: tuple[int, int], lengths: list[int], fps: float, codec: str
) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (length, *size, 3), dtype=np.uint8) for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "d"
        with DatasetWriter(root, fps=fps, codec=codec) as writer:
            for frames in pictures:
                writer.add(frames={TOP: frames}, columns={"action": np.zeros((len(frames), 1), np.float32)})
        dataset = Dataset.open(root)
        for index in reversed(range(len(pictures))):
            np.testing.assert_array_equal(dataset.episode(index).frames[TOP], pictures[index])


def test_grey_and_transparent_pictures_are_embedded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = {
        f"observation.images.{n}": rng.integers(0, 256, (3, 8, 9, n), dtype=np.uint8) for n in (1, 3, 4)
    }
    write(
        tmp_path / "d",
        [{"frames": frames, "columns": {"action": np.zeros((3, 2), np.float32)}}],
        codec="image",
    )
    episode = Dataset.open(tmp_path / "d").episode(0)
    for key, expected in frames.items():
        np.testing.assert_array_equal(episode.frames[key], expected, strict=True)


def test_an_episode_that_was_read_can_be_written(tmp_path: Path, dataset: Path) -> None:
    source = Dataset.open(dataset)
    with DatasetWriter(tmp_path / "copy", fps=source.fps, features=source.features) as writer:
        for index in range(source.num_episodes):
            episode = source.episode(index)
            writer.add(frames=episode.frames, columns=episode.columns, task=episode.task or "")
    assert_holds(Dataset.open(tmp_path / "copy"), [make_recording(number) for number in range(4)])


# Bad input


def test_an_empty_dataset(tmp_path: Path) -> None:
    DatasetWriter(tmp_path / "d", fps=FPS, features={"action": {"dtype": "float32", "shape": [2]}}).close()
    dataset = Dataset.open(tmp_path / "d")
    assert (dataset.num_episodes, dataset.num_frames, len(dataset.lengths())) == (0, 0, 0)
    with pytest.raises(IndexError, match="episode 0 of 0"):
        dataset.episode(0)


def test_what_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a LeRobotDataset, since meta/info\.json is missing"):
        Dataset.open(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        Dataset.open(tmp_path / "nowhere")


def test_a_hub_id_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"owner/name: no such folder; .* pip install 'kinema\[hub\]'"):
        Dataset.open("owner/name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda info: info.update(codebase_version="v1.6"),
            r"is LeRobotDataset v1\.6, expected v3\.0, v2\.1 or v2\.0; convert it",
        ),
        (lambda info: info.update(fps=0), r"info\.json, fps: must be a positive number, got 0"),
        (lambda info: info.update(features={}), r"info\.json, features: no features are listed"),
        (lambda info: info["features"]["action"].pop("shape"), r"info\.json, action: needs dtype and shape"),
        (lambda info: info.update(data_path="data/{nr}.parquet"), r"the path template .* cannot be filled"),
    ],
)
def test_bad_info_is_named(dataset: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_json(dataset / "meta/info.json", change)
    with pytest.raises(DataError, match=message):
        Dataset.open(dataset)


def test_corrupt_files_are_named(dataset: Path) -> None:
    (dataset / DATA).write_bytes(b"PAR1 and nothing else")
    opened = Dataset.open(dataset)
    with pytest.raises(DataError, match=r"file-000\.parquet: cannot be read as parquet"):
        opened.episode(0)
    (dataset / DATA).unlink()
    with pytest.raises(DataError, match=r"file-000\.parquet: is missing"):
        opened.episode(0)
    (dataset / EPISODES).write_bytes(b"")
    with pytest.raises(DataError, match=r"meta/episodes/.*: cannot be read as parquet"):
        Dataset.open(dataset)
    (dataset / "meta/info.json").write_text('{"fps": 10')
    with pytest.raises(DataError, match=r"info\.json: is not valid JSON"):
        Dataset.open(dataset)


def test_a_wrong_key_is_named(dataset: Path) -> None:
    with pytest.raises(DataError, match=rf"front: no such camera; the dataset has \['{TOP}', '{SIDE}'\]"):
        Dataset.open(dataset).episode(0, cameras=["front"])


def test_a_missing_video_is_named_and_the_rest_is_readable(dataset: Path) -> None:
    (dataset / f"videos/{SIDE}/chunk-000/file-000.mp4").unlink()
    opened = Dataset.open(dataset)
    with pytest.raises(
        DataError, match=rf"{SIDE}/chunk-000/file-000\.mp4, episode 2, {SIDE}: is missing; download"
    ):
        opened.episode(2)
    np.testing.assert_array_equal(opened.episode(2, [TOP]).frames[TOP], make_recording(2)["frames"][TOP])


# Published deviations


def test_other_names_in_templates(dataset: Path) -> None:
    edit_json(
        dataset / "meta/info.json",
        lambda info: info.update(
            data_path="data/chunk-{chunk:03d}/file-{file:03d}.parquet",
            video_path="videos/{key}/chunk-{chunk:03d}/file-{file:03d}.mp4",
        ),
    )
    assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(4)])


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("data/", "each episode was looked up in the data files"),
        (f"videos/{TOP}/", "there is only one way to assign the files"),
        ("from_timestamp", "episodes were laid one after the other"),
        ("dataset_", None),
        ("tasks", None),
        ("length", "they were counted from the data files"),
    ],
)
def test_missing_columns_are_filled_in(dataset: Path, dropped: str, message: str | None) -> None:
    drop_columns(dataset / EPISODES, dropped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = Dataset.open(dataset)
    assert_holds(opened, [make_recording(number) for number in range(4)])
    assert bool(caught) == (message is not None)
    assert message is None or message in str(caught[0].message)


@pytest.mark.filterwarnings("ignore:.*counted from the data files", "ignore:.*missing; ")
def test_without_an_episodes_table(dataset: Path) -> None:
    shutil.rmtree(dataset / "meta/episodes")
    assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(4)])


def test_what_cannot_be_guessed_is_an_error(dataset: Path) -> None:
    """Without columns and with a frame too many, nobody can say whose frames are whose."""
    drop_columns(dataset / EPISODES, f"videos/{TOP}/")
    (dataset / VIDEO).write_bytes(
        video.encode(np.zeros((99, 24, 32, 3), np.uint8), fps=FPS, codec="lossless")
    )
    opened = Dataset.open(dataset)
    np.testing.assert_array_equal(opened.episode(1, [SIDE]).frames[SIDE], make_recording(1)["frames"][SIDE])
    with pytest.raises(DataError, match=r"its 1 files \(99 frames\) do not fit the 4 episodes \(27 frames\)"):
        opened.episode(1)


def test_channels_first(dataset: Path) -> None:
    """Some sets announce pictures as channels, height, width; the pictures themselves are the same."""
    names = ["channels", "height", "width"]
    edit_json(
        dataset / "meta/info.json", lambda info: info["features"][TOP].update(shape=[3, 24, 32], names=names)
    )
    write(dataset, [make_recording(4)])
    assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(5)])
    assert find_defects(dataset) == []


def test_lists_of_any_kind(dataset: Path) -> None:
    """Scalars as lists of one, vectors as lists of any length, numbers in double precision."""

    def change(table: pa.Table) -> pa.Table:
        for key, kind in (
            ("action", pa.list_(pa.float64())),
            ("observation.state", pa.large_list(pa.float32())),
        ):
            values = pa.array(table[key].to_pylist(), kind)
            table = table.set_column(table.column_names.index(key), key, values)
        reward = pa.array([[value] for value in table["next.reward"].to_pylist()], pa.list_(pa.float32()))
        return table.set_column(table.column_names.index("next.reward"), "next.reward", reward)

    edit_parquet(dataset / DATA, change)
    assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(4)])


def test_a_row_of_another_size_is_named(dataset: Path) -> None:
    edit_json(dataset / "meta/info.json", lambda info: info["features"]["action"].update(shape=[7]))
    with pytest.raises(
        DataError, match=r"episode 0, action: rows have shape \[2\], but meta/info\.json says \[7\]"
    ):
        Dataset.open(dataset).episode(0)


def test_missing_statistics_and_named_task_columns(dataset: Path) -> None:
    (dataset / "meta/stats.json").unlink()
    tasks = pa.table({"task": ["pull the T", "push the T"], "task_index": [1, 0]})
    pq.write_table(tasks, dataset / "meta/tasks.parquet")
    with pytest.warns(UserWarning, match=r"stats\.json: cannot be read"):
        opened = Dataset.open(dataset)
    assert (opened.stats, opened.tasks) == ({}, ("push the T", "pull the T"))
    assert_holds(opened, [make_recording(number) for number in range(4)])


def test_frames_a_little_out_of_step_are_taken_with_a_warning(dataset: Path) -> None:
    def shift(table: pa.Table) -> pa.Table:
        name = f"videos/{TOP}/from_timestamp"
        values = pa.array([value + 0.02 for value in table[name].to_pylist()])
        return table.set_column(table.column_names.index(name), name, values)

    edit_parquet(dataset / EPISODES, shift)
    with pytest.warns(UserWarning, match=r"0\.0200 s away from the rows' timestamps; took the nearest"):
        assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(4)])
