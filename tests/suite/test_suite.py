"""The suite without its trainings: what it records, splits, leaves out and tabulates."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import suite
from benchmarks.suite import WORLDS, Given, Recorded, SuiteConfig
from kinema.data import Dataset, DatasetWriter
from kinema.data.record import RecordConfig
from kinema.evaluation.result import Result, Row

CAMERA = "observation.images.head"


def result(name: str, **values: float) -> Result:
    rows = [Row(key=key, what=key, value=value, unit="") for key, value in values.items()]
    return Result(
        name=name, world=name, data="", axis="step", protocol={"training": "--budget 1h", "seconds": 3600.0},
        rows=rows, series=[], notes=[],
    )  # fmt: skip


def test_commands_are_ones_that_record_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tyro

    for world in WORLDS.values():
        if isinstance(world, Given):
            continue
        seen = set()
        for is_held_out in (False, True):
            words = world.command(tmp_path, is_held_out=is_held_out, share=0.1)
            config = tyro.cli(RecordConfig, args=words[1:])
            assert config.env == world.env
            assert config.episodes >= 2
            seen.add(config.seed)
        assert len(seen) == 2


def test_worlds_without_data_are_left_out_and_failures_do_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(name: str, world: Recorded | Given, config: SuiteConfig) -> Result:
        if name == "coin":
            raise subprocess.CalledProcessError(2, ["python", "-m", "kinema", "record"])
        if isinstance(world, Given):
            suite.recordings(name, world, config, tmp_path)
        return result(name, **{"skill/frame/1": 0.5, "codec/psnr": 30.0})

    monkeypatch.setattr(suite, "run", run)
    config = SuiteConfig(only=("coin", "reacher", "droid"), out=tmp_path / "out", work=tmp_path)
    assert suite.main(config) == 1
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- droid: no recordings: give their folder as --droid" in text
    assert "- coin: `kinema record` ended with 2" in text
    assert "| reacher | 0.500 |" in text
    assert (tmp_path / "out" / "reacher.json").is_file()
    assert not (tmp_path / "out" / "coin.json").is_file()


def test_the_table_has_the_median_and_the_worst_of_simulated_worlds(tmp_path: Path) -> None:
    for name, skill in (("coin", 0.9), ("screen", 0.5), ("pusht", 0.7), ("droid", -2.0)):
        made = result(name, **{"skill/frame/1": skill, "obey/frame": 2.0, "coin/neither/4": 0.01})
        (tmp_path / f"{name}.json").write_text(made.to_json())
    lines = suite.table(tmp_path, {}).splitlines()
    starts = ("| median", "| worst")
    median, worst = (next(line for line in lines if line.startswith(start)) for start in starts)
    assert median.split("|")[2].strip() == "0.700"
    assert worst.split("|")[2].strip() == "0.500"
    assert any(line.startswith("| droid | -2.00") for line in lines)
    assert any("coin/neither/4 0.010" in line for line in lines)


def test_the_last_episodes_of_given_recordings_are_held_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "real", fps=5.0) as writer:
        for length in (5, 6, 7, 8, 9, 10):
            columns: dict[str, Any] = {"action": rng.normal(size=(length, 2)).astype(np.float32)}
            frames = rng.integers(0, 255, (length, 16, 16, 3), dtype=np.uint8)
            writer.add(frames={CAMERA: frames}, columns=columns, task=f"task {length}")
    config = SuiteConfig(humanoid=tmp_path / "real")
    folder = tmp_path / "work"
    suite.recordings("humanoid", Given(held_out=2), config, folder)
    # The second time nothing is copied again.
    learned, held_out = suite.recordings("humanoid", Given(held_out=2), config, folder)
    assert Dataset.open(learned).lengths().tolist() == [5, 6, 7, 8]
    assert Dataset.open(held_out).lengths().tolist() == [9, 10]
    copied, real = Dataset.open(held_out).episode(1), Dataset.open(tmp_path / "real").episode(5)
    np.testing.assert_array_equal(copied.columns["action"], real.columns["action"])
    np.testing.assert_array_equal(copied.frames[CAMERA], real.frames[CAMERA])
    assert copied.task == "task 10"


def test_unknown_worlds_are_named() -> None:
    with pytest.raises(ValueError, match="--only nowhere: choose of coin, coin-vector"):
        SuiteConfig(only=("nowhere",))
