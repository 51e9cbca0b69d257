"""PushT: a disc pushes a T-shaped block over a table (``gym_pusht/PushT-v0``)."""

from collections.abc import Mapping
from typing import Any

from kinema.kits import DRAWN_SIZE, Environments, Kit
from kinema.kits.pusht.probe import PushTProbe


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


KIT = Kit(
    name="pusht",
    columns=PushTProbe.COLUMNS,
    probe=_probe,
    environments=Environments(
        namespace="gym_pusht", module="gym_pusht", requirement="kinema[pusht]", arguments=_arguments
    ),
)
