"""Sessions over a world, alone and in batches, and worlds as environments."""

from kinema.simulation.session import Simulation, SimulationBatch
from kinema.simulation.step import Step
from kinema.simulation.world import BUNDLED_WORLDS, World, load, worlds

__all__ = ["BUNDLED_WORLDS", "Simulation", "SimulationBatch", "Step", "World", "load", "worlds"]
