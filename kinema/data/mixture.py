"""Datasets of several robots as one: a world has the cameras and the numbers of all of them, and each
recording says which of them it has (``Masks``)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kinema.data.dimensions import Dimension
from kinema.data.lerobot import Dataset
from kinema.data.segments import Masks, Segments
from kinema.types import Episode


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset of a mixture."""

    name: str
    """Folder or Hub id."""
    weight: float | None
    """How often its segments are drawn, against 1 for others; None where that was not said."""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Read ``NAME`` or ``NAME:WEIGHT``. Raises ValueError for a weight that is not positive."""
        name, colon, end = text.rpartition(":")
        try:
            weight = float(end)
        except ValueError:
            return cls(text, None)
        if not colon or not name or Path(text).is_dir():
            return cls(text, None)
        if not 0.0 < weight < float("inf"):
            raise ValueError(f"{text}: a weight must be a positive number")
        return cls(name, weight)


def shares_of(sources: Sequence[Source]) -> list[float] | None:
    """Shares of the segments by dataset; None where no weight is given, so that all rows count the same."""
    if all(source.weight is None for source in sources):
        return None
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    return [weight / sum(weights) for weight in weights]


@dataclasses.dataclass(frozen=True)
class Union:
    """The numbers of vectors of several datasets."""

    dimensions: tuple[Dimension, ...]
    places: tuple[np.ndarray, ...]
    """For each dataset the places in the union of its numbers."""

    def spread(self, values: np.ndarray, number: int) -> np.ndarray:
        """Vectors ``N A`` of a dataset as those of the union; numbers that it lacks are NaN."""
        spread = np.full((len(values), len(self.dimensions)), np.nan, np.float32)
        spread[:, self.places[number]] = values
        return spread


def unite(vectors: Sequence[Sequence[Dimension]], robots: Sequence[str]) -> Union:
    """Unite vectors: numbers of one name are one number where their kinds allow it, others are apart.

    Args:
        vectors: by dataset.
        robots: by dataset, what its robot is called. Numbers without names are only shared by one robot.
    """
    dimensions: list[Dimension] = []
    owners: list[str] = []
    places = []
    for vector, robot in zip(vectors, robots, strict=True):
        taken: list[int] = []
        for dimension in vector:
            place = next(
                (
                    index
                    for index, known in enumerate(dimensions)
                    if index not in taken
                    and known.name == dimension.name
                    and (owners[index] == robot or not dimension.name.isdecimal())
                    and _joined(known, dimension) is not None
                ),
                len(dimensions),
            )
            if place == len(dimensions):
                dimensions.append(dimension)
                owners.append(robot)
            else:
                dimensions[place] = _joined(dimensions[place], dimension) or dimension
            taken.append(place)
        places.append(np.array(taken, np.int64))
    return Union(tuple(_with_names(dimensions, owners)), tuple(places))


def _joined(one: Dimension, other: Dimension) -> Dimension | None:
    """Both as one number; None where they cannot be."""
    angle = next((each for each in (one, other) if each.kind == "angle"), None)
    low, high = min(one.low, other.low), max(one.high, other.high)
    if angle is not None:
        is_within = angle.low - 1e-3 <= low <= high <= angle.high + 1e-3
        kinds = {one.kind, other.kind}
        return angle if is_within and kinds <= {"angle", "continuous"} else None
    if one.kind != other.kind or one.choices != other.choices:
        return None
    return dataclasses.replace(one, low=low, high=high)


def _with_names(dimensions: Sequence[Dimension], owners: Sequence[str]) -> list[Dimension]:
    """The same with names that differ: where two share one, each says whose it is."""
    names = [dimension.name for dimension in dimensions]
    return [
        dataclasses.replace(dimension, name=f"{owner}/{dimension.name}")
        if names.count(dimension.name) > 1
        else dimension
        for dimension, owner in zip(dimensions, owners, strict=True)
    ]


def unify(
    segments: Segments, number: int, *, actions: Union, proprio: Union, cameras: Sequence[str]
) -> Segments:
    """Segments of a dataset with the numbers of the union, and the masks that say which of them it has.

    Args:
        segments: as they were recorded.
        number: of the dataset.
        actions: of all datasets.
        proprio: of all datasets.
        cameras: of all datasets, in the order of the world.
    """

    def has(places: np.ndarray, size: int) -> np.ndarray:
        return np.tile(np.isin(np.arange(size), places), (len(segments.lengths), 1))

    num_rows = segments.num_rows
    values = np.zeros((num_rows, 0), np.float32) if segments.proprio is None else segments.proprio
    num_proprio = len(proprio.dimensions)
    recorded = Masks(
        action=np.full(len(segments.lengths), bool(len(actions.places[number])) or not actions.dimensions),
        proprio=np.full(len(segments.lengths), segments.proprio is not None),
        cameras=np.tile([camera in segments.frames for camera in cameras], (len(segments.lengths), 1)),
        action_numbers=has(actions.places[number], len(actions.dimensions)),
        proprio_numbers=has(proprio.places[number], num_proprio),
    )
    return Segments(
        frames=segments.frames,
        actions=actions.spread(segments.actions, number),
        proprio=proprio.spread(values, number) if num_proprio else None,
        lengths=segments.lengths,
        native_sizes=segments.native_sizes,
        episodes=segments.episodes,
        tasks=segments.tasks,
        recorded=recorded,
    )


class MixedDataset(Dataset):
    """A dataset of which every episode has the numbers of the union, NaN where they are missing."""

    def __init__(
        self, dataset: Dataset, number: int, *, actions: Union, proprio: Union, proprio_key: str | None
    ):
        self.__dict__.update(dataset.__dict__)
        self._number, self._unions = number, {"action": actions}
        if proprio_key is not None:
            self._unions[proprio_key] = proprio

    def episode(self, index: int, cameras: Sequence[str] | None = None) -> Episode:
        """The episode at a position, with the frames of those of the cameras that the dataset has."""
        if cameras is not None:
            cameras = [camera for camera in cameras if camera in self.cameras]
        episode = super().episode(index, cameras)
        columns = dict(episode.columns)
        for key, union in self._unions.items():
            values = columns.get(key, np.zeros((len(episode), 0), np.float32))
            columns[key] = union.spread(values, self._number)
        return dataclasses.replace(episode, columns=columns)


def draw_rows(
    rng: np.random.Generator,
    parts: Sequence[Segments],
    shares: Sequence[float],
    batch: int,
    length: int,
) -> np.ndarray:
    """Rows ``batch length`` of segments, each of a dataset drawn by ``shares``, counted over all of them.

    Raises DataError where no episode of a dataset has ``length`` steps.
    """
    chosen = rng.choice(len(parts), size=batch, p=shares)
    rows = np.empty((batch, length), np.int64)
    first = 0
    for number, part in enumerate(parts):
        is_here = chosen == number
        if is_here.any():
            rows[is_here] = first + part.draw_rows(rng, int(is_here.sum()), length)
        first += part.num_rows
    return rows
