"""Frames, actions and goals that clients give, checked and decoded."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinema.serve import images, schema
from kinema.serve.goals import Goal, StateReader
from kinema.serve.limits import Limits, Refusal
from kinema.serve.recordings import Recordings
from kinema.simulation.world import World
from kinema.types import Episode

FIRST_ROW = 3
"""Row of an episode at which a session begins by default."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The frames that a session begins with."""

    frames: dict[str, np.ndarray]
    """``T H W 3`` by camera."""
    actions: np.ndarray | None
    """``T-1 A``, between the frames."""
    proprio: np.ndarray | None
    """``T P``."""
    episode: Episode | None = None
    """The recorded episode that the frames are from."""
    first: int = 0
    last: int = 0
    """Rows of the episode."""


class Inputs:
    """Checks and decodes what clients give. Its methods raise Refusal (422, 404) and WorldError."""

    def __init__(self, world: World, recordings: Recordings, reader: StateReader, limits: Limits):
        self._world, self._recordings, self._reader, self._limits = world, recordings, reader, limits

    async def context(self, request: schema.Start) -> Context:
        """The frames that a session is to begin with."""
        self.refuse_text(request.text)
        if (request.episode is None) == (request.frames is None and request.proprio is None):
            raise Refusal(
                422,
                "start from an episode, or else from frames (from proprio in a world without cameras)",
                reason="start",
            )
        if request.episode is None:
            return Context(
                frames={} if request.frames is None else await self.decode(request.frames),
                actions=_matrix(request.actions, "actions", self._world.action_dim),
                proprio=self.proprio(request.proprio),
            )
        episode = await self._recordings.episode(request.episode)
        last = min(FIRST_ROW, len(episode) - 1) if request.row is None else request.row
        self._check_row(last, request.episode, episode, "")
        first = max(0, last + 1 - request.context)
        rows = slice(first, last + 1)
        key = self._world.config.proprio_key
        return Context(
            frames={key: frames[rows] for key, frames in episode.frames.items()},
            actions=episode.actions[first:last],
            proprio=episode.columns[key][rows] if key and key in episode.columns else None,
            episode=episode,
            first=first,
            last=last,
        )

    async def goal(self, request: schema.GoalRequest) -> Goal:
        """A goal of a state, of a recorded row, or of frames."""
        self.refuse_text(request.text)
        is_given = [request.episode is not None, request.frames is not None, request.state is not None]
        is_given.append(request.proprio is not None and request.frames is None)
        if sum(is_given) != 1:
            raise Refusal(
                422,
                "goal: give one of episode (with row), frames, state; or proprio in a world without cameras",
                reason="goal",
            )
        if request.state is not None:
            state = self._reader.check(request.state)
            if not state:
                raise Refusal(422, "goal: state names no quantity", reason="goal")
            return Goal(state)
        cameras = self._world.cameras
        if request.episode is not None:
            frames, proprio = await self._recorded_row(request.episode, request.row or 0)
        else:
            given = {camera: [text] for camera, text in (request.frames or {}).items()}
            frames = await self.decode(given) if request.frames is not None else {}
            rows = self.proprio(None if request.proprio is None else [request.proprio], "goal.proprio")
            proprio = None if rows is None else rows[0]
        if cameras and not frames:
            raise Refusal(422, f"goal: frames of {', '.join(cameras)} are needed", reason="goal")
        checked = self._world.by_camera(frames or None)
        return Goal({}, {camera: frame[0] for camera, frame in checked.items()}, proprio)

    async def decode(self, frames: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Frames ``T H W 3`` by camera, from JPEG or PNG files in base64."""
        if not self._world.cameras:
            raise Refusal(422, f"world '{self._world.name}' has no camera: give proprio", reason="camera")
        return await asyncio.to_thread(
            images.decode_frames, frames, self._world, max_frames=self._limits.max_frames
        )

    def proprio(self, rows: Sequence[Sequence[float]] | None, name: str = "proprio") -> np.ndarray | None:
        """Proprioception ``T P``."""
        return _matrix(rows, name, self._world.proprio_dim)

    def actions(self, rows: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Actions as float32 of a shape."""
        if len({len(row) for row in rows}) > 1:
            raise Refusal(422, "actions: rows differ in length", reason="actions")
        return self._world.check_actions(rows, shape, "actions")

    def check_denoising(self, num: int | None) -> None:
        """Refuse more network calls for a frame than the server allows."""
        most = self._limits.max_denoising_steps
        if num is not None and num > most:
            raise Refusal(422, f"num_denoising_steps={num}: at most {most} at this server", reason="steps")

    def refuse_text(self, text: str | None) -> None:
        """Refuse words: worlds of this version do not know any."""
        if text is not None:
            raise Refusal(
                422,
                f"text: world '{self._world.name}' knows no words (no world of this version does); leave "
                "text out, and give a frame, a recorded row or a state as the goal",
                reason="text",
            )

    async def _recorded_row(self, index: int, row: int) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        episode, key = await self._recordings.episode(index), self._world.config.proprio_key
        self._check_row(row, index, episode, "goal: ")
        frames = {camera: episode.frames[camera][row : row + 1] for camera in self._world.cameras}
        return frames, episode.columns[key][row] if key and key in episode.columns else None

    def _check_row(self, row: int, index: int, episode: Episode, where: str) -> None:
        if row >= len(episode):
            raise Refusal(
                422, f"{where}row={row}: episode {index} has rows 0 to {len(episode) - 1}", reason="row"
            )


def _matrix(rows: Sequence[Sequence[float]] | None, name: str, width: int) -> np.ndarray | None:
    if rows is None:
        return None
    if len({len(row) for row in rows}) > 1:
        raise Refusal(422, f"{name}: rows differ in length", reason="rows")
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else width)
