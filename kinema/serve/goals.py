"""What can be said of a picture in numbers, and how far it is from a goal: a state, or another picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.evaluation.probe import Probe, PushTProbe, Quantity, errors
from kinema.evaluation.pusht import SCALE, pose_from_state
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


class StateReader:
    """Reads the state of a world's things in the units of its actions; where a world has no probe, pictures
    can only be compared as they are."""

    def __init__(self, probe: Probe | None):
        self._probe = probe

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

    def distance(self, frames: Frames, goal: Goal) -> dict[str, float]:
        """How far one picture is from a goal, by quantity; what is not seen is as far as can be."""
        found: dict[str, float] = {}
        if goal.state and self._probe is not None:
            reading = self._probe.read({key: frame[None] for key, frame in frames.items()})
            for key, wanted in goal.state.items():
                quantity = self.quantities[key]
                values = {**reading.values, key: np.atleast_2d(wanted) / self._unit(quantity)}
                is_certain = {**reading.is_certain, key: np.ones(1, dtype=bool)}
                reference = dataclasses.replace(reading, values=values, is_certain=is_certain)
                found[key] = float(errors(quantity, reading, reference)[0] * self._unit(quantity))
        elif goal.frames is not None:
            gaps = [
                np.abs(frame.astype(np.float64) - goal.frames[key]).mean() for key, frame in frames.items()
            ]
            found[PICTURE] = float(np.mean(gaps) / 2.55)
        return found

    def score(self, distance: Mapping[str, float]) -> float:
        """One number of distances, 0 at the goal and 1 as far as can be."""
        shares = [
            value / 100.0
            if key == PICTURE
            else value / (self.quantities[key].largest * self._unit(self.quantities[key]))
            for key, value in distance.items()
        ]
        return float(np.mean(shares))

    def _unit(self, quantity: Quantity) -> float:
        """PushT's probe tells lengths in 64ths of the picture, its actions are in 512ths."""
        return SCALE if isinstance(self._probe, PushTProbe) and not quantity.is_angle else 1.0
