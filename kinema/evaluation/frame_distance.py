"""How far pictures are from pictures: PSNR, SSIM, and the sliced Frechet distance of two sets of them."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from kinema.types import Frames

SSIM_WINDOW = 7
MAX_PSNR = 60.0
"""Of pictures that are the same, whose ratio has no end."""
NUM_DIRECTIONS = 128


def mean_square(frames: Frames, others: Frames) -> np.ndarray:
    """``N`` mean square differences over all cameras, of pictures ``N H W C`` uint8, in squared levels."""
    parts = [
        ((pictures.astype(np.float32) - others[key]) ** 2).reshape(len(pictures), -1).mean(axis=1)
        for key, pictures in frames.items()
    ]
    return np.mean(parts, axis=0)


def psnr(square: np.ndarray) -> np.ndarray:
    """Decibels of mean square differences in squared levels, at most ``MAX_PSNR``."""
    return np.asarray(np.minimum(10.0 * np.log10(255.0**2 / np.maximum(square, 1e-9)), MAX_PSNR))


def psnr_of_rms(difference: float) -> float:
    """Decibels of a root mean square difference in levels."""
    return 20.0 * math.log10(255.0 / max(difference, 1e-3))


def ssim(frames: Frames, others: Frames) -> np.ndarray:
    """``N`` structural similarities (Wang et al. 2004), the mean over cameras and channels: 1 is the same.

    Windows of 7 by 7 with equal weights and sample covariances, which is what scikit-image does by default.
    """
    return np.mean([_ssim(pictures, others[key]) for key, pictures in frames.items()], axis=0)


def _ssim(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    x, y = (torch.from_numpy(np.ascontiguousarray(p)).permute(0, 3, 1, 2).float() for p in (frames, others))
    size = SSIM_WINDOW**2

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, SSIM_WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    sample = size / (size - 1)
    var_x = sample * (mean(x * x) - mean_x**2)
    var_y = sample * (mean(y * y) - mean_y**2)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).double().numpy()


class Slices:
    """Running moments of features along fixed random directions, apart for each rollout and place.

    What they take does not grow with the number of pictures.
    """

    def __init__(self, num_places: int, num_rollouts: int) -> None:
        self._shape = (num_places, num_rollouts, 3, NUM_DIRECTIONS)
        self._directions: np.ndarray | None = None
        self.moments: dict[str, np.ndarray] = {}
        """By kind of picture: counts, sums and sums of squares, ``places rollouts 3 directions``."""

    def add(self, kind: str, places: np.ndarray, rollouts: np.ndarray, features: np.ndarray) -> None:
        """Features ``N D`` of pictures that belong to ``rollouts`` (N) and to every one of ``places``."""
        if self._directions is None:
            drawn = np.random.default_rng(0).standard_normal((features.shape[1], NUM_DIRECTIONS))
            self._directions = drawn / np.linalg.norm(drawn, axis=0)
        along = features @ self._directions
        moments = np.stack([np.ones_like(along), along, along**2], axis=1)
        kept = self.moments.setdefault(kind, np.zeros(self._shape))
        for place in places:
            np.add.at(kept[place], rollouts, moments)

    def pairs(self, kind: str) -> np.ndarray:
        """Moments ``places pairs 2 3 directions``: rollouts two by two, an odd one left out."""
        moments = self.moments[kind]
        num = moments.shape[1] // 2
        return moments[:, : 2 * num].reshape(len(moments), num, 2, *moments.shape[2:])


def sliced_frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The Frechet distance of the two normal distributions along each direction, the mean over directions.

    ``one`` and ``other`` are moments ``pairs 2 3 directions`` of :class:`Slices`. A rollout is compared with
    the other one of its pair and never with itself, so that two sets that show the same moments are no
    nearer to each other than two that do not. NaN without pairs.
    """
    if not len(one):
        return float("nan")
    return 0.5 * (_frechet(one[:, 0], other[:, 1]) + _frechet(one[:, 1], other[:, 0]))


def _frechet(one: np.ndarray, other: np.ndarray) -> float:
    (mean, deviation), (other_mean, other_deviation) = _normal(one), _normal(other)
    return float(np.mean((mean - other_mean) ** 2 + (deviation - other_deviation) ** 2))


def _normal(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, total, square = moments.sum(axis=0)
    count = np.where(count > 0, count, np.nan)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))
