import json
from pathlib import Path

import numpy as np
import pytest

from kinema.data import DataError
from kinema.evaluation import ReportConfig, Result, Run
from kinema.evaluation.report import long_actions, measure_report, milestones
from kinema.evaluation.rollout import Segment
from kinema.evaluation.simulate import SimulateConfig
from kinema.simulation.world import World

from .drawn import DrawnWorld, Mistakes, Recording, record, tiny_config

CONFIG = ReportConfig(episodes=4, seeds=2, steps=10, long_steps=0, batch=3, speed_steps=0)


def run(recording: Recording, mistakes: Mistakes | None = None, config: ReportConfig = CONFIG) -> Result:
    return measured_by(DrawnWorld(recording, mistakes), recording, config)


def measured_by(world: World, recording: Recording, config: ReportConfig, *, seed: int = 0) -> Result:
    settings = SimulateConfig(world="nowhere", seed=seed, protocol=config)
    with Run("report", world, settings, dataset=recording.dataset) as run:
        measure_report(run)
    return run.result()


def values(report: Result) -> dict[str, float]:
    return {row.key: row.value for row in report.rows}


def verdicts(report: Result) -> dict[str, str]:
    return {row.key: row.verdict for row in report.rows if row.verdict}


def test_a_perfect_world_reaches_every_aim(recording: Recording) -> None:
    report = run(recording)
    measured = values(report)
    assert measured["tokenizer/found"] == 1.0
    assert measured["tokenizer/agent"] == measured["tokenizer/block"] == 0.0
    for key in ("tokenizer/agent/recorded", "simulate/agent", "simulate/block"):
        assert measured[key] < 0.2
    assert measured["simulate/angle"] < 1.0
    # The agent is at the action, so shuffled actions put it anywhere.
    assert measured["simulate/agent/shuffled"] > 10
    assert measured["obey/agent/shuffled"] > 50
    # This block does not listen to the agent.
    assert measured["obey/block/shuffled"] == pytest.approx(1.0, abs=0.3)
    assert set(verdicts(report).values()) == {"aim"}


def test_known_mistakes_are_measured_as_such(recording: Recording) -> None:
    measured = values(run(recording, Mistakes(agent=1.0, drift=0.2, turn=15.0)))
    assert measured["simulate/agent"] == pytest.approx(1.0, abs=0.1)
    assert measured["simulate/agent/last"] == pytest.approx(1.0, abs=0.1)
    # The block drifts by 0.2 a step: 2.0 at the last of 10, a median of 1.1 over all.
    assert measured["simulate/block/last"] == pytest.approx(2.0, abs=0.15)
    assert measured["simulate/block"] == pytest.approx(1.1, abs=0.15)
    assert measured["simulate/angle"] == pytest.approx(15.0, abs=1.0)
    assert measured["simulate/agent/shuffled"] / measured["simulate/agent"] == measured["obey/agent/shuffled"]
    assert measured["tokenizer/found"] == 1.0


def test_a_frozen_world_is_no_better_than_its_last_frame(recording: Recording) -> None:
    report = run(recording, Mistakes(is_frozen=True))
    measured = values(report)
    assert measured["simulate/agent"] == pytest.approx(measured["simulate/agent/still"], abs=0.1)
    assert measured["simulate/frame"] == pytest.approx(measured["simulate/frame/still"])
    assert measured["obey/agent/shuffled"] == measured["obey/frame/shuffled"] == 1.0
    assert verdicts(report)["obey/agent/shuffled"] == verdicts(report)["simulate/agent"] == "missed"


def test_only_moving_blocks_count_where_it_moved(recording: Recording) -> None:
    report = run(recording, Mistakes(drift=0.2))
    moved = next(row for row in report.rows if row.key == "simulate/block/moved")
    assert "in the 3 of 4 segments where it moved" in moved.what
    assert moved.value == pytest.approx(2.0, abs=0.15)


def test_a_thing_that_is_not_found_counts_as_far_away(recording: Recording) -> None:
    report = run(recording, Mistakes(vanishes_after=3, loses_agent_in_codec=True))
    measured = values(report)
    assert measured["tokenizer/found"] == 0.0
    assert measured["simulate/agent"] == pytest.approx(64 * 2**0.5)
    curve = next(series for series in report.series if series.what == "agent position")
    assert max(curve.value[:3]) < 0.3
    assert min(curve.value[3:]) == pytest.approx(64 * 2**0.5)


def test_validity_is_told_over_the_steps(recording: Recording) -> None:
    config = ReportConfig(episodes=4, seeds=2, steps=4, long_steps=230, batch=8, speed_steps=0)
    report = run(recording, Mistakes(vanishes_after=100), config)
    measured = values(report)
    assert measured["valid/10"] == measured["valid/100"] == 1.0
    assert measured["valid"] == 0.0
    assert verdicts(report)["valid"] == "missed"
    assert any("4 of 4 segments have fewer than 230 actions" in note for note in report.notes)


