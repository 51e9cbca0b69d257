"""The words of kinema as types.

Shape letters: B batch, T time, C H W pixels, L latents per frame, Z latent channels, A action,
P proprioception.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of large matrix products; ``auto`` is bfloat16 where the hardware multiplies it faster."""


class KinemaError(ValueError):
    """A mistake that the user of kinema can mend: the message says what is wrong, where, and what to do."""


class WorldError(KinemaError):
    """A world cannot be loaded, or is asked for what it does not know."""


class DataError(KinemaError):
    """A dataset is missing, incomplete or damaged; says where: file, episode, key."""

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        episode: int | None = None,
        key: str | None = None,
    ) -> None:
        places = [str(path)] if path is not None else []
        places += [f"episode {episode}"] if episode is not None else []
        places += [key] if key is not None else []
        super().__init__(f"{', '.join(places)}: {message}" if places else message)
        self.message = message
        self.path = path
        self.episode = episode
        self.key = key


class FileError(OSError, KinemaError):
    """A file or folder cannot be written; what was there is as it was."""


class RecordError(KinemaError):
    """Recording cannot start or go on, and what to do about it."""


class CheckpointError(KinemaError):
    """A checkpoint is corrupt, belongs to another run, or cannot be written."""


class PartError(KinemaError):
    """A part of a world cannot be read or written, or does not fit the world."""


class ServerError(ConnectionError, KinemaError):
    """The server cannot be reached, or refuses: what it said, with ``status`` where it is an HTTP answer."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


Frames = Mapping[str, np.ndarray]
"""Pictures by camera name, each ``uint8``, mostly with shape ``T H W C``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """A whole recording of ``T`` steps, as Gymnasium and LeRobot keep it: row ``t`` holds what was seen at
    ``t``, the action then taken, and the reward and flags that this action led to.
    """

    index: int
    """Position in the dataset."""
    fps: float
    """Rows a second."""
    task: str | None
    """The instruction in words, where there is one."""
    frames: Frames
    """Pictures by feature key (``observation.images.front``), each ``uint8`` ``T H W C``."""
    columns: Mapping[str, np.ndarray]
    """Every other feature by its key, ``T`` first: ``action`` (``T A`` float32), ``observation.state``
    (``T P`` float32), ``next.reward`` (``T`` float32), ``next.terminated``, ``next.truncated``,
    ``next.success`` (``T`` bool), ``timestamp`` (``T`` float32, seconds), and whatever else was recorded."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def actions(self) -> np.ndarray:
        """``T A`` float32; A is 0 where none were recorded."""
        recorded = self.columns.get("action")
        return np.zeros((len(self), 0), np.float32) if recorded is None else np.asarray(recorded, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What there is to see at one moment, in a real environment or in a world."""

    frames: Frames
    """Pictures by feature key, each ``uint8`` ``H W C``."""
    proprio: np.ndarray | None
    """``P`` in the units of the dataset, where it is known."""
