"""The physical floor: the real simulator, set to a state."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.data.record import EpisodeRecorder, RecordConfig
from kinema.evaluation.floor import Floor, find_floor
from kinema.evaluation.rollout import Segment
from kinema.kits import Kit, errors
from kinema.kits.pusht import KIT
from kinema.kits.pusht.probe import PushTProbe

CAMERA = "observation.images.pixels"
NUM_STEPS = 120
CONTEXT = 4


@pytest.fixture(scope="module")
def steps() -> list[Segment]:
    """Two live episodes in which the block is pushed."""
    config = RecordConfig(
        env="gym_pusht/PushT-v0",
        env_args={"obs_type": "state"},
        episodes=2,
        out=Path("unused"),
        policy="pusht-play",
        policy_args={"steps": NUM_STEPS, "push_share": 1.0},
        info_keys=("pos_agent", "block_pose"),
        render="never",
    )
    recorder = EpisodeRecorder(config)
    episodes = [[row for _, row in recorder.rows(index)] for index in range(2)]
    recorder.close()
    running = np.ones(2, dtype=bool)
    return [
        Segment(columns={key: np.stack([row[key] for row in rows]) for key in rows[0]}, is_running=running)
        for rows in zip(*episodes, strict=True)
    ]


def divergence(
    steps: list[Segment], *, blur: float | None, first: int = 0, context: int = CONTEXT
) -> np.ndarray:
    """Distance of the block from where it really was, in pixels: ``steps rollouts*2``."""
    probe = PushTProbe(CAMERA)
    assert KIT.simulator is not None
    floor = Floor(KIT.simulator, probe, num_rollouts=2, num_restarts=2, seed=0, blur=blur)
    steps = steps[first:]
    floor.begin(steps[: max(context, 2)], context=context)
    block = probe.quantities[1]
    found = []
    for before, now in zip(steps[context - 1 :], steps[context:], strict=False):
        reading = floor.step(before.columns["action"])
        columns = {key: np.repeat(now.columns[key], 2, axis=0) for key in PushTProbe.COLUMNS}
        real = probe._reading(
            *_pose(columns),
            has_agent=np.ones(4, dtype=bool),
            has_block=np.ones(4, dtype=bool),
            visible=np.ones(4),
        )
        found.append(errors(block, reading, real))
    floor.close()
    return np.stack(found)


def _pose(columns: dict[str, np.ndarray]) -> tuple:
    from kinema.kits.pusht import detect as pusht

    return (pusht.pose_from_state(*(columns[key] for key in PushTProbe.COLUMNS)),)


def test_an_unblurred_restart_reproduces_the_recording(steps: list[Segment]) -> None:
    blocks = np.stack([step.columns["info.block_pose"] for step in steps])
    assert (np.ptp(blocks[:, :, :2], axis=0).max(axis=1) > 20).all()
    assert divergence(steps, blur=0.0).max() < 0.01
    # With a single frame of context too.
    assert divergence(steps, blur=0.0, context=1).max() < 0.01


def test_it_starts_from_the_middle_of_an_episode(steps: list[Segment]) -> None:
    # The speed of a block that is being pushed is not recorded: it matters for a hundredth of a second.
    assert np.median(divergence(steps, blur=0.0, first=40)[:10]) < 0.1


def test_a_blurred_restart_begins_half_a_pixel_away(steps: list[Segment]) -> None:
    found = divergence(steps, blur=None)
    np.testing.assert_allclose(np.median(found[0]), 0.5, atol=0.1)
    assert found[-1].max() > 0.5
    # Every restart is blurred in its own way.
    assert len(np.unique(found[-1].round(6))) == 4


def test_only_worlds_whose_state_is_known_have_a_floor(tmp_path: Path) -> None:
    from .drawn import record

    blind = record(tmp_path / "blind", num_episodes=1, length=12, with_state=False).dataset
    assert isinstance(blind, Dataset)
    probe = PushTProbe(CAMERA)
    assert find_floor(None, probe, None, num_rollouts=1, num_restarts=1, seed=0) is None
    assert find_floor(KIT, probe, blind, num_rollouts=1, num_restarts=1, seed=0) is None
    assert find_floor(KIT, None, None, num_rollouts=1, num_restarts=1, seed=0) is None
    assert find_floor(Kit(name="bare"), probe, None, num_rollouts=1, num_restarts=1, seed=0) is None
    assert find_floor(KIT, probe, None, num_rollouts=1, num_restarts=0, seed=0) is None
    floor = find_floor(KIT, probe, None, num_rollouts=1, num_restarts=1, seed=0)
    assert floor is not None
    floor.close()
