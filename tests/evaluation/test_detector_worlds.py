"""The validity detector in other worlds: small ones of known answer, and one whose camera moves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kinema.data import Dataset, DatasetWriter
from kinema.evaluation.detector import Detector
from kinema.kits.toys import coin, screen
from kinema.model.world import CameraConfig
from kinema.simulation.world import World

from .drawn import CAMERA, tiny_config

NUM_EPISODES, LENGTH, NUM_TRAINING = 40, 30, 30
MAP = np.random.default_rng(7).integers(0, 3, (24, 24))
"""Patches of three colours through which the camera moves."""
GROUND = np.array([(60, 150, 70), (90, 180, 90), (120, 120, 125)], np.uint8)


def draw_coin(rng: np.random.Generator) -> np.ndarray:
    y = rng.uniform(0.0, 1.0)
    return coin.draw(np.array([rng.choice([-1, 1]) * float(coin.distance(y)), y]))


def draw_screen(rng: np.random.Generator) -> np.ndarray:
    return screen.draw(
        np.array([rng.uniform(-10, 74), rng.uniform(8, 46), rng.integers(2), rng.uniform(4, 60)])
    )


def draw_drive(rng: np.random.Generator) -> np.ndarray:
    """A red car in the middle of a camera that moves over a map."""
    y, x = rng.integers(0, 24 * 16 - 64, 2)
    frame = GROUND[np.kron(MAP, np.ones((16, 16), int))[y : y + 64, x : x + 64]].copy()
    frame[40:50, 29:35] = (200, 30, 30)
    return frame


DRAWINGS = {"coin": draw_coin, "screen": draw_screen, "drive": draw_drive}


class Codec(World):
    """A world with a codec that is exact, or shows grey noise whatever it is given."""

    def __init__(self, *, is_lost: bool = False):
        super().__init__(tiny_config(cameras=(CameraConfig(key=CAMERA, native_height=64, native_width=64),)))
        self.is_lost = is_lost

    def reconstruct(self, frames: Any, *, proprio: np.ndarray | None = None, batch: int = 256) -> np.ndarray:
        shown = self.by_camera(frames)[CAMERA]
        return grey(len(shown)) if self.is_lost else shown


def grey(num: int) -> np.ndarray:
    return np.random.default_rng(3).normal(128, 6, (num, 64, 64, 3)).round().astype(np.uint8)


def record(root: Path, draw: Callable[[np.random.Generator], np.ndarray]) -> Dataset:
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=10.0, codec="lossless") as writer:
        for _ in range(NUM_EPISODES):
            frames = np.stack([draw(rng) for _ in range(LENGTH)])
            writer.add(
                frames={CAMERA: frames}, columns={"action": np.zeros((LENGTH, 1), np.float32)}, task=""
            )
    return Dataset.open(root)


def corrupt(kind: str, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if kind == "blurred":
        blur = ImageFilter.GaussianBlur(1.5)
        return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in frames])
    if kind == "faded":
        changed = 0.6 * frames + 0.4 * frames.mean(axis=(1, 2), keepdims=True)
    elif kind == "noisy":
        changed = frames + rng.normal(0.0, 12.0, frames.shape)
    else:
        changed = 0.5 * frames + 0.5 * np.roll(frames, 5, axis=0)
    return np.clip(changed, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", list(DRAWINGS))
def test_corrupted_frames_are_told_from_real_ones(name: str, tmp_path: Path) -> None:
    dataset = record(tmp_path / name, DRAWINGS[name])
    detector = Detector.train(Codec(), dataset, episodes=range(NUM_TRAINING))
    real = np.concatenate([dataset.episode(i).frames[CAMERA] for i in range(NUM_TRAINING, NUM_EPISODES)])
    assert detector.is_valid({CAMERA: real}).mean() > 0.95
    rng = np.random.default_rng(0)
    for kind in ("blurred", "faded", "noisy", "two in one"):
        wrong = corrupt(kind, real[::6], rng)
        assert detector.is_valid({CAMERA: wrong}).mean() < 0.25, kind


def test_missing_and_doubled_things_are_told_from_real_ones(tmp_path: Path) -> None:
    dataset = record(tmp_path / "coin", draw_coin)
    detector = Detector.train(Codec(), dataset)
    empty = coin.draw(np.array([9.0, 0.5]))[None]
    both = np.maximum(coin.draw(np.array([-0.6, 0.8])), coin.draw(np.array([0.6, 0.8])))[None]
    assert not detector.is_valid({CAMERA: np.concatenate([empty, both])}).any()
    dataset = record(tmp_path / "screen", draw_screen)
    detector = Detector.train(Codec(), dataset)
    no_marker = screen.draw(np.array([8.0, 20.0, 0, -20.0]))
    other = screen.draw(np.array([56.0, 30.0, 1, 30.0]))
    doubled = np.where(other[..., :1] < 100, other, screen.draw(np.array([8.0, 20.0, 1, 30.0])))
    assert not detector.is_valid({CAMERA: np.stack([no_marker, doubled])}).any()


def test_a_codec_that_loses_everything_does_not_make_its_noise_valid(tmp_path: Path) -> None:
    dataset = record(tmp_path / "screen", draw_screen)
    detector = Detector.train(Codec(is_lost=True), dataset)
    assert detector.is_valid({CAMERA: grey(20)}).mean() == 0.0
    assert detector.is_valid({CAMERA: dataset.episode(0).frames[CAMERA]}).mean() > 0.9
    assert "The codec loses most of 100.0% of the frames" in detector.describe()
