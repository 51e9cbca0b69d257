"""Turn values of Gymnasium spaces into frames by camera and flat vectors of named numbers."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from PIL import Image

from kinema.types import RecordError

IMAGE_PREFIX = "observation.images."
RENDER_KEY = IMAGE_PREFIX + "render"
"""The camera that an environment draws apart from its observation."""
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
SMALLEST_FRAME = 16
"""uint8 arrays with a shorter side than this are numbers (a board, a symbolic grid), not frames."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Entry of a nested space: its path and its own space."""

    path: tuple[str | int, ...]
    space: Space[Any]

    @property
    def name(self) -> str:
        # A slash would separate folders in the paths of a dataset.
        return ".".join(str(part).replace("/", ".") for part in self.path)

    def of(self, value: Any) -> Any:
        for part in self.path:
            value = value[part]
        return value


def leaves(space: Space[Any], path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """List the entries of a space, those of nested Dict and Tuple spaces in their own order."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from leaves(part, (*path, index))
    else:
        yield Leaf(path, space)


class ObservationReader:
    """Takes observations of one space apart.

    - A uint8 Box that is a frame (``H W``, ``H W C`` or ``C H W`` with 1 or 3 channels, both sides at least
      ``SMALLEST_FRAME``) is a camera, ``observation.images.<name>``; a bare frame is called ``pixels``.
    - All other numbers together are ``observation.state``, float32, with one name each; categories
      (Discrete) are one-hot. An entry called ``environment_state`` keeps its own column, as in LeRobot.
    - A text is the episode's task.
    """

    def __init__(self, space: Space[Any]):
        self._space = space
        self._cameras: dict[str, Leaf] = {}
        self._vectors: dict[str, list[Leaf]] = {}
        self._texts: list[Leaf] = []
        self.names: dict[str, list[str]] = {}
        """Names of the numbers of each vector column."""
        for leaf in leaves(space):
            if leaf.space.dtype is not None and leaf.space.dtype.kind == "U":
                self._texts.append(leaf)
            elif _is_frame(leaf):
                key = IMAGE_PREFIX + (leaf.name or "pixels")
                if key in self._cameras:
                    raise RecordError(f"two frames of the observation would both be called {key!r}")
                self._cameras[key] = leaf
            else:
                key = ENVIRONMENT_STATE if leaf.name == "environment_state" else STATE
                self._vectors.setdefault(key, []).append(leaf)
                self.names.setdefault(key, []).extend(number_names(leaf, "state", "observation"))

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._cameras)

    def frames(self, observation: Any) -> dict[str, np.ndarray]:
        """Take the frames out of an observation: by feature key, each ``uint8`` ``H W 3``."""
        return {key: to_frame(leaf.of(observation), key) for key, leaf in self._cameras.items()}

    def vectors(self, observation: Any) -> dict[str, np.ndarray]:
        """Take the numbers out of an observation: by feature key, each a float32 vector."""
        return {
            key: np.concatenate([flatten(leaf.space, leaf.of(observation)) for leaf in parts])
            for key, parts in self._vectors.items()
        }

    def observation(self, frames: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray]) -> Any:
        """An observation of the space that shows these frames and numbers: undoes ``frames`` and
        ``vectors``, as far as they keep what was there; texts are empty.

        Raises:
            RecordError: a frame or a number that the space has is not given.
        """
        values: dict[tuple[str | int, ...], Any] = {leaf.path: "" for leaf in self._texts}
        for key, leaf in self._cameras.items():
            if key not in frames:
                raise RecordError(f"an observation of {self._space} needs a frame of {key}")
            values[leaf.path] = _from_frame(frames[key], leaf)
        for key, parts in self._vectors.items():
            given = np.asarray(vectors.get(key, ()), dtype=np.float64)
            if len(given) != len(self.names[key]):
                raise RecordError(
                    f"an observation of {self._space} needs {len(self.names[key])} numbers of {key}, "
                    f"got {len(given)}"
                )
            for leaf in parts:
                size = spaces.flatdim(leaf.space)
                values[leaf.path], given = _from_vector(leaf.space, given[:size]), given[size:]
        return _assemble(self._space, values, ())

    def task(self, observation: Any) -> str:
        return " ".join(str(leaf.of(observation)) for leaf in self._texts)


class ActionReader:
    """Turns actions of one space into float32 vectors.

    A category (Discrete) is one-hot: a number per choice is what networks, statistics and LeRobot policies
    expect of an action, while the index of a choice has neither order nor scale.
    """

    def __init__(self, space: Space[Any]):
        self._space = space
        self.names = [name for leaf in leaves(space) for name in number_names(leaf, "action", "action")]

    def vector(self, action: Any) -> np.ndarray:
        if isinstance(self._space, spaces.Box):
            # Values out of the bounds are the environment's business; most clip them.
            if np.shape(action) != self._space.shape:
                raise RecordError(
                    f"the policy returned an action of shape {np.shape(action)}; "
                    f"the environment takes {self._space.shape}"
                )
        elif not self._space.contains(action):
            raise RecordError(f"the policy returned {action!r}, which is not an action of {self._space}")
        return flatten(self._space, action)


def flatten(space: Space[Any], value: Any) -> np.ndarray:
    """Flatten a value of a space into a new float32 vector; categories are one-hot."""
    if isinstance(space, spaces.MultiBinary | spaces.MultiDiscrete):
        value = np.asarray(value)  # Environments may return a list.
    return np.array(spaces.flatten(space, value), dtype=np.float32).reshape(-1)


def number_names(leaf: Leaf, default: str, where: str) -> list[str]:
    """Name each number of an entry by its path, and by its position where there are several."""
    if not isinstance(leaf.space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise RecordError(
            f"{where} {leaf.name or default!r} is a {type(leaf.space).__name__} space, which has no fixed "
            "number of values; leave it out or flatten it with a gymnasium wrapper"
        )
    name, size = leaf.name or default, spaces.flatdim(leaf.space)
    return [name] if size == 1 else [f"{name}.{index}" for index in range(size)]


def to_frame(array: Any, key: str) -> np.ndarray:
    """Copy a frame ``H W``, ``H W C`` or ``C H W`` of one or three channels as ``uint8`` ``H W 3``."""
    frame = np.asarray(array)
    if frame.dtype != np.uint8 or _channels_of(frame.shape) is None:
        raise RecordError(
            f"{key}: expected a uint8 frame with 1 or 3 channels, got {frame.dtype} of shape "
            f"{frame.shape}; convert it with a gymnasium wrapper"
        )
    if frame.ndim == 2:
        frame = frame[..., None]
    elif frame.shape[-1] not in (1, 3):
        frame = frame.transpose(1, 2, 0)
    return np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else np.array(frame)


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a frame to (height, width); each new pixel is the mean of the area that it covers."""
    if frame.shape[:2] == size:
        return frame
    return np.array(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))


