"""The result of one step of a simulation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.data.drawing import contact_sheet, encode_png
from kinema.data.frames import join_cameras


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What a step of a simulation gives."""

    frame: Any
    """The picture, ``uint8`` ``H W C`` (``B H W C`` of a batch; a dict by camera where there are several;
    None where the world has no camera)."""
    proprio: np.ndarray | None
    """Proprioception ``P`` (``B P``) in the units of the dataset, where the world knows it."""
    trust: Any = None
    """Trust in the frame, computed without the true frame (``B`` of a batch): 1 while the frames, the given
    ones too, lie as near the manifold as recorded frames do; one half once they lay, over all steps together,
    one radius further, and mistakes stay. Without a manifold: see ``kinema.simulation.trust``. None where the
    session computes none."""
    expected_error: Any = None
    """Root mean square error to expect in the frame, computed without the true frame: grey levels by camera
    ``K`` (``B K`` of a batch), or by number of proprioception in its units in a world without cameras. It may
    fall again. None where the session computes no trust from spread (``World.start``, ``has_trust``)."""
    reward: Any = None
    """The reward that the step is expected to give (``B`` of a batch); None where the world has no heads."""
    termination: Any = None
    """Probability that the step ended the episode (``B`` of a batch); None where the world has no heads."""
    outside: Any = dataclasses.field(default_factory=dict)
    """The given numbers that lie outside the recorded ones: names of action dimensions, or of proprioception
    (``observation.state[0]``) after ``start``, to the distance in units of the recorded range. Empty inside.
    (A sequence of ``B`` such mappings of a batch.)"""

    @property
    def is_outside(self) -> Any:
        """True where the session was given a number outside the recorded ones (``B`` of a batch)."""
        if isinstance(self.outside, Mapping):
            return bool(self.outside)
        return np.array([bool(one) for one in self.outside])

    def _repr_png_(self) -> bytes | None:
        return self.draw()

    def draw(self, label: str = "") -> bytes | None:
        """Draw the frame, cameras side by side, with its trust, as the bytes of a PNG; None of a batch."""
        frames = list(self.frame.values()) if isinstance(self.frame, dict) else [self.frame]
        if any(frame is None or frame.ndim != 3 for frame in frames):
            return None
        trust = "" if self.trust is None else f"trust {self.trust:.2f}"
        labels = ["  ".join(filter(None, [label, trust]))]
        return encode_png(contact_sheet([join_cameras([frame[None] for frame in frames])], labels=labels))

    def of_session(self, index: int) -> "Step":
        """The step of one session of a batch."""
        frame = self.frame
        if isinstance(frame, dict):
            frame = {key: pictures[index] for key, pictures in frame.items()}
        elif frame is not None:
            frame = frame[index]
        return Step(
            frame=frame,
            proprio=None if self.proprio is None else self.proprio[index],
            trust=None if self.trust is None else float(self.trust[index]),
            expected_error=None if self.expected_error is None else self.expected_error[index],
            reward=None if self.reward is None else float(self.reward[index]),
            termination=None if self.termination is None else float(self.termination[index]),
            outside=self.outside if isinstance(self.outside, Mapping) else self.outside[index],
        )
