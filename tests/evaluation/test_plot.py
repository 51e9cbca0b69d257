import numpy as np

from kinema.data.view import BACKGROUND
from kinema.evaluation.plot import COLOURS, Line, Panel, paint


def line(name: str, x: np.ndarray, y: np.ndarray) -> Line:
    return Line(name, x, y, 0.9 * y, 1.1 * y)


def test_panels_stand_under_each_other_in_their_colours() -> None:
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    one = Panel("first", "px", [line("a", x, np.array([1.0, 2.0, 3.0, 4.0]))])
    two = Panel("second", "", [line("a", x, x), line("b", x, x[::-1])])
    picture = paint([one, two], axis="step", width=400, height=200)
    assert picture.shape == (400, 400, 3)
    for half, expected in ((picture[:200], [True, False]), (picture[200:], [True, True])):
        found = [bool((half == colour).all(axis=2).any()) for colour in COLOURS[:2]]
        assert found == expected


def test_what_rises_is_drawn_rising() -> None:
    x = np.arange(1.0, 6.0)
    picture = paint([Panel("p", "", [line("a", x, x)])], axis="step")
    rows, columns = np.nonzero((picture[50:] == COLOURS[0]).all(axis=2))
    assert np.corrcoef(rows, columns)[0, 1] < -0.9


def test_places_without_a_number_are_left_out() -> None:
    x = np.array([1.0, 2.0, 3.0])
    nothing = np.full(3, np.nan)
    holes = np.array([1.0, np.nan, 3.0])
    picture = paint([Panel("p", "", [Line("a", x, nothing, nothing, nothing)])], axis="step")
    assert (picture[-5, 5] == BACKGROUND).all()
    assert paint([Panel("p", "", [Line("a", x, holes, nothing, nothing)])], axis="step").any()
    assert paint([Panel("p", "", [Line("a", x[:1], np.zeros(1), nothing[:1], nothing[:1])])], axis="s").any()
    assert paint([], axis="step").ndim == 3
