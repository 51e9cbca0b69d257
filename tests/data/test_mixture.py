"""Datasets of several robots as one."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data.dimensions import Dimension
from kinema.data.mixture import Source, draw_rows, shares_of, unify, unite
from kinema.data.segments import Segments


def numbers(*names: str, low: float = 0.0, high: float = 1.0) -> list[Dimension]:
    return [Dimension(name=name, kind="continuous", low=low, high=high) for name in names]


def recording(
    lengths: list[int], num_actions: int, num_proprio: int = 0, camera: str | None = None
) -> Segments:
    rows = sum(lengths)
    return Segments(
        frames={camera: np.zeros((rows, 2, 2, 3), np.uint8)} if camera else {},
        actions=np.arange(rows * num_actions, dtype=np.float32).reshape(rows, num_actions),
        proprio=np.ones((rows, num_proprio), np.float32) if num_proprio else None,
        lengths=np.array(lengths),
        native_sizes={camera: (2, 2)} if camera else {},
    )


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("data/b", "data/b", None),
        ("data/b:2", "data/b", 2.0),
        ("owner/name:0.5", "owner/name", 0.5),
        ("data/b:c", "data/b:c", None),
    ],
)
def test_weights_stand_behind_names(text: str, name: str, weight: float | None) -> None:
    assert Source.parse(text) == Source(name, weight)


def test_a_folder_with_a_colon_is_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "10:22:05"
    folder.mkdir()
    assert Source.parse(str(folder)) == Source(str(folder), None)
    assert Source.parse(f"{folder}:3") == Source(str(folder), 3.0)


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
def test_a_weight_is_positive(weight: str) -> None:
    with pytest.raises(ValueError, match=f"data/b:{weight}: a weight must be a positive number"):
        Source.parse(f"data/b:{weight}")


def test_shares_are_weights_against_one() -> None:
    assert shares_of([Source("a", None), Source("b", None)]) is None
    assert shares_of([Source("a", None), Source("b", 2.0), Source("c", None)]) == [0.25, 0.5, 0.25]


def test_numbers_of_one_name_are_one() -> None:
    united = unite([numbers("x", "y"), numbers("y", "grip", low=-1.0)], ["arm", "hand"])
    assert [each.name for each in united.dimensions] == ["x", "y", "grip"]
    assert [(each.low, each.high) for each in united.dimensions] == [(0, 1), (-1, 1), (-1, 1)]
    assert [places.tolist() for places in united.places] == [[0, 1], [1, 2]]
    assert np.isnan(united.spread(np.ones((2, 2), np.float32), 1)).tolist() == [[True, False, False]] * 2


def test_numbers_of_other_kinds_are_apart_and_say_whose_they_are() -> None:
    choices = [Dimension(name="x", kind="discrete", low=0.0, high=3.0)]
    united = unite([numbers("x"), choices], ["arm", "hand"])
    assert [each.name for each in united.dimensions] == ["arm/x", "hand/x"]


def test_numbers_without_names_are_those_of_one_robot() -> None:
    two = numbers("0", "1")
    assert len(unite([two, two], ["arm", "arm"]).dimensions) == 2
    united = unite([two, numbers("0")], ["arm", "hand"])
    assert [each.name for each in united.dimensions] == ["arm/0", "1", "hand/0"]


def test_an_angle_that_was_not_seen_to_wrap_is_the_same_number() -> None:
    angle = Dimension(name="roll", kind="angle", low=-np.pi, high=np.pi)
    for pair in ([angle], numbers("roll")), (numbers("roll"), [angle]):
        assert unite(pair, ["arm", "arm"]).dimensions == (angle,)
    assert len(unite([[angle], numbers("roll", high=9.0)], ["arm", "arm"]).dimensions) == 2


def test_masks_say_what_each_recording_has() -> None:
    actions = unite([numbers("x", "y"), ()], ["arm", "video"])
    proprio = unite([(), numbers("h")], ["arm", "video"])
    parts = [
        unify(each, number, actions=actions, proprio=proprio, cameras=("top", "side"))
        for number, each in enumerate([recording([3, 2], 2, camera="top"), recording([4], 0, 1, "side")])
    ]
    both = parts[0].followed_by(parts[1])
    masks = both.masks(np.array([[1, 4], [5, 6]]))
    assert masks.action.tolist() == [[True, True], [False, False]]
    assert masks.proprio.tolist() == [[False, False], [True, True]]
    assert masks.cameras[:, 0].tolist() == [[True, False], [False, True]]
    assert masks.action_numbers[:, 0].tolist() == [[True, True], [False, False]]
    assert masks.proprio_numbers[:, 0].tolist() == [[False], [True]]
    assert np.array_equal(np.isnan(both.actions), np.repeat([[False], [True]], [5, 4], axis=0) & [True, True])


def test_segments_are_drawn_by_shares_and_stay_in_their_recording() -> None:
    parts = [recording([10, 20], 1), recording([500], 1), recording([8], 1)]
    rows = draw_rows(np.random.default_rng(0), parts, [0.5, 0.25, 0.25], 4000, 6)
    of_part = np.searchsorted([30, 530, 538], rows, side="right")
    assert (of_part == of_part[:, :1]).all()
    assert (np.diff(rows) == 1).all()
    shares = np.bincount(of_part[:, 0]) / 4000
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.03)
    again = draw_rows(np.random.default_rng(0), parts, [0.5, 0.25, 0.25], 4000, 6)
    assert np.array_equal(rows, again)
