"""How well a training keeps to its budget: seconds planned and seconds taken, of all and of each part.

python benchmarks/budget.py [--data FOLDER] [--budget 5m]
"""

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from kinema.data import DatasetWriter
from kinema.recipes.budget import Plan, parse_budget
from kinema.train.command import TrainConfig, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = None
    """A LeRobot dataset; frames of noise by default."""
    budget: str = "5m"
    """Time of the training."""
    device: str = "auto"
    """Device of the training."""


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = config.data or _make_noise(Path(scratch) / "noise")
        out = Path(scratch) / "world"
        began = time.monotonic()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            train(TrainConfig(data=str(data), out=out, budget=config.budget, device=config.device))
        taken = time.monotonic() - began
        plan = Plan.from_json(json.loads((out / "checkpoint" / "run.json").read_text())["options"]["plan"])
        print(printed.getvalue())
        budget = parse_budget(config.budget)
        print(f"planned {plan.seconds:.0f} s after measuring; budget {budget:.0f} s, taken {taken:.0f} s")
        print(f"taken over budget: {taken / budget:.3f}")


def _make_noise(root: Path) -> Path:
    """Frames of one camera, in episodes of a hundred."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=10) as writer:
        for _ in range(20):
            writer.add(
                frames={"observation.images.top": rng.integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)},
                columns={
                    "action": rng.normal(size=(100, 2)).astype(np.float32),
                    "observation.state": rng.normal(size=(100, 2)).astype(np.float32),
                },
            )
    return root


if __name__ == "__main__":
    main(tyro.cli(Config))
