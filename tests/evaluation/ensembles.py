"""A world of known answer that is stochastic: recordings of it, and forecasters that know it exactly or
nearly.

The state, two numbers, is drawn to zero and pushed by the action and by noise: ``x' = 0.9 x + a + noise``. It
is recorded as proprioception and as the brightness of the two halves of a frame.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinema.data import Dataset, DatasetWriter
from kinema.model.world import CameraConfig
from kinema.simulation.session import SimulationBatch
from kinema.simulation.step import Step
from kinema.simulation.world import World

from .drawn import CAMERA, tiny_config

STATE = "observation.state"
DECAY, LEVELS, SIZE = 0.9, 20.0, 32


def draw(states: np.ndarray) -> np.ndarray:
    """Frames ``... SIZE SIZE 3`` of states ``... 2``."""
    levels = np.clip(128.0 + LEVELS * states, 0, 255).round().astype(np.uint8)
    columns = np.repeat(levels, SIZE // 2, axis=-1)
    return np.broadcast_to(columns[..., None, :, None], (*states.shape[:-1], SIZE, SIZE, 3)).copy()


def record(root: Path, *, num_episodes: int, length: int, noise: float, push: float = 0.5) -> Dataset:
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=10.0, codec="lossless") as writer:
        for _ in range(num_episodes):
            actions = rng.normal(0.0, push, (length, 2)).astype(np.float32)
            states = np.zeros((length, 2), np.float32)
            states[0] = rng.normal(0.0, 1.0, 2)
            for t in range(1, length):
                states[t] = DECAY * states[t - 1] + actions[t - 1] + rng.normal(0.0, noise, 2)
            writer.add(frames={CAMERA: draw(states)}, columns={"action": actions, STATE: states}, task="go")
    return Dataset.open(root)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistakes:
    """How a forecaster differs from the world."""

    noise: float
    """Its own noise."""
    is_deaf: bool = False
    """It takes all actions for zero."""
    is_still: bool = False
    """It repeats what it was given."""
    bias: float = 0.0


class NoisyWorld(World):
    """Forecasts the recordings; its codec is exact."""

    def __init__(self, mistakes: Mistakes) -> None:
        cameras = (CameraConfig(key=CAMERA, native_height=SIZE, native_width=SIZE),)
        super().__init__(
            tiny_config(name="noisy", cameras=cameras, size=SIZE, proprio_key=STATE, proprio_dim=2)
        )
        self.mistakes = mistakes

    def reconstruct(self, frames: Any, *, proprio: np.ndarray | None = None, batch: int = 256) -> np.ndarray:
        return self.by_camera(frames)[CAMERA]

    def start_batch(
        self,
        frames: Any,
        actions: np.ndarray | None = None,
        *,
        proprio: np.ndarray | None = None,
        generators: Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        num_denoising_steps: int | None = None,
        max_rewind: int | None = None,
        max_pictures: int | None = None,
        has_trust: bool | None = None,
    ) -> SimulationBatch:
        assert proprio is not None
        drawn = [int(torch.randint(2**31, (1,), generator=each)) for each in generators or []]
        return NoisyBatch(self, proprio[:, -1].astype(float), [np.random.default_rng(seed) for seed in drawn])


class NoisyBatch(SimulationBatch):
    def __init__(self, world: NoisyWorld, states: np.ndarray, rngs: list[np.random.Generator]) -> None:
        self.world = self.noisy = world
        self.states, self.rngs = states, rngs

    def __len__(self) -> int:
        return len(self.states)

    def fork(self, num: int, *, max_rewind: int | None = None) -> "NoisyBatch":
        rngs = [child for rng in self.rngs for child in rng.spawn(num)]
        return NoisyBatch(self.noisy, np.repeat(self.states, num, axis=0), rngs)

    def step(self, actions: Any = None, *, decode: bool = True, judge: bool = True) -> Step:
        mistakes = self.noisy.mistakes
        if not mistakes.is_still:
            noise = np.stack([rng.normal(mistakes.bias, mistakes.noise, 2) for rng in self.rngs])
            self.states = DECAY * self.states + (0.0 if mistakes.is_deaf else np.asarray(actions)) + noise
        frame = draw(self.states) if decode else None
        return Step(frame=frame, proprio=self.states.astype(np.float32))
