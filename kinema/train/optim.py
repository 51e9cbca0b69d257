"""Optimizers: AdamW, and Muon for the matrices of transformers."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

from kinema.recipes import Schedule

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration that makes all singular values about one (Jordan 2024)."""
NEWTON_SCHULZ_STEPS = 5
BETAS, EPSILON = (0.9, 0.98), 1e-8
MOMENTUM = 0.95


def build_optimizer(module: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Build the optimizer that a schedule names.

    ``adamw``: weight decay on matrices alone; the fused kernel is several times faster on a CPU too.
    ``muon``: Muon for the matrices inside ``blocks``, AdamW for the others.
    """
    named = dict(module.named_parameters())
    hidden = [p for key, p in named.items() if schedule.optimizer == "muon" and _is_hidden(key, p)]
    is_hidden = {id(p) for p in hidden}
    others = [p for p in named.values() if id(p) not in is_hidden]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = schedule.learning_rate
    if not hidden:
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPSILON, fused=True)
    groups.append({"params": hidden, "weight_decay": schedule.weight_decay, "use_muon": True})
    return Muon(groups, lr=rate)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan 2024), its step scaled to that of AdamW (2502.16982), in parameter
    groups with ``use_muon``; AdamW in the others.

    ``torch.optim.Muon`` does the same, but computes in bfloat16, which is many times slower on processors
    that do not multiply it, and matrix by matrix. Here matrices of one shape go together, in single precision
    on a CPU (``benchmarks/optimizer.py``).
    """

    def __init__(self, params: Any, *, lr: float, weight_decay: float = 0.0):
        """``params`` with ``use_muon`` are matrices."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "use_muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._step_muon if group["use_muon"] else self._step_adamw)(group, parameters)

    def _step_muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        for shape, alike in by_shape.items():
            scale = 0.2 * math.sqrt(max(shape))
            updates = orthogonalize(torch.stack([self._momentum(p) for p in alike]))
            for parameter, update in zip(alike, updates, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum, the gradient taken in."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(parameter.grad, 1.0 - MOMENTUM)
        return parameter.grad.lerp(mean, MOMENTUM)

    def _step_adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [*parameters],
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPSILON,
            maximize=False,
        )


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


class MovingAverage:
    """The exponential moving average of a module's parameters, which is what is kept in the end."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.parameters = dict(module.named_parameters())
        self.tensors = {key: p.detach().clone() for key, p in self.parameters.items()}

    def follow(self, update: int) -> None:
        """Take in the parameters after an update, of which the first is 0: at first the average follows
        faster."""
        decay = min(self.decay, (update + 1) / (update + 10))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.tensors.values()), [p.detach() for p in self.parameters.values()], 1.0 - decay
        )

    def swap(self) -> None:
        """Exchange the parameters and their average."""
        for key, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.data.copy_(self.tensors[key])
            self.tensors[key].copy_(kept)


def _is_hidden(key: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "blocks" in key.split(".")
