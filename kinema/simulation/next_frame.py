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

LATENTS_STREAM, PROPRIO_STREAM = 1, 2
"""Streams of noise that a frame is made of."""

Noise = Callable[[int, int], Float[Tensor, "B 1 size"]]
"""Noise of a size, of a stream."""

Levels = Callable[[float, int], Float[Tensor, "B 1 M"]]
"""Noise times of a frame by that of the part that is denoised, for a batch."""


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
    frame, doubt, code = foreseen_frame(world, cache, action, noise, num_denoising_steps)
    return recalled(world, frame, code), doubt


def recalled(world: WorldModel, frame: Values, code: Float[Tensor, "B K"] | None) -> Values:
    """A frame that the network foresaw, as a session keeps it: what lies between recorded frames is drawn to
    one of these. How much that computes depends on what was found, so it is not part of a graph."""
    if world.manifold is None or code is None:
        return frame
    latents = world.manifold.recall(frame.latents[:, 0], frame.proprio[:, 0], code)
    return dataclasses.replace(frame, latents=latents.unsqueeze(1))


def foreseen_frame(
    world: WorldModel,
    cache: Cache,
    action: Float[Tensor, "B 1 A"],
    noise: Noise,
    num_denoising_steps: int,
) -> tuple[Values, Float[Tensor, " B"] | None, Float[Tensor, "B K"] | None]:
    """All of ``next_frame`` that computes the same operators whatever is found, with the codes of the frame;
    the last two are None where the world has no manifold or no camera."""
    config = world.config.dynamics
    latents, extra = _split(
        noise(
            config.num_latents * config.latent_dim + num_denoising_steps * config.noise_dim, LATENTS_STREAM
        ),
        num_denoising_steps,
        config.noise_dim,
    )
    latents = latents.unflatten(-1, (config.num_latents, config.latent_dim))
    proprio = torch.zeros(action.shape[0], 1, config.proprio_dim, device=action.device)
    frame = Values(latents, proprio, action)
    for step in passes(
        TASKS["simulate"], has_cameras=bool(world.cameras), has_proprio=config.proprio_dim > 0
    ):
        if step.proprio is Role.DENOISE:
            frame = with_proprio(world, cache, frame, noise, num_denoising_steps, levels_of(world, step))
            frame = dataclasses.replace(frame, proprio=world.held_proprio(frame.proprio))
    if not world.cameras:
        return frame, None, None
    given = frame
    levels = levels_of(world, TASKS["simulate"]._replace(proprio=Role.CLEAN))

    def model(x: Tensor, tau: float) -> Tensor:
        found = world.dynamics.step(
            dataclasses.replace(given, latents=x),
            levels(tau, action.shape[0]),
            cache,
            noise=next(extra),
            only_latents=True,
            commits=tau == 0.0,
        )
        return found.latents

    found = solve(model, latents, num_denoising_steps)
    settled, doubt, code = world.draw_near(found[:, 0], cache.last_latents, frame.proprio[:, 0])
    return Values(settled.unsqueeze(1), frame.proprio, action), doubt, code


def levels_of(world: WorldModel, step: Task) -> Levels:
    """Noise times ``B 1 M`` by the noise time of what a step of a task denoises, and the batch size."""

    def levels(tau: float, batch: int) -> Tensor:
        by_role = {Role.NOISE: 0.0, Role.DENOISE: tau}
        return world.tau(
            batch,
            1,
            action_tau=by_role.get(step.action, 1.0),
            observation_tau=by_role.get(step.observations, world.config.context_tau),
            proprio_tau=by_role.get(step.proprio, 1.0),
        )

    return levels


def with_proprio(
    world: WorldModel,
    cache: Cache,
    frame: Values,
    noise: Noise,
    num_denoising_steps: int,
    levels: Levels,
) -> Values:
    """Denoise the proprioception of a frame: before its observations, from the past and the action; or from
    observations that are given."""
    dynamics, batch = world.dynamics, frame.action.shape[0]
    foreseen = dynamics.foresee_proprio(frame, levels(0.0, batch), cache)
    if foreseen is not None and foreseen[1].all():
        return Values(frame.latents, foreseen[0], frame.action)
    config = world.config.dynamics
    noise_dim = config.noise_dim
    size = config.proprio_dim + num_denoising_steps * noise_dim
    start, extra = _split(noise(size, PROPRIO_STREAM), num_denoising_steps, noise_dim)

    def model(x: Tensor, tau: float) -> Tensor:
        given = dataclasses.replace(frame, proprio=x)
        commits = tau == 0.0 and not world.cameras
        found = dynamics.step(given, levels(tau, batch), cache, noise=next(extra), commits=commits)
        return found.proprio

    proprio = solve(model, start, num_denoising_steps)
    if foreseen is not None:
        # What one session is given must not depend on what is known of the others.
        proprio = torch.where(foreseen[1], foreseen[0], proprio)
    return Values(frame.latents, proprio, frame.action)


def _split(
    noise: Float[Tensor, "B 1 size"], num_calls: int, noise_dim: int
) -> tuple[Tensor, Iterator[Tensor]]:
    """The noise that is denoised, and the extra noise of each call."""
    start, *extra = noise.split([noise.shape[-1] - num_calls * noise_dim, *[noise_dim] * num_calls], dim=-1)
    return start, iter(extra)
