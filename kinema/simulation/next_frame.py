"""The next frame of sessions, from what their cache holds and an action: what a step computes."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.model.cache import Cache
from kinema.model.sampler import solve
from kinema.model.tasks import TASKS, Role, Task, passes
from kinema.model.tokens import Values
from kinema.model.world import WorldModel

LATENTS_STREAM, PROPRIO_STREAM, ACTION_STREAM = 1, 2, 3
"""Streams of noise that a frame is made of."""
STREAMS = {"observations": LATENTS_STREAM, "proprio": PROPRIO_STREAM, "action": ACTION_STREAM}
"""The same by the part that is denoised."""

Noise = Callable[[int, int], Float[Tensor, "B 1 size"]]
"""Noise of a size, of a stream."""


def next_frame(
    world: WorldModel,
    cache: Cache,
    action: Float[Tensor, "B 1 A"],
    noise: Noise,
    num_denoising_steps: int,
) -> tuple[Values, Float[Tensor, " B"] | None]:
    """The frame that a normalised action leads to, as a session keeps it, and how far from the manifold what
    the network found lay, in radii; None where the world has no manifold or no camera. Actions that were not
    recorded are held to those that were."""
    action = world.held_action(action)
    frame, doubt, code = simulated_frame(world, cache, action, noise, num_denoising_steps)
    return recalled(world, frame, code), doubt


def recalled(world: WorldModel, frame: Values, code: Float[Tensor, "B K"] | None) -> Values:
    """A frame that the network foresaw, as a session keeps it: what lies between recorded frames is drawn to
    one of these. How much that computes depends on what was found, so it is not part of a graph."""
    if world.manifold is None or code is None:
        return frame
    latents = world.manifold.recall(frame.latents[:, 0], frame.proprio[:, 0], code)
    return dataclasses.replace(frame, latents=latents.unsqueeze(1))


def simulated_frame(
    world: WorldModel,
    cache: Cache,
    action: Float[Tensor, "B 1 A"],
    noise: Noise,
    num_denoising_steps: int,
) -> tuple[Values, Float[Tensor, " B"] | None, Float[Tensor, "B K"] | None]:
    """All of ``next_frame`` that computes the same operators whatever is found, with the codes of the frame;
    the last two are None where the world has no manifold or no camera."""
    size = world.config.dynamics.proprio_dim
    frame = _noisy_frame(world, noise, num_denoising_steps, action)
    frame = dataclasses.replace(frame, proprio=torch.zeros(action.shape[0], 1, size, device=action.device))
    for step in _steps(world, "simulate"):
        if step.proprio is Role.DENOISE:
            frame = with_proprio(world, cache, frame, noise, num_denoising_steps, step)
            frame = dataclasses.replace(frame, proprio=world.held_proprio(frame.proprio))
        else:
            frame = denoise(world, cache, frame, noise, num_denoising_steps, step)
    if not world.cameras:
        return frame, None, None
    settled, doubt, code = world.draw_near(frame.latents[:, 0], cache.last_latents, frame.proprio[:, 0])
    return dataclasses.replace(frame, latents=settled.unsqueeze(1)), doubt, code


def generated_frame(world: WorldModel, cache: Cache, noise: Noise, num_denoising_steps: int) -> Values:
    """The next frame of video without actions, its proprioception located in it; the action is noise."""
    frame = _noisy_frame(world, noise, num_denoising_steps)
    for step in _steps(world, "generate"):
        frame = denoise(world, cache, frame, noise, num_denoising_steps, step)
    for step in _steps(world, "locate"):
        step = step._replace(action=Role.NOISE)
        frame = with_proprio(world, cache, frame, noise, num_denoising_steps, step)
    return frame


def chosen_action(
    world: WorldModel,
    cache: Cache,
    noise: Noise,
    num_denoising_steps: int,
    goal: Float[Tensor, "B C D"] | None,
) -> Float[Tensor, "B 1 A"]:
    """The next normalised action, towards a goal (``Dynamics.goal_tokens``) where there is one."""
    (step,) = _steps(world, "act")
    frame = _noisy_frame(world, noise, num_denoising_steps)
    return denoise(world, cache, frame, noise, num_denoising_steps, step, goal=goal).action


def denoise(
    world: WorldModel,
    cache: Cache,
    frame: Values,
    noise: Noise,
    num_denoising_steps: int,
    step: Task,
    *,
    goal: Float[Tensor, "B C D"] | None = None,
) -> Values:
    """A frame (T = 1) after a step of a task, which denoises one part of it. What is noise or denoised is
    given as noise. The cache takes the first call of the last step, in which all but the observations is
    clean."""
    part = next(name for name in STREAMS if getattr(step, name) is Role.DENOISE)
    field = "latents" if part == "observations" else part
    is_observed = part == ("observations" if world.cameras else "proprio")
    is_complete = step.proprio is not Role.NOISE or not world.config.dynamics.proprio_dim
    extra, batch = _extra_noise(world, noise, part, num_denoising_steps), frame.action.shape[0]

    def model(x: Tensor, tau: float) -> Tensor:
        found = world.dynamics.step(
            dataclasses.replace(frame, **{field: x}),
            _levels(world, step, tau, batch),
            cache,
            noise=next(extra),
            goal=goal,
            only_latents=part == "observations",
            commits=tau == 0.0 and is_observed and is_complete,
        )
        return getattr(found, field)

    found = solve(model, getattr(frame, field), num_denoising_steps)
    return dataclasses.replace(frame, **{field: found})


def with_proprio(
    world: WorldModel, cache: Cache, frame: Values, noise: Noise, num_denoising_steps: int, step: Task
) -> Values:
    """Denoise the proprioception of a frame: before its observations, from the past and the action; or from
    observations that are given. Where the linear response predicts it exactly, that is taken."""
    levels = _levels(world, step, 0.0, frame.action.shape[0])
    exact = world.dynamics.exact_proprio(frame, levels, cache)
    if exact is not None and exact[1].all():
        return dataclasses.replace(frame, proprio=exact[0])
    start = _start_noise(world, noise, "proprio", num_denoising_steps)
    given = dataclasses.replace(frame, proprio=start)
    found = denoise(world, cache, given, noise, num_denoising_steps, step)
    if exact is None:
        return found
    # A session must get the same frame whatever the other sessions of its batch have seen.
    return dataclasses.replace(frame, proprio=torch.where(exact[1], exact[0], found.proprio))


def _steps(world: WorldModel, task: str) -> list[Task]:
    has_proprio = world.config.dynamics.proprio_dim > 0
    return passes(TASKS[task], has_cameras=bool(world.cameras), has_proprio=has_proprio)


def _levels(world: WorldModel, step: Task, tau: float, batch: int) -> Float[Tensor, "B 1 M"]:
    """Noise times of a frame in a step of a task whose denoised part is at ``tau``."""
    by_role = {Role.NOISE: 0.0, Role.DENOISE: tau}
    return world.tau(
        batch,
        1,
        action_tau=by_role.get(step.action, 1.0),
        observation_tau=by_role.get(step.observations, world.config.context_tau),
        proprio_tau=by_role.get(step.proprio, 1.0),
    )


def _noisy_frame(
    world: WorldModel, noise: Noise, num_calls: int, action: Float[Tensor, "B 1 A"] | None = None
) -> Values:
    """A frame of noise, but for the action where it is given."""
    config = world.config.dynamics
    latents = _start_noise(world, noise, "observations", num_calls)
    latents = latents.unflatten(-1, (config.num_latents, config.latent_dim))
    if action is not None:
        return Values(latents, latents.new_zeros(latents.shape[0], 1, config.proprio_dim), action)
    proprio, action = (_start_noise(world, noise, part, num_calls) for part in ("proprio", "action"))
    return Values(latents, proprio, action)


def _noise_of(world: WorldModel, noise: Noise, part: str, num_calls: int) -> tuple[Tensor, ...]:
    """The noise from which a part is denoised, and the extra noise of each call."""
    config = world.config.dynamics
    sizes = {"proprio": config.proprio_dim, "action": config.action_dim}
    size = sizes.get(part, config.num_latents * config.latent_dim)
    both = noise(size + num_calls * config.noise_dim, STREAMS[part])
    return both.split([size, *[config.noise_dim] * num_calls], dim=-1)


def _start_noise(world: WorldModel, noise: Noise, part: str, num_calls: int) -> Float[Tensor, "B 1 size"]:
    return _noise_of(world, noise, part, num_calls)[0]


def _extra_noise(world: WorldModel, noise: Noise, part: str, num_calls: int) -> Iterator[Tensor]:
    return iter(_noise_of(world, noise, part, num_calls)[1:])
