"""What Gymnasium spaces become in a dataset: pictures by camera, all numbers as flat vectors with names."""

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
SMALLEST_PICTURE = 16
"""uint8 arrays with a shorter side than this are numbers (a board, a symbolic grid), not pictures."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One entry of a nested space: where it is and what it holds."""

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
    """The entries of a space, those of nested Dict and Tuple spaces in their own order."""
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

    - A uint8 Box that is a picture (``H W``, ``H W C`` or ``C H W`` with 1 or 3 channels, both sides at least
      ``SMALLEST_PICTURE``) is a camera, ``observation.images.<name>``; a bare picture is called ``pixels``.
    - All other numbers together are ``observation.state``, float32, with one name each; categories
      (Discrete) are one-hot. An entry called ``environment_state`` keeps its own column, as in LeRobot.
    - A text is the episode's task.
    """

    def __init__(self, space: Space[Any]):
        self._space = space
        self._pictures: dict[str, Leaf] = {}
        self._vectors: dict[str, list[Leaf]] = {}
        self._texts: list[Leaf] = []
        self.names: dict[str, list[str]] = {}
        """Names of the numbers of each vector column."""
        for leaf in leaves(space):
            if leaf.space.dtype is not None and leaf.space.dtype.kind == "U":
                self._texts.append(leaf)
            elif _is_picture(leaf):
                key = IMAGE_PREFIX + (leaf.name or "pixels")
                if key in self._pictures:
                    raise RecordError(f"two pictures of the observation would both be called {key!r}")
                self._pictures[key] = leaf
            else:
                key = ENVIRONMENT_STATE if leaf.name == "environment_state" else STATE
                self._vectors.setdefault(key, []).append(leaf)
                self.names.setdefault(key, []).extend(number_names(leaf, "state", "observation"))

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._pictures)

    def frames(self, observation: Any) -> dict[str, np.ndarray]:
        """Its pictures by feature key, each ``uint8`` ``H W 3``."""
        return {key: to_picture(leaf.of(observation), key) for key, leaf in self._pictures.items()}

    def vectors(self, observation: Any) -> dict[str, np.ndarray]:
        """Its numbers by feature key, each a float32 vector."""
        return {
            key: np.concatenate([flatten(leaf.space, leaf.of(observation)) for leaf in parts])
            for key, parts in self._vectors.items()
        }

    def observation(self, frames: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray]) -> Any:
        """An observation of the space that shows these pictures and numbers: undoes ``frames`` and
        ``vectors``, as far as they keep what was there; texts are empty.

        Raises:
            RecordError: a picture or a number that the space has is not given.
        """
        values: dict[tuple[str | int, ...], Any] = {leaf.path: "" for leaf in self._texts}
        for key, leaf in self._pictures.items():
            if key not in frames:
                raise RecordError(f"an observation of {self._space} needs a picture of {key}")
            values[leaf.path] = _from_picture(frames[key], leaf)
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
    """A value of a space as a new float32 vector; categories are one-hot."""
    if isinstance(space, spaces.MultiBinary | spaces.MultiDiscrete):
        value = np.asarray(value)  # Environments may return a list.
    return np.array(spaces.flatten(space, value), dtype=np.float32).reshape(-1)


def number_names(leaf: Leaf, default: str, where: str) -> list[str]:
    """One name for each number of an entry: its path, and its position where there are several."""
    if not isinstance(leaf.space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise RecordError(
            f"{where} {leaf.name or default!r} is a {type(leaf.space).__name__} space, which has no fixed "
            "number of values; leave it out or flatten it with a gymnasium wrapper"
        )
    name, size = leaf.name or default, spaces.flatdim(leaf.space)
    return [name] if size == 1 else [f"{name}.{index}" for index in range(size)]


def to_picture(array: Any, key: str) -> np.ndarray:
    """A new ``uint8`` ``H W 3`` picture from ``H W``, ``H W C`` or ``C H W``, one or three channels."""
    picture = np.asarray(array)
    if picture.dtype != np.uint8 or _channels_of(picture.shape) is None:
        raise RecordError(
            f"{key}: expected a uint8 picture with 1 or 3 channels, got {picture.dtype} of shape "
            f"{picture.shape}; convert it with a gymnasium wrapper"
        )
    if picture.ndim == 2:
        picture = picture[..., None]
    elif picture.shape[-1] not in (1, 3):
        picture = picture.transpose(1, 2, 0)
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else np.array(picture)


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at (height, width); each new pixel is the mean of the area that it covers."""
    if picture.shape[:2] == size:
        return picture
    return np.array(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def info_value(info: Mapping[str, Any], key: str) -> np.ndarray:
    """An entry of ``info`` as a float32 vector; dots go into nested mappings."""
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


def _is_picture(leaf: Leaf) -> bool:
    space = leaf.space
    if space.dtype != np.uint8 or space.shape is None or len(space.shape) not in (2, 3):
        return False
    if sorted(space.shape)[-2] < SMALLEST_PICTURE:
        return False
    if _channels_of(space.shape) is None:
        raise RecordError(
            f"observation {leaf.name or 'pixels'!r} is uint8 of shape {space.shape}: a picture has 1 or 3 "
            "channels, first or last; unstack or convert it with a gymnasium wrapper"
        )
    return True


def _from_picture(picture: np.ndarray, leaf: Leaf) -> np.ndarray:
    """A picture ``H W 3`` in the shape that the space has for it."""
    shape = leaf.space.shape
    assert shape is not None
    channels_first = len(shape) == 3 and shape[-1] not in (1, 3)
    size = shape[1:] if channels_first else shape[:2]
    resized = resize(picture, (size[0], size[1]))
    if _channels_of(shape) == 1:
        resized = resized.mean(axis=-1, keepdims=True).round().astype(np.uint8)
    return resized.transpose(2, 0, 1) if channels_first else resized.reshape(shape)


def _from_vector(space: Space[Any], numbers: np.ndarray) -> Any:
    """A value of a space from its flat numbers: of categories the likeliest."""
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
    """The value of a nested space from those of its entries."""
    if isinstance(space, spaces.Dict):
        return {key: _assemble(part, values, (*path, key)) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_assemble(part, values, (*path, index)) for index, part in enumerate(space.spaces))
    return values[path]


def _channels_of(shape: tuple[int, ...]) -> int | None:
    """Channels of a picture of this shape, or None where it cannot be one."""
    if len(shape) == 2:
        return 1
    if len(shape) != 3:
        return None
    return next((size for size in (shape[-1], shape[0]) if size in (1, 3)), None)
