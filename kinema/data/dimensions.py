"""Names, kinds and ranges of the numbers of a vector, found in a dataset."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from kinema.data.layout import DataError, dimension_names
from kinema.data.lerobot import Dataset

Kind = Literal["continuous", "angle", "discrete", "one-hot"]
"""``angle``: wraps after a turn; ``discrete``: a whole number that names a choice; ``one-hot``: 1 where its
choice is taken and 0 where another one of its group is."""
TURNS = {"radians": 2 * math.pi, "degrees": 360.0}
MOST_CHOICES = 64
"""Most values of a discrete number."""
LEAST_JUMP = 0.75
"""Share of a turn from which a step from one row to the next may be a wrap."""
MOST_STEP = 1 / 8
"""Share of a turn that nearly no step of an angle is larger than."""
LEAST_VALUES = 20
"""Values that an angle takes at least: what has fewer switches between them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """One number of an action or of a state, as recorded."""

    name: str
    kind: Kind | None = None
    """None in worlds of kinema 0.1.0, which did not keep it."""
    low: float = 0.0
    """Least recorded value; of an angle the begin of its turn."""
    high: float = 0.0
    """Largest recorded value; of an angle the end of its turn."""
    choices: int = 0
    """Numbers in the group of a one-hot one."""

    @property
    def num_columns(self) -> int:
        """Numbers that a network has in its place: sine and cosine of an angle, one for each choice."""
        if self.kind == "angle":
            return 2
        return round(self.high - self.low) + 1 if self.kind == "discrete" else 1

    @property
    def is_constant(self) -> bool:
        return self.kind == "continuous" and self.low == self.high


def find_dimensions(dataset: Dataset, overrides: Sequence[str] = ()) -> dict[str, tuple[Dimension, ...]]:
    """Find the dimensions of ``action`` and of each vector ``observation.*``, by feature key.

    Args:
        dataset: read whole; episodes that cannot be read are left out.
        overrides: kinds that are not found but given, each as ``KEY.DIMENSION=KIND``.

    Raises:
        DataError: an override names no dimension or no kind.
    """
    values: dict[str, list[np.ndarray]] = {
        key: []
        for key, feature in dataset.features.items()
        if (key == "action" or key.startswith("observation.")) and _is_numeric(feature["dtype"])
    }
    for index in range(dataset.num_episodes if values else 0):
        try:
            columns = dataset.episode(index, cameras=()).columns
        except DataError:
            continue  # ``find_defects`` names it, and so does a training.
        for key, parts in values.items():
            if key in columns:
                parts.append(columns[key].reshape(len(columns[key]), -1))
    kinds = _parse(overrides, dataset, values)
    found = {
        key: tuple(_of_feature(dimension_names(dataset.features[key]), parts, kinds.get(key, {})))
        for key, parts in values.items()
    }
    return {key: _like_namesakes(key, of_key, found, kinds) for key, of_key in found.items()}


def _is_numeric(dtype: str) -> bool:
    return dtype not in ("video", "image", "string") and np.dtype(dtype).kind in "biuf"


def _of_feature(
    names: Sequence[str], parts: Sequence[np.ndarray], kinds: Mapping[int, str]
) -> Iterator[Dimension]:
    """The dimensions of one feature from its values ``T N`` in each episode."""
    every = np.concatenate(parts) if parts else np.zeros((0, len(names)), np.float32)
    is_index = every.dtype.kind in "iu" and len(names) == 1
    every = np.where(np.isfinite(every), every, np.nan).astype(np.float64)
    groups = _one_hot_groups(every)
    for index, name in enumerate(names):
        column = every[:, index][~np.isnan(every[:, index])]
        low, high = (float(column.min()), float(column.max())) if len(column) else (0.0, 0.0)
        kind = kinds.get(index)
        if kind is None and groups[index]:
            yield Dimension(name=name, kind="one-hot", low=0.0, high=1.0, choices=groups[index])
            continue
        if kind is None and is_index and 1 <= high - low < MOST_CHOICES:
            kind = "discrete"
        turn = _found_turn([part[:, index] for part in parts], low, high) if kind is None else None
        if kind in ("angle", *TURNS):
            turn = TURNS.get(kind) or _fitting_turn(low, high)
        if turn is not None:
            begin = 0.0 if low >= -1e-3 * turn and high > turn / 2 else -turn / 2
            yield Dimension(name=name, kind="angle", low=begin, high=begin + turn)
        elif kind == "one-hot":
            choices = list(kinds.values()).count("one-hot")
            yield Dimension(name=name, kind="one-hot", low=0.0, high=1.0, choices=choices)
        elif kind == "discrete":
            if (column != column.round()).any() or high - low >= MOST_CHOICES:
                raise DataError(
                    f"a discrete number is one of at most {MOST_CHOICES} whole numbers, but {name} goes from "
                    f"{low:g} to {high:g}"
                )
            yield Dimension(name=name, kind="discrete", low=low, high=high)
        else:
            yield Dimension(name=name, kind="continuous", low=low, high=high)


