import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kinema import cli
from kinema.data import DataError, Dataset, DatasetWriter
from kinema.evaluation import ReportConfig
from kinema.evaluation.simulate import SimulateConfig, compare_episode, simulate
from kinema.model.world import CameraConfig, WorldConfig
from kinema.simulation.world import World

from .drawn import CAMERA, DrawnWorld, Mistakes, Recording, tiny_config


def saved(folder: Path, config: WorldConfig) -> str:
    World(config).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a world that has learned nothing."""
    return saved(tmp_path_factory.mktemp("worlds") / "tiny", tiny_config())


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_film_sheet_numbers_and_table(
    tiny: str, recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = str(recording.dataset.root), tmp_path / "out"
    assert (
        cli.main(["simulate", tiny, "--data", data, "--episode", "2", "--steps", "9", "--out", str(out)]) == 0
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "episode_0002.mp4",
        "episode_0002.png",
        "simulation.json",
    ]
    assert num_frames(out / "episode_0002.mp4") == 9
    with Image.open(out / "episode_0002.png") as sheet:
        # Ten frames in a row, each 128 wide; three rows and a curve.
        assert sheet.width > 10 * 128
        assert sheet.height > 3 * 128 + 120
        assert len(np.unique(np.asarray(sheet)[-120:].reshape(-1, 3), axis=0)) > 5
    content = json.loads((out / "simulation.json").read_text())
    assert content["steps"] == len(content["errors"]["agent"]) == 9
    assert content["units"] == {"agent": "px", "block": "px", "angle": "°", "frame": "levels"}
    printed = capsys.readouterr().out
    assert "episode 2 of" in printed
    assert "9 steps from 4 recorded frames" in printed
    assert "in brackets: the last frame repeated" in printed
    for name in ("episode_0002.mp4", "episode_0002.png", "simulation.json"):
        assert str(out / name) in printed


def test_known_mistakes_and_the_same_seed_again(recording: Recording) -> None:
    config = SimulateConfig(world="drawn", episode=1, steps=8, context=3)
    for mistakes, agent in ((Mistakes(), 0.0), (Mistakes(agent=2.0), 2.0)):
        comparison = compare_episode(DrawnWorld(recording, mistakes), recording.dataset, config)
        assert np.median(comparison.errors["agent"]) == pytest.approx(agent, abs=0.2)
        assert comparison.errors["block"].max() < 0.5
        assert np.median(comparison.still["agent"]) > 5
        assert len(comparison.simulated.frames[CAMERA]) == 8
    noisy = DrawnWorld(recording, Mistakes(noise=1.0))
    one, again = (compare_episode(noisy, recording.dataset, config) for _ in range(2))
    np.testing.assert_array_equal(one.simulated.frames[CAMERA], again.simulated.frames[CAMERA])
    other = SimulateConfig(world="drawn", episode=1, steps=8, context=3, seed=1)
    assert not np.array_equal(
        one.simulated.frames[CAMERA],
        compare_episode(noisy, recording.dataset, other).simulated.frames[CAMERA],
    )


def test_an_episode_that_ends_earlier_is_simulated_as_far_as_it_goes(
    tiny: str, recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(recording.dataset.root)
    assert simulate(SimulateConfig(world=tiny, data=data, steps=500, context=1, out=tmp_path)) == 0
    assert num_frames(tmp_path / "episode_0000.mp4") == 15
    assert "15 steps from 1 recorded frame (it has no more; 500 were asked for)" in capsys.readouterr().out
    content = json.loads((tmp_path / "simulation.json").read_text())
    assert content["steps"] == 15


def test_report_and_json(
    tiny: str, recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(recording.dataset.root)
    arguments = [
        "simulate",
        tiny,
        "--report",
        "--data",
        data,
        "--out",
        str(tmp_path),
        "--protocol.episodes",
        "2",
    ]
    arguments += ["--protocol.seeds", "2", "--protocol.steps", "3", "--protocol.long-steps", "12"]
    arguments += ["--protocol.speed-steps", "2"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "after 12 steps: frames that show exactly one agent and one block" in printed
    assert str(tmp_path / "report.json") in printed
    assert cli.main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    rows = {row["key"]: row for row in content["rows"]}
    folder = Path(tiny)
    size = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors")) / 1e6
    assert rows["size"]["value"] == pytest.approx(size)
    assert rows["speed"]["must"] == 30.0
    assert rows["simulate/agent"]["verdict"] == "missed"


def test_three_real_cameras_side_by_side(droid: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(droid)
    cameras = tuple(
        CameraConfig(key=key, native_height=shape[0], native_width=shape[1])
        for key in dataset.cameras
        for shape in [dataset.features[key]["shape"]]
    )
    world = saved(tmp_path / "world", tiny_config(cameras=cameras, size=32, action_dim=7))
    out = tmp_path / "out"
    simulate(SimulateConfig(world=world, data=str(droid), steps=3, out=out))
    with av.open(str(out / "episode_0000.mp4")) as container:
        picture = next(container.decode(video=0))
        # Three panels of three cameras as wide as they were recorded, with two gaps.
        assert picture.width == 3 * 3 * 320 + 4
    content = json.loads((out / "simulation.json").read_text())
    assert list(content["errors"]) == ["frame"]


def test_a_world_without_cameras_has_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "data", fps=10.0) as writer:
        state = np.cumsum(rng.normal(size=(20, 3)), axis=0).astype(np.float32)
        action = rng.normal(size=(20, 2)).astype(np.float32)
        writer.add(frames={}, columns={"action": action, "observation.state": state}, task="move")
    vectors = tiny_config(name="vectors", cameras=(), proprio_key="observation.state", proprio_dim=3)
    world = saved(tmp_path / "world", vectors)
    out = tmp_path / "out"
    assert simulate(SimulateConfig(world=world, data=str(tmp_path / "data"), steps=10, out=out)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["episode_0000.png", "simulation.json"]
    content = json.loads((out / "simulation.json").read_text())
    assert len(content["errors"]["proprio"]) == 10
    assert np.isfinite(content["errors"]["proprio"]).all()
    assert "proprioception" in capsys.readouterr().out
    small = ReportConfig(episodes=1, seeds=1, steps=5, speed_steps=1)
    config = SimulateConfig(world=world, data=str(tmp_path / "data"), out=out, report=True, protocol=small)
    assert simulate(config) == 0
    rows = {row["key"] for row in json.loads((out / "report.json").read_text())["rows"]}
    assert {"simulate/proprio", "obey/proprio/shuffled", "speed"} <= rows


def test_mistakes_are_explained(tiny: str, recording: Recording, tmp_path: Path) -> None:
    data, out = str(recording.dataset.root), tmp_path / "out"

    def run(world: str = tiny, **options: Any) -> int:
        return simulate(SimulateConfig(world=world, **({"data": data, "out": out} | options)))

    with pytest.raises(DataError, match="episode 4: no such episode; there are 4, counted from 0"):
        run(episode=4)
    with pytest.raises(DataError, match="has 16 frames, too few for --context 16"):
        run(context=16)
    with pytest.raises(ValueError, match="brings no recording along"):
        run(data=None)
    with pytest.raises(ValueError, match="no world 'nothing'"):
        run(world="nothing")
    wide = saved(tmp_path / "wide", tiny_config(action_dim=3))
    with pytest.raises(DataError, match="action: actions have 2 numbers, but world 'tiny' takes 3"):
        run(world=wide)
    blind = tiny_config(
        cameras=(CameraConfig(key="observation.images.top", native_height=64, native_width=64),)
    )
    with pytest.raises(
        DataError, match=r"needs camera observation.images.top; the dataset has observation.image"
    ):
        run(world=saved(tmp_path / "other", blind))
    small = tiny_config(cameras=(CameraConfig(key=CAMERA, native_height=96, native_width=96),), size=32)
    with pytest.raises(ValueError, match="frames are 64x64"):
        run(world=saved(tmp_path / "small", small))
    state = tiny_config(proprio_key="observation.state", proprio_dim=3)
    with pytest.raises(DataError, match=r"observation\.state: world 'tiny' needs this column"):
        run(world=saved(tmp_path / "state", state))
    assert not out.exists()


def test_recording_of_the_world_is_the_default(recording: Recording, tmp_path: Path) -> None:
    world = saved(tmp_path / "world", tiny_config())
    (tmp_path / "world" / "recording").symlink_to(recording.dataset.root)
    simulate(SimulateConfig(world=world, steps=2, out=tmp_path / "out"))
    assert num_frames(tmp_path / "out" / "episode_0000.mp4") == 2


@pytest.mark.parametrize(("name", "value"), [("episode", -1), ("steps", 0), ("context", 0)])
def test_settings_are_checked(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be at least"):
        SimulateConfig(world="pusht", **options)
