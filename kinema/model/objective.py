"""The training objective of the dynamics: every frame of a segment from the frames before it, for every task.

The segment enters twice: once as context, as a rollout commits its frames, once as target, noised. A target
sees the context before it and itself, never another target, so one pass gives a prediction for every frame
under the conditions of a rollout. Where every target is pure noise, both are the same, and the segment enters
once (``Dynamics.forward_from_noise``). The observations in the context are noised a little: a rollout is then
stable against its own errors (diffusion forcing, 2407.01392; 2408.14837, section 3.2).

Every target is predicted twice, with noise of its own, and the loss is the energy score of the two: its
optimum are samples of what may follow, so one network call gives a possible future, and several calls are as
right as one (distributional diffusion, 2502.02483).
"""

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.model.flow import interpolate, sample_tau
from kinema.model.score import energy_score, is_plausible
from kinema.model.tasks import TASKS, Role, Task, passes
from kinema.model.tokens import Goal, Values
from kinema.model.transformer import Dynamics

SMOOTHNESS = {"observations": 0.03, "proprio": 0.02, "action": 0.05}
"""Errors below which the score is quadratic, in normalised units."""
PLAUSIBLE_SPREADS = 2.0
"""A simulated frame is context for a recorded one while it is within so many spreads of the recorded frame
before it: where the world took another turn, what was recorded does not follow from what was simulated."""
MOTION_MEMORY = 4
"""Frames for which a latent that changed counts as moving."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsObjectiveConfig:
    mixed_share: float = 0.5
    """Share of batches with targets of all tasks at all noise times; in the others every frame is simulated
    from pure noise, all else being given, which takes two thirds of the arithmetic."""
    generate_prob: float = 0.05
    """Share of targets of the task ``generate``; the rest of all targets are of ``simulate``."""
    act_prob: float = 0.07
    """The same of ``act``."""
    infer_prob: float = 0.07
    """The same of ``infer``."""
    locate_prob: float = 0.05
    """The same of ``locate``, where a world has both cameras and proprioception."""
    proprio_prob: float = 0.15
    """Share of targets of ``simulate`` whose proprioception is denoised; in the others it is given."""
    hidden_prob: float = 0.1
    """Share of segments whose actions are hidden in the context, and of those whose proprioception is, as in
    recordings without them."""
    pure_noise_prob: float = 0.5
    """Share of targets at ``tau`` = 0, where sampling starts."""
    goal_dropout: float = 0.3
    """Share of the targets that have a goal, of ``act`` and ``generate``, that are predicted without it."""
    max_context_noise: float = 0.2
    """Observations in the context are noised down to ``tau`` = 1 minus this."""
    max_proprio_noise: float = 0.02
    """The same of proprioception beside cameras."""
    motion_weight: float = 8.0
    """Added weight of a latent near one that changed in the last frames, against 1 of all others."""
    motion_threshold: float = 0.05
    """Least mean square change of a latent against its prior that counts as motion."""
    frame_weight: float = 1.0
    """Weight of the score of whole frames against that of single latents or numbers: what is seen at one
    place must fit what is seen at another."""
    action_weight: float = 0.1
    """Weight of the action's score against that of the observations."""
    proprio_weight: float = 3.0
    """Weight of the score of proprioception."""
    locate_weight: float = 0.1
    """Weight of proprioception that is located against proprioception that is simulated: its error is much
    larger."""


class DynamicsBatch(NamedTuple):
    """Segments, and how much of their context is simulated."""

    values: Values
    """Clean, normalised frames ``B T``."""
    has_action: Bool[Tensor, "B T"]
    """True where the action that led to the frame is recorded."""
    self_forcing_prob: float = 0.0
    """Share of segments whose context is simulated by the network itself, as it is in a rollout: clean, and
    each frame from as many true ones before it as ``self_forcing_steps``."""
    self_forcing_steps: int = 1
    """Steps of that rollout."""
    goal: Values | None = None
    """Frames (T = 1) that were recorded behind the segments, where the dynamics takes goals."""
    recorded: Values | None = None
    """1 for each number of the frames that was recorded, 0 for others, which are noise and no target; None
    where all were."""


class DynamicsObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: each frame of segments from the frames before it."""

    def __init__(self, dynamics: Dynamics, config: DynamicsObjectiveConfig):
        super().__init__()
        self.dynamics = dynamics
        self.config = config
        self.num_cameras = len(dynamics.config.grids)
        self.has_proprio = dynamics.config.proprio_dim > 0
        self.targets = self._target_probs()
        """Steps of the tasks by their names, and their shares."""

    def _target_probs(self) -> list[tuple[str, Task, float]]:
        config = self.config
        probs = {name: getattr(config, f"{name}_prob") for name in ("generate", "act", "infer", "locate")}
        targets = []
        for name, prob in {"simulate": 1.0, **probs}.items():
            if TASKS[name].action is Role.DENOISE and not self.dynamics.config.action_dim:
                continue
            steps = passes(TASKS[name], has_cameras=self.num_cameras > 0, has_proprio=self.has_proprio)
            shares = (
                [prob]
                if len(steps) == 1
                else [prob * config.proprio_prob, prob * (1.0 - config.proprio_prob)]
            )
            targets += [(name, step, share) for step, share in zip(steps, shares, strict=False)]
        others = sum(share for name, _, share in targets if name != "simulate")
        return [
            (name, step, share * (1.0 - others) if name == "simulate" else share)
            for name, step, share in targets
        ]

    def forward(
        self, batch: DynamicsBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and the metrics of a batch: all ``T`` frames are targets, all but the last are
        context; ``generator`` draws all noise."""
        values, has_action, self_forcing_prob, self_forcing_steps, goal_frame, recorded = batch
        there = None
        if recorded is not None:
            values = values.zip(recorded, torch.mul)
            there = self._recorded_modalities(recorded)
        config, device = self.config, has_action.device
        num_segments, time = has_action.shape

        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        is_mixed = bool(random(1) < config.mixed_share)
        is_own = random(num_segments) < self_forcing_prob
        hidden_prob = config.hidden_prob * is_mixed
        noise_level = random(num_segments, time) * random(num_segments, 1)
        if not self.num_cameras:
            noise_level = noise_level.masked_fill(is_own[:, None], 0.0)
        visible = _Visible(
            observations=1.0 - config.max_context_noise * noise_level.masked_fill(is_own[:, None], 0.0),
            proprio=1.0
            - self._proprio_noise * (random(num_segments, time) if self.num_cameras else noise_level),
            shows_action=has_action & (random(num_segments, 1) >= hidden_prob),
            shows_proprio=random(num_segments, 1) >= hidden_prob * (self.num_cameras > 0),
            has_action=has_action,
        )
        context_tau = self._levels(
            visible.observations, visible.shows_proprio * visible.proprio, visible.shows_action.float()
        )
        if there is not None:
            context_tau = there * context_tau
        past = values.map(lambda x: x[:, :-1])
        context = self.add_noise(past, context_tau[:, :-1], generator)
        if is_own.any():
            own = [x.map(lambda part: part[is_own]) for x in (context, past)]
            for _ in range(self_forcing_steps):
                own[0] = self._simulated_context(own[0], context_tau[is_own, :-1], own[1], generator)
            context = context.zip(own[0], lambda all_of, simulated: _put(all_of, is_own, simulated))
        if is_mixed:
            target_of = self._draw_targets(random(num_segments, time), has_action)
            tau = sample_tau(
                (num_segments, time),
                pure_noise_share=config.pure_noise_prob,
                generator=generator,
                device=device,
            )
            levels = torch.stack(
                [self._target_levels(name, step, tau, visible) for name, step, _ in self.targets]
            )
            index = target_of[None, :, :, None].expand(1, -1, -1, levels.shape[-1])
            target_tau = levels.gather(0, index)[0]
            if there is not None:
                target_tau = there * target_tau
            goal = None
            if goal_frame is not None:
                wants_goal = torch.tensor([name in ("act", "generate") for name, *_ in self.targets])
                shows_goal = random(num_segments, time) >= config.goal_dropout
                shows_goal = shows_goal & wants_goal.to(device)[target_of]
                knows_proprio = random(num_segments) >= config.hidden_prob
                goal = Goal(goal_frame, knows_proprio, shows_goal.repeat(1, 2))
            predicted = self._predict_targets(
                context, context_tau[:, :-1], values, target_tau, goal, generator
            )
        else:
            target_of = torch.full((num_segments, time), self._main_target, device=device)
            last = self.add_noise(values.map(lambda x: x[:, -1:]), context_tau[:, -1:], generator)
            predicted = self._predict_from_noise(context.followed_by(last), context_tau, generator)
        if recorded is not None:
            # The values hold 0 for a missing number, so a prediction of 0 costs nothing.
            first, second = (part.zip(recorded, lambda x, mask: mask * x) for part in predicted)
            predicted = first, second
        return self._loss(predicted, values, context, target_of)

    def _recorded_modalities(self, recorded: Values) -> Float[Tensor, "B T M"]:
        """1 for each modality of frames of which something was recorded."""
        sizes = [rows * columns for rows, columns in self.dynamics.config.grids]
        cameras = [part[..., 0, 0] for part in recorded.latents.split(sizes, dim=2)] if sizes else []
        proprio = [recorded.proprio.amax(-1)] if self.has_proprio else []
        return torch.stack([*cameras, *proprio, torch.ones_like((cameras + proprio)[0])], dim=-1)

    @property
    def _proprio_noise(self) -> float:
        """Largest noise on proprioception in the context."""
        return self.config.max_proprio_noise if self.num_cameras else self.config.max_context_noise

    @property
    def _main_target(self) -> int:
        """Index of the target that a frame has where all is given: the last step of ``simulate``."""
        return max(i for i, (name, *_) in enumerate(self.targets) if name == "simulate")

    def _draw_targets(
        self, draw: Float[Tensor, "B T"], has_action: Bool[Tensor, "B T"]
    ) -> Int[Tensor, "B T"]:
        """Indices of ``targets`` by frame. A frame whose action is not recorded is not asked for it, nor is
        the first frame of a segment, which is located where that is possible."""
        bounds = torch.tensor([share for *_, share in self.targets], device=draw.device).cumsum(0)
        index = torch.searchsorted(bounds, draw.contiguous()).clamp_max(len(bounds) - 1)
        wants_action = torch.tensor([step.action is Role.DENOISE for _, step, _ in self.targets]).to(
            draw.device
        )
        cannot = ~has_action
        cannot[:, 0] = True
        index = index.masked_fill(cannot & wants_action[index], self._main_target)
        located = [i for i, (name, *_) in enumerate(self.targets) if name == "locate"]
        if located:
            index[:, 0] = located[0]
        return index

    def _target_levels(
        self, name: str, step: Task, tau: Float[Tensor, "B T"], visible: "_Visible"
    ) -> Float[Tensor, "B T M"]:
        """Noise times of targets in a step of a task."""
        zero = torch.zeros_like(tau)
        # A rollout gives the proprioception that it simulated, whatever the context shows.
        proprio = visible.proprio if name == "simulate" else visible.shows_proprio * visible.proprio
        clean = Task(visible.observations, proprio, visible.has_action.float())  # pyright: ignore[reportArgumentType]
        levels = [
            {Role.CLEAN: given, Role.NOISE: zero, Role.DENOISE: tau}[role]
            for role, given in zip(step, clean, strict=True)
        ]
        return self._levels(*levels)

    def _predict_targets(
        self,
        context: Values,
        context_tau: Float[Tensor, "B S M"],
        values: Values,
        tau: Float[Tensor, "B T M"],
        goal: Goal | None,
        generator: torch.Generator | None,
    ) -> tuple[Values, Values]:
        """Two predictions of noised frames. Both see the same noised value, or noise of their own where it
        is nothing but noise."""
        first, second = self._noise_like(values, generator), self._noise_like(values, generator)
        tau_of = self._spread(tau)
        second = first.zip(second, tau_of, lambda a, b, level: torch.where(level > 0, a, b))
        noised = [values.zip(noise, tau_of, interpolate) for noise in (first, second)]
        target = noised[0].followed_by(noised[1])
        predicted = self.dynamics(
            context,
            context_tau,
            target,
            tau.repeat(1, 2, 1),
            context_noise=self._noise(context, generator),
            target_noise=self._extra_noise(target, generator),
            num_copies=2,
            goal=goal,
        )
        time = tau.shape[1]
        return predicted.map(lambda x: x[:, :time]), predicted.map(lambda x: x[:, time:])

    def _predict_from_noise(
        self, frames: Values, tau: Float[Tensor, "B T M"], generator: torch.Generator | None
    ) -> tuple[Values, Values]:
        """Two predictions of frames from pure noise, each in a pass of its own."""
        frames, num_segments = frames.map(lambda x: x.repeat(2, *[1] * (x.ndim - 1))), len(tau)
        predicted = self.dynamics.forward_from_noise(
            frames, tau.repeat(2, 1, 1), self._noise(frames, generator)
        )
        return predicted.map(lambda x: x[:num_segments]), predicted.map(lambda x: x[num_segments:])

    def _loss(
        self, predicted: tuple[Values, Values], values: Values, context: Values, target_of: Int[Tensor, "B T"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        first, second = predicted
        weights = self._motion_weights(values, context) if self.num_cameras else None
        scores = {
            "observations": self._score(
                "observations", first.latents, second.latents, values.latents, weights
            ),
            "proprio": self._score("proprio", first.proprio, second.proprio, values.proprio),
            "action": self._score("action", first.action, second.action, values.action),
        }
        weight_of = {"observations": 1.0, "proprio": config.proprio_weight, "action": config.action_weight}
        # The first frame has no past: nothing but its proprioception can be predicted, from its observations.
        has_past = torch.arange(target_of.shape[1], device=target_of.device) > 0
        loss, metrics = torch.zeros((), device=target_of.device), {}
        sums: dict[str, list[Tensor]] = {}
        for index, (name, step, _) in enumerate(self.targets):
            part = next(
                part for part in ("observations", "proprio", "action") if getattr(step, part) is Role.DENOISE
            )
            chosen = target_of == index
            if name != "locate":
                chosen = chosen & has_past
            weight = weight_of[part] * (config.locate_weight if name == "locate" else 1.0)
            total, count = (scores[part] * chosen).sum(), chosen.sum()
            loss = loss + weight * total / chosen.numel()
            key = f"{name}_{part}" if name == "simulate" else name
            sums[key] = [total, count]
        metrics = {key: (total / count.clamp_min(1)).detach() for key, (total, count) in sums.items()}
        return loss, metrics

    def _score(
        self, part: str, first: Tensor, second: Tensor, data: Tensor, weights: Tensor | None = None
    ) -> Float[Tensor, "B T"]:
        """Energy score of a modality: of single latents or numbers, by weights that sum to one, and of the
        whole."""
        smoothness = SMOOTHNESS[part]
        if data.ndim == 3:
            first, second, data = (x.unsqueeze(-1) for x in (first, second, data))
        if not data.shape[2]:
            return data.new_zeros(data.shape[:2])
        single = energy_score((first, second), data, smoothness)
        single = single.mean(-1) if weights is None else (weights * single).sum(-1)
        whole = energy_score((first.flatten(2), second.flatten(2)), data.flatten(2), smoothness)
        return single + self.config.frame_weight * whole

    def _motion_weights(self, values: Values, context: Values) -> Float[Tensor, "B T L"]:
        """Weights of the latents, which sum to 1 over a frame in the mean of the batch: most of a frame is as
        its prior, and most of what there is to learn is near what moved. They depend on the frames before a
        frame alone, as weights that knew the frame itself would make the samples wrong."""
        config = self.config
        latents = torch.cat([context.latents, values.latents[:, -1:]], dim=1)
        prior = self.dynamics.prior(dataclasses.replace(values, latents=latents)).latents
        moved = ((latents - prior).square().mean(-1) > config.motion_threshold).to(latents.dtype)
        moved[:, 0] = 0.0
        time, start, near = moved.shape[1], 0, []
        for rows, columns in self.dynamics.config.grids:
            grid = moved[:, :, start : start + rows * columns].unflatten(2, (rows, columns))
            near.append(F.max_pool2d(grid, 3, stride=1, padding=1).flatten(2))
            start += rows * columns
        # The last frames before each one.
        padded = F.pad(torch.cat(near, dim=2), (0, 0, MOTION_MEMORY, 0))
        recent = torch.stack([padded[:, i : i + time] for i in range(MOTION_MEMORY)]).amax(0)
        weights = 1.0 + config.motion_weight * recent
        return weights / weights.sum(-1).mean()

    def _levels(self, observations: Tensor, proprio: Tensor, action: Tensor) -> Float[Tensor, "B T M"]:
        """Noise times by modality."""
        parts = [observations] * self.num_cameras + [proprio] * self.has_proprio + [action]
        return torch.stack(parts, dim=-1)

    def _spread(self, tau: Float[Tensor, "B T M"]) -> Values:
        """The noise time of every number of frames."""
        latents = tau[:, :, self.dynamics.latent_camera].unsqueeze(-1)
        proprio = tau[:, :, -2:-1] if self.has_proprio else tau[:, :, :1]
        return Values(latents, proprio, tau[:, :, -1:])

    def add_noise(
        self, values: Values, tau: Float[Tensor, "B T M"], generator: torch.Generator | None
    ) -> Values:
        """Noise values to the noise time of each modality."""
        return values.zip(self._noise_like(values, generator), self._spread(tau), interpolate)

    def _noise_like(self, values: Values, generator: torch.Generator | None) -> Values:
        return values.map(lambda x: torch.randn(x.shape, generator=generator, device=x.device))

    def _noise(self, frames: Values, generator: torch.Generator | None) -> Float[Tensor, "B T O"]:
        """Noise in place of the observations of frames, and extra noise."""
        shape = (*frames.action.shape[:2], self.dynamics.config.noise_size)
        return torch.randn(shape, generator=generator, device=frames.action.device)

    def _extra_noise(
        self, frames: Values, generator: torch.Generator | None
    ) -> Float[Tensor, "B T X"] | None:
        """Extra noise of frames; None where the network takes none."""
        if not self.dynamics.config.noise_dim:
            return None
        return self.dynamics.extra_noise(self._noise(frames, generator))

    @torch.no_grad()
    def _simulated_context(
        self,
        context: Values,
        tau: Float[Tensor, "B S M"],
        past: Values,
        generator: torch.Generator | None,
    ) -> Values:
        """Replace a context by a simulation of one step from it; each call simulates one step more. A frame
        that took another turn than the recorded one stays as it is."""
        frames = context
        if self.has_proprio and self.num_cameras:
            proprio = self._simulated_proprio(context, tau, past, generator)
            frames = dataclasses.replace(context, proprio=torch.cat([context.proprio[:, :1], proprio], dim=1))
        both = self._predict_from_noise(frames, tau, generator)
        own, other = ((x.latents if self.num_cameras else x.proprio)[:, 1:].flatten(2) for x in both)
        true = (past.latents if self.num_cameras else past.proprio)[:, 1:].flatten(2)
        is_nearer = (own - true).square().sum(-1) <= (other - true).square().sum(-1)
        nearest = torch.where(is_nearer.unsqueeze(-1), own, other)
        farther = torch.where(is_nearer.unsqueeze(-1), other, own)
        chosen = is_plausible(nearest, farther, true, PLAUSIBLE_SPREADS)
        name = "latents" if self.num_cameras else "proprio"
        given = getattr(context, name)
        simulated = torch.where(chosen.unsqueeze(-1), nearest, given[:, 1:].flatten(2))
        simulated = torch.cat([given[:, :1], simulated.view_as(given[:, 1:])], dim=1)
        if self.has_proprio and self.num_cameras:
            kept = torch.where(chosen.unsqueeze(-1), frames.proprio[:, 1:], context.proprio[:, 1:])
            context = dataclasses.replace(context, proprio=torch.cat([context.proprio[:, :1], kept], dim=1))
        return dataclasses.replace(context, **{name: simulated})

    def _simulated_proprio(
        self, context: Values, tau: Float[Tensor, "B S M"], past: Values, generator: torch.Generator | None
    ) -> Float[Tensor, "B S-1 P"]:
        """Proprioception of all frames but the first, simulated by one step and noised as the context is."""
        after = past.map(lambda x: x[:, 1:])
        if not self.dynamics.has_exact_prior:
            zero = torch.zeros_like(tau[:, 1:, -1])
            first_tau = self._levels(zero, zero, tau[:, 1:, -1])
            found = self.dynamics(
                context.map(lambda x: x[:, :-1]),
                tau[:, :-1],
                self.add_noise(after, first_tau, generator),
                first_tau,
                context_noise=self._noise(context, generator)[:, :-1],
                target_noise=self._extra_noise(after, generator),
            )
            after = dataclasses.replace(after, proprio=found.proprio)
        return self.add_noise(after, tau[:, 1:], generator).proprio


def _put(into: Tensor, rows: Bool[Tensor, " B"], values: Tensor) -> Tensor:
    """A copy with other values in some rows."""
    copy = into.clone()
    copy[rows] = values
    return copy


@dataclasses.dataclass(frozen=True)
class _Visible:
    """Noise times of the parts of segments that a task is given."""

    observations: Float[Tensor, "B T"]
    proprio: Float[Tensor, "B T"]
    shows_action: Bool[Tensor, "B T"]
    shows_proprio: Bool[Tensor, "B 1"]
    has_action: Bool[Tensor, "B T"]
