"""What the dynamics is trained on: every frame of a segment from a clean past, as it will meet it.

The segment enters twice: once as context, nearly clean, once as target, noised. A target sees the context before
it and itself, never another target, so one pass gives a prediction for every frame under just the conditions of a
rollout. Context is noised a little and says how much: a rollout is then stable against its own errors (diffusion
forcing, 2407.01392; 2408.14837, section 3.2).
"""

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.dynamics import Dynamics, Values
from kinema.flow import interpolate, sample_tau


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsObjectiveConfig:
    infer_share: float = 0.12
    """Share of frames trained to find the action from the pictures; the others find the picture."""
    no_action_share: float = 0.1
    """Share of segments whose context actions are hidden, as in video without actions."""
    pure_noise_share: float = 0.4
    """Share of targets at ``tau`` = 0, where few-step sampling starts."""
    max_context_noise: float = 0.3
    """Context frames are noised down to ``tau`` = 1 minus this."""
    action_weight: float = 0.1
    """Weight of the action's error against that of the latents."""


class DynamicsObjective(nn.Module):
    """``module(values, has_action) -> (loss, metrics)``."""

    def __init__(self, dynamics: Dynamics, config: DynamicsObjectiveConfig):
        super().__init__()
        self.dynamics = dynamics
        self.config = config

    def forward(
        self,
        values: Values,
        has_action: Bool[Tensor, "B T"],
        own_context_share: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of clean, normalised values of ``T`` frames; frames 1 to T - 1 are targets.

        Args:
            values: the frames.
            has_action: where the action that led to the frame is known.
            own_context_share: share of segments whose context is the network's own one-step prediction of it, as it
                is in a rollout.
            generator: source of all noise.
        """
        config, device = self.config, has_action.device
        batch, time = has_action.shape
        num_observed = self.dynamics.num_modalities - 1

        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        hides_actions = random(batch, 1) < config.no_action_share
        context_clean = 1.0 - config.max_context_noise * random(batch, time, 1)
        context_tau = torch.cat(
            [context_clean.expand(-1, -1, num_observed), (has_action & ~hides_actions).unsqueeze(-1).float()],
            -1,
        )
        infers = (random(batch, time) < config.infer_share) & has_action
        tau = sample_tau(
            (batch, time), pure_noise_share=config.pure_noise_share, generator=generator, device=device
        )
        given_action = has_action.float()
        target_tau = torch.where(
            infers.unsqueeze(-1),
            torch.cat([context_clean.expand(-1, -1, num_observed), tau.unsqueeze(-1)], -1),
            torch.cat([tau.unsqueeze(-1).expand(-1, -1, num_observed), given_action.unsqueeze(-1)], -1),
        )
        past = values.map(lambda x: x[:, :-1])
        future = values.map(lambda x: x[:, 1:])
        context = self.add_noise(past, context_tau[:, :-1], generator)
        target = self.add_noise(future, target_tau[:, 1:], generator)
        if own_context_share:
            uses_own = random(batch) < own_context_share
            context = self._own_context(context, context_tau[:, :-1], past, uses_own, generator)
        predicted = self.dynamics(context, context_tau[:, :-1], target, target_tau[:, 1:])

        infers = infers[:, 1:]
        per_frame = (predicted.latents - future.latents).square().flatten(2)
        proprio_error = (predicted.proprio - future.proprio).square()
        observed = torch.cat([per_frame, proprio_error], -1).mean(-1)
        action = (predicted.action - future.action).square().mean(-1)
        simulates = (~infers).float()
        loss = (observed * simulates).mean() + config.action_weight * (action * infers).mean()
        is_pure = (target_tau[:, 1:, 0] == 0) & ~infers
        metrics = {
            "observation": (observed * simulates).sum() / simulates.sum().clamp_min(1),
            "observation_pure": (observed * is_pure).sum() / is_pure.sum().clamp_min(1),
            "action": (action * infers).sum() / infers.sum().clamp_min(1),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def add_noise(
        self, values: Values, tau: Float[Tensor, "B T M"], generator: torch.Generator | None
    ) -> Values:
        """Noised values at the noise time of each modality."""

        def noised(x: Tensor, tau_x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            return interpolate(x, noise, tau_x)

        sizes = [rows * columns for rows, columns in self.dynamics.config.grids]
        cameras = torch.arange(len(sizes), device=tau.device).repeat_interleave(
            torch.tensor(sizes, dtype=torch.long, device=tau.device)
        )
        return Values(
            noised(values.latents, tau[:, :, cameras].unsqueeze(-1)),
            noised(values.proprio, tau[:, :, -2:-1]),
            noised(values.action, tau[:, :, -1:]),
        )

    @torch.no_grad()
    def _own_context(
        self,
        context: Values,
        context_tau: Tensor,
        past: Values,
        uses_own: Bool[Tensor, " B"],
        generator: torch.Generator | None,
    ) -> Values:
        """Replace the context of some segments by the network's one-step prediction of it, noised alike."""
        future = past.map(lambda x: x[:, 1:])
        tau = context_tau[:, 1:].clone()
        tau[..., :-1] = 0.0
        target = self.add_noise(future, tau, generator)
        earlier = context.map(lambda x: x[:, :-1])
        predicted = self.dynamics(earlier, context_tau[:, :-1], target, tau)
        own = Values(predicted.latents, predicted.proprio, future.action)
        own = self.add_noise(own, context_tau[:, 1:], generator)

        def choose(mine: Tensor, given: Tensor) -> Tensor:
            chosen = torch.where(uses_own.view(-1, *[1] * (given.ndim - 1)), mine, given[:, 1:])
            return torch.cat([given[:, :1], chosen], dim=1)

        return Values(
            choose(own.latents, context.latents), choose(own.proprio, context.proprio), context.action
        )
