"""What can be said of a picture in numbers, and how far it is from a goal: a state, or another picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.kits import Kit, Quantity, errors
from kinema.model.world import WorldError
from kinema.types import Frames

PICTURE = "picture"
"""Mean difference of two pictures, in percent of black to white."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """Where things are to be, by quantity, or how the pictures are to look."""

    state: Mapping[str, np.ndarray]
    """In the units of the answers; empty for a goal of pictures alone."""
    frames: Frames | None = None
    """One picture by camera, ``H W 3``."""
    proprio: np.ndarray | None = None
    """Proprioception ``P`` beside the picture, or alone in a world without cameras; None where nobody knows
    it."""


class StateReader:
    """Reads the state of a world's things in the units of its actions; where a world has no probe, pictures
    can only be compared as they are."""

    def __init__(self, kit: Kit | None, cameras: tuple[str, ...]):
        self._probe = None if kit is None else kit.find_probe(cameras)
        self.named_goals: dict[str, dict[str, Any]] = {}
        """Goals that have a name in this world."""
        self.pointer: list[list[float]] | None = None
        """Actions that stand for the corners of the frame, where actions are places in it."""
        if kit is not None and self._probe is not None:
            self.named_goals = {name: dict(goal) for name, goal in kit.named_goals.items()}
            self.pointer = None if kit.pointer is None else [list(corner) for corner in kit.pointer]

    @property
    def quantities(self) -> dict[str, Quantity]:
        """By name."""
        return {} if self._probe is None else {q.key: q for q in self._probe.quantities}

    def read(self, frames: Frames) -> dict[str, Any]:
        """The state that one picture (by camera, ``H W C``) shows; None for what is not seen."""
        if self._probe is None:
            return {}
        reading = self._probe.read({key: frame[None] for key, frame in frames.items()})
        found: dict[str, Any] = {}
        for key, quantity in self.quantities.items():
            values = (reading.values[key][0] * quantity.action_scale).round(1).tolist()
            value = values[0] if len(values) == 1 else values
            found[key] = value if reading.is_found[key][0] else None
        return found

    def check(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A wanted state as it is compared. Raises WorldError where it is none of this world."""
        known = self.quantities
        found = {}
        for key, value in state.items():
            if key not in known:
                raise WorldError(
                    f"goal: no quantity {key!r}; there are {', '.join(known) or 'none in this world'}"
                )
            size = 1 if known[key].is_angle else 2
            found[key] = np.atleast_1d(np.asarray(value, dtype=np.float64))
            if found[key].shape != (size,) or not np.isfinite(found[key]).all():
                raise WorldError(f"goal: {key} is {size} finite numbers, got {found[key].tolist()}")
        return found

    def distances(self, frames: Frames, goal: Goal) -> dict[str, np.ndarray]:
        """How far each of ``N`` pictures (by camera, ``N H W C``) is from a goal, by quantity; what is not
        seen is as far as can be."""
        found: dict[str, np.ndarray] = {}
        if goal.state and self._probe is not None:
            reading = self._probe.read(frames)
            for key, wanted in goal.state.items():
                quantity = self.quantities[key]
                values = {**reading.values, key: np.atleast_2d(wanted) / quantity.action_scale}
                is_certain = {**reading.is_certain, key: np.ones(1, dtype=bool)}
                reference = dataclasses.replace(reading, values=values, is_certain=is_certain)
                found[key] = errors(quantity, reading, reference) * quantity.action_scale
        elif goal.frames is not None:
            gaps = [
                np.abs(film.astype(np.float64) - goal.frames[key]).mean(axis=(1, 2, 3))
                for key, film in frames.items()
            ]
            found[PICTURE] = np.mean(gaps, axis=0) / 2.55
        return found

    def distance(self, frames: Frames, goal: Goal) -> dict[str, float]:
        """The same of one picture, ``H W C``."""
        found = self.distances({key: frame[None] for key, frame in frames.items()}, goal)
        return {key: float(value[0]) for key, value in found.items()}

    def score(self, distance: Mapping[str, Any]) -> Any:
        """One number of distances (or ``N`` of ``N`` each), 0 at the goal and 1 as far as can be."""
        shares = [
            value / 100.0
            if key == PICTURE
            else value / (self.quantities[key].largest * self.quantities[key].action_scale)
            for key, value in distance.items()
        ]
        return np.mean(shares, axis=0)
