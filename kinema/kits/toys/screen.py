"""The screen world: balls of two kinds pass behind a wide screen and come out where and when they should.

One ball at a time enters from the left; its height, its speed and its kind (red or blue) are drawn, and it
goes straight on. It is out of sight behind the screen for 5 to 60 frames; a while after it has left on the
right the next one enters. The action, one number from -1 to 1, moves a green marker along the lower edge by
up to ``MARKER_SPEED`` pixels a step; it has no influence on the balls.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from kinema.kits.probe import Quantity, Reading, Target
from kinema.kits.toys import discs
from kinema.types import Episode, Frames

COLUMN = "info.screen"
"""``x``, ``y`` and kind of the ball, ``x`` of the marker; a ball outside of the frame is none."""
RADIUS = 3.0
LEFT, RIGHT = 16.0, 48.0
"""Edges of the screen in pixels."""
START = -RADIUS
"""Where balls enter."""
HIDDEN = (5, 60)
"""Fewest and most frames that a ball is out of sight."""
HEIGHTS = (8.0, 46.0)
"""Range of the heights of balls in pixels from the top."""
PAUSE = (4, 20)
"""Fewest and most frames until the next ball enters."""
MARKER_Y, MARKER_SPEED = 58.0, 3.0
BACKGROUND, SCREEN = (228, 226, 216), (72, 76, 86)
_SCREEN_ROWS, _SCREEN_COLUMNS = slice(4, 52), slice(int(LEFT), int(RIGHT))
KINDS = ((214, 62, 52), (46, 96, 222))
MARKER = (40, 160, 84)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ball:
    """One ball at height ``y``, moving ``speed`` pixels a step to the right."""

    y: float
    kind: int
    speed: float

    @classmethod
    def enter(cls, rng: np.random.Generator) -> "Ball":
        """Draw a ball that is about to enter."""
        hidden = rng.uniform(*HIDDEN)
        return cls(
            y=rng.uniform(*HEIGHTS),
            kind=int(rng.integers(len(KINDS))),
            speed=(RIGHT - LEFT - 2.0 * RADIUS) / hidden,
        )


def draw(state: np.ndarray) -> np.ndarray:
    """Draw ``x``, ``y`` and kind of the ball and ``x`` of the marker: ``H W 3`` uint8."""
    x, y, kind, marker = state
    frame = discs.canvas(BACKGROUND)
    discs.draw_disc(frame, x, y, RADIUS, KINDS[int(kind)])
    frame[_SCREEN_ROWS, _SCREEN_COLUMNS] = SCREEN
    discs.draw_disc(frame, marker, MARKER_Y, RADIUS, MARKER)
    return discs.to_pixels(frame)


class ScreenProbe:
    """Reads marker, ball and kind of the ball from frames of the screen world. Lengths are in pixels."""

    quantities = (
        Quantity(key="marker", label="marker position", unit="px", largest=float(discs.SIZE)),
        Quantity(key="ball", label="ball position", unit="px", largest=float(discs.SIZE)),
        Quantity(key="kind", label="kind of ball", unit="wrong", largest=1.0),
    )
    things = "one marker, and no ball or one"
    targets: Mapping[str, Target] = {}

    def __init__(self, camera: str) -> None:
        self.camera = camera

    def read(self, frames: Frames) -> Reading:
        """Read ``N`` frames; a ball that is cut by the screen or the edge is neither found nor certain."""
        pixels = frames[self.camera].copy()
        shown = pixels[:, _SCREEN_ROWS, _SCREEN_COLUMNS].astype(np.float64)
        has_screen = (np.abs(shown - SCREEN).mean(axis=-1) < 48.0).mean(axis=(1, 2)) > 0.98
        pixels[:, _SCREEN_ROWS, _SCREEN_COLUMNS] = BACKGROUND
        *balls, marker = discs.find_discs(pixels, np.array([*KINDS, MARKER]), BACKGROUND)
        areas = np.stack([ball.area for ball in balls])
        kind = areas.argmax(axis=0)
        rows = np.arange(len(kind))
        centre = np.stack([ball.centre for ball in balls])[kind, rows]
        is_whole = np.stack([ball.is_one(RADIUS) for ball in balls])[kind, rows]
        is_part = np.stack([ball.is_part(RADIUS) for ball in balls])[kind, rows]
        is_none = areas.max(axis=0) < 3.0
        is_possible = is_none | (is_part & (is_whole | _is_at_edge(centre[:, 0])))
        is_alone = areas.min(axis=0) < 3.0
        has_marker = marker.is_one(RADIUS)
        return self._reading(
            marker.centre[:, :1],
            centre,
            kind,
            is_whole=is_whole,
            has_marker=has_marker,
            is_valid=has_screen & has_marker & is_possible & is_alone,
        )

    def recorded(self, episode: Episode) -> Reading | None:
        """Return the recorded state; None where it was not recorded. Balls that are cut are not certain."""
        if COLUMN not in episode.columns:
            return None
        state = np.asarray(episode.columns[COLUMN], dtype=np.float64)
        everywhere = np.ones(len(state), dtype=bool)
        return self._reading(
            state[:, 3:],
            state[:, :2],
            state[:, 2].astype(int),
            is_whole=is_in_sight(state[:, 0]),
            has_marker=everywhere,
            is_valid=everywhere,
        )

    def _reading(
        self,
        marker: np.ndarray,
        centre: np.ndarray,
        kind: np.ndarray,
        *,
        is_whole: np.ndarray,
        has_marker: np.ndarray,
        is_valid: np.ndarray,
    ) -> Reading:
        seen = {"marker": has_marker, "ball": is_whole, "kind": is_whole}
        return Reading(
            values={
                "marker": np.nan_to_num(marker),
                "ball": np.nan_to_num(centre),
                "kind": kind[:, None].astype(np.float64),
            },
            is_found=seen,
            is_certain=seen,
            is_valid=is_valid,
        )


def is_in_sight(x: np.ndarray) -> np.ndarray:
    """``N`` bool: a ball at ``x`` is wholly in sight."""
    return ((x >= RADIUS) & (x <= LEFT - RADIUS)) | ((x >= RIGHT + RADIUS) & (x <= discs.SIZE - RADIUS))


def is_hidden(x: np.ndarray) -> np.ndarray:
    """``N`` bool: a ball at ``x`` is wholly behind the screen."""
    return (x >= LEFT + RADIUS) & (x <= RIGHT - RADIUS)


def _is_at_edge(x: np.ndarray) -> np.ndarray:
    """``N`` bool: a part of a ball with its centre at ``x`` touches the screen or the edge of the frame."""
    places = np.array([0.0, LEFT, RIGHT, float(discs.SIZE)])
    return np.abs(np.nan_to_num(x)[:, None] - places).min(axis=1) <= RADIUS + 0.75
