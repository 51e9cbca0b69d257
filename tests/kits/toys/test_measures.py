"""Shares of sides and of balls that come out right, of worlds that know the answer and of worlds that do
not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.data.record import RecordConfig, record
from kinema.kits.toys import coin, environments, screen
from kinema.kits.toys.measures import Emergence, coin_sides, emergence, share_right
from kinema.model.world import CameraConfig
from kinema.simulation.step import Step
from kinema.simulation.world import World
from kinema.types import Episode

from ...evaluation.drawn import tiny_config

CAMERA = "observation.images.pixels"
CAMERAS = (CameraConfig(key=CAMERA, native_height=64, native_width=64),)


def recording(root: Path, env_id: str, key: str, num_episodes: int) -> Dataset:
    env = f"{environments.__name__}:{env_id}"
    record(RecordConfig(env=env, episodes=num_episodes, out=root, info_keys=(key,), workers=1))
    return Dataset.open(root)


class Falling:
    """Sessions of a coin world whose coin falls to the right with some probability."""

    def __init__(self, world: "CoinWorld", states: np.ndarray, seed: int):
        self.world, self.states, self.rng = world, states, np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.states)

    def change(self, *, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def fork(self, num: int, *, max_rewind: int) -> "Falling":
        return Falling(self.world, np.repeat(self.states, num, axis=0), int(self.rng.integers(2**31)))

    def step(self, actions: np.ndarray, *, decode: bool = True) -> Step:
        drawn = np.where(self.rng.random(len(self)) < self.world.right, 1, -1)
        moved = [
            coin.advance(state, float(action[0]), int(side))
            for state, action, side in zip(self.states, actions, drawn, strict=True)
        ]
        self.states = np.stack(moved)
        seen = self.states * [1.0 - self.world.hesitation, 1.0]
        frame = np.stack([coin.draw(state) for state in seen]) if self.world.cameras and decode else None
        return Step(frame=frame, proprio=None if self.world.cameras else seen.astype(np.float32))


class CoinWorld(World):
    def __init__(self, *, is_drawn: bool, right: float = 0.5, hesitation: float = 0.0):
        state = {} if is_drawn else {"proprio_key": "observation.state", "proprio_dim": 2}
        super().__init__(tiny_config(cameras=CAMERAS if is_drawn else (), action_dim=1, **state))
        self.right, self.hesitation = right, hesitation

    def start(self, frames: Any, actions: Any = None, *, proprio: Any = None, **options: Any) -> Any:
        if proprio is not None:
            return Falling(self, proprio[-1:].astype(float), 0)
        reading = coin.CoinProbe(CAMERA).read({CAMERA: frames[CAMERA][-1:]})
        return Falling(self, coin.to_state(reading.values["ball"]), 0)


@pytest.mark.parametrize("is_drawn", [True, False])
def test_futures_are_counted_by_side(is_drawn: bool, tmp_path: Path) -> None:
    name = "kinema_coin/Pixels-v0" if is_drawn else "kinema_coin/Vector-v0"
    dataset = recording(tmp_path / "data", name, "coin", 1)
    episode = dataset.episode(0, cameras=dataset.cameras)
    fair = coin_sides(CoinWorld(is_drawn=is_drawn), episode, num_futures=600)
    assert abs(fair.right - 0.5) < 0.08
    assert fair.neither == 0.0
    assert fair.left + fair.right == pytest.approx(1.0)
    assert coin_sides(CoinWorld(is_drawn=is_drawn, right=1.0), episode, num_futures=20).right == 1.0
    lost = coin_sides(CoinWorld(is_drawn=is_drawn, hesitation=0.6), episode, num_futures=20)
    assert lost.neither == 1.0


class Passing:
    def __init__(self, world: "ScreenWorld", rows: np.ndarray):
        self.world, self.rows = world, rows

    def step(self, action: np.ndarray, *, decode: bool = True) -> Step:
        assert action == pytest.approx(self.world.episode.columns["action"][self.rows[0] - 1])
        x, y, kind, marker = self.world.episode.columns[screen.COLUMN][self.rows[0]]
        self.rows = self.rows[1:]
        state = np.array([x - self.world.late, y, (kind + self.world.forgets) % 2, marker], dtype=float)
        return Step(frame=screen.draw(state), proprio=None)


class ScreenWorld(World):
    """Knows an episode; comes out late, or has forgotten the kind."""

    def __init__(self, episode: Episode, *, late: float = 0.0, forgets: bool = False):
        super().__init__(tiny_config(cameras=CAMERAS, action_dim=1))
        self.episode, self.late, self.forgets = episode, late, forgets

    def start(self, frames: Any, actions: Any = None, **options: Any) -> Any:
        assert len(actions) == len(frames) - 1
        return Passing(self, np.arange(len(frames), len(self.episode)))


def test_balls_that_come_out_right_are_told_from_others(tmp_path: Path) -> None:
    dataset = recording(tmp_path / "data", "kinema_screen/Pixels-v0", "screen", 4)
    num_hidden = []
    for index in range(dataset.num_episodes):
        episode = dataset.episode(index, cameras=dataset.cameras)
        right = emergence(ScreenWorld(episode), episode)
        if right is None:
            continue
        num_hidden.append(right.num_hidden)
        assert right.is_right
        late = emergence(ScreenWorld(episode, late=8.0), episode)
        assert late is not None
        assert not late.is_right
        forgotten = emergence(ScreenWorld(episode, forgets=True), episode)
        assert forgotten is not None
        assert not forgotten.is_right
        assert not forgotten.has_right_kind
    assert len(num_hidden) >= 3
    assert 5 <= min(num_hidden) <= max(num_hidden) <= 61


def test_the_share_is_of_balls_that_were_hidden_so_long() -> None:
    balls = [Emergence(num_hidden=n, is_right=n < 30, has_right_kind=True) for n in (5, 20, 29, 30, 50)]
    assert share_right(balls, 20, 40).tolist() == [1.0, 1.0, 0.0]
