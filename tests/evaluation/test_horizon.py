import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kinema import cli
from kinema.data import DataError, Dataset, DatasetWriter
from kinema.data.record import EpisodeRecorder, RecordConfig
from kinema.evaluation.demo import RECORDING
from kinema.evaluation.detector import Detector
from kinema.evaluation.horizon import Horizon, HorizonConfig, Schedule, find_reality
from kinema.evaluation.horizon_summary import summarize
from kinema.evaluation.protocol import Run
from kinema.evaluation.reality import LiveEnvironments
from kinema.evaluation.result import Result
from kinema.kits import find_probe
from kinema.simulation.world import World, load

from .drawn import CAMERA, DrawnWorld, Mistakes, Recording, record

CONTEXT = 4


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("long") / "drawn", num_episodes=4, length=40)


def followed(recording: Recording, mistakes: Mistakes | None = None, *, steps: int = 20) -> Result:
    world, dataset = DrawnWorld(recording, mistakes), recording.dataset
    config = HorizonConfig(world="drawn", steps=steps, rollouts=4, seeds=2, floor_restarts=0)
    run, schedule = Run("horizon", world, config, dataset=dataset), Schedule(steps)
    detector = Detector.train(world, dataset)
    horizon = Horizon(run, find_reality(run, schedule), schedule, detector, None)
    assert list(horizon.follow()) == schedule.marks
    summarize(horizon, [])
    return run.result()


def curve(result: Result, key: str) -> list[float]:
    (series,) = [series for series in result.series if series.key == key]
    assert series.at == Schedule(20).marks
    return series.value


def test_marks_and_windows() -> None:
    schedule = Schedule(2000)
    assert schedule.marks == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    looked_at = 1 + np.flatnonzero(schedule.is_needed)
    assert looked_at[-10:].tolist() == list(range(1910, 2001, 10))
    assert {91, 95, 100} <= set(looked_at.tolist())
    assert schedule.slots(100) == [(6, 0)]
    # A last step that is no round number is a mark of its own; a step may count for two.
    assert Schedule(1010).marks[-2:] == [1000, 1010]
    assert len(Schedule(1010).slots(1000)) == 2
    # However long: a few hundred pictures.
    assert Schedule(100_000).is_needed.sum() < 200


def test_a_perfect_world(recording: Recording) -> None:
    result = followed(recording)
    assert curve(result, "valid/probe") == [1.0] * 5
    assert curve(result, "valid") == curve(result, "valid/real")
    assert np.mean(curve(result, "valid")) > 0.9
    assert max(curve(result, "simulated/agent")) < 0.2
    assert min(curve(result, "other/agent")) > 5
    assert curve(result, "psnr/simulated") == [60.0] * 5
    assert curve(result, "ssim/codec") == pytest.approx([1.0] * 5, abs=1e-5)
    assert curve(result, "still/agent")[0] > 1
    assert curve(result, "frechet/simulated") == pytest.approx(curve(result, "frechet/real"))


def test_known_mistakes(recording: Recording) -> None:
    result = followed(recording, Mistakes(agent=1.0, drift=0.2, vanishes_after=10))
    assert curve(result, "simulated/agent")[:4] == pytest.approx([1.0] * 4, abs=0.1)
    assert curve(result, "simulated/agent")[4] == pytest.approx(64 * 2**0.5)
    # The block is 0.2 lower with each step; the last window holds steps 19 and 20.
    assert curve(result, "simulated/block") == pytest.approx([0.2, 0.4, 1.0, 2.0, 3.9], abs=0.15)
    assert curve(result, "valid/probe") == [1.0] * 4 + [0.0]
    assert curve(result, "valid")[4] == 0.0
    assert np.mean(curve(result, "valid/real")) > 0.9
    assert max(curve(result, "psnr/simulated")) < 40
    assert curve(result, "psnr/codec") == [60.0] * 5


def test_what_is_written(recording: Recording, tmp_path: Path) -> None:
    result = followed(recording, Mistakes(noise=0.5))
    assert result.data == str(recording.dataset.root)
    for path in result.write(tmp_path):
        assert path.is_file()
    content = json.loads((tmp_path / "horizon.json").read_text())
    for series in content["series"]:
        assert len(series["at"]) == len(series["value"]) == len(series["low"]) == len(series["high"])
    picture = np.asarray(Image.open(tmp_path / "horizon.png"))
    panels = len({series.panel for series in result.series})
    assert picture.shape == (360 * panels, 1440, 3)
    table = result.table()
    assert "valid frames at step 20, trained detector" in table
    assert "last frame repeated" in table


