"""A world as an environment of Gymnasium: alone, and as many at once in one batch.

Rewards and ends of episodes come from the world's heads. Importing this module registers
``kinema/World-v0``, so that
``gymnasium.make("kinema.simulation.env:kinema/World-v0", world=..., starts=...)`` works.
"""

from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from kinema.data.frames import join_cameras
from kinema.data.lerobot import Dataset
from kinema.simulation.session import SimulationBatch
from kinema.simulation.starts import Start, Starts, begin
from kinema.simulation.step import Step
from kinema.simulation.world import World, load

Observe = Literal["pixels", "latents"]


class _Rules:
    """What both environments share: the spaces, and what a step means to an agent."""

    def __init__(
        self,
        world: World | str | Path,
        starts: Starts | Dataset | str | Path,
        *,
        observe: Observe,
        max_steps: int,
        min_trust: float | None,
        render_mode: str | None,
    ):
        self.world = load(world) if isinstance(world, str | Path) else world
        self.world.require_heads()
        if isinstance(starts, str | Path):
            starts = Dataset.open(starts)
        self.starts = starts if isinstance(starts, Starts) else Starts(self.world, starts)
        if observe not in ("pixels", "latents"):
            raise ValueError(f"observe={observe!r}: it is 'pixels' or 'latents'")
        if max_steps < 1:
            raise ValueError(f"max_steps={max_steps}: an episode has at least 1")
        if min_trust is not None and not 0.0 < min_trust < 1.0:
            raise ValueError(f"min_trust={min_trust}: it must be between 0 and 1; one half is a good start")
        if min_trust is not None and not self.world.has_trust:
            raise ValueError(
                f"min_trust={min_trust}: world '{self.world.name}' has no manifold, so it does not tell trust"
            )
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r}: it is 'rgb_array' or None")
        self.observe, self.max_steps, self.min_trust = observe, max_steps, min_trust
        low, high = self.world.action_normalizer.range
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = self._observation_space()

    def _observation_space(self) -> spaces.Space[Any]:
        world = self.world
        if self.observe == "latents":
            config = world.config.dynamics
            size = config.num_latents * config.latent_dim + config.proprio_dim
            return spaces.Box(-np.inf, np.inf, (size,), np.float32)
        parts: dict[str, spaces.Space[Any]] = {}
        for camera in world.config.cameras:
            parts[short_name(camera.key)] = spaces.Box(0, 255, (*camera.native_size, 3), np.uint8)
        if world.proprio_dim:
            parts["state"] = spaces.Box(-np.inf, np.inf, (world.proprio_dim,), np.float32)
        return spaces.Dict(parts)

    def begin(self, rngs: list[np.random.Generator]) -> tuple[SimulationBatch, list[Start]]:
        """Sessions, each at a start drawn by its own generator."""
        starts = [self.starts.draw(rng) for rng in rngs]
        seeds = [int(rng.integers(2**62)) for rng in rngs]
        return begin(self.world, starts, seeds), starts

    def first_observation(self, sessions: SimulationBatch, starts: list[Start]) -> Any:
        """What agents see of starts, batched."""
        if self.observe == "latents":
            return self.latents(sessions)
        frames = {short_name(k): np.stack([s.last.frames[k] for s in starts]) for k in self.world.cameras}
        proprio = [start.proprio[-1] for start in starts if start.proprio is not None]
        return frames | ({"state": np.stack(proprio)} if self.world.proprio_dim else {})

    def observation(self, sessions: SimulationBatch, step: Step) -> Any:
        """What agents see after a step, batched."""
        if self.observe == "latents":
            return self.latents(sessions)
        frames = step.frame if isinstance(step.frame, dict) else dict.fromkeys(self.world.cameras, step.frame)
        seen = {short_name(key): pictures for key, pictures in frames.items()}
        return seen | ({"state": step.proprio} if self.world.proprio_dim else {})

    def latents(self, sessions: SimulationBatch) -> np.ndarray:
        parts = [sessions.latents.flatten(1), sessions.normalized_proprio]
        return np.concatenate([part.cpu().numpy() for part in parts], axis=1)

    def is_lost(self, step: Step) -> np.ndarray:
        """``B`` bool: whether trust fell under the threshold."""
        if self.min_trust is None:
            return np.zeros(len(step.reward), dtype=bool)
        return step.trust < self.min_trust

    def picture(self, sessions: SimulationBatch, index: int) -> np.ndarray:
        """The present picture ``H W 3`` of one session; cameras stand side by side."""
        rows = slice(index, index + 1)
        pictures = self.world.decode(sessions.latents[rows], sessions.normalized_proprio[rows])
        if pictures is None:
            raise ValueError(f"world '{self.world.name}' has no camera, so there is nothing to render")
        if isinstance(pictures, dict):
            return join_cameras(pictures.values())[0]
        return pictures[0]


