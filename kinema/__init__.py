"""A world model for robots: recorded episodes in, a streaming simulator of their world out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinema.serve.client import connect
    from kinema.simulation.session import Simulation, SimulationBatch, Step, World, load

__all__ = ["Simulation", "SimulationBatch", "Step", "World", "connect", "load"]


def __getattr__(name: str) -> Any:
    # The simulator brings PyTorch along, which takes a second to import: commands that do not simulate start
    # without it.
    if name == "connect":
        from kinema.serve.client import connect

        return connect
    if name in __all__:
        from kinema import simulation

        return getattr(simulation, name)
    raise AttributeError(f"module 'kinema' has no attribute {name!r}")
