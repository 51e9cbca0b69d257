"""Statistics of features, for one episode and over many, as LeRobot defines them.

A statistic has the shape of one row of its feature: ``(A,)`` for a vector, ``(1,)`` for a scalar, and
``(3, 1, 1)`` for pictures, whose values are in [0, 1]. Over several episodes min, max, mean, std and count
are exact; the quantiles are, as in LeRobot, the means of the episodes' quantiles weighted by count.
"""

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

Statistics = dict[str, np.ndarray]
"""Arrays by the names in ``NAMES``."""

MIN_SAMPLED_FRAMES = 100
MAX_SAMPLED_SIDE = 150


def of_column(values: np.ndarray) -> Statistics:
    """Statistics of a column ``T ...`` over time."""
    values = values[:, None] if values.ndim == 1 else values
    floats = values.astype(np.float64)
    # NaN and infinity are stored as they come and found by the checks: a recording must not fail for them.
    with np.errstate(invalid="ignore", over="ignore"):
        quantiles = np.quantile(floats, list(QUANTILES.values()), axis=0)
        return {
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "mean": floats.mean(axis=0),
            "std": floats.std(axis=0),
            "count": np.array([len(values)]),
            **dict(zip(QUANTILES, quantiles, strict=True)),
        }


def of_frames(frames: np.ndarray) -> Statistics:
    """Statistics by channel of pictures ``T H W C`` uint8, from a sample of frames and pixels."""
    num_frames, height, width, num_channels = frames.shape
    num_sampled = max(min(num_frames, MIN_SAMPLED_FRAMES), min(int(num_frames**0.75), 10_000))
    sampled = np.round(np.linspace(0, num_frames - 1, num_sampled)).astype(int)
    stride = max(1, max(height, width) // MAX_SAMPLED_SIDE)
    pixels = frames[sampled, ::stride, ::stride]
    # Bytes take 256 values, so that a histogram gives every statistic exactly and in one pass.
    histogram = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(num_channels)])
    values = np.arange(256) / 255.0
    total = histogram.sum(axis=1, keepdims=True)
    mean = histogram @ values / total[:, 0]
    std = np.sqrt(np.maximum(histogram @ values**2 / total[:, 0] - mean**2, 0.0))
    share = np.cumsum(histogram, axis=1) / total
    by_channel = {
        "min": values[(histogram > 0).argmax(axis=1)],
        "max": values[255 - (histogram > 0)[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": std,
        **{name: values[(share >= q).argmax(axis=1)] for name, q in QUANTILES.items()},
    }
    stats = {name: value.reshape(num_channels, 1, 1) for name, value in by_channel.items()}
    return stats | {"count": np.array([num_sampled])}


def aggregate(stats: Mapping[str, np.ndarray]) -> Statistics:
    """Statistics over ``N`` parts from theirs, stacked: every array is ``N ...``, ``count`` is ``N 1``."""
    count = stats["count"].astype(np.float64).reshape(-1, *[1] * (stats["mean"].ndim - 1))
    weight = count / count.sum()
    with np.errstate(invalid="ignore", over="ignore"):
        mean = (stats["mean"] * weight).sum(axis=0)
        variance = ((stats["std"] ** 2 + (stats["mean"] - mean) ** 2) * weight).sum(axis=0)
    merged = {
        "min": stats["min"].min(axis=0),
        "max": stats["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": stats["count"].sum(axis=0),
    }
    return merged | {name: (stats[name] * weight).sum(axis=0) for name in QUANTILES if name in stats}


def stack(parts: Sequence[Statistics]) -> Statistics:
    """Parts' statistics stacked, for ``aggregate``; names that one of them lacks are left out."""
    shared = [name for name in NAMES if all(name in part for part in parts)]
    return {name: np.stack([part[name] for part in parts]) for name in shared}
