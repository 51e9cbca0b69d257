"""Goals, as heads, policies and the network itself read them; and the actions that the network finds for
them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.dynamics import Cache, Values
from kinema.nn.goal import GoalFrame
from kinema.sampler import solve
from kinema.types import Seen
from kinema.world_model import WorldError, WorldModel


def encode_place(world: WorldModel, seen: Seen) -> Float[Tensor, "1 G"]:
    """What is seen as heads and policies read it; proprioception that is not told is found in the picture
    (``World.locate``).

    Raises:
        WorldError: it does not fit the world.
    """
    latents = world.encode({key: frame[None] for key, frame in seen.frames.items()} or None)
    if not world.cameras:
        latents = torch.zeros(1, 0, world.config.dynamics.latent_dim, device=world.device)
    if seen.proprio is None:
        proprio = world.locate(latents)
    else:
        proprio = world.normalized_proprio(np.asarray(seen.proprio)[None, None], 1, 1)[:, 0]
    return world.place(latents, proprio)


def encode_goal(world: WorldModel, goal: Any) -> Float[Tensor, "1 G"]:
    """A goal as heads and policies read it: a picture ``H W 3`` or a dict of them by camera; a vector of
    proprioception in a world without cameras.

    Raises:
        WorldError: it does not fit the world.
    """
    if not world.cameras:
        return encode_place(world, Seen(frames={}, proprio=np.asarray(goal, dtype=np.float32)))
    pictures = goal if isinstance(goal, Mapping) else {world.cameras[0]: goal}
    if not isinstance(goal, Mapping) and len(world.cameras) > 1:
        raise WorldError(
            f"world '{world.name}' has {len(world.cameras)} cameras: give the goal as a dict of pictures "
            f"with the keys {', '.join(world.cameras)}"
        )
    return encode_place(world, Seen(frames=dict(pictures), proprio=None))


def check_acts(world: WorldModel) -> None:
    """Raises WorldError where a world was not trained to act."""
    if not world.config.dynamics.use_goal:
        raise WorldError(
            f"world '{world.name}' was not trained to act; train it to: kinema train DATA --act --world "
            "WORLD --out ACTING"
        )


def goal_frame(world: WorldModel, place: Float[Tensor, "B G"]) -> GoalFrame:
    """A goal, as ``encode_goal`` gives it, in the parts that the network is told of. The proprioception of a
    picture is known where the world finds it there."""
    sizes, config = world.place_sizes, world.config.dynamics
    latents, proprio, _ = place.split(sizes, dim=-1)
    is_known = bool(sizes.proprio) and (
        not world.cameras or world.manifold is not None or world.heads is not None
    )
    known = torch.full((len(place),), is_known, device=place.device)
    return GoalFrame(latents.unflatten(-1, (config.num_latents, config.latent_dim)), proprio, known)


def act(
    world: WorldModel,
    cache: Cache,
    goal: GoalFrame | None,
    noise: Callable[[int, int], Tensor],
    *,
    chunk: int,
    num_denoising_steps: int,
) -> Float[Tensor, "B C A"]:
    """The next actions of sessions, normalised, as the network itself finds them: each is denoised while the
    frame that it leads to stays noise, then it is kept and the next one follows (Unified World Models,
    2504.02792: a policy is the joint model with the future left out).

    Args:
        world: a network that can be told of goals.
        cache: what the sessions remember; blind frames are added to it.
        goal: where they shall come to, or none.
        noise: of each session, ``B 1 size``, from a size and the number of the draw.
        chunk: actions.
        num_denoising_steps: network calls for each of them.
    """
    config, actions = world.config.dynamics, []
    batch = len(cache.num_frames)

    def levels(action_tau: float) -> Tensor:
        return world.tau(batch, 1, action_tau=action_tau, observation_tau=0.0, proprio_tau=0.0)

    for index in range(chunk):
        latents = noise(config.num_latents * config.latent_dim, 3 * index)
        latents = latents.unflatten(-1, (config.num_latents, config.latent_dim))
        proprio = noise(config.proprio_dim, 3 * index + 1)

        def model(x: Tensor, tau: float, latents: Tensor = latents, proprio: Tensor = proprio) -> Tensor:
            return world.dynamics.step(Values(latents, proprio, x), levels(tau), cache, goal).action

        found = solve(model, noise(config.action_dim, 3 * index + 2), num_denoising_steps).clamp(-1.0, 1.0)
        actions.append(found)
        if index + 1 < chunk:
            blind = Values(latents, proprio, found)
            world.dynamics.keep(blind, levels(1.0), cache, world.dynamics.observed(blind))
    return torch.cat(actions, dim=1)
