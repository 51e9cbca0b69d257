"""Recorded numbers as the network has them, and back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data.dimensions import TURNS, Dimension
from kinema.model.units import Normalizer


def continuous(count: int) -> Normalizer:
    return Normalizer([Dimension(name=str(index), kind="continuous") for index in range(count)])


def test_the_normalizer_brings_the_range_of_the_data_to_one_and_back() -> None:
    values = np.random.default_rng(0).uniform([-3, 100], [5, 200], (10_000, 2))
    normalizer = continuous(2)
    normalizer.fit(values)
    normalized = normalizer.normalize(torch.tensor([[-3.0, 100.0], [1.0, 150.0], [5.0, 200.0]]))
    torch.testing.assert_close(
        normalized, torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]), atol=0.01, rtol=0.0
    )
    data = torch.from_numpy(values).float()
    torch.testing.assert_close(normalizer.restore(normalizer.normalize(data)), data)
    # Nothing is clipped, so actions beyond the data are still distinct.
    assert normalizer.normalize(torch.tensor([[9.0, 150.0]]))[0, 0] > 1.9


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e9, 1e30])
def test_the_normalizer_takes_any_range_for_one(scale: float) -> None:
    values = (scale * np.random.default_rng(0).uniform(-1, 1, (10_000, 1))).astype(np.float32)
    normalizer = continuous(1)
    normalizer.fit(values)
    normalized = normalizer.normalize(torch.from_numpy(values))
    assert normalized.abs().max() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(normalizer.restore(normalized), torch.from_numpy(values), atol=0, rtol=1e-5)


def test_a_constant_with_the_error_of_single_precision_is_a_constant() -> None:
    values = np.full((100, 1), 0.7, np.float32)
    values[::2] = np.nextafter(np.float32(0.7), np.float32(1))
    normalizer = continuous(1)
    normalizer.fit(values)
    assert normalizer.scale.item() == 1.0


def test_the_normalizer_withstands_outliers_and_constants() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (10_000, 2))
    values[0, 0], values[:, 1] = 1e6, 7.0
    normalizer = continuous(2)
    normalizer.fit(values)
    normalized = normalizer.normalize(torch.tensor([[1.0, 7.0], [0.0, 7.5]]))
    torch.testing.assert_close(normalized, torch.tensor([[1.0, 0.0], [0.0, 0.5]]), atol=0.02, rtol=0.0)


def angle(turn: float = 2 * math.pi, begin: float = -math.pi) -> Dimension:
    return Dimension(name="roll", kind="angle", low=begin, high=begin + turn)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Dimension], np.ndarray]:
    """An embodiment of 1 to 100 numbers of mixed kinds, and rows ``200 A`` of it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = st.sampled_from(["continuous", "constant", "angle", "discrete", "one-hot"])
    dimensions: list[Dimension] = []
    columns: list[np.ndarray] = []
    for kind in draw(st.lists(kinds, min_size=1, max_size=100)):
        if kind == "angle":
            turn = TURNS[draw(st.sampled_from(["radians", "degrees"]))]
            begin = draw(st.sampled_from([0.0, -turn / 2]))
            dimensions.append(angle(turn, begin))
            columns.append(rng.uniform(begin, begin + turn, 200))
        elif kind == "discrete":
            low, count = draw(st.integers(-3, 3)), draw(st.integers(2, 8))
            dimensions.append(Dimension(name="gear", kind="discrete", low=low, high=low + count - 1))
            columns.append(rng.integers(low, low + count, 200))
        elif kind == "one-hot":
            dimensions += [Dimension(name="mode", kind="one-hot", high=1.0, choices=3)] * 3
            columns += list(np.eye(3)[rng.integers(0, 3, 200)].T)
        else:
            middle, half = rng.normal() * 10.0 ** rng.integers(-6, 6, 2)[:, None], (kind != "constant")
            dimensions.append(Dimension(name="x", kind="continuous"))
            columns.append(np.broadcast_to(middle[0] + half * middle[1] * rng.uniform(-1, 1, 200), 200))
    return dimensions[:100], np.stack(columns[:100], axis=1).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_any_embodiment_comes_back(recording: tuple[list[Dimension], np.ndarray]) -> None:
    dimensions, rows = recording
    normalizer = Normalizer(dimensions)
    normalizer.fit(rows)
    normalized = normalizer.normalize(torch.from_numpy(rows))
    assert normalized.shape == (200, sum(dimension.num_columns for dimension in dimensions))
    restored = normalizer.restore(normalized).numpy()
    low, high = normalizer.range
    for index, dimension in enumerate(dimensions):
        start = int(normalizer.first[index])
        columns = normalized[:, start : start + dimension.num_columns]
        error = np.abs(restored[:, index] - rows[:, index])
        if dimension.kind == "angle":
            turn = dimension.high - dimension.low
            error = np.minimum(error, turn - error)
            assert (error < 1e-5 * turn).all()
            torch.testing.assert_close(columns.square().sum(-1), torch.ones(200))
            assert (restored[:, index] >= low[index] - 1e-4 * turn).all()
            assert (restored[:, index] <= high[index] + 1e-4 * turn).all()
        elif dimension.kind in ("discrete", "one-hot"):
            assert (error == 0).all()
            assert set(columns.unique().tolist()) == {-1.0, 1.0}
        else:
            assert (error <= 1e-5 * np.abs(rows[:, index]).max()).all()
            assert columns.abs().max() <= 1.5


