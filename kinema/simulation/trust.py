"""Trust of a simulation in itself: the expected error of its frames, without the true ones.

A session may have a twin that is given the same actions and other noise. How far the two have come apart is
the spread of what may have happened, and for a network that samples the spread is the error that is to be
expected (ensemble forecasts: Leutbecher and Palmer 2008). Three numbers for each camera, fitted to held-out
episodes, turn the distance between latents into grey levels. Trust rises again where the two meet again.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.model.cache import Cache
from kinema.model.world import WorldModel


def spread(world: WorldModel, one: Cache, other: Cache) -> Float[Tensor, "B K"]:
    """Root mean square distance between the present frames of two sessions: of the latents by camera, or of
    each number of normalised proprioception in a world without cameras."""
    if not world.cameras:
        return (one.last_proprio - other.last_proprio).abs()
    square = (one.last_latents - other.last_latents).square().mean(-1)
    sizes = [rows * columns for rows, columns in world.config.dynamics.grids]
    return torch.stack([part.mean(-1) for part in square.split(sizes, dim=1)], dim=-1).sqrt()


def expected_error(world: WorldModel, spread: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Root mean square error to expect: grey levels by camera, or normalised numbers of proprioception."""
    slope, floor, _ = world.error_fit.unbind(-1)
    return ((slope * spread).square() + floor.square()).sqrt()


def trust(world: WorldModel, expected: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Trust from 1 towards 0: one half where the expected error of the worst camera, beyond that of the
    tokenizer, is half of the error of an unrelated rollout."""
    _, floor, half = world.error_fit.unbind(-1)
    return 1.0 / (1.0 + ((expected - floor) / half).amax(-1))
