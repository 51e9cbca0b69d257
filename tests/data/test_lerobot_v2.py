"""Reading LeRobotDataset v2.1: the recording of a G1 as published, and small sets with oddities."""

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from kinema.data import DataError, Dataset, lerobot_v2, statistics, video
from kinema.data.defects import find_defects, training_problems
from kinema.data.layout import dimension_names, picture_shape

from ..worlds import write_exact_world
from .conftest import FPS, SIDE, TOP, assert_holds, edit_json, make_recording

G1 = Path(__file__).parents[3] / "shared/data/g1_lerobot_v21"


def convert(source: Path, target: Path) -> Path:
    """Write a dataset of v3.0 again as v2.1."""
    dataset = Dataset.open(source)
    meta = target / "meta"
    meta.mkdir(parents=True)
    info = dataset.info | {
        "codebase_version": "v2.1",
        "data_path": lerobot_v2.DATA_PATH,
        "video_path": lerobot_v2.VIDEO_PATH,
        "chunks_size": 3,
    }
    (meta / "info.json").write_text(json.dumps(info))
    episodes, stats = [], []
    for index in range(dataset.num_episodes):
        chunk, episode = f"chunk-{index // 3:03d}", dataset.episode(index)
        folder = target / "data" / chunk
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(dataset.rows(index), folder / f"episode_{index:06d}.parquet")
        for key in dataset.cameras:
            folder = target / "videos" / chunk / key
            folder.mkdir(parents=True, exist_ok=True)
            encoded = video.encode(episode.frames[key], fps=FPS, codec="lossless")
            (folder / f"episode_{index:06d}.mp4").write_bytes(encoded)
        episodes.append({"episode_index": index, "tasks": [episode.task], "length": len(episode)})
        of_columns = {key: statistics.of_column(values) for key, values in episode.columns.items()}
        listed = {
            key: {name: values[name].tolist() for name in ("min", "max", "mean", "std", "count")}
            for key, values in of_columns.items()
        }
        stats.append({"episode_index": index, "stats": listed})
    tasks = [{"task_index": number, "task": text} for number, text in dataset.task_texts.items()]
    for path, rows in (
        (lerobot_v2.EPISODES_PATH, episodes),
        (lerobot_v2.STATS_PATH, stats),
        (lerobot_v2.TASKS_PATH, tasks),
    ):
        (target / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


@pytest.fixture(scope="module")
def converted(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(clean, tmp_path_factory.mktemp("v21") / "dataset")


@pytest.fixture
def v21(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "dataset"))


RECORDINGS = [make_recording(number) for number in range(4)]


def test_every_frame_and_number(v21: Path) -> None:
    dataset = Dataset.open(v21)
    assert_holds(dataset, RECORDINGS)
    assert find_defects(v21) == []
    actions = np.concatenate([each["columns"]["action"] for each in RECORDINGS]).astype(float)
    np.testing.assert_allclose(dataset.stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(dataset.stats["action"]["std"], actions.std(0), atol=1e-6)


@pytest.mark.skipif(not G1.is_dir(), reason="the shared recording of a G1 is not here")
def test_the_recording_of_a_g1() -> None:
    dataset = Dataset.open(G1)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 736, 30.0)
    assert dataset.lengths().tolist() == [393, 343]
    assert dataset.cameras == ("observation.images.cam_high",)
    episode = dataset.episode(1)
    assert episode.task == "Pick up the yellow bottle on the table."
    rows = pq.read_table(G1 / "data/chunk-000/episode_000001.parquet")
    np.testing.assert_array_equal(episode.columns["action"], np.stack(rows["action"].to_pylist()))
    assert dimension_names(dataset.features["action"])[:2] == ["kLeftShoulderPitch", "kLeftShoulderRoll"]
    frames = episode.frames["observation.images.cam_high"]
    assert frames.shape == (343, 480, 640, 3)
    with av.open(str(G1 / "videos/chunk-000/observation.images.cam_high/episode_000001.mp4")) as container:
        for expected, frame in zip(container.decode(video=0), frames, strict=True):
            np.testing.assert_array_equal(frame, expected.to_ndarray(format="rgb24"))
    assert [each for each in find_defects(G1, is_decoding=False) if each.severity == "error"] == []


def test_templates_of_other_layouts(v21: Path) -> None:
    """The fields of v3.0 in a set of v2.1, and a template that leads nowhere."""
    edit_json(
        v21 / "meta/info.json",
        lambda info: info.update(
            data_path="data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet",
            video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        ),
    )
    with pytest.warns(UserWarning, match=r"videos, .*: no file is where the template says"):
        assert_holds(Dataset.open(v21), RECORDINGS)


@pytest.mark.parametrize("key", ["data_path", "video_path", "chunks_size"])
def test_templates_that_are_missing(v21: Path, key: str) -> None:
    edit_json(v21 / "meta/info.json", lambda info: info.update({key: None}))
    opened = Dataset.open(v21)
    if key == "chunks_size":
        with pytest.raises(DataError, match=r"chunk-000/episode_000003\.parquet: is missing"):
            opened.episode(3)
    else:
        assert_holds(opened, RECORDINGS)


def test_without_an_episodes_table(v21: Path) -> None:
    (v21 / lerobot_v2.EPISODES_PATH).unlink()
    with pytest.warns(UserWarning, match="counted from the data files"):
        assert_holds(Dataset.open(v21), RECORDINGS)


def test_bad_lines_are_named(v21: Path) -> None:
    path = v21 / lerobot_v2.EPISODES_PATH
    path.write_text('{"episode_index": 0, "length": 6}\n{"episode_index": 1}\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl: line 2 has no length"):
        Dataset.open(v21)
    path.write_text('{"episode_index": 0, "len')
    with pytest.raises(DataError, match=r"episodes\.jsonl: is not valid JSON"):
        Dataset.open(v21)


def test_missing_videos_are_said_once(v21: Path) -> None:
    for path in (v21 / "videos").rglob(f"{SIDE}/*.mp4"):
        path.unlink()
    (v21 / f"videos/chunk-000/{TOP}/episode_000002.mp4").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    )
    found = [each for each in find_defects(v21) if each.kind == "video"]
    assert [str(each) for each in found] == [
        f"error: videos/chunk-000/{TOP}/episode_000002.mp4, episode 2, {TOP}: is a pointer of Git LFS and "
        "not the video; download it with git lfs pull (episodes 2)",
        f"error: videos/chunk-000/{SIDE}, {SIDE}: none of the 4 videos of this camera is there; download or "
        "copy the dataset again",
    ]
    dataset = Dataset.open(v21)
    check = training_problems(dataset, segment_length=2, columns=("action", TOP))
    assert check.usable_episodes.tolist() == [0, 1, 3]
    check = training_problems(dataset, segment_length=2, columns=("action", SIDE))
    assert "none of the 4 videos" in check.fatal[0].message


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 24, 32], "names": ["channel", "height", "width"]},
        {"shape": [3, 24, 32], "names": {"axes": ["channel", "height", "width"]}},
        {"shape": [3, 24, 32], "names": [["channel", "height", "width"]]},
        {"shape": [3, 24, 32], "names": None},
        {"shape": [32, 24, 3], "names": ["width", "height", "channel"]},
        {"shape": [3, 32, 24], "names": ["channel", "width", "height"]},
        {"shape": [32, 24, 3], "names": None, "info": {"video.height": 24, "video.width": 32}},
    ],
    ids=str,
)
def test_no_spelling_of_a_shape_transposes_frames(v21: Path, change: dict[str, Any]) -> None:
    def edit(info: dict[str, Any]) -> None:
        info["features"][TOP].pop("info")
        info["features"][TOP].update(change)

    edit_json(v21 / "meta/info.json", edit)
    dataset = Dataset.open(v21)
    assert picture_shape(dataset.features[TOP]) == (24, 32, 3)
    assert_holds(dataset, RECORDINGS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ["x", "y"]),
        ([["x", "y"]], ["x", "y"]),
        ({"motors": ["x", "y"]}, ["x", "y"]),
        (["x", "x"], ["0", "1"]),
        (["x"], ["0", "1"]),
        (None, ["0", "1"]),
    ],
)
def test_names_of_dimensions(names: object, expected: list[str]) -> None:
    assert dimension_names({"shape": [2], "names": names}) == expected


def test_a_set_that_says_v21_but_is_laid_out_as_v3(dataset: Path) -> None:
    edit_json(dataset / "meta/info.json", lambda info: info.update(codebase_version="v2.1"))
    assert_holds(Dataset.open(dataset), RECORDINGS)


def test_an_older_version_is_said_with_its_conversion(tmp_path: Path) -> None:
    dataset = Dataset.open(write_exact_world(tmp_path / "data", lengths=(4,)))
    assert dataset.older_version is None
    dataset.info["codebase_version"] = "v2.1"
    assert dataset.older_version is not None
    assert "v2.1 is an older version" in dataset.older_version
    assert "convert_dataset_v21_to_v30" in dataset.older_version
