"""What the dynamics is trained on: every frame of a segment from a clean past, as it will meet it.

The segment enters twice: once as context, as a rollout remembers its frames, once as target, noised. A target
sees the context before it and itself, never another target, so one pass gives a prediction for every frame
under just the conditions of a rollout. Where every target is as it will be remembered, both are the same, and
it enters once (``Dynamics.foretell``). What the context hands on of its pictures is noised a little: a
rollout is then stable against its own errors (diffusion forcing, 2407.01392; 2408.14837, section 3.2).

Noise times are drawn jointly, as they meet when a frame is solved: first proprioception, from the past and
the action; then the picture, given that too. And in the other directions: proprioception from the picture,
where a recording has none; the action from both.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.model.flow import interpolate, sample_tau
from kinema.model.tokens import Values
from kinema.model.transformer import Dynamics


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsObjectiveConfig:
    mixed_share: float = 1.0
    """Share of batches in which all that follows is drawn; in the others every picture is to be found out of
    pure noise, all else being known, which takes half the arithmetic (``Dynamics.foretell``)."""
    infer_share: float = 0.07
    """Share of frames trained to find the action from the frame; the others find the frame."""
    proprio_share: float = 0.15
    """Share of frames trained to find proprioception before the picture, where a world knows both."""
    locate_share: float = 0.05
    """Share of frames trained to find proprioception from the picture, where a world knows both."""
    hidden_share: float = 0.1
    """Share of segments whose actions are hidden in the context, and of those whose proprioception is, as in
    recordings without them."""
    pure_noise_share: float = 0.5
    """Share of targets at ``tau`` = 0, where few-step sampling starts."""
    max_context_noise: float = 0.2
    """Pictures in the context are noised down to ``tau`` = 1 minus this."""
    max_proprio_noise: float = 0.02
    """The same of proprioception."""
    motion_weight: float = 8.0
    """How much more a latent counts that changes than one that stays."""
    motion_threshold: float = 0.05
    """Least mean square change of a latent from one frame to the next that counts as motion."""
    action_weight: float = 0.1
    """Weight of the action's squared error against that of the latents."""
    proprio_weight: float = 3.0
    """Weight of proprioception's absolute error (squared below 0.02) against the latents' squared error."""
    locate_weight: float = 0.1
    """Weight of a frame that is located against one that is foreseen: its error is much larger."""


LEAST_ERROR = 0.03
"""Errors of a latent below this count as squares."""

OBSERVATION, PROPRIO, LOCATE, ACTION = range(4)
"""What a target frame is trained to find: the picture; proprioception before it, or from it; the action from
both."""


class DynamicsBatch(NamedTuple):
    """Segments, and how much of their context is the network's own."""

    values: Values
    """Clean, normalised frames ``B T``."""
    has_action: Bool[Tensor, "B T"]
    """True where the action that led to the frame is recorded."""
    own_context_share: float = 0.0
    """Share of segments whose context is the network's own, as it is in a rollout: clean, and each frame
    simulated from as many true ones before it as ``own_context_steps``."""
    own_context_steps: int = 1
    """Steps of that rollout."""


class DynamicsObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: each frame of segments from the frames before it."""

    def __init__(
        self,
        dynamics: Dynamics,
        config: DynamicsObjectiveConfig,
        settle: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ):
        """``settle``, if any, makes of the latents that the dynamics found (``N L Z``), those of the frames
        before and the proprioception (``N P``) what a session keeps; see ``WorldModel.draw_near``."""
        super().__init__()
        self.dynamics = dynamics
        self.config = config
        self.settle = settle
        self.num_cameras = len(dynamics.config.grids)
        self.has_proprio = dynamics.config.proprio_dim > 0

    def forward(
        self, batch: DynamicsBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch: all ``T`` frames are targets, all but the last context; ``generator``
        draws all noise."""
        values, has_action, own_context_share, own_context_steps = batch
        config, device = self.config, has_action.device
        num_segments, time = has_action.shape

        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        is_mixed = bool(random(1) < config.mixed_share)
        hidden_share = config.hidden_share * is_mixed
        uses_own = random(num_segments) < own_context_share
        picture_noise = config.max_context_noise * random(num_segments, time)
        picture_tau = 1.0 - picture_noise.masked_fill(uses_own[:, None], 0.0)
        proprio_tau = 1.0 - config.max_proprio_noise * random(num_segments, time)
        shows_actions = has_action & (random(num_segments, 1) >= hidden_share)
        shows_proprio = (random(num_segments, 1) >= hidden_share).float()
        context_tau = self._levels(picture_tau, shows_proprio * proprio_tau, shows_actions.float())

        kind = torch.full((num_segments, time), OBSERVATION if self.num_cameras else PROPRIO, device=device)
        if is_mixed:
            kind = self._draw_kinds(random(num_segments, time), has_action)
        tau = sample_tau(
            (num_segments, time), pure_noise_share=config.pure_noise_share, generator=generator, device=device
        )
        zero = torch.zeros_like(tau)
        action_tau = has_action.float()
        target_tau = torch.stack([
            self._levels(tau, proprio_tau, action_tau),
            self._levels(zero, tau, action_tau),
            self._levels(picture_tau, tau, action_tau),
            self._levels(picture_tau, shows_proprio * proprio_tau, tau),
        ])  # fmt: skip
        target_tau = target_tau.gather(0, kind[None, :, :, None].expand(1, -1, -1, target_tau.shape[-1]))[0]

        past = values.map(lambda x: x[:, :-1])
        context = self.add_noise(past, context_tau[:, :-1], generator)
        noise = self._noise_of(values, generator)
        context_noise = noise[:, :-1]
        shown = past.latents
        if uses_own.any():
            for _ in range(own_context_steps):
                context = self._own_context(
                    context, context_tau[:, :-1], context_noise, past, uses_own, generator
                )
            shown = torch.where(uses_own.view(-1, 1, 1, 1), context.latents, shown)
        if is_mixed:
            target = self.add_noise(values, target_tau, generator)
            predicted = self.dynamics(
                context, context_tau[:, :-1], target, target_tau, context_noise=context_noise
            )
        else:
            last = self.add_noise(values.map(lambda x: x[:, -1:]), context_tau[:, -1:], generator)
            predicted = self.dynamics.foretell(context.followed_by(last), context_tau, noise)

        # A distance and not its square: where several things may happen, the least mean square is their
        # mixture, and that is no picture; the least distance is near the likeliest.
        square = (predicted.latents - values.latents).square().mean(-1)
        latent_error = (square + LEAST_ERROR**2).sqrt() - LEAST_ERROR
        errors = {
            "observation": (self._motion_weights(values, shown) * latent_error).sum(-1),
            "proprio": F.smooth_l1_loss(predicted.proprio, values.proprio, reduction="none", beta=0.02).mean(
                -1
            ),
            "action": (predicted.action - values.action).square().mean(-1),
        }
        # The first frame has no past: only its proprioception can be found, from its picture.
        has_past = torch.arange(time, device=device) > 0
        counted = {
            "observation": (kind == OBSERVATION) & has_past & bool(self.num_cameras),
            "proprio": (kind == PROPRIO) & has_past,
            "locate": kind == LOCATE,
            "action": (kind == ACTION) & has_past,
        }
        errors["locate"] = errors["proprio"]
        weights = {
            "observation": 1.0,
            "proprio": config.proprio_weight,
            "locate": config.proprio_weight * config.locate_weight,
            "action": config.action_weight,
        }
        loss = torch.zeros((), device=device)
        metrics = {}
        for name, error in errors.items():
            if not self._can_find(name):
                continue
            chosen = counted[name]
            loss = loss + weights[name] * (error * chosen).mean()
            metrics[name] = (error * chosen).sum() / chosen.sum().clamp_min(1)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _can_find(self, name: str) -> bool:
        """Whether a world has what is to be found, and where it is to be found."""
        needs_camera, needs_proprio = name in ("observation", "locate"), name in ("proprio", "locate")
        return (not needs_camera or self.num_cameras > 0) and (not needs_proprio or self.has_proprio)

    def _motion_weights(self, values: Values, shown: Float[Tensor, "B S L Z"]) -> Float[Tensor, "B T L"]:
        """Weights of the latents, 1 over all of a frame in the mean of the batch: most of a picture is as
        the linear response foresees it from what the context shows (all frames but the last), and what is
        there to learn is in the rest."""
        shown = torch.cat([shown, values.latents[:, -1:]], dim=1)
        change = (
            (values.latents - self.dynamics.foresee(dataclasses.replace(values, latents=shown)).latents)
            .square()
            .mean(-1)
        )
        moves = (change > self.config.motion_threshold).to(change.dtype)
        moves[:, 0] = 0.0
        weights = 1.0 + self.config.motion_weight * moves
        return weights / weights.sum(-1).mean().clamp_min(1.0)

    def _draw_kinds(self, draw: Tensor, has_action: Tensor) -> Tensor:
        """What each target frame is trained to find; the first frame of a segment is located."""
        config = self.config
        kind = torch.full_like(draw, OBSERVATION if self.num_cameras else PROPRIO, dtype=torch.long)
        if self.num_cameras and self.has_proprio:
            kind[draw < config.infer_share + config.proprio_share + config.locate_share] = LOCATE
            kind[draw < config.infer_share + config.proprio_share] = PROPRIO
            kind[:, 0] = LOCATE
        infers = (draw < config.infer_share) & has_action
        infers[:, 0] = False
        return kind.masked_fill(infers, ACTION)

    def _levels(self, picture: Tensor, proprio: Tensor, action: Tensor) -> Float[Tensor, "B T M"]:
        """Noise times by modality."""
        return torch.stack([picture] * self.num_cameras + [proprio] * self.has_proprio + [action], dim=-1)

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
        proprio = noised(values.proprio, tau[:, :, -2:-1]) if self.has_proprio else values.proprio
        return Values(
            noised(values.latents, tau[:, :, cameras].unsqueeze(-1)),
            proprio,
            noised(values.action, tau[:, :, -1:]),
        )

    def _noise_of(self, frames: Values, generator: torch.Generator | None) -> Float[Tensor, "B T O"]:
        """Noise in place of what is observed of frames."""
        observed = self.dynamics.observed(frames)
        return torch.randn(observed.shape, generator=generator, device=observed.device)

    @torch.no_grad()
    def _own_context(
        self,
        context: Values,
        context_tau: Tensor,
        context_noise: Tensor,
        past: Values,
        uses_own: Bool[Tensor, " B"],
        generator: torch.Generator | None,
    ) -> Values:
        """Replace the context of some segments by the network's own one-step solution of it, noised alike.
        Each call simulates one step more."""
        tau, own, frames = context_tau[:, 1:], past.map(lambda x: x[:, 1:]), context
        if self.has_proprio and self.num_cameras:
            if not self.dynamics.foresees_proprio:
                zero = torch.zeros_like(tau[..., -1])
                first_tau = self._levels(zero, zero, tau[..., -1])
                found = self.dynamics(
                    context.map(lambda x: x[:, :-1]),
                    context_tau[:, :-1],
                    self.add_noise(own, first_tau, generator),
                    first_tau,
                    context_noise=context_noise[:, :-1],
                )
                own = Values(own.latents, found.proprio, own.action)
            proprio = self.add_noise(own, tau, generator).proprio
            frames = dataclasses.replace(context, proprio=torch.cat([context.proprio[:, :1], proprio], dim=1))
        found = self.dynamics.foretell(frames, context_tau, context_noise).map(lambda x: x[:, 1:])
        if self.num_cameras:
            latents = found.latents
            if self.settle is not None:
                parts = (part.flatten(0, 1) for part in (latents, context.latents[:, :-1], own.proprio))
                latents = self.settle(*parts).view_as(latents)
            own = dataclasses.replace(own, latents=latents)
        else:
            own = dataclasses.replace(own, proprio=found.proprio)
        own = self.add_noise(own, tau, generator)

        def choose(mine: Tensor, given: Tensor) -> Tensor:
            chosen = torch.where(uses_own.view(-1, *[1] * (given.ndim - 1)), mine, given[:, 1:])
            return torch.cat([given[:, :1], chosen], dim=1)

        return Values(
            choose(own.latents, context.latents), choose(own.proprio, context.proprio), context.action
        )
