"""How long an update of the matrices of the dynamics takes, with PyTorch's Muon and with ours, in turns.

python benchmarks/optimizer.py [--world pusht]
"""

import dataclasses
import time

import numpy as np
import torch
import tyro

from kinema import load
from kinema.train.optim import Muon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    world: str = "pusht"
    """Name of a bundled world, folder of one, or its Hub id."""
    updates: int = 20
    """Timed updates of each."""


def main(config: Config) -> None:
    weights = [p.detach() for p in load(config.world).dynamics.blocks.parameters() if p.ndim == 2]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name in ("torch", "kinema"):
        matrices = [torch.nn.Parameter(weight.clone()) for weight in weights]
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        if name == "torch":
            optimizers[name] = torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")
        else:
            optimizers[name] = Muon([{"params": matrices, "use_muon": True}], lr=1e-3, weight_decay=0.1)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(config.updates + 2):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - began)
    # The first updates make the moments.
    medians = {name: float(np.median(each[2:])) for name, each in seconds.items()}
    print(f"{len(weights)} matrices, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:8s} {1e3 * median:8.1f} ms; {median / medians['kinema']:.1f}x")


if __name__ == "__main__":
    main(tyro.cli(Config))
