"""A PushT that is drawn here, without its simulator, and worlds of known answer that live in it."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinema.data import Dataset, DatasetWriter
from kinema.data.dimensions import Dimension
from kinema.kits.pusht import detect as pusht
from kinema.model.tokens import DynamicsConfig
from kinema.model.world import CameraConfig, WorldConfig
from kinema.simulation.session import SimulationBatch
from kinema.simulation.step import Step
from kinema.simulation.world import World
from kinema.tokenizers import ConvTokenizerConfig

CAMERA = "observation.image"
FAR = (-1000.0, -1000.0)


def draw(agent: Sequence[float] | np.ndarray, block: Sequence[float] | np.ndarray) -> np.ndarray:
    """A picture of 64 pixels: agent at ``(x, y)``, block at ``(x, y, angle)``, in the simulator's units."""
    return _draw(tuple(map(float, agent)), tuple(map(float, block)))


@functools.lru_cache(maxsize=10_000)
def _draw(agent: tuple[float, ...], block: tuple[float, ...]) -> np.ndarray:
    fine = 128
    y, x = (np.mgrid[:fine, :fine] + 0.5) * (512 / fine)
    picture = np.empty((fine, fine, 3))
    picture[:] = pusht.BACKGROUND
    _paint_block(picture, x, y, (256.0, 256.0, np.pi / 4), (0.0, pusht.GOAL))
    _paint_block(picture, x, y, block, (2.0, pusht.BLOCK_OUTLINE), (-2.0, pusht.BLOCK))
    distance = np.hypot(x - agent[0], y - agent[1])
    picture[distance < 15] = pusht.AGENT_OUTLINE
    picture[distance < 11] = pusht.AGENT
    rim = np.minimum(np.minimum(x, y), np.minimum(512 - x, 512 - y)) < 8
    picture[rim] = 211
    return picture.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _paint_block(
    picture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    pose: Sequence[float] | np.ndarray,
    *layers: tuple[float, np.ndarray],
) -> None:
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    u = cosine * (x - pose[0]) + sine * (y - pose[1])
    v = cosine * (y - pose[1]) - sine * (x - pose[0])
    for grown, colour in layers:
        bar = (np.abs(u) < 60 + grown) & (np.abs(v - 15) < 15 + grown)
        stem = (np.abs(u) < 15 + grown) & (v > 15) & (v < 120 + grown)
        picture[bar | stem] = colour


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """Episodes in which the agent is wherever the last action put it, and the block drifts and turns."""

    dataset: Dataset
    actions: list[np.ndarray]
    blocks: list[np.ndarray]


def record(
    root: Path, *, num_episodes: int, length: int, with_state: bool = True, resting: Sequence[int] = ()
) -> Recording:
    rng = np.random.default_rng(0)
    actions, blocks = [], []
    with DatasetWriter(root, fps=10.0, codec="lossless") as writer:
        for index in range(num_episodes):
            action = rng.uniform(40, 470, (length, 2)).astype(np.float32)
            agent = np.concatenate([rng.uniform(40, 470, (1, 2)), action[:-1]]).astype(np.float32)
            speed = 0.0 if index in resting else 1.0
            time = np.arange(length)[:, None]
            start = [*rng.uniform(180, 300, 2), rng.uniform(-3, 3)]
            block = (np.array(start) + speed * time * [2.4, 1.8, 0.02]).astype(np.float32)
            frames = np.stack([draw(a, b) for a, b in zip(agent, block, strict=True)])
            columns = {"action": action}
            if with_state:
                columns |= {"info.pos_agent": agent, "info.block_pose": block}
            writer.add(frames={CAMERA: frames}, columns=columns, task="push")
            actions.append(action)
            blocks.append(block)
    return Recording(dataset=Dataset.open(root), actions=actions, blocks=blocks)


