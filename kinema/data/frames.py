"""Frames as datasets and cameras give them, brought to one form: ``T H W 3`` uint8."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from kinema.data.layout import CHANNELS, DataError


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring frames ``T H W C`` to another size, with antialiasing."""
    if frames.shape[1:3] == (height, width):
        return frames
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in frames
    ]
    return np.stack(resized) if resized else np.zeros((0, height, width, 3), np.uint8)


def as_rgb(frames: np.ndarray, camera: str) -> np.ndarray:
    """Bring frames ``T H W 1``, ``T H W 3`` or ``T H W 4`` to ``T H W 3``: grey is repeated, alpha dropped.

    Raises DataError, which names the camera.
    """
    channels = frames.shape[-1] if frames.ndim == 4 else 0
    if frames.dtype != np.uint8 or channels not in CHANNELS:
        raise DataError(
            f"frames must be uint8 of shape (T, height, width, 1, 3 or 4), got {frames.dtype} {frames.shape}",
            key=camera,
        )
    return np.repeat(frames, 3, axis=-1) if channels == 1 else frames[..., :3]


def join_cameras(videos: Iterable[np.ndarray]) -> np.ndarray:
    """Put videos ``T H W C`` of several cameras side by side, all as high as the highest."""
    videos = list(videos)
    height = max(video.shape[1] for video in videos)
    fitted = [resize(video, height, round(video.shape[2] * height / video.shape[1])) for video in videos]
    return np.concatenate(fitted, axis=2)
