"""A kit as another package brings it: a bright bar slides over a dark frame."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from kinema.kits import Environments, Kit, Quantity, Reading, Simulator, Success
from kinema.types import Episode, Frames

SIZE = 32
CAMERA = "observation.images.pixels"
COLUMN = "info.slide"


class Slide(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Observes a frame and where the bar is, in [0, 1]; the action pushes it."""

    metadata = {"render_fps": 10, "render_modes": []}  # noqa: RUF012 (as in gymnasium.Env)
    observation_space = spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
            "place": spaces.Box(0.0, 1.0, (1,), np.float32),
        }
    )
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    state = np.array([0.5, 0.0])
    """Place and speed."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.array([self.np_random.uniform(0.3, 0.7), 0.0])
        return self.look(), {"slide": self.state.astype(np.float32)}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.state = move(self.state, action)
        return self.look(), 0.0, False, False, {"slide": self.state.astype(np.float32)}

    def look(self) -> dict[str, Any]:
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[:, np.abs(np.arange(SIZE) + 0.5 - SIZE * self.state[0]) < 2] = 255
        return {"pixels": pixels, "place": self.state[:1].astype(np.float32)}


def move(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    speed = 0.5 * state[1] + 0.05 * float(action[0])
    return np.array([np.clip(state[0] + speed, 0.0, 1.0), speed])


class SlideProbe:
    quantities = (Quantity(key="bar", label="bar position", unit="px", largest=float(SIZE)),)
    things = "one bar"

    def read(self, frames: Frames) -> Reading:
        bright = frames[CAMERA].astype(float).mean(axis=(1, 3))
        mass = bright.sum(axis=1)
        place = (bright * (np.arange(SIZE) + 0.5)).sum(axis=1) / np.maximum(mass, 1e-9)
        return self._reading(place, mass > 0)

    def recorded(self, episode: Episode) -> Reading | None:
        if COLUMN not in episode.columns:
            return None
        place = SIZE * episode.columns[COLUMN][:, 0].astype(float)
        return self._reading(place, np.ones(len(place), dtype=bool))

    def _reading(self, place: np.ndarray, is_found: np.ndarray) -> Reading:
        found = {"bar": is_found}
        return Reading(values={"bar": place[:, None]}, is_found=found, is_certain=found, is_valid=is_found)


@dataclasses.dataclass
class SlideTwin:
    env: Any

    def get_state(self) -> np.ndarray:
        return self.env.unwrapped.state.copy()

    def set_state(self, state: np.ndarray) -> None:
        self.env.unwrapped.state = np.array(state, dtype=float)

    def advance(self, action: np.ndarray) -> None:
        self.env.unwrapped.state = move(self.env.unwrapped.state, action)

    def perturb(self, rng: np.random.Generator, size: float) -> None:
        self.env.unwrapped.state[0] += size * rng.choice([-1.0, 1.0])

    def observation(self) -> Any:
        return self.env.unwrapped.look()

    def columns(self) -> dict[str, np.ndarray]:
        return {COLUMN: self.get_state()}

    def recorded_states(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(columns[COLUMN], dtype=float)

    def draw_where(self, is_needed: Callable[[], bool]) -> None:
        pass


KIT = Kit(
    name="slider",
    columns=(COLUMN,),
    probe=lambda cameras: SlideProbe() if cameras == (CAMERA,) else None,
    environments=Environments(
        namespace="kinema_slider",
        module="tests.kits.slider",
        requirement="slider",
        arguments=lambda given, size: (given, size),
    ),
    simulator=Simulator(
        env="kinema_slider/Slide-v0",
        module="tests.kits.slider",
        columns=(COLUMN,),
        wrap=SlideTwin,
        blur=0.5 / SIZE,
    ),
    success=Success(
        criterion="the bar is within a pixel of the goal",
        is_met=lambda states, goal: np.abs(states[..., 0] - goal[0]) < 1 / SIZE,
        distance=lambda states, goal: SIZE * np.abs(states[..., 0] - goal[0]),
    ),
    named_goals={"middle": {"bar": 16.0}},
)

if "kinema_slider/Slide-v0" not in gymnasium.registry:
    gymnasium.register("kinema_slider/Slide-v0", entry_point=Slide, max_episode_steps=40)
