import numpy as np
import pytest

from kinema.evaluation.control import ControlConfig, explained, measure_control, wrong_actions
from kinema.evaluation.protocol import Run
from kinema.evaluation.result import Result

from .drawn import DrawnWorld, Mistakes, Recording

STEPS = 10
CONFIG = ControlConfig(world="drawn", steps=STEPS, rollouts=4, seeds=2, delay=2, batch=3)


def measured(recording: Recording, mistakes: Mistakes | None = None) -> Result:
    run = Run("control", DrawnWorld(recording, mistakes), CONFIG, dataset=recording.dataset)
    measure_control(run)
    return run.result()


def test_an_obedient_world_is_right_with_the_true_actions_alone(recording: Recording) -> None:
    rows = {row.key: row for row in measured(recording).rows}
    for kind in ("shuffled", "delayed", "zero"):
        assert rows[f"obey/agent/{kind}"].value > 50
        # This block does not listen to the agent.
        assert rows[f"obey/block/{kind}"].value == pytest.approx(1.0, abs=0.5)
    assert rows["obey/agent/shuffled"].verdict == "aim"


def test_a_frozen_world_does_not_obey(recording: Recording) -> None:
    result = measured(recording, Mistakes(is_frozen=True))
    rows = {row.key: row for row in result.rows}
    assert rows["obey/agent/shuffled"].value == 1.0
    assert rows["obey/agent/shuffled"].verdict == "missed"
    curves = {series.key: series.value for series in result.series}
    assert curves["true/agent"] == pytest.approx(curves["still/agent"], abs=0.1)
    assert len(curves["true/agent"]) == STEPS


def test_actions_are_wrong_in_the_way_that_they_say(recording: Recording) -> None:
    run = Run("control", DrawnWorld(recording), CONFIG, dataset=recording.dataset)
    true = run.recorded_actions(run.segments(num=2, length=4 + STEPS), STEPS)
    driven = wrong_actions(true, CONFIG.delay, np.random.default_rng(0))
    np.testing.assert_array_equal(driven["true"][0], recording.actions[0][3 : 3 + STEPS])
    np.testing.assert_array_equal(driven["delayed"][:, 2:], driven["true"][:, :-2])
    np.testing.assert_array_equal(driven["delayed"][:, 0], driven["true"][:, 0])
    assert not driven["zero"].any()
    assert (driven["shuffled"] != driven["true"]).any()
    np.testing.assert_array_equal(np.sort(driven["shuffled"], axis=1), np.sort(driven["true"], axis=1))


def test_agreement_is_the_share_of_variance() -> None:
    true = np.random.default_rng(0).normal(size=(5, 20, 2))
    assert explained(true, true) == 1.0
    assert explained(np.broadcast_to(true.mean(axis=(0, 1)), true.shape), true) == pytest.approx(0.0)
    assert explained(-true, true) < -1
