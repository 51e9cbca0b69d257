"""What would spoil a training is listed before it, with episode, row and key."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinema.data import Dataset
from kinema.data.defects import TrainingCheck, training_problems

from .conftest import DATA, SIDE, TOP, VIDEO, drop_columns, edit_json, make_recording, put, write

COLUMNS = ("action", "observation.state", TOP, SIDE)


def check(root: Path, segment_length: int = 6, columns: tuple[str, ...] = COLUMNS) -> TrainingCheck:
    return training_problems(Dataset(root), segment_length=segment_length, columns=columns)


def test_a_clean_dataset_is_used_whole(clean: Path) -> None:
    found = check(clean)
    assert (found.fatal, found.left_out, found.usable_episodes.tolist()) == ([], [], [0, 1, 2, 3])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_a_number_that_is_not_finite_is_fatal(dataset: Path, key: str, value: float) -> None:
    put(dataset / DATA, key, (8, 1), value)
    (defect,) = check(dataset).fatal
    assert (defect.file, defect.episode, defect.key) == (DATA, 1, key)
    assert defect.message == f"dimension 1 is {value} in row 2 (1 values)"


def test_a_column_that_is_not_used_may_hold_anything(dataset: Path) -> None:
    put(dataset / DATA, "next.reward", 3, np.nan)
    assert check(dataset).fatal == []
    assert [defect.key for defect in check(dataset, columns=("action", "next.reward")).fatal] == [
        "next.reward"
    ]


def test_the_last_action_is_not_needed(dataset: Path) -> None:
    put(dataset / DATA, "action", [5, 12, 20, 26], np.nan)
    found = check(dataset)
    assert (found.fatal, found.left_out, len(found.usable_episodes)) == ([], [], 4)


def test_short_episodes_are_left_out(dataset: Path) -> None:
    found = check(dataset, segment_length=7)
    assert found.usable_episodes.tolist() == [1, 2]
    assert [(d.episode, d.message) for d in found.left_out] == [
        (0, "has 6 rows, fewer than the 7 of a segment"),
        (3, "has 6 rows, fewer than the 7 of a segment"),
    ]


def test_no_episode_that_is_long_enough_is_fatal(dataset: Path) -> None:
    (defect,) = check(dataset, segment_length=17).fatal
    assert "segments of 17 rows are needed, but the longest episode has 8" in defect.message


def test_episodes_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [make_recording(n) for n in range(3)], video_files_size_in_mb=1e-6)
    videos = sorted((root / "videos" / TOP).rglob("*.mp4"))
    videos[1].unlink()
    found = check(root)
    assert (found.fatal, found.usable_episodes.tolist()) == ([], [0, 2])
    assert [(d.file, d.episode, d.key) for d in found.left_out] == [
        (str(videos[1].relative_to(root)), 1, TOP)
    ]


def test_nothing_that_can_be_read_is_fatal(dataset: Path) -> None:
    (dataset / VIDEO).unlink()
    found = check(dataset)
    assert (found.usable_episodes.tolist(), len(found.fatal)) == ([], 1)
    assert [(d.file, d.key) for d in found.left_out] == [(VIDEO, TOP)]
    assert check(dataset, columns=("action", SIDE)).usable_episodes.tolist() == [0, 1, 2, 3]


def test_rows_that_are_missing_or_in_another_order_leave_their_episode_out(dataset: Path) -> None:
    table = pq.read_table(dataset / DATA)
    pq.write_table(pa.concat_tables([table[:22], table[23:]]), dataset / DATA)
    put(dataset / DATA, "frame_index", slice(6, 9), [2, 1, 0])
    put(dataset / DATA, "index", slice(None), 5)
    found = check(dataset)
    assert found.usable_episodes.tolist() == [0, 2]
    assert {(d.kind, d.episode, d.key) for d in found.left_out if d.kind != "totals"} >= {
        ("order", 1, "frame_index"),
        ("length", 3, "length"),
    }


def test_episodes_that_info_announces_and_nobody_has_are_named(dataset: Path) -> None:
    edit_json(dataset / "meta/info.json", lambda info: info.update(total_episodes=9))
    found = check(dataset)
    assert (found.fatal, len(found.usable_episodes)) == ([], 4)
    assert [(d.key, d.message) for d in found.left_out] == [
        ("total_episodes", "says 9, but the tables hold 4")
    ]


def test_it_decodes_no_frame(dataset: Path) -> None:
    content = bytearray((dataset / VIDEO).read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 400] = bytes(400)
    (dataset / VIDEO).write_bytes(content)
    assert check(dataset).fatal == []


def test_episodes_asked_for(dataset: Path) -> None:
    put(dataset / DATA, "action", (0, 0), np.nan)
    found = training_problems(Dataset(dataset), segment_length=6, columns=COLUMNS, episodes=[1, 3])
    assert (found.fatal, found.usable_episodes.tolist()) == ([], [1, 3])


def test_columns_of_positions_are_not_needed(dataset: Path) -> None:
    for key in ("task_index", "timestamp", "frame_index"):
        drop_columns(dataset / DATA, key)
    assert check(dataset).fatal == []


def test_embedded_frames_are_a_column_that_is_there(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [make_recording(number) for number in range(2)], codec="image")
    found = check(root)
    assert (found.fatal, found.left_out, found.usable_episodes.tolist()) == ([], [], [0, 1])
    drop_columns(root / DATA, TOP)
    (defect,) = check(root).fatal
    assert (defect.key, defect.file) == (TOP, DATA)


def test_a_file_that_spoils_all_episodes_is_named(dataset: Path) -> None:
    path = dataset / DATA
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (defect,) = check(dataset).fatal
    assert "no episode can be learned from (4 are left out)" in defect.message
    assert DATA in defect.message
