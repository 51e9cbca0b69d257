"""The next frame of sessions, from what their cache holds and an action: what a step computes."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.model.cache import Cache
from kinema.model.sampler import solve
from kinema.model.tokens import Values
from kinema.model.world import WorldModel

LATENTS_STREAM, PROPRIO_STREAM = 1, 2
"""Streams of noise that a frame is made of."""

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
    batch = action.shape[0]
    latents = noise(config.num_latents * config.latent_dim, LATENTS_STREAM)
    latents = latents.unflatten(-1, (config.num_latents, config.latent_dim))
    frame = Values(latents, torch.zeros(batch, 1, config.proprio_dim, device=action.device), action)
    if config.proprio_dim:
        frame = with_proprio(
            world, cache, frame, noise, num_denoising_steps, action_tau=1.0, observation_tau=0.0
        )
        frame = dataclasses.replace(frame, proprio=world.held_proprio(frame.proprio))
    if not world.cameras:
        return frame, None, None

    def model(x: Tensor, tau: float) -> Tensor:
        levels = world.tau(batch, 1, action_tau=1.0, observation_tau=tau)
        given = Values(x, frame.proprio, action)
        found = world.dynamics.step(
            given, levels, cache, only_latents=True, remembers=num_denoising_steps == 1
        )
        return found.latents

    found = solve(model, latents, num_denoising_steps)
    settled, doubt, code = world.draw_near(found[:, 0], cache.last_latents, frame.proprio[:, 0])
    return Values(settled.unsqueeze(1), frame.proprio, action), doubt, code


def with_proprio(
    world: WorldModel,
    cache: Cache,
    frame: Values,
    noise: Noise,
    num_denoising_steps: int,
    *,
    action_tau: float,
    observation_tau: float,
) -> Values:
    """A frame with its proprioception found: before the picture (``observation_tau`` = 0), from the past and
    the action; or from a picture that is known."""
    dynamics, batch = world.dynamics, frame.action.shape[0]

    def levels(tau: float) -> Tensor:
        return world.tau(batch, 1, action_tau=action_tau, observation_tau=observation_tau, proprio_tau=tau)

    def model(x: Tensor, tau: float) -> Tensor:
        given = Values(frame.latents, x, frame.action)
        remembers = num_denoising_steps == 1 and not world.cameras
        return dynamics.step(given, levels(tau), cache, remembers=remembers).proprio

    foreseen = dynamics.foresee_proprio(frame, levels(0.0), cache)
    if foreseen is not None and foreseen[1].all():
        return Values(frame.latents, foreseen[0], frame.action)
    proprio = solve(model, noise(world.config.dynamics.proprio_dim, PROPRIO_STREAM), num_denoising_steps)
    if foreseen is not None:
        # What one session is given must not depend on what is known of the others.
        proprio = torch.where(foreseen[1], foreseen[0], proprio)
    return Values(frame.latents, proprio, frame.action)
