"""The small worlds do what they say, and their probes read it from frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from kinema.data import Dataset
from kinema.data.environment import make_environment
from kinema.data.record import RecordConfig, record
from kinema.kits import check_kit, errors
from kinema.kits.toys import COIN, SCREEN, coin, environments, screen
from kinema.kits.toys.coin import CoinProbe
from kinema.kits.toys.screen import ScreenProbe

CAMERA = "observation.images.pixels"


def make(env_id: str) -> Any:
    return make_environment(f"{environments.__name__}:{env_id}", {}, render="auto", frame_size=None).env


def states(env: Any, key: str, num_steps: int, seed: int, action: float = 0.0) -> np.ndarray:
    _, info = env.reset(seed=seed)
    rows = [info[key]]
    for _ in range(num_steps):
        rows.append(env.step(np.array([action], np.float32))[4][key])
    return np.stack(rows)


@pytest.mark.parametrize(
    "env_id", ["kinema_coin/Vector-v0", "kinema_coin/Pixels-v0", "kinema_screen/Pixels-v0"]
)
def test_they_keep_the_contract_of_gymnasium(env_id: str) -> None:
    check_env(make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("kit", "env_id", "key"),
    [(COIN, "kinema_coin/Pixels-v0", "coin"), (SCREEN, "kinema_screen/Pixels-v0", "screen")],
)
def test_kits_keep_their_contract(kit: Any, env_id: str, key: str, tmp_path: Path) -> None:
    env = f"{environments.__name__}:{env_id}"
    record(RecordConfig(env=env, episodes=1, out=tmp_path / "data", info_keys=(key,), workers=1))
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.cameras == (CAMERA,)
    assert "observation.state" not in dataset.features
    episode = dataset.episode(0, cameras=dataset.cameras)
    check_kit(kit, episode)
    assert kit.matches("anything", dataset.features)
    probe = kit.find_probe(dataset.cameras)
    seen, known = probe.read(episode.frames), probe.recorded(episode)
    for quantity in probe.quantities:
        error = errors(quantity, seen, known)
        assert np.nanmax(error) < 0.5, quantity.key
        assert np.isfinite(error).mean() > 0.2
    assert seen.is_valid.all()


def test_half_of_all_balls_turn_left_whatever_the_actions() -> None:
    env = make("kinema_coin/Vector-v0")
    for action in (-1.0, 0.0, 1.0):
        ends = np.stack(
            [
                states(env, "coin", 28, seed, action)[-1 if action < 0 else 16 if action == 0 else 11]
                for seed in range(400)
            ]
        )
        side = coin.sides(ends)
        assert set(side) == {-1.0, 1.0}
        assert abs((side > 0).mean() - 0.5) < 0.08


def test_a_ball_stays_on_its_path_until_the_next_one_falls() -> None:
    path = states(make("kinema_coin/Vector-v0"), "coin", 200, seed=3)
    assert np.allclose(np.abs(path[:, 0]), coin.distance(path[:, 1]))
    assert np.allclose(np.diff(path[:, 1]) % 1.0, coin.FALL)
    falls = np.cumsum(np.diff(path[:, 1]) < 0)
    for fall in range(falls.max()):
        x = path[1:, 0][falls == fall]
        assert len({*np.sign(x[x != 0])}) <= 1
    assert {-1.0, 1.0} <= set(coin.sides(path))


def test_actions_change_how_fast_a_ball_falls() -> None:
    env = make("kinema_coin/Pixels-v0")
    slow, fast = (states(env, "coin", 4, seed=0, action=action)[:, 1] for action in (-1.0, 1.0))
    assert np.allclose(np.diff(slow), 0.025)
    assert np.allclose(np.diff(fast), 0.075)


def test_balls_are_hidden_for_5_to_60_frames_and_come_out_as_they_went_in() -> None:
    env = make("kinema_screen/Pixels-v0")
    hidden, kinds = [], []
    for seed in range(40):
        path = states(env, "screen", 200, seed)
        out = np.flatnonzero(path[:, 0] > screen.RIGHT + screen.RADIUS)
        assert len(out)
        first = path[: out[0] + 1]
        assert np.allclose(first[:, 1:3], first[0, 1:3])
        speed = np.diff(first[:, 0])
        assert np.allclose(speed, speed[0])
        hidden.append(screen.is_hidden(first[:, 0]).sum())
        kinds.append(first[0, 2])
    assert min(hidden) >= 5
    assert max(hidden) <= 61
    assert np.ptp(hidden) > 40
    assert set(kinds) == {0.0, 1.0}


def test_the_marker_obeys_and_the_ball_does_not() -> None:
    env = make("kinema_screen/Pixels-v0")
    left, right = (states(env, "screen", 6, seed=2, action=action) for action in (-1.0, 1.0))
    assert np.allclose(left[:, :3], right[:, :3])
    assert right[-1, 3] > left[-1, 3] + 10


def draw_screen(*balls: tuple[float, float, int]) -> np.ndarray:
    """A frame with several balls, none of them behind the screen."""
    empty = screen.draw(np.array([-10.0, 20.0, 0, 30.0]))
    frames = np.stack([screen.draw(np.array([x, y, kind, 30.0])) for x, y, kind in balls])
    changed = (frames != empty).any(axis=-1, keepdims=True)
    return np.where(changed, frames, 0).sum(axis=0).astype(np.uint8) + np.where(changed.any(axis=0), 0, empty)


def test_impossible_frames_of_the_screen_world_are_not_valid() -> None:
    good = draw_screen((8.0, 20.0, 0))
    faded = (good.astype(float) * 0.5 + draw_screen((-9.0, 20.0, 0)) * 0.5).astype(np.uint8)
    bare = good.copy()
    bare[52:] = screen.BACKGROUND
    holed = good.copy()
    holed[20:30, 25:35] = screen.BACKGROUND
    frames = {
        "one ball": good,
        "no ball": draw_screen((-9.0, 20.0, 0)),
        "cut by the screen": draw_screen((17.0, 20.0, 1)),
        "two of a kind": draw_screen((8.0, 20.0, 0), (8.0, 40.0, 0)),
        "two kinds": draw_screen((8.0, 20.0, 0), (56.0, 20.0, 1)),
        "faded": faded,
        "no marker": bare,
        "hole in the screen": holed,
    }
    reading = ScreenProbe(CAMERA).read({CAMERA: np.stack(list(frames.values()))})
    assert dict(zip(frames, reading.is_valid.tolist(), strict=True)) == {
        name: name in ("one ball", "no ball", "cut by the screen") for name in frames
    }
    assert reading.is_found["ball"].tolist()[:3] == [True, False, False]


def test_impossible_frames_of_the_coin_world_are_not_valid() -> None:
    frames = {
        "not yet turned": coin.draw(np.array([0.0, 0.3])),
        "left": coin.draw(np.array([-coin.distance(0.8), 0.8])),
        "between": coin.draw(np.array([0.2, 0.8])),
        "both": np.maximum(coin.draw(np.array([-0.6, 0.8])), coin.draw(np.array([0.6, 0.8]))),
        "mean of both": (
            0.5 * coin.draw(np.array([-0.6, 0.8])) + 0.5 * coin.draw(np.array([0.6, 0.8]))
        ).astype(np.uint8),
        "none": coin.draw(np.array([9.0, 0.8])),
    }
    reading = CoinProbe(CAMERA).read({CAMERA: np.stack(list(frames.values()))})
    assert reading.is_valid.tolist() == [True, True, False, False, False, False]
    known = np.array([[0.0, 0.3], [-0.6, 0.8], [0.6, 0.8], [0.2, 0.8]])
    np.testing.assert_array_equal(coin.sides(known), [np.nan, -1.0, 1.0, 0.0])
