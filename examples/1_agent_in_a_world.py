"""Train an agent of Stable-Baselines3 (PPO) inside a world, as in any environment of Gymnasium.

    pip install 'kinema[agents]'
    python examples/1_agent_in_a_world.py --world worlds/mine --data data/pusht

The world needs heads (`kinema train DATA --out WORLD --heads`); the agent starts where the recordings were.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import PPO

from kinema.simulation.env import WorldEnv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    world: str
    """Name of a bundled world, folder of one, or its Hub id; with heads."""
    data: str
    """Recorded episodes to start from."""
    steps: int = 20_000
    """Steps to train for."""
    out: Path = Path("agent.zip")
    """Where the agent goes."""


def main(config: Config) -> None:
    env = WorldEnv(config.world, config.data, observe="latents", max_steps=100, min_trust=0.5)
    # Actions have the units of the recordings; agents expect numbers near one.
    env = RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    length = min(256, config.steps)
    agent = PPO("MlpPolicy", env, n_steps=length, batch_size=min(64, length), device="cpu", verbose=1, seed=0)
    agent.learn(config.steps)
    agent.save(config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
