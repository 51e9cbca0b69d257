"""What can be measured in a world's pictures: a probe reads the state of its things, for any protocol."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from kinema.data.lerobot import Dataset
from kinema.evaluation import pusht
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
    moved: float | None = None
    """A thing that mostly rests has moved where this changed by more, and is then reported apart; None for
    what moves all the time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a probe read in ``N`` pictures."""

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
    """What a number of the report is to reach."""

    must: float
    aim: float


@runtime_checkable
class Probe(Protocol):
    """Reads the state of a world's things from its pictures. One class for each world that has one."""

    quantities: tuple[Quantity, ...]
    """What it reads; the first is what the actions act on most directly."""
    things: str
    """The things it looks for, in words."""
    targets: Mapping[str, Target]
    """By the key of a row of the report."""

    def read(self, frames: Frames) -> Reading:
        """What ``N`` pictures (by camera, ``N H W C``) show."""
        ...

    def recorded(self, episode: Episode) -> Reading | None:
        """The state that was recorded beside the pictures, row by row; None where it was not."""
        ...


class PushTProbe:
    """Agent and block of PushT. Lengths are in 64ths of the picture, angles in degrees."""

    quantities = (
        Quantity(key="agent", label="agent position", unit="px", largest=64.0 * 2**0.5),
        Quantity(key="block", label="block position", unit="px", largest=64.0 * 2**0.5, moved=2.0),
        Quantity(key="angle", label="block angle", unit="°", largest=180.0, is_angle=True, moved=10.0),
    )
    things = "one agent and one block"
    targets: Mapping[str, Target] = MappingProxyType(
        {
            "tokenizer/found": Target(must=0.999, aim=1.0),
            "tokenizer/agent": Target(must=0.5, aim=0.2),
            "tokenizer/block": Target(must=0.5, aim=0.2),
            "simulate/agent": Target(must=1.0, aim=0.5),
            "simulate/block": Target(must=3.0, aim=1.5),
            "simulate/angle": Target(must=20.0, aim=8.0),
            "obey/agent": Target(must=5.0, aim=15.0),
            "valid": Target(must=0.97, aim=0.999),
            "speed": Target(must=30.0, aim=100.0),
            "size": Target(must=20.0, aim=8.0),
        }
    )
    CERTAIN = 0.6
    """A block of which no more than this share is seen may look the same in two poses."""
    COLUMNS = ("info.pos_agent", "info.block_pose")

    def __init__(self, camera: str) -> None:
        self.camera = camera

    def read(self, frames: Frames) -> Reading:
        found = pusht.detect(frames[self.camera])
        return self._reading(
            pusht.Pose(found.agent, found.block, found.angle),
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
            pusht.pose_from_state(agent, block),
            has_agent=everywhere,
            has_block=everywhere,
            visible=pusht.visible_share(block),
        )

    def _reading(
        self, pose: pusht.Pose, *, has_agent: np.ndarray, has_block: np.ndarray, visible: np.ndarray
    ) -> Reading:
        is_certain = has_block & (visible > self.CERTAIN)
        return Reading(
            values={"agent": pose.agent, "block": pose.block, "angle": np.degrees(pose.angle)[:, None]},
            is_found={"agent": has_agent, "block": has_block, "angle": has_block},
            is_certain={"agent": has_agent, "block": is_certain, "angle": is_certain},
            is_valid=has_agent & has_block,
        )


def find_probe(world_name: str, cameras: tuple[str, ...], dataset: Dataset | None = None) -> Probe | None:
    """The probe that knows this world, by its name or its recordings' columns; None for most worlds."""
    columns = set(dataset.features) if dataset is not None else set()
    is_pusht = world_name == "pusht" or set(PushTProbe.COLUMNS) <= columns
    if is_pusht and len(cameras) == 1:
        return PushTProbe(cameras[0])
    return None


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
