"""Optimizers: AdamW, and Muon for the matrices of transformers."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.recipes import Schedule

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration that makes all singular values about one (Jordan 2024)."""
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan 2024), its step scaled to that of AdamW (2502.16982).

    As ``torch.optim.Muon``, and its state is the same; but that computes in bfloat16, which is many times
    slower on processors that do not multiply it, and matrix by matrix. Here matrices of one shape go
    together, in single precision on a CPU (``benchmarks/optimizer.py``).
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ):
        """``params`` are matrices."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                scale = 0.2 * math.sqrt(max(shape))
                updates = orthogonalize(
                    torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                )
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        """Nesterov's, the gradient taken in."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(parameter.grad, 1.0 - decay)
        return parameter.grad.lerp(mean, decay)


def orthogonalize(matrices: Float[Tensor, "K M N"]) -> Float[Tensor, "K M N"]:
    """Matrices with the singular vectors of these, and singular values of about one."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x.float() if x.device.type == "cpu" else x.bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


class Optimizer:
    """Several optimizers, each for parameters of its own, stepped and saved as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Moments by the number of the parameter, counted over all parts."""
        moments, first = {}, 0
        for part in self.parts:
            state = part.state_dict()["state"]
            moments |= {first + index: value for index, value in state.items()}
            first += _num_parameters(part)
        return {"state": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        first = 0
        for part in self.parts:
            stop = first + _num_parameters(part)
            own = {index - first: value for index, value in state["state"].items() if first <= index < stop}
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
            for parameter, moments in part.state.items():
                for name, value in moments.items():
                    if value.shape == parameter.shape:
                        # The fused kernel walks through memory as it lies, so moments must lie as their
                        # parameter does (channels last, for convolutions).
                        moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            first = stop


def build_optimizer(module: nn.Module, schedule: Schedule) -> Optimizer:
    """What the schedule asks for.

    ``adamw``: weight decay on matrices alone; the fused kernel is several times faster on a CPU too.
    ``muon``: Muon for the matrices inside ``blocks``, AdamW for the others.
    """
    named = dict(module.named_parameters())
    hidden = [p for key, p in named.items() if schedule.optimizer == "muon" and _is_hidden(key, p)]
    is_hidden = {id(p) for p in hidden}
    others = [p for p in named.values() if id(p) not in is_hidden]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = schedule.learning_rate
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)]
    if hidden:
        parts.append(Muon(hidden, lr=rate, weight_decay=schedule.weight_decay))
    return Optimizer(parts)


def _is_hidden(key: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "blocks" in key.split(".")


def _num_parameters(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
