import numpy as np
import pytest

from kinema.evaluation.result import Row
from kinema.evaluation.rollout import Clip
from kinema.evaluation.validity import long_actions, milestones


@pytest.mark.parametrize(
    ("value", "is_higher_better", "expected"),
    [
        (0.5, False, "aim"),
        (0.9, False, "must"),
        (1.1, False, "missed"),
        (0.9, True, "must"),
        (2.0, True, "aim"),
    ],
)
def test_verdicts(value: float, is_higher_better: bool, expected: str) -> None:
    must, aim = (0.8, 1.0) if is_higher_better else (1.0, 0.5)
    row = Row(
        key="k", what="w", value=value, unit="px", must=must, aim=aim, is_higher_better=is_higher_better
    )
    assert row.verdict == expected
    assert Row(key="k", what="w", value=float("nan"), unit="px", must=1.0, aim=0.5).verdict == "missed"
    assert Row(key="k", what="w", value=value, unit="px").verdict == ""


def test_long_rollouts_go_on_with_the_actions_of_the_next_clips() -> None:
    clips = [
        Clip(
            episode=index,
            start=0,
            num_frames=3,
            frames={},
            actions=np.arange(10 * index, 10 * index + length, dtype=np.float32)[:, None],
            proprio=None,
            reference=None,
            is_recorded=False,
        )
        for index, length in enumerate((9, 4))
    ]
    actions, num_chained = long_actions(clips, context=2, num_steps=8)
    # The first context - 1 actions of a clip lead to frames that are given.
    assert actions[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert actions[1, :, 0].tolist() == [11, 12, 13, 1, 2, 3, 4, 5]
    assert num_chained == 1
    assert milestones(2000) == [10, 100, 500, 1000, 2000]
    assert milestones(60) == [10, 60]