def info_value(info: Mapping[str, Any], key: str) -> np.ndarray:
    """Take an entry of ``info`` as a float32 vector; dots go into nested mappings."""
    value: Any = info
    for part in (key,) if key in info else key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RecordError(f"--info-keys: no {key!r} in this environment's info, which has {sorted(info)}")
        value = value[part]
    try:
        return np.array(value, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise RecordError(
            f"--info-keys: {key!r} in this environment's info is not numbers: {value!r}"
        ) from None


def _is_frame(leaf: Leaf) -> bool:
    space = leaf.space
    if space.dtype != np.uint8 or space.shape is None or len(space.shape) not in (2, 3):
        return False
    if sorted(space.shape)[-2] < SMALLEST_FRAME:
        return False
    if _channels_of(space.shape) is None:
        raise RecordError(
            f"observation {leaf.name or 'pixels'!r} is uint8 of shape {space.shape}: a frame has 1 or 3 "
            "channels, first or last; unstack or convert it with a gymnasium wrapper"
        )
    return True


def _from_frame(frame: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Bring a frame ``H W 3`` to the shape of its space."""
    shape = leaf.space.shape
    assert shape is not None
    channels_first = len(shape) == 3 and shape[-1] not in (1, 3)
    size = shape[1:] if channels_first else shape[:2]
    resized = resize(frame, (size[0], size[1]))
    if _channels_of(shape) == 1:
        resized = resized.mean(axis=-1, keepdims=True).round().astype(np.uint8)
    return resized.transpose(2, 0, 1) if channels_first else resized.reshape(shape)


def _from_vector(space: Space[Any], numbers: np.ndarray) -> Any:
    """Make a value of a space from its flat numbers: the likeliest where they are categories."""
    if isinstance(space, spaces.Box):
        return numbers.astype(space.dtype).reshape(space.shape)
    if isinstance(space, spaces.Discrete):
        return space.start + np.int64(numbers.argmax())
    if isinstance(space, spaces.MultiBinary):
        return (numbers > 0.5).astype(np.int8).reshape(space.shape)
    assert isinstance(space, spaces.MultiDiscrete)
    places = np.split(numbers, np.cumsum(space.nvec.reshape(-1))[:-1])
    chosen = np.array([part.argmax() for part in places], dtype=space.dtype)
    return space.start + chosen.reshape(space.shape)


def _assemble(
    space: Space[Any], values: Mapping[tuple[str | int, ...], Any], path: tuple[str | int, ...]
) -> Any:
    """Assemble the value of a nested space from those of its entries."""
    if isinstance(space, spaces.Dict):
        return {key: _assemble(part, values, (*path, key)) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_assemble(part, values, (*path, index)) for index, part in enumerate(space.spaces))
    return values[path]


def _channels_of(shape: tuple[int, ...]) -> int | None:
    """Count the channels of a frame of this shape; None where it cannot be a frame."""
    if len(shape) == 2:
        return 1
    if len(shape) != 3:
        return None
    return next((size for size in (shape[-1], shape[0]) if size in (1, 3)), None)
