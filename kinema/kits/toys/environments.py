"""The Gymnasium environments of the small worlds; importing this module registers them."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from kinema.kits.toys import coin, discs, screen

Info = dict[str, Any]

_FRAME = spaces.Box(0, 255, (discs.SIZE, discs.SIZE, 3), np.uint8)
_ACTION = spaces.Box(-1.0, 1.0, (1,), np.float32)


class CoinVector(gymnasium.Env[np.ndarray, np.ndarray]):
    """The coin world as two numbers, ``x`` and ``y``."""

    metadata = {"render_fps": 10, "render_modes": []}  # noqa: RUF012 (as in gymnasium.Env)
    observation_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = _ACTION
    _state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Start a ball near the top."""
        super().reset(seed=seed)
        self._state = np.array([0.0, self.np_random.uniform(0.0, 2.0 * coin.FALL)])
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Let the ball fall for one step."""
        # A coin is drawn at each step, so that no later one depends on the actions.
        side = 1 if self.np_random.random() < 0.5 else -1
        self._state = coin.advance(self._state, float(action[0]), side)
        return self._observe(), 0.0, False, False, self._info()

    def _observe(self) -> np.ndarray:
        return self._state.astype(np.float32)

    def _info(self) -> Info:
        return {"coin": self._state.copy()}


class CoinPixels(CoinVector):
    """The coin world as frames."""

    observation_space = _FRAME

    def _observe(self) -> np.ndarray:
        return coin.draw(self._state)


class ScreenPixels(gymnasium.Env[np.ndarray, np.ndarray]):
    """The screen world as frames."""

    metadata = {"render_fps": 10, "render_modes": []}  # noqa: RUF012 (as in gymnasium.Env)
    observation_space = _FRAME
    action_space = _ACTION

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Let the first ball enter."""
        super().reset(seed=seed)
        self._marker = float(self.np_random.uniform(screen.RADIUS, discs.SIZE - screen.RADIUS))
        self._ball = screen.Ball.enter(self.np_random)
        self._x, self._pause = screen.START, 0
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Move the marker by the action, the ball by its speed."""
        moved = self._marker + screen.MARKER_SPEED * float(np.clip(action[0], -1.0, 1.0))
        self._marker = float(np.clip(moved, screen.RADIUS, discs.SIZE - screen.RADIUS))
        if self._pause:
            self._pause -= 1
            if self._pause == 0:
                self._ball = screen.Ball.enter(self.np_random)
                self._x = screen.START
        else:
            self._x += self._ball.speed
            if self._x > discs.SIZE + screen.RADIUS:
                self._pause = int(self.np_random.integers(*screen.PAUSE, endpoint=True))
        observation, info = self._observe()
        return observation, 0.0, False, False, info

    def _observe(self) -> tuple[np.ndarray, Info]:
        state = np.array([self._x, self._ball.y, self._ball.kind, self._marker])
        return screen.draw(state), {"screen": state}


for _id, _entry, _steps in (
    ("kinema_coin/Vector-v0", CoinVector, 120),
    ("kinema_coin/Pixels-v0", CoinPixels, 120),
    ("kinema_screen/Pixels-v0", ScreenPixels, 160),
):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=f"{__name__}:{_entry.__name__}", max_episode_steps=_steps)