def test_live_environments_are_what_record_records(tmp_path: Path) -> None:
    world = load("pusht")
    config = RecordConfig(
        env="gym_pusht/PushT-v0",
        episodes=2,
        out=tmp_path,
        policy="pusht-play",
        policy_args={"steps": 8},
        info_keys=("pos_agent", "block_pose"),
        seed=5,
    )
    is_needed = np.array([True] * 4 + [False, True, True, True, True, True])
    probe = find_probe("pusht", world.cameras)
    live = LiveEnvironments(world, config, num=2, is_needed=is_needed, probe=probe)
    steps = list(live.steps())
    live.close()
    recorder = EpisodeRecorder(config)
    for rollout in range(2):
        recorded = recorder(rollout)
        for time in range(8):
            real = steps[time]
            np.testing.assert_array_equal(real.columns["action"][rollout], recorded.columns["action"][time])
            if is_needed[time]:
                frame = real.frames[world.cameras[0]][rollout]
                np.testing.assert_array_equal(frame, recorded.frames[world.cameras[0]][time])
            else:
                assert not real.frames
    recorder.close()
    # The policy ends after 8 steps; what is over says so.
    assert [bool(real.is_running.all()) for real in steps] == [True] * 8 + [False] * 2


def command(tmp_path: Path, *arguments: str) -> list[str]:
    small = ["--rollouts", "2", "--seeds", "1", "--floor-restarts", "1", "--out", str(tmp_path)]
    return ["evaluate", "horizon", "pusht", *small, *arguments]


def test_against_the_live_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "gym_pusht/PushT-v0", "--policy", "pusht-play", "--steps", "6"]
    assert cli.main(command(tmp_path, *arguments)) == 0
    printed = capsys.readouterr().out
    assert "gym_pusht/PushT-v0 with policy pusht-play" in printed
    series = {entry["key"]: entry for entry in json.loads((tmp_path / "horizon.json").read_text())["series"]}
    assert series["floor/block"]["value"][0] == pytest.approx(0.5, abs=0.2)
    assert series["simulated/agent"]["value"][0] < 1.0
    assert np.isfinite(series["frechet/model"]["value"]).all()


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Horizon._advance

    def interrupted(self: Horizon, sessions: Any, step: int, actions: np.ndarray, real: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        advance(self, sessions, step, actions, real)

    monkeypatch.setattr(Horizon, "_advance", interrupted)
    assert cli.main(command(tmp_path, "--steps", "20")) == 130
    assert "What was measured so far is in the folder --out" in capsys.readouterr().err
    content = json.loads((tmp_path / "horizon.json").read_text())
    assert content["series"][0]["at"] == [1, 2]
    assert any("Interrupted: 2 of 20 steps" in note for note in content["notes"])


def test_mistakes_are_explained(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(tmp_path, "--steps", "5000")) == 2
    assert "5,004 frames in a row are needed, but the longest episode has" in capsys.readouterr().err
    with pytest.raises(ValueError, match="steps is 0, but must be at least 1"):
        HorizonConfig(world="pusht", steps=0)
    world = DrawnWorld(recording)
    with pytest.raises(DataError, match=f"needs camera {CAMERA}; the environment shows"):
        next(
            LiveEnvironments(
                world,
                RecordConfig(env="gym_pusht/PushT-v0", episodes=1, out=tmp_path, policy="zero", max_steps=5),
                num=1,
                is_needed=np.ones(3, dtype=bool),
                probe=None,
            ).steps()
        )
    assert isinstance(world, World)


def test_a_few_frames_are_measured_without_a_detector(tmp_path: Path) -> None:
    """The first 40 frames of the bundled recording are too few for a detector."""
    source = Dataset.open(RECORDING)
    episode = source.episode(0)
    names = ("action", "observation.state", *source.cameras)
    features = {key: source.features[key] for key in names}
    with DatasetWriter(tmp_path / "small", fps=10, features=features) as writer:
        frames = {key: episode.frames[key][:40] for key in source.cameras}
        writer.add(frames=frames, columns={key: episode.columns[key][:40] for key in names[:2]}, task="push")
    words = ["--data", str(tmp_path / "small"), "--steps", "4", "--rollouts", "2", "--seeds", "1"]
    assert cli.main(["evaluate", "horizon", "pusht", *words, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "horizon.json").read_text())
    keys = {series["key"] for series in content["series"]}
    assert "square/model" in keys or any(key.startswith("psnr") for key in keys)
    assert not keys & {"valid", "valid/real", "valid/codec"}
    assert any("Validity is left out" in note for note in content["notes"])
