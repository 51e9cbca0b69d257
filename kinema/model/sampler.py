"""Solves one frame over noise time: pure functions of ``model(x, tau)``."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kinema.model.flow import euler_step


def solve(model: Callable[[Tensor, float], Tensor], noise: Tensor, num_denoising_steps: int) -> Tensor:
    """From noise to data in equal Euler steps; ``model(x, tau)`` predicts the data, or a sample of what it
    may be: then ``x`` has at every ``tau`` the distribution of noised data, whatever the number of steps.

    Args:
        model: called ``num_denoising_steps`` times, at ``tau`` = 0, 1/n, ..., 1 - 1/n.
        noise: standard normal, any shape.
        num_denoising_steps: calls to make, at least 1.
    """
    if num_denoising_steps < 1:
        raise ValueError(f"num_denoising_steps={num_denoising_steps}: at least 1 is needed")
    x = noise
    for index in range(num_denoising_steps):
        tau, next_tau = index / num_denoising_steps, (index + 1) / num_denoising_steps
        x = euler_step(x, model(x, tau), tau, next_tau)
    return x


def session_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device
) -> Tensor:
    """Standard normal noise ``B *shape``: each row from its own session's generator, so that a session gives
    the same rollout whatever the batch around it."""
    rows = [torch.randn(tuple(shape), generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device)
