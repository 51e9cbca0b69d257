"""Distances of frames: PSNR, SSIM, and the sliced Frechet distance of two sets of frames."""

import numpy as np
import torch
import torch.nn.functional as F

from kinema.types import Frames

SSIM_WINDOW = 7
MAX_PSNR = 60.0
"""PSNR of equal frames, whose ratio is infinite."""
NUM_DIRECTIONS = 128


def frame_error(frames: Frames, others: Frames) -> np.ndarray:
    """Return ``N`` root mean square differences over all cameras of frames ``N H W C`` uint8, in levels."""
    squares = [
        ((shown.astype(np.float32) - others[key]) ** 2).reshape(len(shown), -1).mean(axis=1)
        for key, shown in frames.items()
    ]
    return np.sqrt(np.mean(squares, axis=0))


def psnr(error: float) -> float:
    """Return the decibels of a root mean square difference in levels, at most ``MAX_PSNR``."""
    return float(np.minimum(20.0 * np.log10(255.0 / np.maximum(error, 1e-6)), MAX_PSNR))


def ssim(frames: Frames, others: Frames) -> np.ndarray:
    """Return ``N`` structural similarities (Wang et al. 2004), means over cameras and channels; 1 is equal.

    Windows of 7 by 7 with equal weights and sample covariances, as scikit-image does by default.
    """
    return np.mean([_ssim(shown, others[key]) for key, shown in frames.items()], axis=0)


def _ssim(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    x, y = (torch.from_numpy(np.ascontiguousarray(p)).permute(0, 3, 1, 2).float() for p in (frames, others))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, SSIM_WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    var_x = sample * (mean(x * x) - mean_x**2)
    var_y = sample * (mean(y * y) - mean_y**2)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).double().numpy()


class Slices:
    """Running statistical moments of features along fixed random directions, apart for each rollout and mark.

    Memory does not grow with the number of frames.
    """

    def __init__(self, num_marks: int, num_rollouts: int) -> None:
        self._shape = (num_marks, num_rollouts, 3, NUM_DIRECTIONS)
        self._directions: np.ndarray | None = None
        self._sums: dict[str, np.ndarray] = {}
        """By kind of frame: counts, sums and sums of squares, ``marks rollouts 3 directions``."""

    def add(self, kind: str, marks: np.ndarray, rollouts: np.ndarray, features: np.ndarray) -> None:
        """Add features ``N D`` of frames that belong to ``rollouts`` (``N``) and to each of ``marks``."""
        if self._directions is None:
            drawn = np.random.default_rng(0).standard_normal((features.shape[1], NUM_DIRECTIONS))
            self._directions = drawn / np.linalg.norm(drawn, axis=0)
        along = features @ self._directions
        sums = np.stack([np.ones_like(along), along, along**2], axis=1)
        kept = self._sums.setdefault(kind, np.zeros(self._shape))
        for mark in marks:
            np.add.at(kept[mark], rollouts, sums)

    def pairs(self, kind: str) -> np.ndarray:
        """Return sums ``marks pairs 2 3 directions``: rollouts two by two, an odd one left out."""
        sums = self._sums[kind]
        num = sums.shape[1] // 2
        return sums[:, : 2 * num].reshape(len(sums), num, 2, *sums.shape[2:])


def sliced_frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Frechet distance of the two normal distributions along each direction, the mean over them.

    ``one`` and ``other`` are sums ``pairs 2 3 directions`` of :class:`Slices`. A rollout is compared with the
    other one of its pair and never with itself, so that two sets of the same rollouts are no nearer to each
    other than two of different ones. NaN without pairs.
    """
    if not len(one):
        return float("nan")
    return 0.5 * (_frechet(one[:, 0], other[:, 1]) + _frechet(one[:, 1], other[:, 0]))


def _frechet(one: np.ndarray, other: np.ndarray) -> float:
    (mean, deviation), (other_mean, other_deviation) = _normal(one), _normal(other)
    return float(np.mean((mean - other_mean) ** 2 + (deviation - other_deviation) ** 2))


def _normal(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, total, square = sums.sum(axis=0)
    count = np.where(count > 0, count, np.nan)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))
