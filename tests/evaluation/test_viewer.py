"""Recordings for the Rerun viewer, read back with Rerun's own reader."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed")
from rerun.chunk import RrdReader  # noqa: E402

from kinema import cli  # noqa: E402
from kinema.data import Dataset, drawing  # noqa: E402
from kinema.evaluation.simulate import SimulateConfig, compare_episode  # noqa: E402
from kinema.evaluation.viewer import ViewConfig  # noqa: E402
from kinema.simulation.world import load  # noqa: E402

from ..worlds import CAMERA, PROPRIO, random_world, write_exact_world  # noqa: E402


def read(path: Path) -> dict[str, list[tuple[int, float, Any]]]:
    """By entity: row, seconds and what was logged, in the order of the rows."""
    found: dict[str, list[tuple[int, float, Any]]] = {}
    for chunk in RrdReader(path).stream().to_chunks():
        table = chunk.to_record_batch().to_pydict()
        if "row" not in table:
            continue
        (content,) = (values for key, values in table.items() if key.endswith((":scalars", ":blob")))
        entity = chunk.entity_path.replace("\\", "")
        for row, time, value in zip(table["row"], table["time"], content, strict=True):
            found.setdefault(entity, []).append((row, time.total_seconds(), value[0]))
    return {entity: sorted(rows, key=lambda entry: entry[0]) for entity, rows in found.items()}


def film(rows: list[tuple[int, float, Any]]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(bytes(value)))) for _, _, value in rows])


def numbers(rows: list[tuple[int, float, Any]]) -> np.ndarray:
    return np.array([value for _, _, value in rows])


@pytest.fixture
def recorded(tmp_path: Path) -> Dataset:
    root = write_exact_world(tmp_path / "recorded", lengths=[12, 20], has_proprio=True, has_reward=True)
    return Dataset.open(root)


def test_an_episode_is_logged_as_it_was_recorded(recorded: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "episode.rrd"
    assert cli.main(["view", str(recorded.root), "--episode", "1", "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["episode.rrd"]
    found, episode = read(out), recorded.episode(1)
    pictures = found[f"/real/{CAMERA}"]
    assert [row for row, _, _ in pictures] == list(range(20))
    np.testing.assert_allclose([time for _, time, _ in pictures], np.arange(20) / recorded.fps)
    np.testing.assert_array_equal(film(pictures), episode.frames[CAMERA])
    for key in ("action", PROPRIO):
        shown = [
            numbers(rows) for entity, rows in sorted(found.items()) if entity.startswith(f"/{key}/real/")
        ]
        np.testing.assert_allclose(np.stack(shown, 1), episode.columns[key], rtol=1e-6)
    (reward,) = (numbers(rows) for entity, rows in found.items() if entity.startswith("/next.reward"))
    np.testing.assert_allclose(reward, episode.columns["next.reward"], rtol=1e-6)
    assert not any("simulated" in entity or "frame_index" in entity for entity in found)


def test_a_simulation_is_logged_beside_the_recording(recorded: Dataset, tmp_path: Path) -> None:
    folder, out = str(tmp_path / "world"), tmp_path / "both.rrd"
    random_world(proprio_dim=2).save(folder)
    words = ["view", folder, "--data", str(recorded.root), "--simulate", "--steps", "6", "--out", str(out)]
    assert cli.main(words) == 0
    config = SimulateConfig(world=folder, steps=6)
    expected = compare_episode(load(folder), recorded, config)
    found = read(out)
    assert [row for row, _, _ in found[f"/simulated/{CAMERA}"]] == list(range(4, 10))
    assert len(found[f"/real/{CAMERA}"]) == 12
    simulated = film(found[f"/simulated/{CAMERA}"])
    np.testing.assert_array_equal(simulated, expected.simulated.frames[CAMERA])
    real = expected.real.frames[CAMERA][4:10]
    np.testing.assert_array_equal(film(found[f"/difference/{CAMERA}"]), drawing.difference(real, simulated))
    assert expected.simulated.trust is not None
    assert expected.simulated.proprio is not None
    np.testing.assert_allclose(numbers(found["/trust"]), expected.simulated.trust, rtol=1e-6)
    shown = [numbers(rows) for entity, rows in sorted(found.items()) if f"{PROPRIO}/simulated" in entity]
    np.testing.assert_allclose(np.stack(shown, 1), expected.simulated.proprio, rtol=1e-5)
    np.testing.assert_allclose(
        numbers(found["/error/frame (levels)/simulated"]), expected.errors["frame"], rtol=1e-6
    )


def test_mistakes_are_told(recorded: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = str(recorded.root), str(tmp_path / "a.rrd")
    for words, message in (
        ([root, "--simulate", "--out", out], "--simulate needs a world: kinema view WORLD --data"),
        ([root, "--episode", "2", "--out", out], "no episode 2; there are 2, counted from 0"),
        ([str(tmp_path / "nothing"), "--out", out], "nothing"),
    ):
        assert cli.main(["view", *words]) == 2
        assert message in capsys.readouterr().err
    assert not Path(out).exists()
    with pytest.raises(ValueError, match=r"Rerun's files end in \.rrd"):
        ViewConfig(source=root, out=tmp_path / "a.mp4")