def test_seeds_differ_and_the_same_seed_repeats(recording: Recording) -> None:
    one, again = (values(run(recording, Mistakes(noise=0.5))) for _ in range(2))
    assert one == again
    other = values(measured_by(DrawnWorld(recording, Mistakes(noise=0.5)), recording, CONFIG, seed=9))
    assert other["simulate/agent"] != one["simulate/agent"]
    # A spread of 0.5 on each axis: the median distance is 0.5 * sqrt(2 ln 2).
    assert one["simulate/agent"] == pytest.approx(0.5 * 1.177, abs=0.2)


def test_batches_do_not_change_the_numbers(recording: Recording) -> None:
    one, large = (
        ReportConfig(episodes=3, seeds=2, steps=4, long_steps=0, batch=batch, speed_steps=0)
        for batch in (1, 50)
    )
    alone, together = (values(run(recording, Mistakes(noise=0.5), config)) for config in (one, large))
    assert together == pytest.approx(alone, abs=1e-3)


def test_without_recorded_state_the_detector_is_the_reference(tmp_path: Path) -> None:
    blind = record(tmp_path / "blind", num_episodes=2, length=14, with_state=False)
    report = run(blind, Mistakes(agent=1.0))
    measured = values(report)
    assert measured["simulate/agent"] == pytest.approx(1.0, abs=0.05)
    assert "tokenizer/agent/recorded" not in measured
    assert any("No state was recorded" in note for note in report.notes)
    assert any("4 segments were asked for" in note for note in report.notes)


def test_long_episodes_give_several_clips(recording: Recording) -> None:
    config = ReportConfig(episodes=6, seeds=1, steps=4, long_steps=0, speed_steps=0)
    report = run(recording, None, config)
    assert report.protocol["clips"] == 6
    assert values(report)["simulate/agent"] < 0.2


def test_episodes_that_are_too_short_are_named(recording: Recording) -> None:
    config = ReportConfig(episodes=4, seeds=1, steps=13)
    with pytest.raises(DataError, match="17 frames in a row are needed, but the longest episode has 16"):
        run(recording, None, config)


def test_any_world_is_measured_by_its_frames(recording: Recording) -> None:
    """No probe: a real network without training, and recordings whose columns tell nothing."""
    world = World(tiny_config(name="mine")).eval()
    bare = recording.dataset
    kept = dict(bare.features)
    for key in ("info.pos_agent", "info.block_pose"):
        bare.features.pop(key)
    try:
        config = ReportConfig(episodes=2, seeds=2, steps=5, long_steps=20, batch=3, speed_steps=3)
        report = measured_by(world, recording, config)
    finally:
        bare.features.update(kept)
    measured = values(report)
    assert set(measured) == {
        "tokenizer/psnr",
        "simulate/frame",
        "simulate/frame/still",
        "simulate/frame/shuffled",
        "obey/frame/shuffled",
        "speed",
    }
    assert measured["speed"] > 0
    assert not verdicts(report)


def test_report_as_json_and_as_table(recording: Recording, tmp_path: Path) -> None:
    report = run(recording, Mistakes(vanishes_after=0))
    paths = report.write(tmp_path / "deep")
    assert [path.name for path in paths] == ["report.json", "report.png", "report.html"]
    assert sorted(paths) == sorted((tmp_path / "deep").iterdir())
    page = paths[-1].read_text(encoding="utf-8")
    assert "agent position, last frame repeated" in page
    assert '<td class="missed">missed</td>' in page
    content = json.loads((tmp_path / "deep" / "report.json").read_text(encoding="utf-8"))
    rows = {row["key"]: row for row in content["rows"]}
    assert rows["simulate/agent"]["verdict"] == "missed"
    assert rows["simulate/agent"]["must"] == 1.0
    assert content["protocol"]["seeds"] == [0, 1]
    lines = report.table().splitlines()
    assert lines[0].split() == ["value", "interval", "must", "aim"]
    agent = next(line for line in lines if line.startswith("simulate 10 steps: agent position error"))
    assert agent.split()[-3:] == ["1.00", "0.500", "missed"]
    assert any(line.startswith("  agent position, last frame repeated") for line in lines)
    assert lines[-1].startswith("- ")


@pytest.mark.parametrize("name", ["episodes", "seeds", "steps", "batch"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=rf"protocol\.{name} is 0, but must be at least 1"):
        ReportConfig(**{name: 0})
    assert np.isfinite(ReportConfig().long_steps)


def test_long_rollouts_go_on_with_the_actions_of_the_next_clips() -> None:
    clips = [
        Segment(actions=np.arange(10 * index, 10 * index + length, dtype=np.float32)[:, None])
        for index, length in enumerate((9, 4))
    ]
    actions, num_chained = long_actions(clips, context=2, num_steps=8)
    # The first context - 1 actions of a clip lead to frames that are given.
    assert actions[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert actions[1, :, 0].tolist() == [11, 12, 13, 1, 2, 3, 4, 5]
    assert num_chained == 1
    assert milestones(2000) == [10, 100, 500, 1000, 2000]
    assert milestones(60) == [10, 60]
