import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.kits.pusht import detect as pusht

from ...evaluation.drawn import FAR, draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errors:
    agent: np.ndarray
    block: np.ndarray
    angle: np.ndarray


def errors(found: pusht.Detection, agent: np.ndarray, block: np.ndarray) -> Errors:
    """Against the simulator's state: 64ths of the picture and degrees."""
    pose = pusht.pose_from_state(agent, block)
    return Errors(
        agent=np.linalg.norm(found.agent - pose.agent, axis=1),
        block=np.linalg.norm(found.block - pose.block, axis=1),
        angle=np.degrees(np.abs(pusht.wrap_angle(found.angle - pose.angle))),
    )


class Simulator:
    """gym-pusht, to draw any state."""

    def __init__(self, size: int = 64) -> None:
        gymnasium = pytest.importorskip(
            "gymnasium", reason="needs the extra pusht: pip install 'kinema[pusht]'"
        )
        pytest.importorskip("gym_pusht", reason="needs the extra pusht: pip install 'kinema[pusht]'")
        self.env: Any = gymnasium.make(
            "gym_pusht/PushT-v0",
            obs_type="pixels",
            observation_width=size,
            observation_height=size,
            disable_env_checker=True,
            max_episode_steps=10**9,
        ).unwrapped
        self.env.reset(seed=0)

    def draw(self, agent: Any, block: Any) -> np.ndarray:
        env = self.env
        env.agent.position = tuple(map(float, agent))
        # Turning moves the body's origin, so the angle is set first.
        env.block.angle = float(block[2])
        env.block.position = (float(block[0]), float(block[1]))
        for body in (env.agent, env.block):
            env.space.reindex_shapes_for_body(body)
        return env.get_obs()

    def play(self, episodes: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures and states under the policy that records the bundled world's data."""
        from kinema.kits.pusht.play import PushTPlay, PushTPlayConfig

        frames, agents, blocks = [], [], []
        for seed in range(episodes):
            policy = PushTPlay(PushTPlayConfig(steps=steps))
            observation, info = self.env.reset(seed=seed)
            policy.reset(np.random.default_rng(seed), info)
            while (action := policy.act(observation, info)) is not None:
                frames.append(observation)
                agents.append(info["pos_agent"])
                blocks.append(info["block_pose"])
                observation, _, terminated, _, info = self.env.step(action)
                if terminated:
                    break
        return np.stack(frames), np.stack(agents), np.stack(blocks)


@pytest.fixture(scope="module")
def played() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return Simulator().play(episodes=8, steps=40)


def test_real_frames_are_valid_and_found_where_they_are(
    played: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    frames, agent, block = played
    found = pusht.detect(frames)
    assert found.is_valid.mean() >= 0.999
    error = errors(found, agent, block)
    for values, median, high in ((error.agent, 0.15, 0.4), (error.block, 0.1, 0.5), (error.angle, 0.5, 3.0)):
        assert np.median(values) < median
        assert np.percentile(values, 99) < high


@pytest.mark.parametrize("size", [48, 96, 128])
def test_pictures_of_other_sizes_give_the_same_numbers(size: int) -> None:
    frames, agent, block = Simulator(size).play(episodes=2, steps=20)
    found = pusht.detect(frames)
    assert found.is_valid.all()
    error = errors(found, agent, block)
    assert np.median(error.agent) < 0.2
    assert np.median(error.block) < 0.2
    assert np.median(error.angle) < 1.0


def test_soft_and_noisy_pictures_are_measured_as_well(
    played: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """As generated pictures are: edges smeared over a pixel, colours a few levels off."""
    frames, agent, block = played
    soft = frames.astype(np.float64)
    for axis in (1, 2):
        soft = 0.6 * soft + 0.2 * np.roll(soft, 1, axis) + 0.2 * np.roll(soft, -1, axis)
    soft += np.random.default_rng(0).normal(0.0, 3.0, soft.shape)
    found = pusht.detect(soft.clip(0, 255).astype(np.uint8))
    assert found.is_valid.mean() > 0.97
    error = errors(found, agent, block)
    assert np.median(error.agent) < 0.2
    assert np.median(error.block) < 0.2
    assert np.median(error.angle) < 1.0


Edit = Callable[["Scene"], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A state, with what is needed to draw it wrongly."""

    simulator: Simulator
    agent: np.ndarray
    block: np.ndarray
    rng: np.random.Generator

    @property
    def real(self) -> np.ndarray:
        return self.simulator.draw(self.agent, self.block)

    def without(self, thing: str) -> np.ndarray:
        if thing == "agent":
            return self.simulator.draw(FAR, self.block)
        return self.simulator.draw(self.agent, (*FAR, 0.0))

    def elsewhere(self, thing: str, offset: np.ndarray) -> np.ndarray:
        if thing == "agent":
            return self.simulator.draw(self.agent + offset, self.block)
        return self.simulator.draw(self.agent, self.block + np.array([*offset, 0.0]))

    def pixels(self, thing: str) -> np.ndarray:
        return (self.real != self.without(thing)).any(axis=-1)


def missing(scene: Scene, thing: str) -> np.ndarray:
    return scene.without(thing)


def half_faded(scene: Scene, thing: str) -> np.ndarray:
    return ((scene.real.astype(int) + scene.without(thing)) // 2).astype(np.uint8)


def doubled(scene: Scene, thing: str) -> np.ndarray:
    """A second one anywhere in the picture, but not on the first."""
    centre = scene.agent if thing == "agent" else scene.block[:2]
    while True:
        offset = scene.rng.uniform(60, 450, 2) - centre
        if np.hypot(*offset) > (25 if thing == "agent" else 60):
            break
    second = scene.elsewhere(thing, offset)
    without = scene.without(thing)
    return np.where((second != without).any(axis=-1, keepdims=True), second, scene.real)


def recoloured(scene: Scene, thing: str) -> np.ndarray:
    colours = [(225, 65, 65), (65, 200, 65), (50, 50, 50), (230, 200, 40), (200, 60, 220), (184, 143, 163)]
    colours.append((143, 163, 184) if thing == "agent" else (78, 126, 255))
    picture = scene.real.copy()
    picture[scene.pixels(thing)] = colours[scene.rng.integers(len(colours))]
    return picture


def smeared(scene: Scene, thing: str) -> np.ndarray:
    """The mean over places along a line."""
    bearing = scene.rng.uniform(0, np.pi)
    reach = 32.0 if thing == "agent" else 64.0
    way = np.linspace(-reach, reach, 9)[:, None] * [np.cos(bearing), np.sin(bearing)]
    return np.mean([scene.elsewhere(thing, offset) for offset in way], axis=0).astype(np.uint8)


def halved(scene: Scene, thing: str) -> np.ndarray:
    """Cut through its middle."""
    mask = scene.pixels(thing)
    y, x = np.nonzero(mask)
    bearing = scene.rng.uniform(0, np.pi)
    is_gone = (x - x.mean()) * np.cos(bearing) + (y - y.mean()) * np.sin(bearing) > 0
    picture = scene.real.copy()
    picture[y[is_gone], x[is_gone]] = scene.without(thing)[y[is_gone], x[is_gone]]
    return picture


@pytest.mark.parametrize("thing", ["agent", "block"])
@pytest.mark.parametrize("edit", [missing, half_faded, doubled, recoloured, smeared, halved])
def test_wrong_pictures_are_rejected(
    played: tuple[np.ndarray, np.ndarray, np.ndarray],
    edit: Callable[[Scene, str], np.ndarray],
    thing: str,
) -> None:
    _, agent, block = played
    simulator, rng = Simulator(), np.random.default_rng(1)
    # Every 11th frame, of those that show the whole of both.
    is_whole = (pusht.visible_share(block) > 0.95) & (np.abs(agent - 256) < 230).all(axis=1)
    chosen = np.flatnonzero(is_whole)[::11]
    scenes = [Scene(simulator=simulator, agent=agent[i], block=block[i], rng=rng) for i in chosen]
    assert len(scenes) > 20
    assert pusht.detect(np.stack([scene.real for scene in scenes])).is_valid.all()
    found = pusht.detect(np.stack([edit(scene, thing) for scene in scenes]))
    assert (~found.is_valid).mean() >= 0.95
    other = found.has_block if thing == "agent" else found.has_agent
    if not (edit is recoloured and thing == "block"):  # A block in the agent's colour is no lone agent.
        assert other.mean() >= 0.95


def test_a_block_half_outside_is_found_where_it_is() -> None:
    simulator = Simulator()
    rng = np.random.default_rng(0)
    poses = np.stack([rng.uniform(-20, 532, 400), rng.uniform(-20, 532, 400), rng.uniform(-3.1, 3.1, 400)], 1)
    share = pusht.visible_share(poses)
    poses = poses[(share > 0.6) & (share < 0.9)][:60]
    assert len(poses) > 25
    frames = np.stack([simulator.draw((256, 256), pose) for pose in poses])
    found = pusht.detect(frames)
    assert found.is_valid.mean() >= 0.97
    error = errors(found, np.full((len(poses), 2), 256.0), poses)
    assert np.median(error.block) < 0.2
    assert np.percentile(error.block, 90) < 0.6
    assert np.percentile(error.angle, 90) < 5.0
    np.testing.assert_allclose(found.block_visible, pusht.visible_share(poses), atol=0.1)


@pytest.mark.parametrize("depth", [0.0, 12.0, 40.0])
def test_an_agent_on_the_block_hides_only_what_it_covers(depth: float) -> None:
    simulator = Simulator()
    block = np.array([[250.0, 230.0, 0.7]] * 8)
    bearing = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    centre = pusht.pose_from_state(block[:, :2], block).block * pusht.SCALE
    agent = centre + (60.0 - depth) * np.stack([np.cos(bearing), np.sin(bearing)], 1)
    found = pusht.detect(np.stack([simulator.draw(a, b) for a, b in zip(agent, block, strict=True)]))
    assert found.is_valid.all()
    error = errors(found, agent, block)
    assert error.agent.max() < 0.4
    assert error.block.max() < 0.4
    assert error.angle.max() < 4.0


@given(
    x=st.floats(90, 422),
    y=st.floats(90, 422),
    angle=st.floats(-3.14, 3.14),
    ax=st.floats(30, 480),
    ay=st.floats(30, 480),
)
@settings(max_examples=60, deadline=None)
def test_any_pose_is_found(x: float, y: float, angle: float, ax: float, ay: float) -> None:
    """Drawn here, without the simulator; the block's centre is at (x, y)."""
    block = np.array([[x + 45 * np.sin(angle), y - 45 * np.cos(angle), angle]])
    agent = np.array([[ax, ay]])
    found = pusht.detect(draw(agent[0], block[0])[None])
    assert found.is_valid.all()
    error = errors(found, agent, block)
    # The agent may cover the end of the stem, which tells most about the angle.
    assert error.agent[0] < 0.3
    assert error.block[0] < 0.5
    assert error.angle[0] < 6.0


def test_an_empty_picture_shows_nothing() -> None:
    found = pusht.detect(np.stack([draw(FAR, (*FAR, 0.0)), np.zeros((64, 64, 3), np.uint8)]))
    assert not found.has_agent.any()
    assert not found.has_block.any()
    assert not found.is_valid.any()


def test_pictures_do_not_depend_on_the_batch_around_them() -> None:
    frames = np.stack([draw((60 + 4 * i, 300), (256, 120 + 2 * i, 0.05 * i)) for i in range(70)])
    together, alone = pusht.detect(frames), pusht.detect(frames[66:67])
    for field in dataclasses.fields(pusht.Detection):
        np.testing.assert_allclose(
            getattr(together, field.name)[66:67], getattr(alone, field.name), rtol=1e-4, atol=1e-4
        )
    assert len(pusht.detect(frames[:0]).is_valid) == 0


def test_state_and_pose_agree() -> None:
    pose = pusht.pose_from_state(np.array([[80.0, 160.0]]), np.array([[256.0, 256.0, 0.5 * np.pi]]))
    np.testing.assert_allclose(pose.agent, [[10, 20]])
    np.testing.assert_allclose(pose.block, [[(256 - 45) / 8, 32]])
    np.testing.assert_allclose(pusht.wrap_angle(np.array([3 * np.pi, -np.pi, 0.1])), [np.pi, np.pi, 0.1])


def test_visible_share_of_known_poses() -> None:
    poses = np.array([[256, 256, 1.0], [-500, 0, 0.0], [256, -30, 0.0], [0, 256, 0.0]])
    # The bar is 120 by 30, the stem 30 by 90, and 9 units at the rim are under the walls: in the third
    # picture the bar lies above it, in the fourth the left half of everything beside it.
    shares = np.array([6300, 0, 30 * (90 - 9), 30 * (60 - 9) + 90 * (15 - 9)]) / 6300
    np.testing.assert_allclose(pusht.visible_share(poses), shares, atol=0.02)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), "shape"),
        (np.zeros((1, 64, 48, 3), np.uint8), "size, size"),
        (np.zeros((1, 16, 16, 3), np.uint8), "size >= 32"),
        (np.zeros((1, 64, 64, 3), np.float32), "float32"),
    ],
)
def test_wrong_arrays_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pusht.detect(frames)
