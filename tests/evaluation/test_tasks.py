"""Start-goal pairs and the real simulator, set to where they start."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data import DataError, Dataset
from kinema.data.record import RecordConfig, record
from kinema.evaluation.tasks import Judge, SimulatorScore, TaskEnvironment, draw_tasks
from kinema.kits import Kit
from kinema.kits.pusht import KIT
from kinema.simulation.world import World

from .drawn import tiny_config

CAMERA = "observation.images.pixels"
CONTEXT = 3
JUDGE = Judge(KIT, "pusht")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """PushT, really played."""
    out = tmp_path_factory.mktemp("pusht") / "data"
    record(
        RecordConfig(
            env="gym_pusht/PushT-v0",
            episodes=3,
            out=out,
            policy="pusht-play",
            policy_args={"steps": 60, "push_share": 1.0},
            info_keys=("pos_agent", "block_pose"),
            workers=1,
        )
    )
    return Dataset.open(out)


@pytest.fixture(scope="module")
def world() -> World:
    from kinema.model.world import CameraConfig

    cameras = (CameraConfig(key=CAMERA, native_height=64, native_width=64),)
    config = tiny_config(cameras=cameras, proprio_key="observation.state", proprio_dim=2)
    world = World(config).eval()
    world.action_normalizer.fit(np.random.default_rng(0).uniform(0, 512, (500, 2)))
    return world


def test_tasks_are_pieces_of_the_recording_that_are_not_done_yet(world: World, recording: Dataset) -> None:
    tasks = draw_tasks(world, JUDGE, recording, num=6, distances=(5, 20), context=CONTEXT, seed=0)
    assert {distance: len(found) for distance, found in tasks.items()} == {5: 6, 20: 6}
    for distance, found in tasks.items():
        for task in found:
            columns = recording.episode(task.episode).columns
            np.testing.assert_allclose(task.goal[:2], columns["info.pos_agent"][task.row + distance])
            np.testing.assert_allclose(task.start[2:5], columns["info.block_pose"][task.row])
            frames = recording.episode(task.episode).frames[CAMERA]
            assert np.array_equal(task.goal_frame, frames[task.row + distance])
            assert np.array_equal(task.seen[-1].frames[CAMERA], frames[task.row])
            assert len(task.seen) == CONTEXT
            assert not JUDGE.success.is_met(task.start, task.goal)
    again = draw_tasks(world, JUDGE, recording, num=6, distances=(5, 20), context=CONTEXT, seed=0)
    assert [(t.episode, t.row) for t in again[5]] == [(t.episode, t.row) for t in tasks[5]]
    assert len({(t.episode, t.row) for t in tasks[20]}) == 6


def test_reality_goes_on_as_it_was_recorded(world: World, recording: Dataset) -> None:
    task = draw_tasks(world, JUDGE, recording, num=1, distances=(10,), context=CONTEXT, seed=3)[10][0]
    env = TaskEnvironment(world, JUDGE)
    history = env.begin(task, CONTEXT)
    np.testing.assert_allclose(env.state, task.start)
    assert len(history.seen) == CONTEXT
    columns = recording.episode(task.episode).columns
    frames = recording.episode(task.episode).frames[CAMERA]
    for t in range(task.row, task.row + 10):
        seen = env.step(columns["action"][t])
        history.add(columns["action"][t], seen)
        np.testing.assert_allclose(env.state[:2], columns["info.pos_agent"][t + 1], atol=0.05)
        difference = np.abs(seen.frames[CAMERA].astype(int) - frames[t + 1])
        assert difference.mean() < 2.0
    np.testing.assert_array_equal(history.actions[-1], columns["action"][task.row + 9])
    # The block's own speed was not recorded, so where it was moving the end is near, not the same.
    assert env.has_met(task)
    env.close()


def test_the_simulator_scores_by_the_true_distance() -> None:
    start = np.array([100.0, 100.0, 300.0, 300.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    score = SimulatorScore(JUDGE, np.zeros(2), np.full(2, 512.0), end_share=1.0)
    goal = np.array([160.0, 120.0, 300.0, 300.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    score.set(start, goal)
    there = np.broadcast_to(goal[:2] / 256.0 - 1.0, (1, 12, 2))
    scores = score(np.concatenate([there, np.zeros((1, 12, 2)), -there]))
    assert scores[0] > -0.2
    assert scores[0] > scores[1] > scores[2]
    assert score.num_steps == 36
    # Each candidate begins anew.
    np.testing.assert_allclose(score(there), scores[:1], atol=1e-3)


def test_what_cannot_be_judged_is_explained(world: World, recording: Dataset, tmp_path: Path) -> None:
    from .drawn import record as record_drawn

    with pytest.raises(DataError, match="50 starts with a goal 58 steps later are needed, but only"):
        draw_tasks(world, JUDGE, recording, num=50, distances=(58,), context=2, seed=0)
    blind = record_drawn(tmp_path / "blind", num_episodes=1, length=12, with_state=False).dataset
    with pytest.raises(DataError, match="--info-keys pos_agent,block_pose; this column is missing"):
        draw_tasks(World(tiny_config()).eval(), JUDGE, blind, num=1, distances=(3,), context=1, seed=0)
    for kit in (None, Kit(name="drawn"), Kit(name="drawn", simulator=KIT.simulator)):
        with pytest.raises(DataError, match="world 'drawn' has no kit with a simulator and a criterion"):
            Judge(kit, "drawn")
