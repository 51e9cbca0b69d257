"""Numbers of a training run, and sheets of real beside simulated frames."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kinema.data.drawing import contact_sheet, write_png
from kinema.data.lerobot import Dataset
from kinema.simulation.world import World


class MetricsLog:
    """Numbers as lines of JSON in ``metrics.jsonl``, and to TensorBoard where it is installed."""

    def __init__(self, folder: Path | None):
        """The files are opened with the first numbers; none are where there is no ``folder``."""
        self._folder = folder
        self._lines = self._board = None

    def write(self, stage: str, update: int, numbers: dict[str, float]) -> None:
        """Add the numbers of an update."""
        if not numbers or self._folder is None:
            return
        if self._lines is None:
            self._open(self._folder)
        assert self._lines is not None
        self._lines.write(json.dumps({"stage": stage, "update": update, **numbers}) + "\n")
        self._lines.flush()
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(f"{stage}/{key}", value, update)

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "metrics.jsonl").open("a")
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def close(self) -> None:
        """Close the files."""
        for part in (self._lines, self._board):
            if part is not None:
                part.close()


def evaluate_progress(
    world: World,
    dataset: Dataset,
    episodes: Sequence[int],
    sheet: Path,
    *,
    context: int = 4,
    horizon: int = 48,
) -> dict[str, float]:
    """Simulate a few held-out episodes; write real above simulated, return the error as PSNR.

    Args:
        world: as it stands in training.
        dataset: where the episodes are.
        episodes: their indices; three at most are used.
        sheet: path of the contact sheet (worlds with a camera).
        context: frames given.
        horizon: steps simulated, fewer where an episode is shorter.
    """
    rows, numbers = [], []
    for index in list(episodes)[:3]:
        episode = dataset.episode(index, cameras=world.cameras)
        first = min(context, len(episode) - 1)
        if first < 1:
            continue
        proprio = episode.columns[world.config.proprio_key] if world.config.proprio_key else None
        frames = {key: each[:first] for key, each in episode.frames.items()}
        simulation = world.start(
            frames or None,
            episode.actions[: first - 1],
            proprio=None if proprio is None else proprio[:first],
        )
        steps = [simulation.step(a) for a in episode.actions[first - 1 : -1][:horizon]]
        stop = first + len(steps)
        if not world.cameras:
            assert proprio is not None
            simulated = np.stack([step.proprio for step in steps if step.proprio is not None])
            scale = np.maximum(proprio.std(0), 1e-6)
            numbers.append(float(np.sqrt(np.nanmean(((simulated - proprio[first:stop]) / scale) ** 2))))
            continue
        for key, recorded in world.by_camera(episode.frames).items():
            real = recorded[first:stop]
            made = np.stack([step.frame[key] if len(world.cameras) > 1 else step.frame for step in steps])
            rows += [real, made]
            error = np.mean((real.astype(np.float64) - made) ** 2)
            numbers.append(float(10 * np.log10(255.0**2 / max(error, 1e-9))))
    if rows:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        write_png(sheet, contact_sheet(rows))
    if not numbers:
        return {}
    return {"held_out_psnr" if world.cameras else "held_out_error": float(np.mean(numbers))}
