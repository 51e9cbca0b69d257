"""Goals, as heads, policies and the network itself read them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.model.world import WorldError, WorldModel
from kinema.types import Seen


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
