import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from kinema.data import DataError, Dataset
from kinema.model.world import WorldError
from kinema.simulation.env import WorldEnv, WorldVectorEnv
from kinema.simulation.starts import Starts
from kinema.simulation.world import World

from ..worlds import LOW, SIZE, random_heads, random_world, write_exact_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("starts") / "data"
    # Three numbers of proprioception are what the random worlds of these tests have.
    return Dataset.open(write_exact_world(root, lengths=(12, 9, 2), has_proprio=True))


@pytest.fixture(scope="module")
def world() -> World:
    """Of its episodes many end early, and trust falls as it goes on."""
    return random_heads(random_world(proprio_dim=2), termination_bias=-0.75)


def same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif np.asarray(one).dtype == np.uint8:
        assert np.abs(np.asarray(one).astype(int) - other).max() <= 1
    else:
        np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize("observe", ["pixels", "latents"])
def test_gymnasium_accepts_it(world: World, data: Dataset, observe: Any) -> None:
    env = WorldEnv(world, data, observe=observe, max_steps=5, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Where numbers end is not known, actions have the units of the dataset (RescaleAction is Gymnasium's
        # answer), and an environment that is given objects has no spec.
        for known in (r".*infinity.*", r".*symmetric and normalized.*", r".*spec.*"):
            warnings.filterwarnings("ignore", message=known)
        check_env(env)
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None
    assert picture.shape == (SIZE, SIZE, 3)


def test_it_is_registered(world: World, data: Dataset) -> None:
    env = gymnasium.make("kinema.simulation.env:kinema/World-v0", world=world, starts=data, max_steps=3)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    envs = gymnasium.make_vec(
        "kinema/World-v0", 2, vectorization_mode="vector_entry_point", world=world, starts=data
    )
    assert isinstance(envs.unwrapped, WorldVectorEnv)


def test_a_step_is_what_the_session_gives(world: World, data: Dataset) -> None:
    env = WorldEnv(world, data, max_steps=100)
    observation, info = env.reset(seed=4)
    assert info == {"trust": 1.0, "is_outside": False}
    sessions, starts = env._rules.begin([np.random.default_rng(4)])
    last = starts[0].last
    same(observation, {"top": last.frames[world.cameras[0]], "state": last.proprio})
    for _ in range(3):
        action = env.action_space.sample()
        observation, reward, terminated, _, info = env.step(action)
        step = sessions.step(action[None])
        assert step.proprio is not None
        same(observation, {"top": step.frame[0], "state": step.proprio[0]})
        assert reward == pytest.approx(step.reward[0], abs=1e-5)
        assert terminated == (step.termination[0] > 0.5)
        assert info["trust"] == pytest.approx(step.trust[0], abs=1e-5)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("observe", ["pixels", "latents"])
def test_many_do_what_each_does_alone(world: World, data: Dataset, mode: AutoresetMode, observe: Any) -> None:
    starts = Starts(world, data, num=8)
    settings: dict[str, Any] = {"observe": observe, "max_steps": 6, "min_trust": 0.11}
    together = WorldVectorEnv(3, world, starts, autoreset_mode=mode, **settings)
    alone = SyncVectorEnv([lambda: WorldEnv(world, starts, **settings)] * 3, autoreset_mode=mode)
    for mine, its in zip(together.reset(seed=7), alone.reset(seed=7), strict=True):
        same(mine, its)
    together.action_space.seed(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(20):
        actions = together.action_space.sample()
        one, other = together.step(actions), alone.step(actions)
        final, expected = one[4].pop("final_obs", None), other[4].pop("final_obs", None)
        assert (final is None) == (expected is None)
        if final is not None:
            for mine, its in zip(final, expected, strict=True):
                assert (mine is None) == (its is None)
                if mine is not None:
                    same(mine, its)
        for mine, its in zip(one[:4], other[:4], strict=True):
            same(mine, its)
        same(one[4], other[4])
        assert together.observation_space.contains(one[0])
        ends["terminated"] += int(one[2].sum())
        ends["truncated"] += int(one[3].sum())
    assert min(ends.values()) > 0


def test_wrappers_of_gymnasium_work(world: World, data: Dataset) -> None:
    envs = RecordEpisodeStatistics(WorldVectorEnv(2, world, data, observe="latents", max_steps=3))
    envs.reset(seed=0)
    lengths = []
    for _ in range(8):
        *_, infos = envs.step(envs.action_space.sample())
        if "episode" in infos:
            lengths += [int(n) for n in infos["episode"]["l"][infos["_episode"]]]
    assert lengths
    assert all(1 <= length <= 3 for length in lengths)


def test_an_episode_that_is_not_to_be_trusted_is_cut(world: World, data: Dataset) -> None:
    world = random_heads(random_world(proprio_dim=2), termination_bias=-100.0)
    env = WorldEnv(world, data, observe="latents", max_steps=30, min_trust=0.2)
    env.reset(seed=0)
    trust, truncated = 1.0, False
    num_steps = 0
    while not truncated:
        assert trust >= 0.2
        *_, truncated, info = env.step(env.action_space.sample())
        trust = info["trust"]
        num_steps += 1
    assert trust < 0.2
    assert num_steps < 30


def test_starts_are_pieces_of_the_recordings(world: World, data: Dataset) -> None:
    starts = Starts(world, data, num=10)
    assert len(starts.starts) == 10
    episodes = [data.episode(index) for index in range(2)]
    for start in starts.starts:
        assert start.actions.shape == (starts.context - 1, 2)
        # In the exact world the state says what the last action did.
        assert start.proprio is not None
        np.testing.assert_array_equal(start.proprio[1:], start.actions)
        pieces = [e.frames[world.cameras[0]] for e in episodes]
        assert any((start.last.frames[world.cameras[0]] == p).all((1, 2, 3)).any() for p in pieces)
    assert len({start.actions.tobytes() for start in starts.starts}) > 5


def test_mistakes_are_explained(world: World, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"has no heads, .* kinema train DATA --out WORLD --heads"):
        WorldEnv(random_world(proprio_dim=2), data)
    with pytest.raises(ValueError, match="max_steps=0"):
        WorldEnv(world, data, max_steps=0)
    with pytest.raises(ValueError, match=r"min_trust=1\.5: it must be between 0 and 1"):
        WorldEnv(world, data, min_trust=1.5)
    with pytest.raises(ValueError, match=r"starts show 1 frames; .* Starts\(..., context=3\)"):
        WorldVectorEnv(2, world, Starts(world, data, context=1))
    with pytest.raises(DataError, match="sessions start with 50 frames, but the longest episode has 12"):
        Starts(world, data, context=50)
    with pytest.raises(gymnasium.error.ResetNeeded):
        WorldEnv(world, data).step(LOW)
    vectors = random_heads(random_world(num_cameras=0, proprio_dim=2))
    with pytest.raises(ValueError, match="has no manifold, so it does not tell trust"):
        WorldEnv(vectors, data, min_trust=0.5)
    env = WorldEnv(vectors, data, render_mode="rgb_array")
    env.reset(seed=0)
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    assert set(env.observation_space.keys()) == {"state"}
    with pytest.raises(ValueError, match="has no camera, so there is nothing to render"):
        env.render()


def test_an_agent_of_stable_baselines3_trains_in_it(tmp_path: Path) -> None:
    """The example as it stands, in miniature."""
    example = Path(__file__).parents[2] / "examples" / "1_agent_in_a_world.py"
    random_heads(random_world(proprio_dim=2)).save(tmp_path / "world")
    root = write_exact_world(tmp_path / "data", lengths=(12, 12), has_proprio=True)
    words = [str(example), "--world", str(tmp_path / "world"), "--data", str(root)]
    words += ["--steps", "16", "--out", str(tmp_path / "agent.zip")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "agent.zip").is_file()
