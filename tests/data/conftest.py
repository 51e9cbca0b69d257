"""Small recordings whose every frame and number is different, so that a mix-up cannot go unseen."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinema.data import DatasetWriter

FPS = 10
TOP, SIDE = "observation.images.top", "observation.images.side"
TASKS = ("push the T", "pull the T")

Recording = dict[str, Any]
"""Arguments of ``DatasetWriter.add``."""


def make_recording(number: int, length: int | None = None, size: tuple[int, int] = (24, 32)) -> Recording:
    """Episode ``number`` of a test: a square on a wandering background, seen by two cameras."""
    rng = np.random.default_rng(number)
    length = length or 6 + number % 3
    height, width = size
    frames = np.zeros((length, height, width, 3), np.uint8)
    for t in range(length):
        frames[t] = [number * 11 % 200, t * 7 % 250, 40]
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        frames[t, y : y + 4, x : x + 4] = [250, 250 - t, 10]
    is_last = np.arange(length) == length - 1
    return {
        "frames": {TOP: frames, SIDE: 255 - frames[:, :, ::-1]},
        "columns": {
            "action": rng.normal(size=(length, 2)).astype(np.float32),
            "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
            "next.reward": rng.normal(size=length).astype(np.float32),
            "next.terminated": is_last & bool(number % 2),
            "next.truncated": is_last & (not number % 2),
        },
        "task": TASKS[number % 2],
    }


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes without a defect; copy it before changing anything."""
    root = tmp_path_factory.mktemp("clean") / "dataset"
    with DatasetWriter(root, fps=FPS, robot_type="square") as writer:
        for number in range(4):
            writer.add(**make_recording(number))
    return root


@pytest.fixture
def dataset(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean dataset, to be changed at will."""
    return Path(shutil.copytree(clean, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def recording() -> Callable[..., Recording]:
    return make_recording
