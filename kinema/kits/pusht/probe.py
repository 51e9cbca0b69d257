"""Reads the state of PushT from its frames."""

import numpy as np

from kinema.kits.probe import Quantity, Reading
from kinema.kits.pusht import detect
from kinema.types import Episode, Frames


class PushTProbe:
    """Agent and block of PushT. Lengths are in 64ths of the picture, angles in degrees."""

    quantities = (
        Quantity(
            key="agent",
            label="agent position",
            unit="px",
            largest=64.0 * 2**0.5,
            action_scale=detect.SCALE,
        ),
        Quantity(
            key="block",
            label="block position",
            unit="px",
            largest=64.0 * 2**0.5,
            moved=2.0,
            action_scale=detect.SCALE,
        ),
        Quantity(key="angle", label="block angle", unit="°", largest=180.0, is_angle=True, moved=10.0),
    )
    things = "one agent and one block"
    CERTAIN = 0.6
    """A block of which no more than this share is seen may look the same in two poses."""
    COLUMNS = ("info.pos_agent", "info.block_pose")

    def __init__(self, camera: str) -> None:
        self.camera = camera

    def read(self, frames: Frames) -> Reading:
        found = detect.detect(frames[self.camera])
        return self._reading(
            detect.Pose(found.agent, found.block, found.angle),
            has_agent=found.has_agent,
            has_block=found.has_block,
            visible=found.block_visible,
        )

    def recorded(self, episode: Episode) -> Reading | None:
        if any(key not in episode.columns for key in self.COLUMNS):
            return None
        agent, block = (np.asarray(episode.columns[key], dtype=np.float64) for key in self.COLUMNS)
        everywhere = np.ones(len(agent), dtype=bool)
        return self._reading(
            detect.pose_from_state(agent, block),
            has_agent=everywhere,
            has_block=everywhere,
            visible=detect.visible_share(block),
        )

    def _reading(
        self, pose: detect.Pose, *, has_agent: np.ndarray, has_block: np.ndarray, visible: np.ndarray
    ) -> Reading:
        is_certain = has_block & (visible > self.CERTAIN)
        return Reading(
            values={"agent": pose.agent, "block": pose.block, "angle": np.degrees(pose.angle)[:, None]},
            is_found={"agent": has_agent, "block": has_block, "angle": has_block},
            is_certain={"agent": has_agent, "block": is_certain, "angle": is_certain},
            is_valid=has_agent & has_block,
        )
