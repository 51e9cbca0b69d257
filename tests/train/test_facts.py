"""Facts that are checked before anything is learned, and what is left when something fails."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kinema import cli
from kinema.data import Dataset
from kinema.model.world import CONFIG_FILE, WEIGHTS_FILE
from kinema.simulation.world import load
from kinema.train import facts, stages
from kinema.train.command import TrainConfig, train
from kinema.train.facts import fingerprint, size
from kinema.train.loop import LoopConfig
from kinema.types import CheckpointError, DataError

from ..worlds import random_world, write_exact_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("facts") / "data"
    return write_exact_world(root, lengths=(20, 18, 25), has_proprio=True, has_reward=True)


def config_of(data: Path, out: Path, **fields: Any) -> TrainConfig:
    """One update of each stage."""
    return TrainConfig(data=str(data), out=out, **{"recipe": "tiny", "update_share": 0.001, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"update_share": 0.0},
        {"update_share": float("nan")},
        {"max_minutes": 0.0},
        {"checkpoint_minutes": -1.0},
        {"seed": -1},
        {"accumulate": 0},
    ],
)
def test_wrong_options_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(fields)).replace('_', '-')} .*: it must be"):
        LoopConfig(out=Path("out"), **fields)


def test_the_old_option_says_its_new_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["train", "data", "--out", str(tmp_path), "--world", "pusht"]) == 2
    assert "`kinema train --world` is now `kinema train --from`" in capsys.readouterr().err


def test_a_folder_that_cannot_hold_a_world_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (data, "it lies in the dataset"),
        (data / "world", "it lies in the dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config_of(data, out))
    assert (tmp_path / "file").read_text() == "mine"
    assert not (data / "world").exists()


def test_a_disk_without_room_is_said_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"training needs about .* of disk there, and 1 kB are free"):
        train(config_of(data, tmp_path / "world"))
    assert not (tmp_path / "world").exists()


def test_sizes_in_words() -> None:
    assert [size(n) for n in (12, 1500, 2.5e6, 8e9, 3e12)] == ["0.012 kB", "1.5 kB", "2.5 MB", "8 GB", "3 TB"]


def test_too_short_episodes_are_left_out_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_exact_world(tmp_path / "short", lengths=(5, 6), has_proprio=True)
    with pytest.raises(DataError, match="record longer episodes"):
        train(config_of(short, tmp_path / "world"))
    assert not (tmp_path / "world").exists()
    mixed = write_exact_world(tmp_path / "mixed", lengths=(20, 5, 25, 30), has_proprio=True)
    assert train(config_of(mixed, tmp_path / "world")) == 0
    assert "1 of 4 episodes are left out: " in capsys.readouterr().err


def test_a_copy_of_the_data_is_the_same_and_a_change_is_found(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)
    assert fingerprint(Dataset.open(data)) == fingerprint(Dataset.open(copy))
    out = tmp_path / "world"
    assert train(config_of(copy, out, max_minutes=1e-9)) == 130
    info = copy / "meta" / "info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps(content | {"robot_type": "another"}))
    with pytest.raises(CheckpointError, match=r"the data changed since the run in .*meta/info\.json differs"):
        train(config_of(copy, out))
    info.write_text(json.dumps(content))
    (copy / "data" / "more.parquet").write_text("")
    with pytest.raises(CheckpointError, match=r"data/more\.parquet is new"):
        train(config_of(copy, out))


def test_a_world_appears_once_it_is_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with an evaluation; heads are not learned before; the last evaluation may fail."""
    out, seen = tmp_path / "world", []

    def failing(*_: Any, **__: Any) -> dict[str, float]:
        seen.append(sorted(path.name for path in out.iterdir() if path.name in (CONFIG_FILE, WEIGHTS_FILE)))
        raise RuntimeError("no display")

    monkeypatch.setattr(stages, "evaluate_progress", failing)
    options = {"update_share": 0.02, "evaluate_minutes": 0.0}
    assert train(config_of(data, out, max_minutes=1e-9, **options)) == 130
    with pytest.raises(ValueError, match="its world is not finished; run the command that began it again"):
        train(config_of(data, out, heads=True))
    with pytest.raises(ValueError, match="its world is not finished"):
        train(config_of(data, out, heads=True, from_="pusht"))
    assert train(config_of(data, out, **options)) == 0
    assert seen == [[], [], [CONFIG_FILE, WEIGHTS_FILE]]
    assert "the evaluation after update 3 failed" in capsys.readouterr().err
    assert load(out).name == "world"
    # Once more there is nothing to do, and nothing is changed.
    before = (out / WEIGHTS_FILE).stat().st_mtime_ns
    assert train(config_of(data, out, **options)) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert (out / WEIGHTS_FILE).stat().st_mtime_ns == before


def test_a_finished_world_is_not_written_over(data: Path, tmp_path: Path) -> None:
    random_world(proprio_dim=2).save(tmp_path / "world")
    with pytest.raises(ValueError, match="it holds a finished world already"):
        train(config_of(data, tmp_path / "world"))


def test_the_cost_is_said_before(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of stages that are long enough a few updates are timed."""
    assert train(config_of(data, tmp_path / "world", update_share=0.4, max_minutes=1e-9)) == 130
    printed = capsys.readouterr().out
    assert "training takes: 0.779M parameters, 231 updates on " in printed
    assert all(f"{name} " in printed for name in ("tokenizer", "manifold", "decoder", "dynamics"))
    assert "of memory" in printed
    assert "of disk" in printed
