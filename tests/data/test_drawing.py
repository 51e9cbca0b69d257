from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kinema.data import drawing


def film(length: int = 5, height: int = 8, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, height, width, 3), dtype=np.uint8)


def test_contact_sheet_shows_evenly_spaced_frames_unchanged() -> None:
    frames = np.arange(9, dtype=np.uint8).repeat(4 * 6 * 3).reshape(9, 4, 6, 3) * 20
    sheet = drawing.contact_sheet([frames, 255 - frames], columns=3, scale=2)
    cell = 6 * 2 + drawing.GAP
    for row, expected in enumerate((frames, 255 - frames)):
        top = drawing.LINE_HEIGHT + row * (4 * 2 + drawing.GAP)
        for column, index in enumerate((0, 4, 8)):
            left = drawing.GAP + column * cell
            shown = sheet[top : top + 8, left : left + 12]
            np.testing.assert_array_equal(shown, expected[index].repeat(2, axis=0).repeat(2, axis=1))


def test_contact_sheet_shows_the_frames_asked_for() -> None:
    frames = film(30)
    sheet = drawing.contact_sheet([frames], scale=1, indices=[2, 29], labels=["real"])
    assert sheet.shape[0] == drawing.LINE_HEIGHT + 8 + drawing.GAP
    np.testing.assert_array_equal(sheet[drawing.LINE_HEIGHT :][:8, -12:-2], frames[29])


def test_contact_sheet_takes_films_of_different_size_and_grey_ones() -> None:
    sheet = drawing.contact_sheet([film(3, 8, 10), film(20, 16, 6)[..., :1]], columns=4, scale=1)
    assert sheet.shape == (
        drawing.LINE_HEIGHT + 2 * (16 + drawing.GAP),
        drawing.GAP + 4 * (10 + drawing.GAP),
        3,
    )


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([], None, "at least one row"),
        ([film()], ["a", "b"], "1 rows but 2 labels"),
        ([film(0)], None, "no frames"),
        ([film()[0]], None, "T H W C"),
        ([film().astype(np.float32)], None, "uint8"),
    ],
)
def test_contact_sheet_says_what_is_wrong(
    rows: list[np.ndarray], labels: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        drawing.contact_sheet(rows, labels=labels)


def test_difference_is_grey_where_films_agree_and_tells_dark_from_bright() -> None:
    real = np.full((1, 2, 3, 3), 128, np.uint8)
    simulated = real.copy()
    simulated[0, 0, 0] = 0
    simulated[0, 1, 2] = 255
    shown = drawing.difference(real, simulated)
    assert tuple(shown[0, 0, 0]) == drawing.TOO_DARK
    assert np.abs(shown[0, 1, 2].astype(int) - drawing.TOO_BRIGHT).max() <= 2
    same = shown[0, 0, 1]
    assert same[0] == same[1] == same[2]


def test_difference_sees_a_wrong_hue_of_the_right_brightness() -> None:
    real = np.zeros((1, 1, 1, 3), np.uint8) + np.array([200, 0, 100], np.uint8)
    simulated = real[..., ::-1]
    simulated = np.ascontiguousarray(simulated[..., [1, 0, 2]])
    assert int(real.sum()) == int(simulated.sum())
    shown = drawing.difference(real, simulated)[0, 0, 0].astype(int)
    assert np.ptp(shown) > 100


def test_side_by_side_keeps_both_films_and_the_difference_in_order() -> None:
    real, simulated = film(seed=1), film(seed=2)
    shown = drawing.side_by_side(real, simulated)
    assert shown.shape == (5, 8, 3 * 10 + 2 * drawing.GAP, 3)
    np.testing.assert_array_equal(shown[:, :, :10], real)
    np.testing.assert_array_equal(shown[:, :, 10 + drawing.GAP : 20 + drawing.GAP], simulated)
    np.testing.assert_array_equal(shown[:, :, -10:], drawing.difference(real, simulated))


def test_side_by_side_refuses_films_of_different_shape() -> None:
    with pytest.raises(ValueError, match=r"\(5, 8, 10, 3\).*\(4, 8, 10, 3\)"):
        drawing.side_by_side(film(5), film(4))


def test_mp4_plays_in_browsers_and_holds_every_frame(tmp_path: Path) -> None:
    # Smooth frames of odd size, each of another brightness.
    frames = np.stack([np.full((9, 11, 3), 40 + 50 * t, np.uint8) for t in range(4)])
    drawing.write_video(tmp_path / "new" / "film.mp4", frames, fps=12.5, scale=3)
    with av.open(str(tmp_path / "new" / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in ("h264", "libx264")
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == 12.5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 4
    assert decoded[0].shape == (28, 34, 3)
    for frame, expected in zip(decoded, frames, strict=True):
        assert abs(float(frame.mean()) - float(expected.mean())) < 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.mp4"]


def test_gif_holds_every_frame_at_its_pace(tmp_path: Path) -> None:
    drawing.write_video(tmp_path / "film.gif", iter(film(4)), fps=10, scale=2)
    with Image.open(tmp_path / "film.gif") as image:
        assert getattr(image, "n_frames", 1) == 4
        assert image.size == (20, 16)
        assert image.info["duration"] == 100
        assert image.info["loop"] == 0


def test_failing_while_writing_keeps_the_old_file_and_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    drawing.write_video(path, film(3), fps=10)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="differ in size"):
        drawing.write_video(path, [film(1, 8, 10)[0], film(1, 8, 12)[0]], fps=10)
    with pytest.raises(ValueError, match="no frames"):
        drawing.write_video(path, [], fps=10)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_video_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"film\.avi: .*\.mp4 or \.gif"):
        drawing.write_video(tmp_path / "film.avi", film(), fps=10)


def test_png_is_exact(tmp_path: Path) -> None:
    picture = film(1)[0]
    drawing.write_png(tmp_path / "picture.png", picture)
    with Image.open(tmp_path / "picture.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