def _found_turn(parts: Iterable[np.ndarray], low: float, high: float) -> float | None:
    """The turn after which a number wraps: it jumps by about that much between rows of an episode, moves
    little else, and stays within one turn. None where it is no angle."""
    for turn in TURNS.values():
        slack = 1e-3 * turn
        is_within = (max(-low, high) <= turn / 2 + slack) or (low >= -slack and high <= turn + slack)
        if not is_within or high - low < LEAST_JUMP * turn:
            continue
        parts = [part.astype(np.float64) for part in parts]
        steps = np.concatenate([np.diff(part) for part in parts])
        steps = steps[np.isfinite(steps)]
        is_jump = np.abs(steps) > LEAST_JUMP * turn
        rest = np.abs(steps - turn * np.round(steps / turn))
        if not is_jump.any() or len(np.unique(np.concatenate(parts))) < LEAST_VALUES:
            continue
        if np.quantile(rest, 0.99) < MOST_STEP * turn and np.median(rest[is_jump]) < MOST_STEP / 2 * turn:
            return turn
    return None


def _fitting_turn(low: float, high: float) -> float:
    """Radians where the range fits into them, else degrees."""
    return TURNS["radians"] if max(high - low, -low, high) <= 1.01 * TURNS["radians"] else TURNS["degrees"]


def _one_hot_groups(values: np.ndarray) -> list[int]:
    """For each of the numbers ``N A`` the size of its one-hot group, 0 for none: neighbours that are 0 or 1,
    of which just one is 1 in each row. Choices that were never taken belong to the group before them."""
    count = values.shape[1]
    sizes, start = [0] * count, 0
    if not len(values) or np.isnan(values).any():
        return sizes
    is_binary = ((values == 0.0) | (values == 1.0)).min(axis=0)
    while start < count:
        sums, stop = np.zeros(len(values)), start
        while stop < count and is_binary[stop] and not (sums == 1.0).all():
            sums, stop = sums + values[:, stop], stop + 1
        if stop - start < 2 or not (sums == 1.0).all():
            start += 1
            continue
        while stop < count and is_binary[stop] and not values[:, stop].any():
            stop += 1
        sizes[start:stop], start = [stop - start] * (stop - start), stop
    return sizes


def _like_namesakes(
    key: str,
    dimensions: Sequence[Dimension],
    found: Mapping[str, Sequence[Dimension]],
    kinds: Mapping[str, Mapping[int, str]],
) -> tuple[Dimension, ...]:
    """A commanded angle wraps as the measured one of the same name does, also where it was not seen to."""
    angles = {
        other.name: other
        for its_key, others in found.items()
        for other in others
        if its_key != key and other.kind == "angle" and not other.name.isdecimal()
    }
    alike = []
    for index, dimension in enumerate(dimensions):
        other = angles.get(dimension.name)
        fits = other is not None and other.low - 1e-3 <= dimension.low <= dimension.high <= other.high + 1e-3
        is_free = dimension.kind == "continuous" and not dimension.is_constant
        is_alike = fits and is_free and index not in kinds.get(key, {})
        alike.append(other if is_alike and other is not None else dimension)
    return tuple(alike)


def _parse(overrides: Sequence[str], dataset: Dataset, keys: Iterable[str]) -> dict[str, dict[int, str]]:
    """Kinds by feature key and position of the dimension."""
    kinds: dict[str, dict[int, str]] = {}
    allowed = (*get_args(Kind), *TURNS)
    for text in overrides:
        place, _, kind = text.rpartition("=")
        key = next((key for key in keys if place.startswith(f"{key}.")), "")
        names = dimension_names(dataset.features[key]) if key else []
        name = place.removeprefix(f"{key}.")
        if kind not in allowed or not key:
            raise DataError(
                f"kind {text!r}: expected KEY.DIMENSION=KIND, KEY one of {', '.join(keys)}, KIND one of "
                f"{', '.join(allowed)}",
                path=dataset.root,
            )
        if name not in names and not (name.isdecimal() and int(name) < len(names)):
            raise DataError(f"kind {text!r}: {key} has the dimensions {', '.join(names)}", path=dataset.root)
        kinds.setdefault(key, {})[names.index(name) if name in names else int(name)] = kind
    return kinds
