"""Every defect that ``kinema data`` knows is made once, and found with its file, episode and key."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kinema import cli
from kinema.data import DatasetWriter, video
from kinema.data.check import DataConfig, inspect
from kinema.data.defects import Defect, find_defects

from .conftest import DATA, EPISODES, FPS, SIDE, TOP, VIDEO, edit_column, edit_json, make_recording, put


def edit_info(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(root / "meta/info.json", change)


def find(root: Path, kind: str, **options: Any) -> list[Defect]:
    return [defect for defect in find_defects(root, **options) if defect.kind == kind]


def only(root: Path, kind: str, **options: Any) -> Defect:
    """The one defect there is, which is of this kind."""
    found = find_defects(root, **options)
    assert [defect.kind for defect in found] == [kind], "\n".join(map(str, found))
    return found[0]


def test_a_clean_dataset_has_no_defects(clean: Path, droid: Path) -> None:
    assert find_defects(clean) == []
    assert find_defects(droid, is_decoding=False) == []


# Videos


def test_a_missing_video(dataset: Path) -> None:
    (dataset / VIDEO).unlink()
    defect = only(dataset, "video")
    assert (defect.severity, defect.file, defect.key) == ("error", VIDEO, TOP)
    assert defect.message == "is missing (episodes 0 to 3)"


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000])
def test_a_video_that_is_none(dataset: Path, content: bytes) -> None:
    (dataset / VIDEO).write_bytes(content)
    defect = only(dataset, "video")
    assert (defect.file, defect.key) == (VIDEO, TOP)
    assert "cannot be read as a video" in defect.message


def test_an_undecodable_episode_and_the_others_are_checked(dataset: Path) -> None:
    content = bytearray((dataset / VIDEO).read_bytes())
    # The payload of the second episode, which starts at frame 6; each episode starts with a key frame.
    with av.open(str(dataset / VIDEO)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets[6:8]:
        assert position is not None
        content[position + 4 : position + size] = b"\xff" * (size - 4)
    (dataset / VIDEO).write_bytes(content)
    found = find(dataset, "video")
    assert {(defect.file, defect.key) for defect in found} == {(VIDEO, TOP)}
    assert 1 in [defect.episode for defect in found]
    assert not {0, 3} & {defect.episode for defect in found}


def test_a_video_too_short(dataset: Path) -> None:
    recordings = [make_recording(number) for number in range(4)]
    frames = np.concatenate([recording["frames"][TOP] for recording in recordings])[:-2]
    (dataset / VIDEO).write_bytes(video.encode(frames, fps=FPS, codec="lossless"))
    found = find_defects(dataset)
    assert [(d.kind, d.episode, d.key) for d in found] == [("length", None, TOP), ("video", 3, TOP)]
    assert found[0].message == "has 25 frames, but its episodes have 27 rows"
    assert "no frame at 2.5000 s (row 4)" in found[1].message


def test_a_video_too_long_is_a_warning(dataset: Path) -> None:
    frames = np.concatenate([make_recording(number)["frames"][TOP] for number in range(5)])
    (dataset / VIDEO).write_bytes(video.encode(frames, fps=FPS, codec="lossless"))
    defect = only(dataset, "length")
    assert (defect.severity, defect.message) == (
        "warning",
        "has 34 frames, but its episodes have only 27 rows",
    )


def test_frames_out_of_step(dataset: Path) -> None:
    edit_column(
        dataset / EPISODES, f"videos/{TOP}/from_timestamp", lambda values: np.add(values, [0, 0, 0.03, 0])
    )
    defect = only(dataset, "timestamps")
    assert (defect.severity, defect.file, defect.episode, defect.key) == ("error", VIDEO, 2, TOP)
    assert "0.0300 s away" in defect.message


def test_spans_that_do_not_fit(dataset: Path) -> None:
    put(dataset / EPISODES, f"videos/{TOP}/to_timestamp", 1, 1.7)
    found = find_defects(dataset)
    assert [(d.kind, d.episode, d.key) for d in found] == [("length", 1, TOP), ("order", 2, TOP)]
    assert found[0].message == "spans 11.0 frames of the video, but has 7 rows"
    assert found[1].message == "starts at 1.300 s, before episode 1 ends (1.700 s)"


def test_pictures_of_another_size(dataset: Path) -> None:
    edit_info(dataset, lambda info: info["features"][TOP].update(shape=[48, 32, 3]))
    defect = only(dataset, "shape")
    assert (defect.file, defect.key) == (VIDEO, TOP)
    assert defect.message == "pictures are 24 x 32, but meta/info.json says 48 x 32"


def test_a_camera_that_saw_nothing(tmp_path: Path) -> None:
    recording = make_recording(0)
    recording["frames"][SIDE][:] = 17
    with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
        writer.add(**recording)
        writer.add(**make_recording(1))
    defect = only(tmp_path / "d", "blank")
    assert (defect.severity, defect.episode, defect.key) == ("warning", 0, SIDE)


def test_an_embedded_picture_that_is_none(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", fps=FPS, codec="image") as writer:
        for number in range(2):
            writer.add(**make_recording(number))
    path = tmp_path / "d" / DATA
    table = pq.read_table(path)
    cells = table[SIDE].to_pylist()
    cells[8]["bytes"] = cells[8]["bytes"][:30]
    number = table.column_names.index(SIDE)
    pq.write_table(table.set_column(number, table.field(SIDE), pa.array(cells, table.field(SIDE).type)), path)
    defect = only(tmp_path / "d", "picture")
    assert (defect.file, defect.episode, defect.key) == (DATA, 1, SIDE)
    assert "the picture of row 2 cannot be read" in defect.message


# Rows


def test_a_missing_data_file(dataset: Path) -> None:
    (dataset / DATA).unlink()
    defect = only(dataset, "data")
    assert (defect.severity, defect.file) == ("error", DATA)
    assert defect.message.endswith("(episodes 0 to 3)")


def test_an_unreadable_data_file(dataset: Path) -> None:
    (dataset / DATA).write_bytes((dataset / DATA).read_bytes()[:-100])
    assert only(dataset, "data").message.startswith("cannot be read as parquet")


def test_missing_rows(dataset: Path) -> None:
    table = pq.read_table(dataset / DATA)
    pq.write_table(pa.concat_tables([table[:12], table[13:]]), dataset / DATA)
    found = find_defects(dataset)
    assert [(d.kind, d.file, d.episode, d.key) for d in found] == [("length", DATA, 1, "length")]
    assert found[0].message == "6 rows, but the episodes table says 7"


def test_rows_of_nobody_and_an_episode_without_rows(dataset: Path) -> None:
    edit_column(dataset / DATA, "episode_index", lambda values: np.where(values == 3, 9, values))
    found = find(dataset, "length")
    assert [(d.episode, d.message) for d in found] == [
        (9, "has rows here, but the episodes table does not know it"),
        (3, "has no rows, but the episodes table says 6"),
    ]


def test_a_missing_column(dataset: Path) -> None:
    pq.write_table(pq.read_table(dataset / DATA).drop_columns(["observation.state"]), dataset / DATA)
    defect = only(dataset, "column")
    assert (defect.file, defect.key) == (DATA, "observation.state")


def test_missing_values(dataset: Path) -> None:
    table = pq.read_table(dataset / DATA)
    values = table["next.reward"].to_pylist()
    values[7] = None
    table = table.set_column(
        table.column_names.index("next.reward"), "next.reward", pa.array(values, pa.float32())
    )
    pq.write_table(table, dataset / DATA)
    defect = only(dataset, "missing-values")
    assert (defect.file, defect.episode, defect.key) == (DATA, 1, "next.reward")


def test_rows_of_another_size(dataset: Path) -> None:
    edit_info(dataset, lambda info: info["features"]["observation.state"].update(shape=[4]))
    found = find(dataset, "shape")
    assert [(d.file, d.episode, d.key) for d in found] == [(DATA, e, "observation.state") for e in range(4)]
    assert found[0].message == "rows have shape [3], but meta/info.json says [4]"


def test_timestamps_out_of_step(dataset: Path) -> None:
    put(dataset / DATA, "timestamp", slice(15, 17), [0.25, 0.35])
    defect = only(dataset, "timestamps")
    assert (defect.file, defect.episode, defect.key) == (DATA, 2, "timestamp")
    assert defect.message == "is 0.2500 s in row 2, expected 0.2000 s (2 rows)"


@pytest.mark.parametrize(("key", "right"), [("frame_index", 2), ("index", 15)])
def test_indices_that_do_not_ascend(dataset: Path, key: str, right: int) -> None:
    put(dataset / DATA, key, 15, 1)
    defect = only(dataset, "order")
    assert (defect.file, defect.episode, defect.key) == (DATA, 2, key)
    assert defect.message == f"is 1 in row 2, expected {right}"


def test_episodes_that_do_not_ascend(dataset: Path) -> None:
    table = pq.read_table(dataset / EPISODES)
    pq.write_table(table.take([0, 2, 1, 3]), dataset / EPISODES)
    found = find_defects(dataset)
    assert {(d.kind, d.severity) for d in found} == {("order", "error")}
    assert (found[0].episode, found[0].key) == (1, "episode_index")
    assert found[0].message == "does not ascend: 1 follows 2"


def test_a_task_that_does_not_exist(dataset: Path) -> None:
    put(dataset / DATA, "task_index", slice(0, 6), 5)
    defect = only(dataset, "task")
    assert (defect.episode, defect.message) == (0, "is 5, but there are 2 tasks")


def test_an_end_in_the_middle(dataset: Path) -> None:
    put(dataset / DATA, "next.terminated", 8, True)
    defect = only(dataset, "order")
    assert (defect.severity, defect.episode, defect.key) == ("warning", 1, "next.terminated")


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(dataset: Path, value: float) -> None:
    put(dataset / DATA, "action", (8, 1), value)
    found = find(dataset, "not-finite")
    assert [(d.severity, d.file, d.episode, d.key) for d in found] == [("error", DATA, 1, "action")]
    assert found[0].message == f"dimension 1 is {value} in row 2 (1 values)"


def test_an_action_outside_the_statistics(dataset: Path) -> None:
    put(dataset / DATA, "action", (20, 0), 7.5)
    found = find(dataset, "range")
    assert [(d.severity, d.file, d.episode, d.key) for d in found] == [("error", DATA, 2, "action")]
    assert "dimension 0 is 7.5 in row 7, outside the range" in found[0].message


def test_a_far_outlier(tmp_path: Path) -> None:
    """Statistics that know the outlier do not hide it."""
    with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
        for number in range(4):
            recording = make_recording(number, length=60)
            if number == 2:
                recording["columns"]["action"][41, 1] = -500.0
            writer.add(**recording)
    defect = only(tmp_path / "d", "outlier")
    assert (defect.severity, defect.file, defect.episode, defect.key) == ("warning", DATA, 2, "action")
    assert defect.message.startswith("dimension 1 is -500 in row 41; 98% of its values lie in")


@pytest.mark.parametrize(
    ("where", "severity", "episode", "message"),
    [
        (slice(None), "error", None, "is [0.5, 0.5] in all 72 rows of the dataset"),
        ((slice(None), 1), "warning", None, "dimension 1 is 0.5 in every row of the dataset"),
        (slice(18, 36), "warning", 1, "is [0.5, 0.5] in all 18 rows of the episode"),
    ],
)
def test_constant_actions(
    tmp_path: Path, where: Any, severity: str, episode: int | None, message: str
) -> None:
    recordings = [make_recording(number, length=18) for number in range(4)]
    actions = np.concatenate([recording["columns"]["action"] for recording in recordings])
    actions[where] = 0.5
    with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
        for recording, part in zip(recordings, np.split(actions, 4), strict=True):
            recording["columns"]["action"] = part
            writer.add(**recording)
    defect = only(tmp_path / "d", "constant")
    assert (defect.severity, defect.episode, defect.key, defect.message) == (
        severity,
        episode,
        "action",
        message,
    )


# Tables


def test_no_episodes(tmp_path: Path) -> None:
    DatasetWriter(tmp_path / "d", fps=FPS, features={"action": {"dtype": "float32", "shape": [2]}}).close()
    defect = only(tmp_path / "d", "empty")
    assert (defect.severity, str(defect)) == ("error", "error: meta/info.json: the dataset has no episodes")


def test_no_actions(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
        writer.add(frames={}, columns={"observation.state": np.arange(6.0).reshape(3, 2)})
    assert only(tmp_path / "d", "no-action").severity == "warning"


def test_totals_that_disagree(dataset: Path) -> None:
    edit_info(dataset, lambda info: info.update(total_episodes=5, total_frames=30))
    found = find_defects(dataset)
    assert [(d.kind, d.file, d.key) for d in found] == [
        ("totals", "meta/info.json", "total_episodes"),
        ("totals", "meta/info.json", "total_frames"),
    ]
    assert found[1].message == "says 30, but the tables hold 27"


def test_lengths_that_disagree_within_the_table(dataset: Path) -> None:
    put(dataset / EPISODES, "length", 2, 9)
    found = find_defects(dataset)
    assert {defect.kind for defect in found} == {"length", "totals"}
    assert {(d.file, d.episode) for d in found if d.kind == "length"} >= {
        ("meta/episodes", 2),
        (DATA, 2),
        (VIDEO, 2),
    }


def test_missing_statistics(dataset: Path) -> None:
    (dataset / "meta/stats.json").unlink()
    defect = only(dataset, "incomplete")
    assert (defect.severity, defect.file) == ("warning", "meta/stats.json")


def test_an_interrupted_recording(dataset: Path) -> None:
    with DatasetWriter(dataset, fps=FPS) as writer:
        writer.add(**make_recording(4))
        assert only(dataset, "interrupted").severity == "warning"
    assert find_defects(dataset) == []


def test_all_defects_are_found_at_once(dataset: Path) -> None:
    put(dataset / DATA, "action", (8, 1), np.nan)
    put(dataset / DATA, "timestamp", 15, 0.25)
    (dataset / VIDEO).unlink()
    edit_info(dataset, lambda info: info.update(total_tasks=3))
    assert [d.kind for d in find_defects(dataset)] == ["totals", "not-finite", "timestamps", "video"]


# The command


def run(root: Path, tmp_path: Path, **options: Any) -> int:
    return inspect(DataConfig(path=str(root), out=tmp_path / "sheet" / "sheet.png", **options))


def test_the_command_on_a_clean_dataset(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(clean, tmp_path) == 0
    printed = capsys.readouterr().out
    for expected in (
        "LeRobotDataset v3.0, robot square",
        "episodes   4 of 6 to 8 rows, median 6.5",
        "frames     27 at 10 fps, 0.00 hours",
        f"camera     {TOP}  24 x 32 x 3, h264 gbrp",
        "task       push the T  (2 episodes)",
        "observation.state 2",
        "no defects found",
    ):
        assert expected in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet" / "sheet.png"))
    assert sheet.shape[0] > 8 * 24
    assert sheet.std() > 10


def test_the_command_lists_defects_and_fails(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / VIDEO).unlink()
    put(dataset / DATA, "action", (8, 1), np.nan)
    put(dataset / DATA, "next.truncated", 8, True)
    assert run(dataset, tmp_path) == 1
    printed = capsys.readouterr().out.splitlines()
    assert f"error: {VIDEO}, {TOP}: is missing (episodes 0 to 3)" in printed
    assert f"error: {DATA}, episode 1, action: dimension 1 is nan in row 2 (1 values)" in printed
    assert printed[-1] == "2 errors, 1 warnings"
    # The other camera is still on the sheet.
    assert (tmp_path / "sheet" / "sheet.png").is_file()


def test_warnings_alone_do_not_fail(dataset: Path, tmp_path: Path) -> None:
    put(dataset / DATA, "next.terminated", 8, True)
    assert run(dataset, tmp_path) == 0


def test_the_command_as_json(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(dataset / DATA, "timestamp", 15, 0.28)
    assert run(dataset, tmp_path, json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["frames"], report["fps"]) == (4, 27, 10)
    assert report["tasks"] == {"push the T": 2, "pull the T": 2}
    assert np.shape(report["statistics"]["action"]["mean"]) == (2,)
    assert [(d["kind"], d["file"], d["episode"], d["key"]) for d in report["defects"]] == [
        ("timestamps", DATA, 2, "timestamp")
    ]


def test_the_command_on_statistics_that_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = make_recording(0)["columns"]
    columns["next.reward"][3] = np.nan
    with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
        writer.add(frames={}, columns=columns)
    assert run(tmp_path / "d", tmp_path) == 1
    assert "nan" in capsys.readouterr().out
    assert run(tmp_path / "d", tmp_path, json=True) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["statistics"]["next.reward"]["mean"] == [None]


def test_the_command_on_what_cannot_be_opened(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "meta/info.json").write_text("{")
    assert run(dataset, tmp_path) == 1
    assert "error: meta/info.json: is not valid JSON" in capsys.readouterr().out
    assert run(tmp_path / "nowhere", tmp_path, json=True) == 1
    assert json.loads(capsys.readouterr().out)["defects"][0]["kind"] == "unreadable"


def test_the_command_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with DatasetWriter(tmp_path / "d", fps=FPS) as writer:
        recording = make_recording(0, length=20)
        writer.add(frames={}, columns=recording["columns"])
    assert run(tmp_path / "d", tmp_path) == 0
    assert "contact sheet" not in capsys.readouterr().out


def test_many_defects_are_shortened(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    with DatasetWriter(root, fps=FPS) as writer:
        for number in range(14):
            writer.add(frames={}, columns=make_recording(number)["columns"])
    edit_column(root / DATA, "timestamp", lambda values: values * 2)
    assert run(root, tmp_path) == 1
    printed = capsys.readouterr().out
    assert printed.count("error: data/") == 10
    assert "and 4 more defects of the kind timestamps; --json lists all" in printed


def test_the_command_where_the_sheet_cannot_be_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert inspect(DataConfig(path=str(dataset), out=tmp_path / "file" / "sheet.png")) == 0
    printed = capsys.readouterr().out
    assert "episodes   4" in printed
    assert "no defects found" in printed
    assert "contact sheet: not written" in printed
    assert "--out" in printed


def test_the_command_on_a_terminal_of_few_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, stream = tmp_path / "d", io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with DatasetWriter(root, fps=FPS) as writer:
        writer.add(**make_recording(0) | {"task": "把红色方块放进盒子里"})
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(root, tmp_path) == 0
    stream.seek(0)
    assert "\\u628a" in stream.read()


@pytest.mark.parametrize("name", ["not-there", "empty", "file.parquet"])
def test_a_folder_that_is_no_dataset_is_named_as_it_was_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file.parquet").write_text("x")
    assert cli.main(["data", name]) == 1
    assert f"error: {name}: " in capsys.readouterr().out
