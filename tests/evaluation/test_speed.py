import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema import cli
from kinema.evaluation.protocol import Run
from kinema.evaluation.rollout import load_segments
from kinema.evaluation.speed import (
    SpeedConfig,
    count_flops,
    matrix_rate,
    measure_throughput,
)
from kinema.simulation.world import World

from .drawn import CAMERA, Recording, tiny_config

CONFIG = SpeedConfig(world="tiny", streams=(1, 3), steps=4, repeats=2, context=2)


def test_streams_are_timed_alone_and_together(recording: Recording) -> None:
    world = World(tiny_config()).eval()
    run = Run("speed", world, CONFIG, dataset=recording.dataset, axis="streams")
    measure_throughput(run)
    rows = {row.key: row for row in run.rows}
    for num in (1, 3):
        fps = rows[f"fps/{num}"]
        assert fps.low is not None
        assert fps.high is not None
        assert fps.low <= fps.value <= fps.high
        assert 0 < rows[f"share/{num}"].value < 1
    assert rows["fps/1"].must == 60.0
    assert rows["memory/peak"].value > 50
    latency = {series.key: series.value for series in run.series}
    assert (np.array(latency["latency/p99"]) >= latency["latency/p50"]).all()
    # Frames a second are 1 / median latency, up to the median of repeats.
    assert rows["fps/1"].value == pytest.approx(1e3 / latency["latency/p50"][0], rel=0.8)


def test_arithmetic_is_counted(recording: Recording) -> None:
    world = World(tiny_config()).eval()
    (segment,) = load_segments(world, recording.dataset, num=1, length=4, probe=None)
    one, three = (
        count_flops(
            world.start_batch(np.repeat(segment.frames[CAMERA][None, :2], num, axis=0)),
            segment,
            CONFIG.context,
        )
        for num in (1, 3)
    )
    assert one > 1e5
    assert three == 3 * one
    assert matrix_rate(torch.device("cpu")) > 1e8


def test_command(recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    World(tiny_config()).save(tmp_path / "world")
    arguments = ["evaluate", "speed", str(tmp_path / "world"), "--data", str(recording.dataset.root)]
    arguments += ["--streams", "1", "2", "--steps", "2", "--repeats", "2", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "one stream, decoded frames a second" in capsys.readouterr().out
    assert (tmp_path / "speed.png").is_file()
    assert json.loads((tmp_path / "speed.json").read_text())["axis"] == "streams"


@pytest.mark.parametrize("streams", [(), (0,)])
def test_settings_are_checked(streams: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="streams is"):
        SpeedConfig(world="tiny", streams=streams)


def test_a_long_run_is_longer_than_a_short_one() -> None:
    with pytest.raises(ValueError, match="memory_steps is 10, but must be 0 or more than 1000"):
        SpeedConfig(world="tiny", memory_steps=10)