def tiny_config(
    *,
    name: str = "tiny",
    cameras: tuple[CameraConfig, ...] = (CameraConfig(key=CAMERA, native_height=64, native_width=64),),
    size: int = 64,
    action_dim: int = 2,
    proprio_key: str | None = None,
    proprio_dim: int = 0,
) -> WorldConfig:
    return WorldConfig(
        name=name,
        fps=10.0,
        cameras=cameras,
        proprio_key=proprio_key,
        actions=tuple(Dimension(name=f"a{index}") for index in range(action_dim)),
        proprio=tuple(Dimension(name=str(index)) for index in range(proprio_dim)),
        tokenizer=ConvTokenizerConfig(
            height=size, width=size, latent_dim=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)
        )
        if cameras
        else None,
        dynamics=DynamicsConfig(
            grids=tuple((size // 16, size // 16) for _ in cameras),
            latent_dim=4,
            action_dim=action_dim,
            proprio_dim=proprio_dim,
            width=16,
            depth=2,
            num_heads=2,
            window=4,
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistakes:
    """What a drawn world gets wrong."""

    agent: float = 0.0
    """The agent is this far to the right, 64ths of the picture."""
    drift: float = 0.0
    """The block is this much farther down with every step, 64ths of the picture."""
    turn: float = 0.0
    """The block is turned by this, degrees."""
    noise: float = 0.0
    """Spread of the agent's place from session to session, 64ths."""
    vanishes_after: int | None = None
    """No agent is drawn after so many steps."""
    is_frozen: bool = False
    """It repeats the last frame that it was given."""
    loses_agent_in_codec: bool = False


class DrawnWorld(World):
    """Knows the recording's block and obeys its actions exactly, but for its mistakes."""

    def __init__(
        self, recording: Recording, mistakes: Mistakes | None = None, *, name: str = "pusht"
    ) -> None:
        super().__init__(tiny_config(name=name))
        self.recording, self.mistakes = recording, mistakes or Mistakes()
        self.places: dict[bytes, tuple[int, int]] = {}
        for episode in range(recording.dataset.num_episodes):
            frames = recording.dataset.episode(episode).frames[CAMERA]
            self.places |= {frame.tobytes(): (episode, row) for row, frame in enumerate(frames)}

    def reconstruct(self, frames: Any, *, proprio: np.ndarray | None = None, batch: int = 256) -> np.ndarray:
        pictures = self.by_camera(frames)[CAMERA]
        if not self.mistakes.loses_agent_in_codec:
            return pictures
        blocks = self.recording.blocks
        places = [self.places[picture.tobytes()] for picture in pictures]
        return np.stack([draw(FAR, blocks[episode][row]) for episode, row in places])

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
        given = np.asarray(frames[CAMERA] if isinstance(frames, dict) else frames)
        assert actions is not None
        assert actions.shape == (len(given), given.shape[1] - 1, 2)
        for pictures, taken in zip(given, actions, strict=True):
            episode, row = self.places[pictures[-1].tobytes()]
            np.testing.assert_array_equal(
                taken, self.recording.actions[episode][row + 1 - len(pictures) : row]
            )
        return DrawnBatch(self, given[:, -1], list(generators or []))


class DrawnBatch(SimulationBatch):
    def __init__(self, world: DrawnWorld, last: np.ndarray, generators: list[torch.Generator]) -> None:
        self.world = self.drawn = world
        self.last, self.generators = last, generators
        self.places = [world.places[frame.tobytes()] for frame in last]
        self.num_steps = 0

    def __len__(self) -> int:
        return len(self.last)

    def step(self, actions: Any = None, *, decode: bool = True, judge: bool = True) -> Step:
        self.num_steps += 1
        mistakes = self.drawn.mistakes
        if not decode:
            return Step(frame=None, proprio=None)
        if mistakes.is_frozen:
            return Step(frame=self.last, proprio=None)
        pictures = []
        for session, (episode, row) in enumerate(self.places):
            blocks = self.drawn.recording.blocks[episode]
            x, y, angle = blocks[min(row + self.num_steps, len(blocks) - 1)]
            agent = np.asarray(actions[session]) + np.array([8 * mistakes.agent, 0.0])
            if mistakes.noise:
                agent += 8 * mistakes.noise * torch.randn(2, generator=self.generators[session]).numpy()
            if mistakes.vanishes_after is not None and self.num_steps > mistakes.vanishes_after:
                agent = np.array(FAR)
            block = (x, y + 8 * mistakes.drift * self.num_steps, angle)
            pictures.append(draw(agent, _turned(block, np.radians(mistakes.turn))))
        return Step(frame=np.stack(pictures), proprio=None)


def _turned(block: tuple[float, float, float], angle: float) -> tuple[float, float, float]:
    """The block turned about its centre of mass."""
    centre = np.array(block[:2]) + 45.0 * np.array([-np.sin(block[2]), np.cos(block[2])])
    turned = block[2] + angle
    x, y = centre - 45.0 * np.array([-np.sin(turned), np.cos(turned)])
    return float(x), float(y), turned
