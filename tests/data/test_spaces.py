"""Every space that can be recorded becomes vectors whose names and lengths agree."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data.spaces import ActionReader, ObservationReader, RecordError, resize, to_frame

numbers = st.one_of(
    st.lists(st.integers(1, 3), max_size=2).map(
        lambda shape: spaces.Box(-2.0, 2.0, tuple(shape), np.float64)
    ),
    st.builds(spaces.Discrete, st.integers(1, 4), start=st.integers(-2, 2)),
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.builds(spaces.MultiBinary, st.integers(1, 3)),
)
nested = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.dictionaries(st.text("ab/", min_size=1, max_size=3), inner, min_size=1, max_size=3).map(
            spaces.Dict
        ),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(space=nested, seed=st.integers(0, 100))
def test_names_and_numbers_agree(space: spaces.Space[Any], seed: int) -> None:
    space.seed(seed)
    value = space.sample()
    expected = spaces.flatten(space, value)

    vector, names = ActionReader(space).vector(value), ActionReader(space).names
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, np.asarray(expected, np.float64), rtol=1e-6)
    assert len(names) == len(vector)

    reader = ObservationReader(space)
    assert not reader.cameras
    (state,) = reader.vectors(value).values()
    np.testing.assert_array_equal(state, vector)
    assert [len(column) for column in reader.names.values()] == [len(state)]


def test_a_vector_does_not_share_memory_with_its_source() -> None:
    source = np.zeros(3, np.float32)
    vector = ActionReader(spaces.Box(-1.0, 1.0, (3,), np.float32)).vector(source)
    source[:] = 1.0
    np.testing.assert_array_equal(vector, 0.0)


@pytest.mark.parametrize("shape", [(16, 20), (16, 20, 1), (1, 16, 20), (16, 20, 3), (3, 16, 20)])
def test_pictures_of_every_layout(shape: tuple[int, ...]) -> None:
    marked = np.zeros(shape, np.uint8)
    if len(shape) == 3 and shape[0] in (1, 3):
        marked[:, 2, 5] = 9
    else:
        marked[2, 5] = 9
    reader = ObservationReader(spaces.Box(0, 255, shape, np.uint8))
    (picture,) = reader.frames(marked).values()
    expected = np.zeros((16, 20, 3), np.uint8)
    expected[2, 5] = 9
    np.testing.assert_array_equal(picture, expected)
    assert not np.shares_memory(picture, marked)


def test_small_and_float_arrays_are_numbers() -> None:
    for box in (spaces.Box(0, 9, (7, 7, 3), np.uint8), spaces.Box(0.0, 1.0, (16, 16), np.float32)):
        assert not ObservationReader(box).cameras


def test_two_pictures_of_one_name_are_refused() -> None:
    picture = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    with pytest.raises(RecordError, match=r"both be called 'observation\.images\.a\.b'"):
        ObservationReader(spaces.Dict({"a": spaces.Dict({"b": picture}), "a.b": picture}))


def test_a_space_without_a_fixed_size_is_refused() -> None:
    with pytest.raises(RecordError, match="'words' is a Sequence space"):
        ObservationReader(spaces.Dict({"words": spaces.Sequence(spaces.Discrete(3))}))


def test_float_pictures_are_refused() -> None:
    with pytest.raises(RecordError, match=r"expected a uint8 frame.*float32 of shape \(4, 4, 3\)"):
        to_frame(np.zeros((4, 4, 3), np.float32), "observation.images.render")


def test_resizing_averages_areas() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2, ::2] = 100
    np.testing.assert_array_equal(resize(picture, (2, 2))[..., 1], [[50, 50], [0, 0]])


def test_an_observation_is_put_together_again() -> None:
    space = spaces.Dict(
        {
            "top": spaces.Box(0, 255, (24, 32, 3), np.uint8),
            "grey": spaces.Box(0, 255, (24, 32), np.uint8),
            "first": spaces.Box(0, 255, (3, 24, 32), np.uint8),
            "arm": spaces.Tuple([spaces.Box(-1.0, 1.0, (2, 2), np.float64), spaces.Discrete(4, start=2)]),
            "grips": spaces.MultiBinary(3),
            "modes": spaces.MultiDiscrete([2, 5]),
            "task": spaces.Text(20, min_length=0),
        }
    )
    reader = ObservationReader(space)
    space.seed(0)
    for _ in range(20):
        observation = space.sample()
        again = reader.observation(reader.frames(observation), reader.vectors(observation))
        assert space.contains(again)
        for key in ("top", "grey", "first", "grips", "modes"):
            np.testing.assert_array_equal(again[key], observation[key])
        np.testing.assert_allclose(again["arm"][0], observation["arm"][0], atol=1e-6)
        assert again["arm"][1] == observation["arm"][1]
        assert again["task"] == ""


def test_an_observation_needs_all_that_its_space_has() -> None:
    space = spaces.Dict(
        {"top": spaces.Box(0, 255, (24, 32, 3), np.uint8), "arm": spaces.Box(-1.0, 1.0, (3,), np.float32)}
    )
    reader = ObservationReader(space)
    picture = {"observation.images.top": np.zeros((24, 32, 3), np.uint8)}
    with pytest.raises(RecordError, match=r"needs 3 numbers of observation\.state, got 2"):
        reader.observation(picture, {"observation.state": np.zeros(2)})
    with pytest.raises(RecordError, match=r"needs a frame of observation\.images\.top"):
        reader.observation({}, {"observation.state": np.zeros(3)})
