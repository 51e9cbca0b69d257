import json
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

FPS = 10
TOP, SIDE = "observation.images.top", "observation.images.side"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"

Recording = dict[str, Any]
Recorder = Callable[..., Recording]


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


def drop_columns(path: Path, name: str) -> None:
    """Drop the columns with this in their names, except statistics."""

    def change(table: pa.Table) -> pa.Table:
        return table.drop_columns([n for n in table.column_names if name in n and not n.startswith("stats/")])

    edit_parquet(path, change)


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


# The structure of what kinema writes


@pytest.fixture(scope="module")
def like_droid(droid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes with the features of the DROID recordings, smaller pictures and the same codec."""
    features = json.loads((droid / "meta/info.json").read_text())["features"]
    features = {
        key: {**feature, "shape": [64, 96, 3]} if feature["dtype"] == "video" else feature
        for key, feature in features.items()
    }
    root = tmp_path_factory.mktemp("like_droid") / "dataset"
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=5, features=features, robot_type="franka", codec="av1") as writer:
        for length, task in ((4, "unlabelled"), (2, "lift"), (3, "unlabelled")):
            pictures = {
                key: rng.integers(0, 255, (length, 64, 96, 3), dtype=np.uint8)
                for key in features
                if "images" in key
            }
            columns = {
                "observation.state": rng.normal(size=(length, 7)).astype(np.float32),
                "action": rng.normal(size=(length, 7)).astype(np.float32),
                "next.success": np.arange(length) == length - 1,
            }
            writer.add(frames=pictures, columns=columns, task=task)
    return root


def test_structure_of_info(droid: Path, like_droid: Path) -> None:
    theirs, ours = (json.loads((root / "meta/info.json").read_text()) for root in (droid, like_droid))
    assert list(ours) == list(theirs)
    counted = {"total_episodes": 3, "total_frames": 9, "total_tasks": 2, "splits": {"train": "0:3"}}
    for key in set(theirs) - {"features"}:
        expected = counted.get(key, theirs[key])
        assert (ours[key], type(ours[key])) == (expected, type(expected)), key
    assert list(ours["features"]) == list(theirs["features"])
    for key, feature in theirs["features"].items():
        if feature["dtype"] == "video":
            feature["shape"] = [64, 96, 3]
            feature["info"] |= {"video.height": 64, "video.width": 96}
        assert ours["features"][key] == feature, key


def test_structure_of_data(droid: Path, like_droid: Path) -> None:
    theirs, ours = (pq.ParquetFile(root / DATA) for root in (droid, like_droid))
    assert ours.schema_arrow.equals(theirs.schema_arrow)
    notes = [json.loads((f.schema_arrow.metadata or {})[b"huggingface"])["info"] for f in (theirs, ours)]
    assert notes[0] == notes[1]
    assert [ours.metadata.row_group(i).num_rows for i in range(3)] == [4, 2, 3]
    assert (
        ours.metadata.row_group(0).column(0).compression == theirs.metadata.row_group(0).column(0).compression
    )


def test_structure_of_episodes(droid: Path, like_droid: Path) -> None:
    theirs, ours = (pq.read_table(root / EPISODES) for root in (droid, like_droid))
    assert ours.schema.equals(theirs.schema)
    rows = ours.select([name for name in ours.column_names if not name.startswith("stats/")]).to_pylist()
    assert [row["tasks"] for row in rows] == [["unlabelled"], ["lift"], ["unlabelled"]]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 4), (4, 6), (6, 9)]
    spans = [
        tuple(row[f"videos/observation.images.wrist/{name}_timestamp"] for name in ("from", "to"))
        for row in rows
    ]
    assert spans == pytest.approx(np.array([(0.0, 0.8), (0.8, 1.2), (1.2, 1.8)]))
    for name, value in theirs.slice(0, 1).to_pylist()[0].items():
        if name.startswith("stats/"):
            assert np.shape(rows_of(ours, name)[0]) == np.shape(value), name


def rows_of(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist()


def test_structure_of_tasks(droid: Path, like_droid: Path) -> None:
    theirs, ours = (pq.read_schema(root / "meta/tasks.parquet") for root in (droid, like_droid))
    assert ours.equals(theirs)
    frames = [pd.read_parquet(root / "meta/tasks.parquet") for root in (droid, like_droid)]
    assert [(f.index.name, list(f.columns), f["task_index"].dtype) for f in frames] == [
        (None, ["task_index"], np.dtype(np.int64))
    ] * 2
    assert list(frames[1].index) == ["unlabelled", "lift"]


def test_structure_of_statistics(droid: Path, like_droid: Path) -> None:
    theirs, ours = (json.loads((root / "meta/stats.json").read_text()) for root in (droid, like_droid))
    assert set(ours) == set(theirs)
    for key, stats in theirs.items():
        assert list(ours[key]) == list(stats), key
        for name, value in stats.items():
            assert np.shape(ours[key][name]) == np.shape(value), (key, name)
            assert np.array(ours[key][name]).dtype == np.array(value).dtype, (key, name)
    pictures = np.array(ours["observation.images.wrist"]["max"])
    assert pictures.shape == (3, 1, 1)
    assert 0.5 < pictures.max() <= 1.0


def test_structure_of_videos(droid: Path, like_droid: Path) -> None:
    assert sorted(p.relative_to(like_droid) for p in like_droid.rglob("*") if p.is_file()) == sorted(
        p.relative_to(droid) for p in droid.rglob("*") if p.is_file()
    )
    for path in sorted(like_droid.rglob("*.mp4")):
        theirs, ours = video.probe(droid / path.relative_to(like_droid)), video.probe(path)
        assert (ours.codec, ours.pix_fmt, ours.fps, ours.time_base, ours.has_audio, ours.num_frames) == (
            theirs.codec,
            theirs.pix_fmt,
            theirs.fps,
            theirs.time_base,
            theirs.has_audio,
            9,
        )


def test_statistics_are_those_of_the_data(tmp_path: Path, recording: Recorder) -> None:
    recordings = [recording(number) for number in range(3)]
    stats = Dataset.open(write(tmp_path / "d", recordings)).stats
    for key in ("action", "next.reward", "next.terminated"):
        values = np.concatenate([r["columns"][key] for r in recordings]).astype(np.float64)
        for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
            expected = np.atleast_1d(function(values, axis=0))
            np.testing.assert_allclose(stats[key][name], expected, atol=1e-6, err_msg=f"{key} {name}")
        assert stats[key]["count"] == [len(values)]
    pixels = np.concatenate([r["frames"][TOP] for r in recordings]) / 255.0
    for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        expected = function(pixels, axis=(0, 1, 2)).reshape(3, 1, 1)
        np.testing.assert_allclose(stats[TOP][name], expected, atol=1e-6, err_msg=name)
    episodes = pq.read_table(tmp_path / "d" / EPISODES)
    medians = [np.quantile(r["columns"]["action"].astype(np.float64), 0.5, axis=0) for r in recordings]
    np.testing.assert_allclose(episodes["stats/action/q50"].to_pylist(), medians)


# Round trips


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("auto", 0), ("lossless", 0), ("image", 0), ("av1", 8), ("h264", 8)]
)
def test_round_trip(tmp_path: Path, recording: Recorder, codec: str, tolerance: float) -> None:
    recordings = [recording(number, size=(48, 64)) for number in range(3)]
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


def test_an_episode_that_was_read_can_be_written(tmp_path: Path, dataset: Path, recording: Recorder) -> None:
    source = Dataset.open(dataset)
    with DatasetWriter(tmp_path / "copy", fps=source.fps, features=source.features) as writer:
        for index in range(source.num_episodes):
            episode = source.episode(index)
            writer.add(frames=episode.frames, columns=episode.columns, task=episode.task or "")
    assert_holds(Dataset.open(tmp_path / "copy"), [recording(number) for number in range(4)])


# Continuing


def test_continuing_appends_to_the_same_files(dataset: Path, recording: Recorder) -> None:
    before = sorted(p.relative_to(dataset) for p in dataset.rglob("*"))
    for number in (4, 5):
        with DatasetWriter(dataset, fps=FPS) as writer:
            assert writer.num_episodes == number
            writer.add(**recording(number))
            assert writer.num_episodes == number + 1
    assert sorted(p.relative_to(dataset) for p in dataset.rglob("*")) == before
    assert_holds(Dataset.open(dataset), [recording(number) for number in range(6)])
    assert find_defects(dataset) == []
    info = json.loads((dataset / "meta/info.json").read_text())
    assert (info["total_episodes"], info["splits"], info["robot_type"]) == (6, {"train": "0:6"}, "square")


def test_continuing_what_lerobot_wrote(droid: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(droid, tmp_path / "droid"))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    source = Dataset.open(droid)
    last = source.episode(9)
    with DatasetWriter(root, fps=5) as writer:
        writer.add(frames=last.frames, columns=last.columns, task="a new task")
    dataset = Dataset.open(root)
    assert (dataset.num_episodes, dataset.num_frames) == (12, 854 + 33)
    assert dataset.tasks == (*source.tasks, "a new task")
    again = dataset.episode(11)
    np.testing.assert_array_equal(again.columns["action"], last.columns["action"])
    for key in dataset.cameras:
        assert np.abs(again.frames[key].astype(int) - last.frames[key]).mean() < 5
    np.testing.assert_array_equal(
        dataset.episode(10, ["observation.images.wrist"]).frames["observation.images.wrist"][:3],
        source.episode(10, ["observation.images.wrist"]).frames["observation.images.wrist"][:3],
    )
    assert find_defects(root, is_decoding=False) == []
    assert pd.read_parquet(root / "meta/tasks.parquet")["task_index"].to_list() == list(range(8))


def test_files_roll_over(tmp_path: Path, recording: Recorder) -> None:
    options = {"data_files_size_in_mb": 0.006, "video_files_size_in_mb": 0.004, "chunks_size": 2}
    recordings = [recording(number) for number in range(8)]
    root = write(tmp_path / "d", recordings[:5], **options)
    write(root, recordings[5:])
    assert_holds(Dataset.open(root), recordings)
    assert find_defects(root) == []
    names = sorted(str(p.relative_to(root)) for p in (root / "videos" / TOP).rglob("*.mp4"))
    assert names[:3] == [f"videos/{TOP}/chunk-{c:03d}/file-{f:03d}.mp4" for c, f in ((0, 0), (0, 1), (1, 0))]
    assert max(p.stat().st_size for p in (root / "videos").rglob("*.mp4")) < 0.004 * 2**20 + 2000
    assert len(list((root / "data").rglob("*.parquet"))) > 2


def test_a_full_staging_folder_is_folded_before_the_end(tmp_path: Path, recording: Recorder) -> None:
    with DatasetWriter(tmp_path / "d", fps=FPS, video_files_size_in_mb=0.004) as writer:
        for number in range(6):
            writer.add(**recording(number))
        assert len(list((tmp_path / "d/.staging").glob("0*"))) < 5
        assert Dataset.open(tmp_path / "d").num_episodes > 0
    assert not (tmp_path / "d/.staging").exists()
    assert_holds(Dataset.open(tmp_path / "d"), [recording(number) for number in range(6)])


def test_an_exception_keeps_finished_episodes(tmp_path: Path, recording: Recorder) -> None:
    def interrupted() -> None:
        with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
            writer.add(**recording(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_holds(Dataset.open(tmp_path / "d"), [recording(0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 5}, r"fps is 5, but .* has 10"),
        (
            {"features": {"action": {"dtype": "float32", "shape": [3]}}},
            r"feature action is float32 \[3\], but .* holds float32 \[2\]",
        ),
        ({"features": {"action": {"dtype": "float32", "shape": [2]}}}, "are not both here and in"),
        ({"codec": "av1"}, "codec is av1, but .* holds lossless"),
    ],
)
def test_continuing_something_else_is_refused(dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetWriter(dataset, **({"fps": FPS} | options))
    assert find_defects(dataset) == []


def test_a_table_that_does_not_say_where_the_last_episode_ends(dataset: Path) -> None:
    drop_columns(dataset / EPISODES, "dataset_to_index")
    with pytest.raises(DataError, match=r"the columns \['dataset_to_index'\] are missing"):
        DatasetWriter(dataset, fps=FPS)


def test_a_closed_writer_adds_nothing(dataset: Path, recording: Recorder) -> None:
    writer = DatasetWriter(dataset, fps=FPS)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.add(**recording(4))


def test_two_writers_are_refused(dataset: Path, recording: Recorder) -> None:
    with DatasetWriter(dataset, fps=FPS) as writer:
        with pytest.raises(DataError, match="another process is recording into this dataset"):
            DatasetWriter(dataset, fps=FPS)
        writer.add(**recording(4))
        # Who reads meanwhile sees what is folded, and folds nothing.
        assert Dataset.open(dataset).num_episodes == 4
    assert Dataset.open(dataset).num_episodes == 5


# What the writer refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["columns"].pop("action"), r"episode 4: expected columns .*missing \['action'\]"),
        (lambda r: r["columns"].update(more=r["columns"]["action"]), r"unknown \['more'\]"),
        (lambda r: r["frames"].pop(SIDE), rf"expected cameras .*missing \['{SIDE}'\]"),
        (lambda r: r["columns"].update(action=r["columns"]["action"][:-1]), "every array needs the same T"),
        (lambda r: r["columns"].update(action=np.zeros((7, 3))), r"4, action: expected rows of shape \[2\]"),
        (lambda r: r["columns"].update(action=np.zeros((7, 2), complex)), "expected float32, got complex128"),
        (lambda r: r["frames"].update({TOP: r["frames"][TOP] / 255.0}), rf"{TOP}: expected uint8 pictures"),
        (lambda r: r["frames"].update({TOP: r["frames"][TOP][:, :-1]}), r"got uint8 \[23, 32, 3\]"),
        (lambda r: r["columns"].update(timestamp=np.arange(7) / 5), "timestamp: row t must be at t/10 s"),
    ],
)  # fmt: skip
def test_unfit_episodes_are_refused(
    dataset: Path, recording: Recorder, change: Callable[[Recording], object], message: str
) -> None:
    with DatasetWriter(dataset, fps=FPS) as writer:
        unfit = recording(4)
        change(unfit)
        with pytest.raises(ValueError, match=message):
            writer.add(**unfit)
        writer.add(**recording(4))
    assert_holds(Dataset.open(dataset), [recording(number) for number in range(5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"codec": "vp9"}, "codec must be auto, image, lossless, h264, av1; got 'vp9'"),
        ({"features": {"action": {"dtype": "float32"}}}, "feature action: shape missing"),
        ({"features": {"action": {"dtype": "text", "shape": [1]}}}, "feature action: dtype must be"),
        ({"features": {"action": {"dtype": "float32", "shape": [0]}}}, "sizes must be positive"),
        ({"features": {TOP: {"dtype": "video", "shape": [8, 8]}}}, "shape is height, width, channels"),
        (
            {"features": {TOP: {"dtype": "video", "shape": [8, 8, 1]}}},
            r"has 3 channels, got shape \[8, 8, 1\]",
        ),
    ],
)
def test_unfit_datasets_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetWriter(tmp_path / "d", **({"fps": FPS} | options))


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no dataset"):
        DatasetWriter(tmp_path, fps=FPS)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


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
            lambda info: info.update(codebase_version="v2.1"),
            r"is LeRobotDataset v2\.1, expected v3\.0; convert it",
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


def test_a_missing_video_is_named_and_the_rest_is_readable(dataset: Path, recording: Recorder) -> None:
    (dataset / f"videos/{SIDE}/chunk-000/file-000.mp4").unlink()
    opened = Dataset.open(dataset)
    with pytest.raises(
        DataError, match=rf"{SIDE}/chunk-000/file-000\.mp4, episode 2, {SIDE}: cannot be read"
    ):
        opened.episode(2)
    np.testing.assert_array_equal(opened.episode(2, [TOP]).frames[TOP], recording(2)["frames"][TOP])


# Published deviations


def test_other_names_in_templates(dataset: Path, recording: Recorder) -> None:
    edit_json(
        dataset / "meta/info.json",
        lambda info: info.update(
            data_path="data/chunk-{chunk:03d}/file-{file:03d}.parquet",
            video_path="videos/{key}/chunk-{chunk:03d}/file-{file:03d}.mp4",
        ),
    )
    assert_holds(Dataset.open(dataset), [recording(number) for number in range(4)])


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
def test_missing_columns_are_filled_in(
    dataset: Path, recording: Recorder, dropped: str, message: str | None
) -> None:
    drop_columns(dataset / EPISODES, dropped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = Dataset.open(dataset)
    assert_holds(opened, [recording(number) for number in range(4)])
    assert bool(caught) == (message is not None)
    assert message is None or message in str(caught[0].message)


@pytest.mark.filterwarnings("ignore:.*counted from the data files", "ignore:.*missing; ")
def test_without_an_episodes_table(dataset: Path, recording: Recorder) -> None:
    shutil.rmtree(dataset / "meta/episodes")
    assert_holds(Dataset.open(dataset), [recording(number) for number in range(4)])


def test_what_cannot_be_guessed_is_an_error(dataset: Path, recording: Recorder) -> None:
    """Without columns and with a frame too many, nobody can say whose frames are whose."""
    drop_columns(dataset / EPISODES, f"videos/{TOP}/")
    path = dataset / f"videos/{TOP}/chunk-000/file-000.mp4"
    path.write_bytes(video.encode(np.zeros((99, 24, 32, 3), np.uint8), fps=FPS, codec="lossless"))
    opened = Dataset.open(dataset)
    np.testing.assert_array_equal(opened.episode(1, [SIDE]).frames[SIDE], recording(1)["frames"][SIDE])
    with pytest.raises(DataError, match=r"its 1 files \(99 frames\) do not fit the 4 episodes \(27 frames\)"):
        opened.episode(1)


def test_channels_first(dataset: Path, recording: Recorder) -> None:
    """Some sets announce pictures as channels, height, width; the pictures themselves are the same."""
    names = ["channels", "height", "width"]
    edit_json(
        dataset / "meta/info.json", lambda info: info["features"][TOP].update(shape=[3, 24, 32], names=names)
    )
    write(dataset, [recording(4)])
    assert_holds(Dataset.open(dataset), [recording(number) for number in range(5)])
    assert find_defects(dataset) == []


def test_lists_of_any_kind(dataset: Path, recording: Recorder) -> None:
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
    assert_holds(Dataset.open(dataset), [recording(number) for number in range(4)])


def test_a_row_of_another_size_is_named(dataset: Path) -> None:
    edit_json(dataset / "meta/info.json", lambda info: info["features"]["action"].update(shape=[7]))
    with pytest.raises(
        DataError, match=r"episode 0, action: rows have shape \[2\], but meta/info\.json says \[7\]"
    ):
        Dataset.open(dataset).episode(0)


def test_missing_statistics_and_named_task_columns(dataset: Path, recording: Recorder) -> None:
    (dataset / "meta/stats.json").unlink()
    tasks = pa.table({"task": ["pull the T", "push the T"], "task_index": [1, 0]})
    pq.write_table(tasks, dataset / "meta/tasks.parquet")
    with pytest.warns(UserWarning, match=r"stats\.json: cannot be read"):
        opened = Dataset.open(dataset)
    assert (opened.stats, opened.tasks) == ({}, ("push the T", "pull the T"))
    assert_holds(opened, [recording(number) for number in range(4)])


def test_frames_a_little_out_of_step_are_taken_with_a_warning(dataset: Path, recording: Recorder) -> None:
    def shift(table: pa.Table) -> pa.Table:
        name = f"videos/{TOP}/from_timestamp"
        values = pa.array([value + 0.02 for value in table[name].to_pylist()])
        return table.set_column(table.column_names.index(name), name, values)

    edit_parquet(dataset / EPISODES, shift)
    with pytest.warns(UserWarning, match=r"0\.0200 s away from the rows' timestamps; took the nearest"):
        assert_holds(Dataset.open(dataset), [recording(number) for number in range(4)])