class WorldEnv(gymnasium.Env[Any, np.ndarray]):
    """A world with heads as an environment.

    Args:
        world: with heads; or the name, folder or Hub id of one.
        starts: where episodes begin; or a dataset, or the folder or Hub id of one, to draw them from.
        observe: ``pixels`` are pictures by camera, and the proprioception as ``state``, in the units of the
            dataset; ``latents`` is one vector that the networks read, and costs no decoding.
        max_steps: after so many an episode is truncated.
        min_trust: an episode whose trust falls under this is truncated; by default none is.
        render_mode: ``rgb_array`` or None.

    ``info["trust"]`` is the trust in the step (see ``kinema.Step``), absent where the world computes none;
    ``info["is_outside"]`` is true where the action, or the start, left what was recorded.

    Raises:
        WorldError: the world has no heads.
        DataError: the dataset does not fit the world.
        ValueError: another argument is wrong.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as in gymnasium.Env)

    def __init__(
        self,
        world: World | str | Path,
        starts: Starts | Dataset | str | Path,
        *,
        observe: Observe = "pixels",
        max_steps: int = 100,
        min_trust: float | None = None,
        render_mode: str | None = None,
    ):
        self._rules = _Rules(
            world,
            starts,
            observe=observe,
            max_steps=max_steps,
            min_trust=min_trust,
            render_mode=render_mode,
        )
        self.world = self._rules.world
        self.metadata = {**self.metadata, "render_fps": round(self.world.fps)}
        self.render_mode = render_mode
        self.action_space = self._rules.action_space
        self.observation_space = self._rules.observation_space
        self._sessions: SimulationBatch | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._sessions, starts = self._rules.begin([self.np_random])
        info = _info(self._sessions.look(decode=False), 0)
        return _row(self._rules.first_observation(self._sessions, starts), 0), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        sessions = self._running()
        step = sessions.step(np.asarray(action)[None], decode=self._rules.observe == "pixels")
        terminated = bool(step.termination[0] > 0.5)
        truncated = bool(sessions.num_steps >= self._rules.max_steps or self._rules.is_lost(step)[0])
        observation = _row(self._rules.observation(sessions, step), 0)
        return observation, float(step.reward[0]), terminated, truncated, _info(step, 0)

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        return self._rules.picture(self._running(), 0)

    def _running(self) -> SimulationBatch:
        if self._sessions is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step")
        return self._sessions


class WorldVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """Many environments like ``WorldEnv`` that step as one batch; environment ``i`` is seeded with ``seed +
    i`` and then does what a ``WorldEnv`` with that seed does.

    Args:
        num_envs: how many.
        autoreset_mode: ``NEXT_STEP`` (the step after an episode's end begins the next one, its action is
            ignored) or ``SAME_STEP`` (the end's observation is ``info["final_obs"]``).

    The others are those of ``WorldEnv``; ``starts`` must show as many frames as attention sees, as they do by
    default. Raises what ``WorldEnv`` raises.
    """

    def __init__(
        self,
        num_envs: int,
        world: World | str | Path,
        starts: Starts | Dataset | str | Path,
        *,
        observe: Observe = "pixels",
        max_steps: int = 100,
        min_trust: float | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: at least 1 is needed")
        self._rules = rules = _Rules(
            world,
            starts,
            observe=observe,
            max_steps=max_steps,
            min_trust=min_trust,
            render_mode=render_mode,
        )
        least = rules.world.config.dynamics.frames_to_fill
        if rules.starts.context < least:
            raise ValueError(
                f"starts show {rules.starts.context} frames; sessions that begin at different times share a "
                f"batch only when each was shown {least}: Starts(..., context={least})"
            )
        self.world = rules.world
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode=Disabled: it is NextStep or SameStep")
        self.metadata = {
            **WorldEnv.metadata,
            "render_fps": round(self.world.fps),
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_action_space = rules.action_space
        self.single_observation_space = rules.observation_space
        self.action_space = batch_space(rules.action_space, num_envs)
        self.observation_space = batch_space(rules.observation_space, num_envs)
        self._rngs: list[np.random.Generator] = []
        self._sessions: SimulationBatch | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is None:
            seeds = [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: {len(seeds)} seeds for {self.num_envs} environments")
        known = self._rngs or [None] * self.num_envs
        self._rngs = [
            rng if one is None and rng is not None else np_random(one)[0]
            for one, rng in zip(seeds, known, strict=True)
        ]
        self._sessions, starts = self._rules.begin(self._rngs)
        self._ages = np.zeros(self.num_envs, dtype=int)
        self._is_over = np.zeros(self.num_envs, dtype=bool)
        return self._rules.first_observation(self._sessions, starts), self._infos()

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance all by their actions ``B A``."""
        if self._sessions is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step")
        step = self._sessions.step(actions, decode=self._rules.observe == "pixels")
        self._ages += 1
        observation = self._rules.observation(self._sessions, step)
        reward = step.reward.astype(np.float64)
        terminated = step.termination > 0.5
        truncated = (self._ages >= self._rules.max_steps) | self._rules.is_lost(step)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            begun = self._is_over
            reward, terminated, truncated = reward * ~begun, terminated & ~begun, truncated & ~begun
            self._is_over = terminated | truncated
            observation = self._restart(begun, observation)
            return observation, reward, terminated, truncated, self._infos()
        is_over = terminated | truncated
        infos: dict[str, Any] = {}
        for index in np.flatnonzero(is_over).tolist():
            ended = {"final_obs": _row(observation, index), "final_info": _info(step, index)}
            infos = self._add_info(infos, ended, index)
        observation = self._restart(is_over, observation)
        return observation, reward, terminated, truncated, infos | self._infos()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Pictures of all environments."""
        if self.render_mode is None or self._sessions is None:
            return None
        return tuple(self._rules.picture(self._sessions, index) for index in range(self.num_envs))

    def _restart(self, which: np.ndarray, observation: Any) -> Any:
        """Begin the next episode of some environments, and put its first observation into the batch."""
        indices = np.flatnonzero(which).tolist()
        if not indices:
            return observation
        assert self._sessions is not None
        fresh, starts = self._rules.begin([self._rngs[index] for index in indices])
        self._sessions.replace(indices, fresh)
        self._ages[indices] = 0
        shown = self._rules.first_observation(fresh, starts)
        if isinstance(observation, dict):
            return {key: _with_rows(part, indices, shown[key]) for key, part in observation.items()}
        return _with_rows(observation, indices, shown)

    def _infos(self) -> dict[str, Any]:
        """The present trust and ``is_outside`` of all environments."""
        assert self._sessions is not None
        now, given = self._sessions.look(decode=False), np.ones(self.num_envs, dtype=bool)
        infos: dict[str, Any] = {"is_outside": now.is_outside, "_is_outside": given}
        if now.trust is not None:
            infos |= {"trust": now.trust.astype(np.float64), "_trust": given}
        return infos


def short_name(camera: str) -> str:
    """A camera's key without LeRobot's prefix and without dots: agent libraries make modules of these
    names."""
    return camera.removeprefix("observation.images.").replace(".", "_")


def _info(step: Step, index: int) -> dict[str, Any]:
    """The entries of ``info`` about one session of a step."""
    info: dict[str, Any] = {"is_outside": bool(step.is_outside[index])}
    return info if step.trust is None else info | {"trust": float(step.trust[index])}


def _row(batched: Any, index: int) -> Any:
    if isinstance(batched, dict):
        return {key: part[index].copy() for key, part in batched.items()}
    return batched[index].copy()


def _with_rows(array: np.ndarray, indices: list[int], rows: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[indices] = rows
    return changed


gymnasium.register(
    id="kinema/World-v0",
    entry_point="kinema.simulation.env:WorldEnv",
    vector_entry_point="kinema.simulation.env:WorldVectorEnv",
)
