"""Measures of the small worlds: the share of each side of a coin, and balls that come out as they should."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from kinema.kits.toys import coin, screen
from kinema.simulation.world import World
from kinema.types import Episode

BATCH = 250
"""Futures simulated together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """Where the ball of the coin world went, as shares of all futures."""

    left: float
    right: float
    neither: float


def coin_sides(
    world: World,
    episode: Episode,
    *,
    num_futures: int = 1000,
    context: int = 4,
    num_denoising_steps: int | None = None,
    seed: int = 0,
) -> Sides:
    """Let the first ball of an episode fall in ``num_futures`` futures and count the sides near the bottom.

    The episode begins with a ball above ``coin.TURN``, as all of the coin world do; the action is 0.
    """
    start = np.asarray(episode.columns[coin.COLUMN], dtype=float)[context - 1]
    if start[1] > coin.TURN:
        raise ValueError(f"episode {episode.index}: the ball has turned after {context} frames; give fewer")
    num_steps = int((0.9 - start[1]) / coin.FALL)
    session = world.start(
        {key: episode.frames[key][:context] for key in world.cameras} or None,
        episode.columns["action"][: context - 1],
        proprio=None if world.config.proprio_key is None else episode.columns["observation.state"][:context],
        generator=torch.Generator().manual_seed(seed),
        num_denoising_steps=num_denoising_steps,
    )
    states = []
    for first in range(0, num_futures, BATCH):
        # Other noise in each batch of forks.
        session.change(seed=seed + first)
        forks = session.fork(min(BATCH, num_futures - first), max_rewind=0)
        actions = np.zeros((len(forks), world.action_dim), np.float32)
        for _ in range(num_steps - 1):
            forks.step(actions, decode=False)
        shown = forks.step(actions)
        states.append(_coin_states(world, shown.frame, shown.proprio))
    sides = coin.sides(np.concatenate(states))
    # A ball that is nowhere, or too high for its side to be clear, is on neither side.
    sides = np.nan_to_num(sides)
    left, right = float((sides < 0).mean()), float((sides > 0).mean())
    return Sides(left=left, right=right, neither=1.0 - left - right)


def _coin_states(world: World, frames: np.ndarray | None, proprio: np.ndarray | None) -> np.ndarray:
    if frames is None:
        assert proprio is not None
        return proprio.astype(float)
    (camera,) = world.cameras
    reading = coin.CoinProbe(camera).read({camera: frames})
    is_found = reading.is_found["ball"][:, None]
    return np.where(is_found, coin.to_state(reading.values["ball"]), np.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emergence:
    """A ball of the screen world after it was hidden."""

    num_hidden: int
    """Frames for which the real ball was wholly hidden."""
    is_right: bool
    """It came out as the right kind, where and when it should: within a step of its own, or ``MARGIN``."""
    has_right_kind: bool
    """It came out, anywhere on the right, as the right kind."""


MARGIN = 2.0
"""Pixels by which a ball may be off where it comes out."""


def emergence(
    world: World, episode: Episode, *, num_denoising_steps: int | None = None, seed: int = 0
) -> Emergence | None:
    """Show a world the first ball of an episode until it goes behind the screen, and simulate until the real
    one is wholly out again; None where the episode ends before."""
    state = np.asarray(episode.columns[screen.COLUMN], dtype=float)
    x = state[:, 0]
    gone = int(np.argmax(x > screen.LEFT - screen.RADIUS))
    is_out = x >= screen.RIGHT + screen.RADIUS
    if not is_out.any() or gone == 0:
        return None
    out = int(np.argmax(is_out))
    (camera,) = world.cameras
    actions = episode.columns["action"]
    session = world.start(
        episode.frames[camera][:gone],
        actions[: gone - 1],
        generator=torch.Generator().manual_seed(seed),
        num_denoising_steps=num_denoising_steps,
    )
    for row in range(gone, out):
        session.step(actions[row - 1], decode=False)
    shown = session.step(actions[out - 1])
    reading = screen.ScreenProbe(camera).read({camera: shown.frame[None]})
    error = np.abs(reading.values["ball"][0] - state[out, :2]).max()
    is_right_of_screen = reading.values["ball"][0, 0] > screen.RIGHT - screen.RADIUS
    has_right_kind = bool(reading.values["kind"][0, 0] == state[out, 2] and is_right_of_screen)
    is_there = bool(reading.is_found["ball"][0] and error <= max(MARGIN, x[out] - x[out - 1]))
    return Emergence(
        num_hidden=int(screen.is_hidden(x[:out]).sum()),
        is_right=is_there and has_right_kind,
        has_right_kind=has_right_kind,
    )


def share_right(emergences: Sequence[Emergence], fewest: int, most: int) -> np.ndarray:
    """Return 1.0 for each ball that was hidden for ``fewest`` to ``most`` frames and came out right, 0.0 for
    the others of these."""
    chosen = [each for each in emergences if fewest <= each.num_hidden <= most]
    return np.array([float(each.is_right) for each in chosen])
