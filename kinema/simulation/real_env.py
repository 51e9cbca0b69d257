"""A real environment as a world sees it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kinema.data.environment import Policy, make_environment, needs_frame
from kinema.data.spaces import (
    RENDER_KEY,
    ActionReader,
    ObservationReader,
    RecordError,
    resize,
    to_frame,
)
from kinema.simulation.step import Step
from kinema.simulation.world import World
from kinema.types import Seen


class Outcome(NamedTuple):
    """What a step in an arena gave."""

    seen: Seen
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Arena:
    """An environment of Gymnasium, its observations taken apart as ``kinema record`` does, its pictures at
    the size that the world shows."""

    def __init__(self, world: World, name: str, arguments: Mapping[str, Any] | None = None):
        """``name`` is ID or MODULE:ID.

        Raises:
            RecordError: it cannot be made, or does not show what the world needs.
        """
        self.world, self.name = world, name
        self._sizes = {camera.key: camera.native_size for camera in world.config.cameras}
        size = next(iter(self._sizes.values()), None)
        made = make_environment(name, arguments or {}, render="auto", frame_size=size)
        self.env = made.env
        self._is_rendered = made.is_rendered
        self.reader = ObservationReader(self.env.observation_space)
        space = self.env.action_space
        names = ActionReader(space).names
        if len(names) != world.action_dim:
            raise RecordError(
                f"{name}: actions have {len(names)} numbers ({', '.join(names)}), but world '{world.name}' "
                f"takes {world.action_dim}"
            )
        self._action_dtype, self._action_shape = space.dtype, space.shape
        self._low, self._high = getattr(space, "low", None), getattr(space, "high", None)

    def reset(self, seed: int) -> tuple[Seen, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed)
        return self.see(observation), info

    def step(self, action: np.ndarray) -> Outcome:
        """Do an action ``A`` in the units of the dataset, clipped to what the environment allows."""
        done = np.asarray(action, dtype=self._action_dtype).reshape(self._action_shape or ())
        if self._low is not None:
            done = np.clip(done, self._low, self._high)
        observation, reward, terminated, truncated, info = self.env.step(done)
        return Outcome(self.see(observation), float(reward), bool(terminated), bool(truncated), info)

    def see(self, observation: Any) -> Seen:
        """What an observation of the environment shows.

        Raises:
            RecordError: a camera or the proprioception that the world needs is not in it.
        """
        frames = self.reader.frames(observation) | self._draw()
        key = self.world.config.proprio_key
        vectors = self.reader.vectors(observation)
        missing = [camera for camera in self.world.cameras if camera not in frames]
        if key is not None and len(vectors.get(key, ())) != self.world.proprio_dim:
            missing.append(f"{key} ({self.world.proprio_dim} numbers)")
        if missing:
            shown = [*frames, *(f"{name} ({len(values)} numbers)" for name, values in vectors.items())]
            raise RecordError(
                f"{self.name}: world '{self.world.name}' needs {', '.join(missing)}; the environment shows "
                f"{', '.join(shown) or 'nothing'}"
            )
        # As `kinema record --camera-size` recorded them.
        batched = {camera: resize(frames[camera], size)[None] for camera, size in self._sizes.items()}
        resized = self.world.by_camera(batched) if batched else {}
        return Seen(
            frames={camera: pictures[0] for camera, pictures in resized.items()},
            proprio=None if key is None else vectors[key],
        )

    def info_for(self, policy: Policy, info: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the environment says now, for a policy: with the picture where it needs one that is no part
        of the observation."""
        return {**info, **self._draw()} if needs_frame(policy) else info

    def _draw(self) -> dict[str, np.ndarray]:
        """The picture that is no part of the observation, if any, as it was recorded."""
        if not self._is_rendered:
            return {}
        picture = to_frame(self.env.render(), RENDER_KEY)
        return {RENDER_KEY: resize(picture, self._sizes.get(RENDER_KEY, picture.shape[:2]))}

    def observation(self, seen: Seen) -> Any:
        """What the environment's own observation would be where this is seen: what its policies are given.

        Raises:
            RecordError: the environment observes more than the world knows.
        """
        key = self.world.config.proprio_key
        vectors = {} if key is None or seen.proprio is None else {key: seen.proprio}
        return self.reader.observation(seen.frames, vectors)

    def close(self) -> None:
        self.env.close()


def seen_after(world: World, step: Step) -> Seen:
    """What there is to see after a step of a single session."""
    frames: dict[str, np.ndarray] = {}
    if isinstance(step.frame, dict):
        frames = step.frame
    elif world.cameras:
        frames[world.cameras[0]] = step.frame
    return Seen(frames=frames, proprio=step.proprio)
