"""PushT: a disc pushes a T-shaped block over a table (``gym_pusht/PushT-v0``)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.kits import DRAWN_SIZE, Environments, Kit, Simulator, Success, Target
from kinema.kits.pusht.detect import SCALE, UNITS, pose_from_state
from kinema.kits.pusht.probe import PushTProbe
from kinema.kits.pusht.simulator import ANGLE, POSITION, PushTTwin, distance, is_met

TARGET = np.array([256.0, 256.0, np.pi / 4.0])
"""Where PushT draws its green T: origin of the body and its angle."""


def _probe(cameras: tuple[str, ...]) -> PushTProbe | None:
    return PushTProbe(cameras[0]) if len(cameras) == 1 else None


def _arguments(
    given: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[Mapping[str, Any], tuple[int, int] | None]:
    if "obs_type" in given:
        return given, size
    height, width = size or DRAWN_SIZE
    drawn = {"obs_type": "pixels_agent_pos", "observation_height": height, "observation_width": width}
    return {**drawn, **given}, size


def _target() -> dict[str, Any]:
    pose = pose_from_state(np.zeros((1, 2)), TARGET[None])
    return {"block": (pose.block[0] * SCALE).tolist(), "angle": float(np.degrees(pose.angle[0]))}


KIT = Kit(
    name="pusht",
    columns=PushTProbe.COLUMNS,
    probe=_probe,
    environments=Environments(
        namespace="gym_pusht", module="gym_pusht", requirement="kinema[pusht]", arguments=_arguments
    ),
    simulator=Simulator(
        env="gym_pusht/PushT-v0",
        module="gym_pusht",
        columns=PushTProbe.COLUMNS,
        wrap=PushTTwin,
        blind_arguments={"obs_type": "state"},
        blur=SCALE / 2,
    ),
    success=Success(
        criterion=f"the position error of agent and block together is under {POSITION:g} of 512, the block's "
        f"angle error under {np.degrees(ANGLE):.0f} degrees",
        is_met=is_met,
        distance=distance,
    ),
    targets={
        "tokenizer/found": Target(must=0.999, aim=1.0),
        "tokenizer/agent": Target(must=0.5, aim=0.2),
        "tokenizer/block": Target(must=0.5, aim=0.2),
        "simulate/agent": Target(must=1.0, aim=0.5),
        "simulate/block": Target(must=3.0, aim=1.5),
        "simulate/angle": Target(must=20.0, aim=8.0),
        "obey/agent/shuffled": Target(must=5.0, aim=15.0),
        "valid": Target(must=0.97, aim=0.999),
        "speed": Target(must=30.0, aim=100.0),
        "size": Target(must=20.0, aim=8.0),
        "valid/10000": Target(must=0.97, aim=0.999),
        "valid/100000": Target(must=0.97, aim=0.99),
        "floor/block/100": Target(must=4.0, aim=2.0),
        "frechet/ratio": Target(must=2.0, aim=1.2),
        "trust/correlation/block": Target(must=0.5, aim=0.7),
        "planning/near": Target(must=0.70, aim=0.95),
        "planning/far": Target(must=0.0, aim=0.50),
    },
    named_goals={"target": _target()},
    # The agent goes where its action says, in the units of its frame.
    pointer=((0.0, 0.0), (UNITS, UNITS)),
)
