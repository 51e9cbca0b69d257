"""PushT set to states, and when a goal is met in it."""

import numpy as np
import pytest

from kinema.data.environment import make_twin
from kinema.kits.pusht import KIT
from kinema.kits.pusht.simulator import is_met, pose_errors

pytest.importorskip("gym_pusht", reason="needs kinema[pusht]")


def test_success_is_that_of_stable_worldmodel() -> None:
    goal = np.array([100.0, 100.0, 300.0, 300.0, 3.1])
    near = goal + np.array([10.0, 10.0, 10.0, 9.0, 0.0])
    assert is_met(near, goal)
    # Positions count together.
    assert not is_met(goal + np.array([15.0, 0.0, 15.0, 0.0, 0.0]), goal)
    assert is_met(goal + np.array([0, 0, 0, 0, 2 * np.pi + 0.3]), goal)
    assert not is_met(goal + np.array([0, 0, 0, 0, 0.36]), goal)
    position, turn = pose_errors(np.stack([near, goal]), goal)
    np.testing.assert_allclose(position, [np.sqrt(381), 0.0])
    np.testing.assert_allclose(turn, 0.0)


def test_physics_without_reward_is_that_of_the_environment() -> None:
    assert KIT.simulator is not None
    (env, one), (_, other) = make_twin(KIT.simulator), make_twin(KIT.simulator)
    state = np.array([200.0, 250.0, 260.0, 260.0, 0.4, 30.0, 0.0, 0.0, 0.0, 0.0])
    for twin in (one, other):
        twin.set_state(state)
    rng = np.random.default_rng(0)
    for _ in range(15):
        action = rng.uniform(150, 400, 2)
        env.step(action)
        other.advance(action)
    np.testing.assert_allclose(one.get_state(), other.get_state(), rtol=1e-9, atol=1e-9)
    assert np.abs(one.get_state() - state)[2:5].max() > 1.0


def test_only_the_frames_that_are_needed_are_drawn() -> None:
    from kinema.data.environment import make_environment

    assert KIT.simulator is not None
    env = make_environment(KIT.simulator.env, {}, render="never", frame_size=None).env
    before = env.reset(seed=0)[0]["pixels"]
    needed = False
    KIT.simulator.wrap(env).draw_where(lambda: needed)
    first = env.step(np.array([400.0, 400.0]))[0]["pixels"]
    stale = env.step(np.array([400.0, 400.0]))[0]["pixels"]
    assert not np.array_equal(before, first)  # Something has to be drawn first.
    np.testing.assert_array_equal(first, stale)
    needed = True
    assert not np.array_equal(first, env.step(np.array([400.0, 400.0]))[0]["pixels"])
    env.close()
