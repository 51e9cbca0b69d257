"""Optimizers and number formats."""

from typing import Any

import torch
from torch import Tensor, nn

from kinema.hardware import supports_fast_bfloat16
from kinema.recipes import Schedule

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_NEWTON_SCHULZ = 5
"""Coefficients and steps of the iteration, those of PyTorch."""


class SinglePrecisionMuon(torch.optim.Muon):
    """PyTorch's Muon in single precision. PyTorch multiplies in bfloat16 always, which takes many times as
    long where the hardware does not: there its step cost several times the rest of an update."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1.0 - momentum)
                update = _orthogonal(parameter.grad.lerp(average, momentum))
                parameter.mul_(1.0 - rate * group["weight_decay"])
                # So that a step is about as large as one of AdamW (2502.16982, section 2.2).
                parameter.add_(update, alpha=-0.2 * rate * max(parameter.shape) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values about 1, by the iteration of Newton and Schulz."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NUM_NEWTON_SCHULZ):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


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
    ``muon``: Muon (2502.16982, with its step scaled to that of AdamW) for the matrices inside ``blocks``,
    AdamW for the others.
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
        muon = torch.optim.Muon if supports_fast_bfloat16(hidden[0].device) else SinglePrecisionMuon
        decay = schedule.weight_decay
        parts.append(muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return Optimizer(parts)


def _is_hidden(key: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "blocks" in key.split(".")


def _num_parameters(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
