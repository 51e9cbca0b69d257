"""Messages between a client and a server: numbers and frames to JSON, answers to frames and steps."""

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from kinema.serve import images, schema
from kinema.simulation.step import Step
from kinema.types import WorldError


class StreamFrame(BaseModel):
    camera: str
    is_beside: bool
    height: int
    width: int
    size: int


class StreamState(schema.State):
    """The JSON head of an answer in a stream; the bytes of ``pictures`` follow it."""

    frames: dict[str, schema.Picture] = Field(default_factory=dict)
    beside: dict[str, schema.Picture] | None = None
    pictures: list[StreamFrame]


class StreamError(BaseModel):
    """The JSON head of a refusal in a stream."""

    error: str
    status: int


def to_json(body: Any) -> str:
    """Write a request as JSON, arrays as lists. Raises WorldError."""

    def plain(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is neither a number, a text, a list nor a dict")

    try:
        return json.dumps(body, allow_nan=False, default=plain)
    except (TypeError, ValueError) as error:
        raise WorldError(f"this cannot be sent to a server: {error}") from error


def to_rows(values: Any, what: str, shape: tuple[int, ...] | None = None) -> Any:
    """Make lists of an array of numbers, of ``shape`` where one is expected. Raises WorldError."""
    if values is None:
        return None
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise WorldError(f"{what}: this is no array of numbers ({error})") from error
    if shape is not None and array.shape != shape:
        raise WorldError(f"{what}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise WorldError(f"{what}: it holds a number that is not finite")
    return array.tolist()


def to_png(frames: Any, camera: str) -> list[str]:
    """Encode the frames ``T H W 3`` of a camera as PNG files in base64. Raises WorldError."""
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise WorldError(
            f"camera '{camera}': frames must be uint8 of shape (T, height, width, 3), got {array.dtype} "
            f"{array.shape}"
        )
    return [base64.b64encode(images.encode(frame, "png")).decode() for frame in array]


def decode_frames(data: bytes | str, shape: Sequence[int]) -> np.ndarray:
    """Read the pixels of frames from bytes, or from bytes in base64. Raises ValueError."""
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else data
    return np.frombuffer(raw, np.uint8).reshape(shape).copy()


def decode_state(state: schema.State) -> dict[str, np.ndarray]:
    """Read the frames ``H W 3`` by camera of an answer. Raises ValueError."""
    shown = state.frames.items()
    return {key: decode_frames(frame.data, (frame.height, frame.width, 3)) for key, frame in shown}


def unpack(answer: bytes) -> tuple[StreamState | StreamError, dict[str, np.ndarray]]:
    """Read state and frames ``H W 3`` by camera of an answer in a stream. Raises ValueError, TypeError."""
    (size,) = struct.unpack_from("<I", answer)
    head = json.loads(answer[4 : 4 + size])
    if "error" in head:
        return StreamError.model_validate(head), {}
    state = StreamState.model_validate(head)
    frames, place = {}, 4 + size
    for shown in state.pictures:
        if not shown.is_beside:
            data = answer[place : place + shown.size]
            frames[shown.camera] = decode_frames(data, (shown.height, shown.width, 3))
        place += shown.size
    return state, frames


def stack_steps(steps: Sequence[Step], num: int) -> Step:
    """Make the step of a batch from those of its ``num`` sessions. Raises ValueError."""
    if len(steps) != num:
        raise ValueError("another number of sessions")

    def stacked(values: Sequence[Any]) -> Any:
        return None if values[0] is None else np.stack(values)

    frames: Any = [step.frame for step in steps]
    is_by_camera = isinstance(frames[0], dict)
    trust = stacked([step.trust for step in steps])
    return Step(
        frame={key: stacked([frame[key] for frame in frames]) for key in frames[0]}
        if is_by_camera
        else stacked(frames),
        proprio=stacked([step.proprio for step in steps]),
        trust=None if trust is None else trust.astype(np.float32),
        outside=[step.outside for step in steps],
    )
