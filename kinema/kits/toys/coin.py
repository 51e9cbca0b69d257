"""The coin world: a ball falls, turns left or right with probability one half, and falls on.

A state is ``x, y``: the height ``y`` goes from 0 (top) to 1 (bottom), then the next ball starts at the top.
Above ``TURN`` the ball is in the middle; where it passes ``TURN`` a coin decides the side, and from there on
``x`` follows from ``y`` and the side alone. The action, one number from -1 to 1, makes the ball fall slower
or faster: half as fast at -1, half as fast again at 1. It has no influence on the side.
"""

from collections.abc import Mapping

import numpy as np

from kinema.kits.probe import Quantity, Reading, Target
from kinema.kits.toys import discs
from kinema.types import Episode, Frames

COLUMN = "info.coin"
TURN = 0.4
"""Height at which the side is drawn."""
REACH = 0.9
"""Distance of the ball from the middle at the bottom."""
FALL = 0.05
"""Heights that the ball falls in a step under the action 0."""
TOLERANCE = 0.1
"""A ball further than this from both paths is on neither."""
CLEAR = 0.2
"""Distance of the paths from the middle from which on the side of a ball is clear."""

RADIUS = 4.0
CENTRE, WIDTH, TOP, HEIGHT = 32.0, 26.0, 6.0, 52.0
"""Pixels of the frame at state 0, 0 and per unit of ``x`` and ``y``."""
BACKGROUND, BALL, PEG = (28, 34, 52), (240, 196, 60), (96, 108, 140)


def advance(state: np.ndarray, action: float, side: int) -> np.ndarray:
    """Return the state after one step; ``side``, -1 or 1, counts where the ball passes ``TURN``."""
    x, y = state
    fallen = y + FALL * (1.0 + 0.5 * float(np.clip(action, -1.0, 1.0)))
    if y > TURN:
        side = 1 if x > 0 else -1
    height = fallen % 1.0
    return np.array([side * distance(height), height])


def distance(y: np.ndarray | float) -> np.ndarray:
    """Return the distances of balls at heights ``y`` from the middle."""
    return np.asarray(REACH * np.maximum(0.0, (y - TURN) / (1.0 - TURN)))


def sides(states: np.ndarray) -> np.ndarray:
    """Return the side of each of ``N`` states ``N 2``: -1 left, 1 right, 0 neither; NaN where it is not yet
    clear."""
    x, expected = states[:, 0], distance(states[:, 1])
    side = np.where(np.abs(np.abs(x) - expected) < TOLERANCE, np.sign(x), 0.0)
    return np.where(expected > CLEAR, side, np.nan)


def draw(state: np.ndarray) -> np.ndarray:
    """Draw a state: ``H W 3`` uint8."""
    frame = discs.canvas(BACKGROUND)
    discs.draw_disc(frame, CENTRE, TOP + HEIGHT * TURN + RADIUS + 5.0, 4.0, PEG)
    x, y = to_frame(state[None])[0]
    discs.draw_disc(frame, x, y, RADIUS, BALL)
    return discs.to_pixels(frame)


def to_frame(states: np.ndarray) -> np.ndarray:
    """Turn states ``N 2`` into pixels."""
    return np.stack([CENTRE + WIDTH * states[:, 0], TOP + HEIGHT * states[:, 1]], axis=1)


def to_state(pixels: np.ndarray) -> np.ndarray:
    """Turn pixels ``N 2`` into states."""
    return np.stack([(pixels[:, 0] - CENTRE) / WIDTH, (pixels[:, 1] - TOP) / HEIGHT], axis=1)


class CoinProbe:
    """Reads the ball, in pixels, from frames of the coin world."""

    quantities = (Quantity(key="ball", label="ball position", unit="px", largest=float(discs.SIZE)),)
    things = "one ball on one of its paths"
    targets: Mapping[str, Target] = {}

    def __init__(self, camera: str) -> None:
        self.camera = camera

    def read(self, frames: Frames) -> Reading:
        """Read ``N`` frames; a ball between the paths is found and not valid."""
        found, _ = discs.find_discs(frames[self.camera], np.array([BALL, PEG]), BACKGROUND)
        return self._reading(found.centre, found.is_one(RADIUS))

    def recorded(self, episode: Episode) -> Reading | None:
        """Return the recorded state; None where it was not recorded."""
        if COLUMN not in episode.columns:
            return None
        states = np.asarray(episode.columns[COLUMN], dtype=np.float64)
        return self._reading(to_frame(states), np.ones(len(states), dtype=bool))

    def _reading(self, centre: np.ndarray, is_found: np.ndarray) -> Reading:
        states = to_state(np.where(is_found[:, None], centre, np.nan))
        is_on_path = np.abs(np.abs(states[:, 0]) - distance(states[:, 1])) < TOLERANCE
        return Reading(
            values={"ball": np.nan_to_num(centre)},
            is_found={"ball": is_found},
            is_certain={"ball": is_found},
            is_valid=is_found & is_on_path,
        )
