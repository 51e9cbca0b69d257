"""Probes: they read the state of a world's objects from its frames, for any protocol."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from kinema.types import Episode, Frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """One thing that a probe reads, such as a position."""

    key: str
    label: str
    unit: str
    largest: float
    """The error that counts where the thing was not found: as wrong as can be."""
    is_angle: bool = False
    """Values are angles in degrees, so 359 is near 1."""
    action_scale: float = 1.0
    """Units of the actions in one of ``unit``, for whoever gives goals."""
    moved: float | None = None
    """A thing that mostly rests has moved where this changed by more, and is then reported apart; None for
    what moves all the time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """State read by a probe from ``N`` frames."""

    values: Mapping[str, np.ndarray]
    """By quantity: ``N D``."""
    is_found: Mapping[str, np.ndarray]
    """By quantity: ``N`` bool, whether the thing was seen, once, as it should look."""
    is_certain: Mapping[str, np.ndarray]
    """By quantity: ``N`` bool, whether the picture tells the value at all; others are no reference."""
    is_valid: np.ndarray
    """``N`` bool: the picture shows all things as the world can show them."""

    def __len__(self) -> int:
        return len(self.is_valid)

    def __getitem__(self, index: np.ndarray | slice) -> "Reading":
        return Reading(
            values={key: value[index] for key, value in self.values.items()},
            is_found={key: value[index] for key, value in self.is_found.items()},
            is_certain={key: value[index] for key, value in self.is_certain.items()},
            is_valid=self.is_valid[index],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Values that a row of an evaluation must reach and aims at."""

    must: float
    aim: float


@runtime_checkable
class Probe(Protocol):
    """Reads the state of a world's things from its pictures. One class for each world that has one."""

    quantities: tuple[Quantity, ...]
    """Quantities that the probe reads; actions move the first one most directly."""
    things: str
    """The things it looks for, in words."""

    def read(self, frames: Frames) -> Reading:
        """Read the state from ``N`` frames (by camera, ``N H W C``)."""
        ...

    def recorded(self, episode: Episode) -> Reading | None:
        """The state that was recorded beside the pictures, row by row; None where it was not."""
        ...


def errors(quantity: Quantity, reading: Reading, reference: Reading) -> np.ndarray:
    """Distances ``N`` of a quantity from its reference: the largest where the reading did not find the thing,
    NaN where the reference does not tell."""
    key = quantity.key
    offset = reading.values[key] - reference.values[key]
    if quantity.is_angle:
        offset = (offset + 180.0) % 360.0 - 180.0
    distance = np.minimum(np.linalg.norm(offset, axis=1), quantity.largest)
    distance = np.where(reading.is_found[key], distance, quantity.largest)
    return np.where(reference.is_certain[key], distance, np.nan)
