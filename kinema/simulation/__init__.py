"""Sessions over a world, alone and in batches, and worlds as environments."""

from kinema.simulation.session import BUNDLED_WORLDS, Simulation, SimulationBatch, Step, World, load, worlds

__all__ = ["BUNDLED_WORLDS", "Simulation", "SimulationBatch", "Step", "World", "load", "worlds"]
