"""Frames of any spelling, depth kept apart, and rows that keep their own frames."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kinema.data import DataError, Dataset
from kinema.data.defects import find_defects, training_problems
from kinema.data.frames import as_rgb, join_cameras
from kinema.data.layout import picture_shape

from .conftest import (
    DATA,
    EPISODES,
    FPS,
    SIDE,
    TOP,
    VIDEO,
    assert_holds,
    edit_column,
    edit_json,
    make_recording,
    put,
    write,
)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([24, 32, 3], ["height", "width", "channels"]),
        ([24, 32, 3], None),
        ([24, 32, 3], {"axes": ["height", "width", "channel"]}),
        ([3, 24, 32], ["channels", "height", "width"]),
        ([3, 24, 32], ["channel", "height", "width"]),
        ([3, 24, 32], [["channels", "height", "width"]]),
        ([3, 24, 32], {"axes": ["C", "H", "W"]}),
        ([3, 24, 32], None),
        ([3, 24, 32], []),
        ([3, 24, 32], ["height", "width", "channels"]),
        ([24, 32, 3], ["channels", "height", "width"]),
    ],
)
def test_channels_are_where_the_shape_or_the_names_say(shape: list[int], names: object) -> None:
    assert picture_shape({"shape": shape, "names": names}) == (24, 32, 3)


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ([24, 32], ["height", "width"], (24, 32, 1)),
        ([24, 32], None, (24, 32, 1)),
        ([1, 1, 3], None, (1, 1, 3)),
        ([3, 40, 3], ["channels", "height", "width"], (40, 3, 3)),
        ([1, 24, 32], None, (24, 32, 1)),
        ([24, 32, 4], None, (24, 32, 4)),
    ],
)
def test_grey_alpha_and_tiny_frames(shape: list[int], names: object, expected: tuple[int, ...]) -> None:
    assert picture_shape({"shape": shape, "names": names}) == expected


@pytest.mark.parametrize("shape", [[24, 32, 7], [24], [2, 3, 24, 32], [], None, ["a", 2, 3], [0, 24, 3]])
def test_a_shape_that_is_no_camera_is_named(dataset: Path, shape: Any) -> None:
    edit_json(dataset / "meta/info.json", lambda info: info["features"][TOP].update(shape=shape))
    with pytest.raises(DataError, match=rf"info.json, {TOP}: shape .* is not that of a camera; expected"):
        Dataset(dataset)


def test_every_kind_of_frame_becomes_colour() -> None:
    grey = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    assert np.array_equal(as_rgb(grey, TOP), np.repeat(grey, 3, -1))
    alpha = np.arange(32, dtype=np.uint8).reshape(2, 2, 2, 4)
    assert np.array_equal(as_rgb(alpha, TOP), alpha[..., :3])
    for wrong in (grey.astype(np.uint16), grey[..., 0], np.zeros((2, 2, 2, 2), np.uint8)):
        with pytest.raises(DataError, match=f"{TOP}: frames must be uint8"):
            as_rgb(wrong, TOP)


def test_videos_of_several_heights_stand_side_by_side() -> None:
    high, low = np.zeros((2, 40, 20, 3), np.uint8), np.full((2, 20, 30, 3), 9, np.uint8)
    joined = join_cameras([high, low])
    assert joined.shape == (2, 40, 80, 3)
    assert (joined[:, :, 20:] == 9).all()


def test_depth_is_kept_apart(dataset: Path) -> None:
    info = {"video.pix_fmt": "gray12le", "video.is_depth_map": True}
    edit_json(dataset / "meta/info.json", lambda content: content["features"][SIDE].update(info=info))
    opened = Dataset(dataset)
    assert opened.cameras == (TOP,)
    assert [(note.key, note.message) for note in opened.notes] == [
        (SIDE, "depth of more than 8 bits is not a camera; it is left out")
    ]
    assert list(opened.episode(0).frames) == [TOP]
    assert [(d.severity, d.key) for d in find_defects(dataset)] == [("warning", SIDE)]


def set_images(root: Path, key: str, images: dict[int, np.ndarray]) -> None:
    """Put other PNG files in some rows of an embedded camera."""
    import io

    table = pq.read_table(root / DATA)
    cells = table[key].to_pylist()
    for row, image in images.items():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        cells[row]["bytes"] = buffer.getvalue()
    number = table.column_names.index(key)
    pq.write_table(
        table.set_column(number, table.field(key), pa.array(cells, table.field(key).type)), root / DATA
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((24, 32), 4000, np.uint16), "frames have more than 8 bits, as depth has"),
        (np.zeros((12, 16, 3), np.uint8), r"the frame of row 1 is 12 x 16, but .* says 24 x 32"),
    ],
)
def test_embedded_frames_of_another_kind_are_named(tmp_path: Path, image: np.ndarray, message: str) -> None:
    root = write(tmp_path / "d", [make_recording(n) for n in range(2)], codec="image")
    set_images(root, TOP, {7: image})
    assert Dataset(root).episode(0).frames[TOP].shape == (6, 24, 32, 3)
    with pytest.raises(DataError, match=rf"episode 1, {TOP}: {message}"):
        Dataset(root).episode(1)


def test_frames_of_another_size_than_announced_are_named(dataset: Path) -> None:
    edit_json(dataset / "meta/info.json", lambda info: info["features"][TOP].update(shape=[48, 32, 3]))
    with pytest.raises(DataError, match=f"{TOP}: frames are 24 x 32, but meta/info.json says 48 x 32"):
        Dataset(dataset).episode(0)
    found = training_problems(Dataset(dataset), segment_length=4, columns=("action", TOP))
    assert [(d.kind, d.key) for d in found.fatal] == [("shape", TOP)]


# Rows keep their own frames.


def recordings() -> list[dict[str, Any]]:
    return [make_recording(number) for number in range(4)]


@pytest.mark.parametrize("start", [0.04, 3.3, 50_000.0])
def test_timestamps_that_run_on_over_episodes(dataset: Path, start: float) -> None:
    edit_column(dataset / DATA, "timestamp", lambda values: start + np.arange(len(values)) / FPS)
    opened = Dataset(dataset)
    for index, expected in enumerate(recordings()):
        for camera in (TOP, SIDE):
            assert np.array_equal(opened.episode(index).frames[camera], expected["frames"][camera])
    found = [d for d in find_defects(dataset) if d.kind == "timestamps"]
    assert {(d.severity, d.key) for d in found} == {("warning", "timestamp")}
    assert training_problems(opened, segment_length=4, columns=("action", TOP)).left_out == []


def test_timestamps_that_jump_are_named_and_their_episode_left_out(dataset: Path) -> None:
    put(dataset / DATA, "timestamp", slice(10, 13), [0.6, 0.7, 0.8])
    opened = Dataset(dataset)
    with pytest.raises(DataError, match=r"episode 1, timestamp: is 0.6000 s .* in row 4, expected 0.4000 s"):
        opened.episode(1)
    opened.episode(1, cameras=())
    found = training_problems(opened, segment_length=4, columns=("action", TOP))
    assert (found.fatal, found.usable_episodes.tolist()) == ([], [0, 2, 3])


def shift_spans(root: Path, first: int, frames: int) -> None:
    """Let the spans of the episodes from ``first`` on begin and end so many frames later."""
    for name in ("from_timestamp", "to_timestamp"):
        edit_column(
            root / EPISODES,
            f"videos/{TOP}/{name}",
            lambda values: values + (np.arange(4) >= first) * frames / FPS,
        )


def test_a_gap_between_spans_that_the_video_does_not_hold(dataset: Path) -> None:
    shift_spans(dataset, first=1, frames=2)
    opened = Dataset(dataset)
    assert np.array_equal(opened.pictures(0, TOP), recordings()[0]["frames"][TOP])
    for index in (1, 2, 3):
        with pytest.raises(
            DataError, match=r"the episodes leave a gap and end at 2.900 s, but the video ends"
        ):
            opened.pictures(index, TOP)
    assert {d.episode for d in find_defects(dataset, is_decoding=False)} == {1, 2, 3}
    found = training_problems(opened, segment_length=4, columns=("action", TOP))
    assert found.usable_episodes.tolist() == [0]


def test_spans_that_overlap(dataset: Path) -> None:
    shift_spans(dataset, first=2, frames=-2)
    opened = Dataset(dataset)
    for index in (1, 2):
        with pytest.raises(DataError, match=r"starts at .* before|ends at .* after"):
            opened.pictures(index, TOP)
    assert np.array_equal(opened.pictures(0, TOP), recordings()[0]["frames"][TOP])


def test_a_gap_of_deleted_episodes_is_none_of_the_others(dataset: Path) -> None:
    for path in (dataset / DATA, dataset / EPISODES):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.array(np.asarray(table["episode_index"]) != 1)), path)
    opened = Dataset(dataset)
    for index, number in enumerate((0, 2, 3)):
        assert np.array_equal(opened.pictures(index, TOP), recordings()[number]["frames"][TOP])


def rewrite_video(path: Path, first: int, skip: int = 0) -> None:
    """The same frames, without the first ``skip``, from the time of frame ``first`` on."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        options = {"crf": "0", "bf": "0"}
        stream: Any = container.add_stream("libx264rgb", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], "rgb24"
        for number, image in enumerate(frames[skip:]):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number + first
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_video_that_starts_late_is_read_from_its_first_frame(dataset: Path) -> None:
    rewrite_video(dataset / VIDEO, first=3)
    assert_holds(Dataset(dataset), recordings())
    found = find_defects(dataset)
    assert [(d.severity, d.kind, d.key) for d in found] == [("warning", "timestamps", TOP)]


def test_a_video_that_starts_late_and_lacks_frames_is_refused(dataset: Path) -> None:
    rewrite_video(dataset / VIDEO, first=3, skip=2)
    with pytest.raises(DataError, match=r"first frame is at 0.300 s, but episodes start at 0.000 s"):
        Dataset(dataset).pictures(1, TOP)


def test_tasks_are_looked_up_by_their_number(dataset: Path) -> None:
    table = pq.read_table(dataset / "meta/tasks.parquet")
    number = table.column_names.index("task_index")
    pq.write_table(table.set_column(number, "task_index", pa.array([7, 2])), dataset / "meta/tasks.parquet")
    edit_column(dataset / DATA, "task_index", lambda values: np.where(values == 0, 7, 2))
    opened = Dataset(dataset)
    assert [opened.episode(index).task for index in range(4)] == [r["task"] for r in recordings()]
    assert [d for d in find_defects(dataset) if d.kind == "task"] == []
    put(dataset / DATA, "task_index", slice(0, 6), 1)
    assert [(d.episode, d.key) for d in find_defects(dataset) if d.kind == "task"] == [(0, "task_index")]
