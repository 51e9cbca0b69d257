"""Discs: drawn into frames with smooth edges, and read from them again."""

import dataclasses
from collections.abc import Sequence

import numpy as np

SIZE = 64
"""Height and width of frames."""
_PLACES = np.arange(SIZE) + 0.5
"""Centres of pixels along one side, in pixels from the edge of the frame."""


def canvas(colour: Sequence[int]) -> np.ndarray:
    """Make a frame of one colour: ``H W 3`` float."""
    return np.full((SIZE, SIZE, 3), colour, dtype=np.float64)


def draw_disc(frame: np.ndarray, x: float, y: float, radius: float, colour: Sequence[int]) -> None:
    """Draw a disc into ``H W 3`` float; its soft edge shows movement of less than one pixel."""
    distance = np.hypot(_PLACES[None, :] - x, _PLACES[:, None] - y)
    share = np.clip(radius + 0.5 - distance, 0.0, 1.0)[..., None]
    frame += share * (np.asarray(colour, dtype=np.float64) - frame)


def to_pixels(frame: np.ndarray) -> np.ndarray:
    """Round a frame to uint8."""
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discs:
    """Pixels of one colour in ``N`` frames, seen as one disc."""

    centre: np.ndarray
    """``N 2``: x and y in pixels; NaN where the colour is not in the frame."""
    area: np.ndarray
    """``N`` pixels."""
    spread: np.ndarray
    """``N``: the larger variance of x and y in pixels squared; a quarter of the squared radius for a disc."""

    def is_one(self, radius: float) -> np.ndarray:
        """``N`` bool: the colour is one whole disc of this radius. Two discs spread wider, a faded or cut one
        has less area."""
        ratio = self.area / (np.pi * radius**2)
        return (ratio > 0.75) & (ratio < 1.3) & (self.spread < 1.6 * radius**2 / 4.0)

    def is_part(self, radius: float) -> np.ndarray:
        """``N`` bool: the colour is one disc of this radius or a part of one."""
        return (self.area < 1.3 * np.pi * radius**2) & (self.spread < 1.6 * radius**2 / 4.0)


def find_discs(frames: np.ndarray, colours: np.ndarray, background: Sequence[int]) -> list[Discs]:
    """Find the pixels of each of the ``K`` colours (``K 3``) in frames ``N H W 3`` on a background.

    A pixel belongs to the colour to which it is nearest, by the share to which it has left the background.
    """
    pixels = frames.astype(np.float64)
    ground = np.asarray(background, dtype=np.float64)
    palette = np.concatenate([ground[None], colours]).astype(np.float64)
    # A pixel at the edge of a disc mixes its colour with the background: the colour that fits best counts.
    along = [_share(pixels, ground, colour) for colour in palette[1:]]
    misfit = np.stack(
        [
            np.linalg.norm(pixels - ground - share[..., None] * (colour - ground), axis=-1)
            for share, colour in zip(along, palette[1:], strict=True)
        ]
    )
    nearest = misfit.argmin(axis=0)
    return [
        _moments(np.where((nearest == index) & (share > 0.15), share, 0.0))
        for index, share in enumerate(along)
    ]


def _share(pixels: np.ndarray, ground: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The share ``N H W`` to which pixels are the colour and not the background."""
    way = colour - ground
    return np.clip((pixels - ground) @ way / (way @ way), 0.0, 1.0)


def _moments(share: np.ndarray) -> Discs:
    area = share.sum(axis=(1, 2))
    mass = np.where(area > 0, area, np.nan)
    means, variances = [], []
    for axis in (1, 2):
        profile = share.sum(axis=axis)
        mean = profile @ _PLACES / mass
        means.append(mean)
        variances.append((profile * (_PLACES - mean[:, None]) ** 2).sum(axis=1) / mass)
    return Discs(
        centre=np.stack(means, axis=1), area=area, spread=np.nan_to_num(np.maximum(*variances), nan=0.0)
    )
