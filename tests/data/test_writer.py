"""What kinema writes: the structure of LeRobot's own files, continuing, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinema.data import DataError, Dataset, DatasetWriter, video
from kinema.data.defects import find_defects

from .conftest import (
    DATA,
    EPISODES,
    FPS,
    SIDE,
    TOP,
    Recording,
    assert_holds,
    drop_columns,
    make_recording,
    write,
)

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


def test_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    recordings = [make_recording(number) for number in range(3)]
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


# Continuing


def test_continuing_appends_to_the_same_files(dataset: Path) -> None:
    before = sorted(p.relative_to(dataset) for p in dataset.rglob("*"))
    for number in (4, 5):
        with DatasetWriter(dataset, fps=FPS) as writer:
            assert writer.num_episodes == number
            writer.add(**make_recording(number))
            assert writer.num_episodes == number + 1
    assert sorted(p.relative_to(dataset) for p in dataset.rglob("*")) == before
    assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(6)])
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


def test_files_roll_over(tmp_path: Path) -> None:
    options = {"data_files_size_in_mb": 0.006, "video_files_size_in_mb": 0.004, "chunks_size": 2}
    recordings = [make_recording(number) for number in range(8)]
    root = write(tmp_path / "d", recordings[:5], **options)
    write(root, recordings[5:])
    assert_holds(Dataset.open(root), recordings)
    assert find_defects(root) == []
    names = sorted(str(p.relative_to(root)) for p in (root / "videos" / TOP).rglob("*.mp4"))
    assert names[:3] == [f"videos/{TOP}/chunk-{c:03d}/file-{f:03d}.mp4" for c, f in ((0, 0), (0, 1), (1, 0))]
    assert max(p.stat().st_size for p in (root / "videos").rglob("*.mp4")) < 0.004 * 2**20 + 2000
    assert len(list((root / "data").rglob("*.parquet"))) > 2


def test_a_full_staging_folder_is_folded_before_the_end(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", fps=FPS, video_files_size_in_mb=0.004) as writer:
        for number in range(6):
            writer.add(**make_recording(number))
        assert len(list((tmp_path / "d/.staging").glob("0*"))) < 5
        assert Dataset.open(tmp_path / "d").num_episodes > 0
    assert not (tmp_path / "d/.staging").exists()
    assert_holds(Dataset.open(tmp_path / "d"), [make_recording(number) for number in range(6)])


def test_an_exception_keeps_finished_episodes(tmp_path: Path) -> None:
    def interrupted() -> None:
        with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
            writer.add(**make_recording(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_holds(Dataset.open(tmp_path / "d"), [make_recording(0)])


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
    arguments: dict[str, Any] = {"fps": FPS} | options
    with pytest.raises(ValueError, match=message):
        DatasetWriter(dataset, **arguments)
    assert find_defects(dataset) == []


def test_a_table_that_does_not_say_where_the_last_episode_ends(dataset: Path) -> None:
    drop_columns(dataset / EPISODES, "dataset_to_index")
    with pytest.raises(DataError, match=r"the columns \['dataset_to_index'\] are missing"):
        DatasetWriter(dataset, fps=FPS)


def test_a_closed_writer_adds_nothing(dataset: Path) -> None:
    writer = DatasetWriter(dataset, fps=FPS)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.add(**make_recording(4))


def test_two_writers_are_refused(dataset: Path) -> None:
    with DatasetWriter(dataset, fps=FPS) as writer:
        with pytest.raises(DataError, match="another process is recording into this dataset"):
            DatasetWriter(dataset, fps=FPS)
        writer.add(**make_recording(4))
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
        (lambda r: r["frames"].update({TOP: r["frames"][TOP] / 255.0}), rf"{TOP}: expected uint8 frames"),
        (lambda r: r["frames"].update({TOP: r["frames"][TOP][:, :-1]}), r"got uint8 \[23, 32, 3\]"),
        (lambda r: r["columns"].update(timestamp=np.arange(7) / 5), "timestamp: row t must be at t/10 s"),
    ],
)  # fmt: skip
def test_unfit_episodes_are_refused(
    dataset: Path, change: Callable[[Recording], object], message: str
) -> None:
    with DatasetWriter(dataset, fps=FPS) as writer:
        unfit = make_recording(4)
        change(unfit)
        with pytest.raises(ValueError, match=message):
            writer.add(**unfit)
        writer.add(**make_recording(4))
    assert_holds(Dataset.open(dataset), [make_recording(number) for number in range(5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be positive, .*got 0"),
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
    arguments: dict[str, Any] = {"fps": FPS} | options
    with pytest.raises(ValueError, match=message):
        DatasetWriter(tmp_path / "d", **arguments)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no dataset"):
        DatasetWriter(tmp_path, fps=FPS)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "name", ["10:22:05", "s3:x", "file:x", "~", "a b", "100%03d", "{chunk_index}", "ü\"'", "#x?y"]
)
@pytest.mark.parametrize("is_relative", [True, False])
def test_folders_of_any_name(
    name: str, is_relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(name) if is_relative else tmp_path / name
    for numbers in ((0, 1), (2,)):
        with DatasetWriter(root, fps=FPS) as writer:
            for number in numbers:
                writer.add(**make_recording(number))
    assert_holds(Dataset.open(root), [make_recording(number) for number in range(3)])
    assert find_defects(root) == []
