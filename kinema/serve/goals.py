"""What can be said of a picture in numbers, and how far it is from a goal: a state, or another picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.kits import Probe, Quantity, errors
from kinema.kits.pusht.detect import SCALE, pose_from_state
from kinema.kits.pusht.probe import PushTProbe
from kinema.model.world import WorldError
from kinema.types import Frames

PICTURE = "picture"
"""Mean difference of two pictures, in percent of black to white."""
PUSHT_TARGET = np.array([256.0, 256.0, np.pi / 4.0])
"""Where PushT draws its green T: origin of the body and its angle."""


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

    def __init__(self, probe: Probe | None):
        self._probe = probe

    @property
    def is_pusht(self) -> bool:
        """Whether the world is PushT, of which more is known."""
        return isinstance(self._probe, PushTProbe)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """By name."""
        return {} if self._probe is None else {q.key: q for q in self._probe.quantities}

    @property
    def named_goals(self) -> dict[str, dict[str, Any]]:
        """Goals that have a name in this world."""
        if not isinstance(self._probe, PushTProbe):
            return {}
        pose = pose_from_state(np.zeros((1, 2)), PUSHT_TARGET[None])
        return {
            "target": {"block": (pose.block[0] * SCALE).tolist(), "angle": float(np.degrees(pose.angle[0]))}
        }

    def read(self, frames: Frames) -> dict[str, Any]:
        """The state that one picture (by camera, ``H W C``) shows; None for what is not seen."""
        if self._probe is None:
            return {}
        reading = self._probe.read({key: frame[None] for key, frame in frames.items()})
        found: dict[str, Any] = {}
        for key, quantity in self.quantities.items():
            values = (reading.values[key][0] * self._unit(quantity)).round(1).tolist()
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
                values = {**reading.values, key: np.atleast_2d(wanted) / self._unit(quantity)}
                is_certain = {**reading.is_certain, key: np.ones(1, dtype=bool)}
                reference = dataclasses.replace(reading, values=values, is_certain=is_certain)
                found[key] = errors(quantity, reading, reference) * self._unit(quantity)
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
            else value / (self.quantities[key].largest * self._unit(self.quantities[key]))
            for key, value in distance.items()
        ]
        return np.mean(shares, axis=0)

    def _unit(self, quantity: Quantity) -> float:
        """PushT's probe tells lengths in 64ths of the picture, its actions are in 512ths."""
        return SCALE if isinstance(self._probe, PushTProbe) and not quantity.is_angle else 1.0
