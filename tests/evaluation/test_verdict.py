"""The verdict of ``kinema evaluate control`` on worlds whose faults are known."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset, DatasetWriter
from kinema.evaluation.control import ControlConfig, measure_control
from kinema.evaluation.protocol import Run
from kinema.evaluation.verdict import growth_within
from kinema.simulation.world import World

from ..worlds import random_world, write_exact_world
from .drawn import CAMERA, DrawnWorld, Mistakes, Recording, tiny_config


def judged(world: World, dataset: Dataset, steps: int) -> Run:
    config = ControlConfig(world="w", steps=steps, rollouts=4, seeds=1, delay=1)
    run = Run("control", world, config, dataset=dataset)
    measure_control(run)
    return run


def said(run: Run, start: str) -> str:
    return " ".join(note for note in run.notes if note.startswith(start))


def test_an_obedient_world_is_about_this_future(recording: Recording) -> None:
    run = judged(DrawnWorld(recording), recording.dataset, 10)
    rows = {row.key: row for row in run.rows}
    assert rows["horizon/frame"].value == 10
    assert rows["horizon/frame/still"].value < 10
    assert min(rows["obey/a0"].low or 0.0, rows["obey/a1"].low or 0.0) > 1.05
    assert "about this future for at least 10 steps" in said(run, "Verdict")
    assert "Verdict: obeyed: a0, a1." in run.notes
    assert said(run, "Record next")


def test_a_frozen_world_is_not_and_obeys_nothing(recording: Recording) -> None:
    run = judged(DrawnWorld(recording, Mistakes(is_frozen=True)), recording.dataset, 10)
    rows = {row.key: row for row in run.rows}
    assert rows["horizon/frame"].value == pytest.approx(rows["horizon/frame/still"].value, abs=0.01)
    assert rows["obey/a0"].value == 1.0
    assert "Verdict: not shown to be obeyed: a0, a1." in run.notes
    assert "episodes in which a0 changes while the rest stays" in said(run, "Record next")


def test_a_world_without_a_kit_gets_a_threshold_of_trust_too(tmp_path: Path) -> None:
    root = write_exact_world(tmp_path / "recorded", lengths=[14] * 4, has_proprio=True)
    run = judged(random_world(proprio_dim=2), Dataset.open(root), 8)
    assert {"horizon/frame", "obey/frame/shuffled"} <= {row.key for row in run.rows}
    assert "trust" in said(run, "Verdict")


def test_growth_within_a_range_is_relative() -> None:
    growth = np.array([[1.0, 1.0, 4.0]])
    assert growth_within(growth, growth > 2) == 2.0
    assert np.isnan(growth_within(growth, growth > 9))


def test_a_world_without_actions_has_a_verdict_too(tmp_path: Path) -> None:
    config = tiny_config(name="film", action_dim=0, proprio_key=None)
    with DatasetWriter(tmp_path / "data", fps=10.0, codec="lossless") as writer:
        rng = np.random.default_rng(0)
        for _ in range(3):
            frames = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
            writer.add(frames={CAMERA: frames}, columns={"next.reward": np.zeros(12, np.float32)})
    run = judged(World(config).eval(), Dataset.open(tmp_path / "data"), 6)
    assert {row.key for row in run.rows} >= {"horizon/frame", "simulate/frame"}
    assert not any(row.key.startswith("infer/") for row in run.rows)
    assert said(run, "Record next")