@pytest.mark.parametrize("turn", TURNS.values())
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_angle_is_near_itself_across_the_seam(turn: float, share: float) -> None:
    normalizer = Normalizer([angle(turn, -share * turn)])
    low, high = (torch.tensor([[end]]) for end in (-share * turn + 1e-4, (1 - share) * turn - 1e-4))
    apart = (normalizer.normalize(low) - normalizer.normalize(high)).abs().max()
    assert apart < 2e-3
    assert normalizer.range[0].tolist() == [-share * turn]


def test_a_vector_off_the_circle_is_the_angle_that_it_points_to() -> None:
    normalizer = Normalizer([angle()])
    assert normalizer.restore(torch.tensor([[0.4, 0.0]])).item() == pytest.approx(math.pi / 2)
    assert normalizer.restore(torch.tensor([[0.0, -3.0]])).item() == pytest.approx(-math.pi)


def test_a_rare_choice_has_the_scale_of_the_others() -> None:
    rows = np.eye(3)[np.zeros(5000, int)]
    rows[:2] = np.eye(3)[1]
    normalizer = Normalizer([Dimension(name=str(i), kind="one-hot", high=1.0, choices=3) for i in range(3)])
    normalizer.fit(rows)
    assert normalizer.normalize(torch.eye(3)).tolist() == (2 * np.eye(3) - 1).tolist()


def test_only_one_group_that_is_the_whole_vector_takes_a_choice() -> None:
    def choices(count: int, kind: str = "one-hot", size: int = 3) -> Normalizer:
        return Normalizer([Dimension(name="", kind=kind, high=1.0, choices=size)] * count)

    assert choices(3).takes_choice
    assert not choices(6).takes_choice
    zeros_and_ones = choices(3, "continuous", 0)
    zeros_and_ones.fit(np.eye(3)[np.arange(99) % 3])
    assert not zeros_and_ones.takes_choice
    # Worlds of kinema 0.1.0 do not say what they take.
    old = Normalizer([Dimension(name=name) for name in "abc"])
    assert not old.takes_choice
    old.fit(np.eye(3)[np.arange(99) % 3])
    assert old.takes_choice


def test_errors_of_angles_are_in_units_of_the_turn() -> None:
    normalizer = Normalizer([
        Dimension(name="height", kind="continuous", low=-2.0, high=2.0),
        Dimension(name="roll", kind="angle", low=-180.0, high=180.0),
    ])  # fmt: skip
    normalizer.fit(np.random.default_rng(0).uniform([-2.0, -180.0], [2.0, 180.0], (5000, 2)))
    assert normalizer.half_range == pytest.approx([2.0, 180.0], rel=0.01)
    values = torch.tensor([[0.5, 90.0], [0.6, 91.0]])
    one, other = normalizer.normalize(values)
    assert normalizer.restore_error(other - one).abs().tolist() == pytest.approx([0.1, 1.0], rel=0.01)
