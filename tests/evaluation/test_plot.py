"""Plots show what they are given, in the colours of their theme."""

import math

import numpy as np
import pytest
from PIL import ImageColor

from kinema.data.drawing import LINE_HEIGHT, side_by_side
from kinema.evaluation.plot import DARK, LIGHT, Theme, draw_agreement, draw_series, error_video
from kinema.evaluation.result import Series


def series(what: str, at: list[int], value: np.ndarray, panel: str = "p") -> Series:
    low, high = (0.9 * value).tolist(), (1.1 * value).tolist()
    return Series(key=what, what=what, unit="", panel=panel, at=at, value=value.tolist(), low=low, high=high)


def has_colour(picture: np.ndarray, colour: str, tolerance: int = 40) -> bool:
    distance = np.abs(picture.astype(int) - ImageColor.getrgb(colour))
    return bool((distance.max(axis=-1) <= tolerance).any())


def video(length: int = 5, height: int = 8, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_panels_stand_under_each_other_in_their_colours(theme: Theme) -> None:
    at, rising = [1, 10, 100, 1000], np.array([1.0, 2.0, 3.0, 4.0])
    shown = [series("a", at, rising), series("b", at, rising, "q"), series("c", at, rising[::-1], "q")]
    picture = draw_series(shown, axis="step", theme=theme)
    assert tuple(picture[0, 0]) == ImageColor.getrgb(theme.background)
    half = len(picture) // 2
    for part, expected in ((picture[:half], [True, False]), (picture[half:], [True, True])):
        assert [has_colour(part, colour, 8) for colour in theme.lines[:2]] == expected


def test_what_rises_is_drawn_rising() -> None:
    values = np.arange(1.0, 6.0)
    picture = draw_series([series("a", [1, 2, 3, 4, 5], values)], axis="step")[80:]
    rows, columns = np.nonzero((picture == ImageColor.getrgb(DARK.lines[0])).all(axis=2))
    assert np.corrcoef(rows, columns)[0, 1] < -0.9


@pytest.mark.filterwarnings("error")
def test_places_without_a_number_are_left_out() -> None:
    nothing = np.full(3, np.nan)
    empty = draw_series([series("a", [1, 2, 3], nothing)], axis="step")
    assert not has_colour(empty[100:], DARK.lines[0])
    holes = np.array([1.0, np.nan, 3.0])
    assert has_colour(draw_series([series("a", [1, 2, 3], holes)], axis="step"), DARK.lines[0])
    assert has_colour(draw_series([series("a", [1], np.zeros(1))], axis="step"), DARK.lines[0])
    assert draw_series([], axis="step").ndim == 3


def test_agreement_shows_every_point_on_one_scale() -> None:
    x, y = np.array([1.0, 2.0]), np.array([1.1, 1.9])
    spans = np.stack([x - 0.1, x + 0.1], axis=1)
    means = {"real": x, "simulated": y}
    picture = draw_agreement(["a", "b"], means, dict.fromkeys(means, spans), title="t")
    assert picture.shape[0] == picture.shape[1]
    assert all(has_colour(picture, colour, 8) for colour in DARK.lines[:2])
    assert not has_colour(picture, DARK.lines[2], 8)


def test_error_video_draws_every_curve_with_a_marker_that_moves_and_leaves_gaps() -> None:
    pictures = side_by_side(video(40, 16, 60), video(40, 16, 60, seed=1))
    agent = np.linspace(0.0, 4.0, 40)
    agent[10:20] = np.nan
    frames = list(error_video(pictures, {"agent": agent, "block": np.full(40, 2.0)}, unit="px", scale=2))
    assert len(frames) == 40
    assert len({frame.shape for frame in frames}) == 1
    enlarged = pictures[7].repeat(2, axis=0).repeat(2, axis=1)
    header = LINE_HEIGHT + 2
    np.testing.assert_array_equal(frames[7][header : header + 32], enlarged)
    first, gap, last = (frames[index][header + 32 + 20 :] for index in (0, 15, 39))
    assert has_colour(last, DARK.lines[0])
    assert has_colour(last, DARK.lines[1])
    # What is to come is dim: at the start only the markers are bright, at the left end.
    assert not has_colour(first[:, 60:], DARK.lines[0])
    assert not has_colour(first[:, 60:], DARK.lines[1])
    # Where a curve has no value it is not drawn.
    room = last.shape[1] - 45 - 15
    left, right = 45 + math.ceil(room * 10.5 / 39), 45 + math.floor(room * 18.5 / 39)
    assert not has_colour(last[:, left:right], DARK.lines[0])
    assert has_colour(gap[:, left:right], DARK.lines[1])


@pytest.mark.parametrize("values", [[math.nan, math.nan], [0.0, 0.0], [1e-9, 1e9]])
def test_error_video_draws_degenerate_values(values: list[float]) -> None:
    frames = list(error_video(video(2, 8, 200), {"error": np.array(values)}, scale=1))
    assert len(frames) == 2


def test_error_video_without_curves_only_names_the_panels() -> None:
    (frame,) = error_video(video(1, 8, 60), {}, scale=3)
    assert frame.shape == (LINE_HEIGHT + 2 + 24, 180, 3)


def test_error_video_refuses_a_curve_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"'agent' has shape \(4,\), but there are 5"):
        list(error_video(video(5), {"agent": np.zeros(4)}))
