"""Kinds of dimensions as they are found in recordings."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data import DataError, Dataset, DatasetWriter
from kinema.data.check import describe
from kinema.data.dimensions import Dimension, find_dimensions

STATE = "observation.state"


def record(
    root: Path, columns: dict[str, list[np.ndarray]], names: dict[str, list[str]] | None = None
) -> Dataset:
    """Episodes from columns by episode."""
    first = next(iter(columns.values()))
    features = {
        key: {
            "dtype": parts[0].dtype.name,
            "shape": [*parts[0].shape[1:]] or [1],
            "names": (names or {}).get(key),
        }
        for key, parts in columns.items()
    }
    with DatasetWriter(root, fps=10, features=features) as writer:
        for index in range(len(first)):
            writer.add(frames={}, columns={key: parts[index] for key, parts in columns.items()})
    return Dataset.open(root)


def turning(rng: np.random.Generator, turn: float, begin: float, length: int = 200) -> np.ndarray:
    """An angle that goes round, within the turn that begins there."""
    path = rng.uniform(0, turn) + np.cumsum(rng.normal(0.02, 0.01, length)) * turn
    return np.mod(path - begin, turn) + begin


def find(
    tmp_path: Path, *episodes: np.ndarray, key: str = STATE, overrides: tuple[str, ...] = ()
) -> list[Dimension]:
    columns = {key: [each.reshape(len(each), -1) for each in episodes]}
    return list(find_dimensions(record(tmp_path / "data", columns), overrides)[key])


@pytest.mark.parametrize("turn", [2 * math.pi, 360.0])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_angle_that_wraps_is_found(tmp_path: Path, turn: float, share: float) -> None:
    rng = np.random.default_rng(0)
    episodes = [turning(rng, turn, -share * turn).astype(np.float32) for _ in range(3)]
    (found,) = find(tmp_path, *episodes)
    assert (found.kind, found.low, found.high) == ("angle", -share * turn, (1 - share) * turn)


def test_an_angle_that_hovers_at_the_seam_is_found(tmp_path: Path) -> None:
    """As a gripper that points down: -3.1 and 3.1 are next to each other."""
    path = math.pi + np.random.default_rng(0).normal(0, 0.05, (100, 1)).cumsum(0) * 0.3
    (found,) = find(tmp_path, ((path + math.pi) % (2 * math.pi) - math.pi).astype(np.float32))
    assert found.kind == "angle"


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-3.1, 3.1, 300),  # No jump.
        np.where(np.arange(300) // 7 % 2, -math.pi, math.pi),  # Switches between two values.
        np.random.default_rng(0).uniform(-math.pi, math.pi, 300),  # Jumps at will.
        np.linspace(0, 20, 300),  # Goes on beyond a turn.
        np.where(np.arange(300) < 150, np.linspace(0, 1, 300), np.linspace(4, 5, 300)),  # Jumps by less.
        np.concatenate([np.linspace(0, 350, 150), np.linspace(60, 0, 150)]),  # Jumps by less than a turn.
    ],
)
def test_what_is_no_angle_is_continuous(tmp_path: Path, values: np.ndarray) -> None:
    (found,) = find(tmp_path, values.astype(np.float32))
    assert (found.kind, found.low, found.high) == (
        "continuous",
        np.float32(values.min()),
        np.float32(values.max()),
    )


def test_jumps_between_episodes_are_no_wraps(tmp_path: Path) -> None:
    low, high = (np.linspace(*ends, 60).astype(np.float32) for ends in ((-3.1, -2), (2, 3.1)))
    assert find(tmp_path, low, high, low)[0].kind == "continuous"


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    has_speed=st.booleans(),
)
def test_groups_of_choices_are_found(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, has_speed: bool
) -> None:
    rng = np.random.default_rng(seed)
    drawn = [np.concatenate([np.arange(size), rng.integers(0, size, 60)]) for size in sizes]
    groups = [
        np.eye(size)[np.resize(rng.permutation(each), 80)] for size, each in zip(sizes, drawn, strict=True)
    ]
    speed = [rng.normal(size=(80, 1))] * has_speed
    values = np.concatenate([*speed, *groups], axis=1).astype(np.float32)
    found = find(tmp_path_factory.mktemp("groups"), values, key="action")
    expected = [0] * has_speed + [size for size in sizes for _ in range(size)]
    assert [each.choices for each in found] == expected
    assert [each.kind for each in found] == ["one-hot" if size else "continuous" for size in expected]


def test_a_choice_that_was_never_taken_belongs_to_its_group(tmp_path: Path) -> None:
    values = np.eye(4)[np.arange(50) % 3].astype(np.float32)
    assert [each.choices for each in find(tmp_path, values, key="action")] == [4] * 4


@pytest.mark.parametrize(
    "values",
    [
        np.ones((40, 1)),  # Constant.
        np.tile([[1.0, 0.0, 0.0]], (40, 1)),  # A constant that looks like a choice.
        (np.random.default_rng(0).random((200, 3)) > 0.5).astype(float),  # Several buttons at once.
    ],
)
def test_what_is_no_choice_is_continuous(tmp_path: Path, values: np.ndarray) -> None:
    assert {each.kind for each in find(tmp_path, values.astype(np.float32), key="action")} == {"continuous"}


def test_whole_numbers_of_one_action_are_choices(tmp_path: Path) -> None:
    (found,) = find(tmp_path, np.random.default_rng(0).integers(0, 5, 90), key="action")
    assert (found.kind, found.low, found.high, found.num_columns) == ("discrete", 0, 4, 5)
    (found,) = find(tmp_path / "large", np.arange(1000), key="action")
    assert found.kind == "continuous"


def test_a_commanded_angle_is_like_the_measured_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = np.stack([turning(rng, 2 * math.pi, -math.pi), rng.normal(size=200)], axis=1)
    action = np.stack([np.linspace(-1, 1, 200), rng.normal(size=200)], axis=1)
    names = {STATE: ["roll", "x"], "action": ["roll", "x"]}
    columns = {STATE: [state.astype(np.float32)], "action": [action.astype(np.float32)]}
    dataset = record(tmp_path / "data", columns, names)
    assert [each.kind for each in find_dimensions(dataset)["action"]] == ["angle", "continuous"]
    kept = find_dimensions(dataset, ["action.roll=continuous"])
    assert [each.kind for each in kept["action"]] == ["continuous", "continuous"]
    report = describe(dataset)
    assert [each["kind"] for each in report["dimensions"][STATE]] == ["angle", "continuous"]


def test_kinds_that_are_given(tmp_path: Path) -> None:
    values = np.stack([np.linspace(0, 5, 50), np.linspace(0, 200, 50), np.arange(50) % 4], axis=1)
    overrides = (f"{STATE}.0=angle", f"{STATE}.1=angle", f"{STATE}.2=discrete")
    found = find(tmp_path, values.astype(np.float32), overrides=overrides)
    assert [(each.kind, each.low, each.high) for each in found] == [
        ("angle", 0.0, pytest.approx(2 * math.pi)),
        ("angle", 0.0, 360.0),
        ("discrete", 0.0, 3.0),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "observation.state.0",
            "expected KEY.DIMENSION=KIND, KEY one of observation.state, KIND one of cont",
        ),
        ("observation.state.0=wheel", "expected KEY.DIMENSION=KIND"),
        ("action.0=angle", "expected KEY.DIMENSION=KIND"),
        ("observation.state.7=angle", "observation.state has the dimensions 0, 1"),
        ("observation.state.0=discrete", "is one of at most 64 whole numbers, but 0 goes from"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find(
            tmp_path, np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32), overrides=(override,)
        )


def test_real_rolls_are_angles(droid: Path) -> None:
    dimensions = find_dimensions(Dataset.open(droid))
    for key in (STATE, "action"):
        assert [each.name for each in dimensions[key] if each.kind == "angle"] == ["roll"]
