"""A world model for robots: recorded episodes in, a streaming simulator of their world out.

>>> world = kinema.load("pusht")            # a bundled world, a folder, or a Hub id
>>> sim = world.start(frames, actions)      # the frames that the session begins with
>>> step = sim.step(action)                 # step.frame, step.proprio, step.trust, step.is_outside
>>> futures = sim.fork(64)                  # 64 futures from here, one batch
>>> sim.save("rollout.mp4")
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from kinema import moved

if TYPE_CHECKING:
    from kinema.data.lerobot import Dataset
    from kinema.serve.client import connect
    from kinema.simulation.session import Simulation, SimulationBatch
    from kinema.simulation.step import Step
    from kinema.simulation.world import World, load, worlds
    from kinema.types import (
        CheckpointError,
        DataError,
        KinemaError,
        PartError,
        RecordError,
        ServerError,
        WorldError,
    )

    __version__: str

_MODULES = {
    "CheckpointError": "kinema.types",
    "DataError": "kinema.types",
    "Dataset": "kinema.data.lerobot",
    "KinemaError": "kinema.types",
    "PartError": "kinema.types",
    "RecordError": "kinema.types",
    "ServerError": "kinema.types",
    "Simulation": "kinema.simulation.session",
    "SimulationBatch": "kinema.simulation.session",
    "Step": "kinema.simulation.step",
    "World": "kinema.simulation.world",
    "WorldError": "kinema.types",
    "connect": "kinema.serve.client",
    "load": "kinema.simulation.world",
    "worlds": "kinema.simulation.world",
}
"""The module that defines each public name. Each is imported when it is first used: PyTorch takes seconds
to import, and many commands do not need it."""

__all__ = [  # noqa: RUF022 (sorted as a reader needs them)
    "load",
    "connect",
    "worlds",
    "World",
    "Simulation",
    "SimulationBatch",
    "Step",
    "Dataset",
    "KinemaError",
    "WorldError",
    "DataError",
    "RecordError",
    "CheckpointError",
    "PartError",
    "ServerError",
    "__version__",
]


moved.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("kinema")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # Without the extra that it needs, `help(kinema)` could not import it.
    missing = () if importlib.util.find_spec("httpx") else ("connect",)
    hidden = ("Any", "TYPE_CHECKING", "importlib", "moved")
    return sorted({*globals(), *__all__}.difference(hidden, missing))
