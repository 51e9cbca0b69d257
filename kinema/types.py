"""The words of kinema as types.

Shape letters: B batch, T time, C H W pixels, L latents per frame, Z latent channels, A action,
P proprioception.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

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
        return len(self.columns["action"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What there is to see at one moment, in a real environment or in a world."""

    frames: Frames
    """Pictures by feature key, each ``uint8`` ``H W C``."""
    proprio: np.ndarray | None
    """``P`` in the units of the dataset, where it is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Stacked segments, shifted once: ``prev_action[:, t]`` is the action that led to frame ``t``.

    What is missing is absent (no camera, no proprioception) or masked (no action before the first frame).
    """

    frames: dict[str, torch.Tensor]
    """By camera: ``uint8`` ``B T H W C``."""
    proprio: torch.Tensor | None
    """``B T P`` float32 in the units of the dataset."""
    prev_action: torch.Tensor
    """``B T A`` float32 in the units of the dataset."""
    has_action: torch.Tensor
    """``B T`` bool: False where no action is known."""
