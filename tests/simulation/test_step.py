import numpy as np
import pytest
import torch

from kinema.data import Dataset
from kinema.simulation.batching import step_together
from kinema.simulation.env import WorldEnv
from kinema.simulation.session import BUNDLED_WORLDS, World, load
from kinema.types import Episode

from ..worlds import HIGH, LOW, PROPRIO, random_frames, random_heads, random_world, write_exact_world


@pytest.fixture(scope="module")
def pusht() -> World:
    return load("pusht")


@pytest.fixture(scope="module")
def recording() -> Episode:
    return Dataset.open(BUNDLED_WORLDS / "pusht" / "recording").episode(0)


@pytest.fixture(scope="module")
def arm() -> World:
    world = random_world(proprio_dim=3)
    world.action_support = world.proprio_support = None
    return world


MIDDLE = (LOW + HIGH) / 2


def test_an_action_outside_the_recorded_range_is_named_with_its_distance(arm: World) -> None:
    sim = arm.start(random_frames(1), proprio=np.full((1, 3), 5.0))
    assert not sim.look().is_outside
    step = sim.step(MIDDLE)
    assert step.is_outside is False
    assert step.outside == {}
    # Three ranges beyond the highest that was recorded, and half a range below the lowest.
    center, scale = arm.action_normalizer.center.numpy(), arm.action_normalizer.scale.numpy()
    step = sim.step(center + scale * np.array([7.0, -2.0]))
    assert step.is_outside is True
    assert step.outside == pytest.approx({"right": 3.0, "down": 0.5}, rel=1e-4)
    assert sim.look().outside == step.outside
    assert sim.step(MIDDLE).outside == {}
    assert sim.step(center + scale * np.array([0.0, 1.1])).outside == pytest.approx({"down": 0.05}, rel=1e-3)


def test_the_edge_of_the_recorded_range_is_inside(arm: World) -> None:
    center, scale = arm.action_normalizer.center.numpy(), arm.action_normalizer.scale.numpy()
    sim = arm.start(random_frames(1), proprio=np.full((1, 3), 5.0))
    for edge in (-1.0, 1.0):
        assert not sim.step(center + edge * scale).is_outside


def test_given_numbers_outside_are_named_at_the_start(arm: World) -> None:
    center, scale = arm.proprio_normalizer.center.numpy(), arm.proprio_normalizer.scale.numpy()
    proprio = np.stack([center, center + scale * np.array([0.0, 3.0, 0.0])])
    start = arm.start(random_frames(2), MIDDLE[None], proprio=proprio).look()
    assert start.outside == pytest.approx({f"{PROPRIO}[1]": 1.0}, rel=1e-4)
    far = arm.start(random_frames(2), MIDDLE[None] + np.array([80.0, 0.0]), proprio=proprio).look()
    assert set(far.outside) == {"right", f"{PROPRIO}[1]"}


def test_each_session_of_a_batch_has_its_own(arm: World) -> None:
    batch = arm.start_batch(random_frames(3, 1), proprio=np.full((3, 1, 3), 5.0))
    far = MIDDLE + np.array([0.0, 9.0])
    step = batch.step(np.stack([MIDDLE, far, MIDDLE]))
    assert step.is_outside.tolist() == [False, True, False]
    assert [sorted(outside) for outside in step.outside] == [[], ["down"], []]
    assert step.of_session(1).is_outside is True
    assert step.of_session(2).outside == {}
    # What a session becomes has it too: alone, forked, rewound to, stepped in company.
    assert batch[1].look().is_outside
    assert batch.fork(2).look().is_outside.tolist() == [False, False, True, True, False, False]
    batch.step(np.stack([MIDDLE] * 3))
    assert not batch.look().is_outside.any()
    batch.rewind(1)
    assert batch.look().is_outside.tolist() == [False, True, False]
    sims = [batch[0], batch[1]]
    steps = step_together(sims, np.stack([far, MIDDLE]))
    assert [step.is_outside for step in steps] == [True, False]
    assert [sim.look().is_outside for sim in sims] == [True, False]


def test_a_session_that_takes_a_place_brings_its_own(arm: World) -> None:
    num = arm.config.dynamics.frames_to_fill
    frames, proprio = random_frames(2, num), np.full((2, num, 3), 5.0)
    batch, other = (arm.start_batch(frames, proprio=proprio) for _ in range(2))
    other.step(np.stack([MIDDLE + 9.0, MIDDLE]))
    batch.replace([1], other.select([0], [5]))
    assert batch.look().is_outside.tolist() == [False, True]


