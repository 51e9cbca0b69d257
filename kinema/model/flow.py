"""The mathematics of flow matching, as pure functions.

A noised value lies on the straight path from noise (``tau`` = 0) to data (``tau`` = 1):
``x_tau = tau * x + (1 - tau) * noise`` (2210.02747; 2209.03003). The network predicts ``x`` itself.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    data: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], tau: Float[Tensor, "*tau"]
) -> Float[Tensor, "*shape"]:
    """The point at ``tau`` on the path; ``tau`` broadcasts against the values."""
    return tau * data + (1.0 - tau) * noise


def velocity(x_tau: Tensor, x_predicted: Tensor, tau: Tensor | float) -> Tensor:
    """Direction of the path at ``x_tau`` if it ends in ``x_predicted``; undefined at ``tau`` = 1."""
    return (x_predicted - x_tau) / (1.0 - tau)


def euler_step(x_tau: Tensor, x_predicted: Tensor, tau: float, next_tau: float) -> Tensor:
    """Follow the predicted path from ``tau`` to ``next_tau``. Reaching 1 gives the prediction exactly."""
    if next_tau == 1.0:
        return x_predicted
    return x_tau + (next_tau - tau) * velocity(x_tau, x_predicted, tau)


def sample_tau(
    shape: tuple[int, ...],
    *,
    pure_noise_share: float,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Noise times in [0, 1]: a share of exactly 0, where few-step sampling starts, the rest uniform."""
    tau = torch.rand(shape, generator=generator, device=device)
    is_pure = torch.rand(shape, generator=generator, device=device) < pure_noise_share
    return tau.masked_fill(is_pure, 0.0)
