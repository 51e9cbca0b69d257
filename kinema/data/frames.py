"""Frames as datasets and cameras give them, brought to one form: ``T H W 3`` uint8."""

from collections.abc import Iterable

import numpy as np
from PIL import Image


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring frames ``T H W C`` to another size, with antialiasing."""
    if frames.shape[1:3] == (height, width):
        return frames
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in frames
    ]
    return np.stack(resized) if resized else np.zeros((0, height, width, 3), np.uint8)


def join_cameras(videos: Iterable[np.ndarray]) -> np.ndarray:
    """Put videos ``T H W C`` of several cameras side by side, all as high as the highest."""
    videos = list(videos)
    height = max(video.shape[1] for video in videos)
    fitted = [resize(video, height, round(video.shape[2] * height / video.shape[1])) for video in videos]
    return np.concatenate(fitted, axis=2)