def test_an_action_that_is_replaced_by_the_nearest_recorded_one_is_named() -> None:
    """Each number is within its range, and yet both together were never recorded."""
    world = random_world()
    assert world.action_support is not None
    square = np.random.default_rng(0).uniform(-1.0, 1.0, (4000, 2)).astype(np.float32)
    triangle = square[square.sum(1) < 0.0]
    world.action_support.fit(triangle, np.arange(len(triangle)) // 20)
    sim = world.start(random_frames(1))
    center, scale = world.action_normalizer.center.numpy(), world.action_normalizer.scale.numpy()
    inside = sim.step(center - 0.5 * scale)
    corner = sim.step(center + 0.95 * scale)
    assert not inside.is_outside
    assert set(corner.outside) == {"right", "down"}
    assert 0.1 < corner.outside["right"] < 1.0


def test_recorded_frames_are_trusted_and_inside(pusht: World, recording: Episode) -> None:
    frames, actions = recording.frames[pusht.cameras[0]], recording.columns["action"]
    proprio = recording.columns["observation.state"]
    rows = [slice(first, first + 8) for first in range(0, 2000, 100)]
    for given in (np.stack([proprio[r] for r in rows]), None):
        start = pusht.start_batch(
            np.stack([frames[r] for r in rows[:: 1 if given is not None else 10]]),
            np.stack([actions[r][:-1] for r in rows[:: 1 if given is not None else 10]]),
            proprio=given,
        ).look(decode=False)
        assert (start.trust == 1.0).all()
        assert not start.is_outside.any()


@pytest.mark.parametrize("has_proprio", [True, False])
@pytest.mark.parametrize("where", [0, -1])
def test_given_noise_is_not_trusted(pusht: World, recording: Episode, where: int, has_proprio: bool) -> None:
    """One frame of noise among those that the session sees is enough, and its trust never comes back."""
    frames = recording.frames[pusht.cameras[0]][:4].copy()
    frames[where] = np.random.default_rng(0).integers(0, 256, frames[where].shape)
    proprio = recording.columns["observation.state"][:4] if has_proprio else None
    sim = pusht.start(frames, recording.columns["action"][:3], proprio=proprio)
    assert sim.look().trust < 0.01
    assert sim.step(recording.columns["action"][3]).trust < 0.01
    assert sim.fork(2).look().trust.max() < 0.01


def test_an_action_far_off_the_table_is_named(pusht: World, recording: Episode) -> None:
    sim = pusht.start(recording.frames[pusht.cameras[0]][:4])
    step = sim.step([9000.0, -9000.0])
    assert set(step.outside) == {"x", "y"}
    assert min(step.outside.values()) > 15
    assert not sim.step([256.0, 256.0]).is_outside


def test_frames_behind_the_reach_are_not_judged(arm: World) -> None:
    reach = arm.config.dynamics.reach
    frames, proprio = random_frames(reach + 2), np.full((reach + 2, 3), 5.0)
    proprio[0] = 900.0
    assert not arm.start(frames, proprio=proprio).look().is_outside
    proprio[-1] = 900.0
    assert arm.start(frames, proprio=proprio).look().is_outside


def test_an_environment_says_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = write_exact_world(tmp_path_factory.mktemp("outside") / "data", lengths=(9, 8), has_proprio=True)
    env = WorldEnv(random_heads(random_world(proprio_dim=2)), data)
    assert env.reset(seed=0)[1]["is_outside"] is False
    assert env.step(np.array([900.0, 1.0], np.float32))[4]["is_outside"] is True


def test_nothing_is_computed_otherwise(arm: World) -> None:
    """An action outside is used as it is given."""
    far = MIDDLE + np.array([3.0, 0.0])
    one, other = (arm.start(random_frames(1), proprio=np.full((1, 3), 5.0)) for _ in range(2))
    assert not np.array_equal(one.step(far).frame, other.step(MIDDLE).frame)
    normalized = arm.action_normalizer.normalize(torch.tensor(far, dtype=torch.float32))
    torch.testing.assert_close(one._batch._cache.past()[0].action[0, -1], normalized)
