"""Is reading ever the bottleneck of training? Times drawing batches against training on them, in one run.

    python benchmarks/data_loading.py [--data FOLDER]

Prints how many frames a second come out of the store (memory-mapped), how many the tokenizer and the dynamics
train on, and the ratios. Without ``--data`` a dataset of noise is made.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro

from kinema.data import Dataset, DatasetWriter
from kinema.data.segments import Segments, load_segments
from kinema.model.objective import DynamicsBatch, DynamicsObjective
from kinema.model.tokens import Values
from kinema.model.transformer import Dynamics
from kinema.recipes import RECIPES
from kinema.tokenizers import ConvTokenizer, TokenizerObjective

SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = None
    """A LeRobot dataset; noise by default."""


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = config.data or _make_noise(Path(scratch) / "noise")
        dataset = Dataset.open(folder)
        recipe = RECIPES["base"](dataset)
        assert recipe.tokenizer is not None
        on_disk = load_segments(dataset, recipe.segments, Path(scratch) / "cache")
        rng = np.random.default_rng(0)
        tokenizer = ConvTokenizer(recipe.tokenizer)
        tokenizer_objective = TokenizerObjective(tokenizer, recipe.tokenizer_objective)
        dynamics_objective = DynamicsObjective(Dynamics(recipe.dynamics), recipe.dynamics_objective)
        latents = torch.randn(
            on_disk.num_rows, recipe.dynamics.num_latents, recipe.dynamics.latent_dim, dtype=torch.float16
        )

        def read_pairs(segments: Segments) -> int:
            return 2 * len(segments.draw_pairs(rng, 32))

        def train_tokenizer() -> int:
            tokenizer_objective(on_disk.draw_pairs(rng, 32).pictures)[0].backward()
            return 64

        def read_latents() -> int:
            rows = on_disk.draw_rows(rng, 16, 9)
            latents[torch.from_numpy(rows)].float()
            return rows.size

        def train_dynamics() -> int:
            rows = on_disk.draw_rows(rng, 16, 9)
            values = Values(
                latents[torch.from_numpy(rows)].float(),
                torch.randn(16, 9, recipe.dynamics.proprio_dim),
                torch.randn(16, 9, recipe.dynamics.action_dim),
            )
            batch = DynamicsBatch(values, torch.ones(16, 9, dtype=torch.bool))
            dynamics_objective(batch)[0].backward()
            return rows.size

        rates = {
            "read pictures, memory-mapped": _rate(lambda: read_pairs(on_disk)),
            "train the tokenizer": _rate(train_tokenizer),
            "read latents": _rate(read_latents),
            "train the dynamics": _rate(train_dynamics),
        }
        for name, rate in rates.items():
            print(f"{name:32s} {rate:10.0f} frames/s")
        for read, trained in (
            ("read pictures, memory-mapped", "train the tokenizer"),
            ("read latents", "train the dynamics"),
        ):
            print(f"{read} / {trained}: {rates[read] / rates[trained]:.0f}x")


def _rate(work: Callable[[], int]) -> float:
    work()
    started, frames = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        frames += work()
    return frames / (time.perf_counter() - started)


def _make_noise(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, fps=10) as writer:
        for _ in range(20):
            writer.add(
                frames={"observation.images.noise": rng.integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)},
                columns={"action": rng.normal(size=(100, 2)).astype(np.float32)},
            )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Config))
