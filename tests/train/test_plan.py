"""``kinema train --budget``: the plan is printed, kept, and kept to."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinema.evaluation.result import Result, Row
from kinema.model.world import WEIGHTS_FILE
from kinema.recipes.budget import Plan
from kinema.simulation.world import load
from kinema.train import measure, plan, programs
from kinema.train.command import TrainConfig, train
from kinema.train.plan import say_quality
from kinema.types import CheckpointError

from ..cameras import SIZES, write_arm
from ..worlds import write_exact_world


@pytest.fixture(autouse=True)
def measured_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MEASURED_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(measure, "MATRIX_SECONDS", 0.01)
    monkeypatch.setattr(measure, "FEWEST_TIMED", 1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vectors") / "data"
    return write_exact_world(root, lengths=(20,) * 6, has_camera=False, has_proprio=True)


def config_of(data: Path, out: Path, **fields: Any) -> TrainConfig:
    return TrainConfig(data=str(data), out=out, **fields)


@pytest.mark.parametrize("has_camera", [False, True])
def test_a_plan_is_printed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_camera: bool
) -> None:
    data = write_exact_world(tmp_path / "data", lengths=(20, 20), has_camera=has_camera, has_proprio=True)
    before = sorted(tmp_path.rglob("*"))
    options = {"size": "mini"} if has_camera else {"budget": "9s"}
    assert train(config_of(data, tmp_path / "world", plan=True, **options)) == 0
    printed = capsys.readouterr().out
    for text in ("M parameters", "dynamics 1: ", " frames seen", "tokens each", "of memory", "of disk"):
        assert text in printed
    assert ("tokenizer: " in printed) == has_camera
    assert "quality: no comparable training was measured" in printed
    assert ("plan for 9s: size mini" in printed) != has_camera
    assert sorted(tmp_path.rglob("*")) == before


def test_three_cameras_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_arm(tmp_path / "data")
    assert train(config_of(data, tmp_path / "world", plan=True, budget="9s")) == 0
    printed = capsys.readouterr().out
    assert "plan for 9s: size mini" in printed
    assert "the budget is short" in printed
    assert all(key in printed for key in SIZES)
    assert not (tmp_path / "world").exists()


def test_a_budget_that_is_resumed_ends_as_one_that_was_not_interrupted(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made once: a resumed run measures nothing."""
    one, two = tmp_path / "one" / "world", tmp_path / "two" / "world"
    short = {"budget": "3s", "checkpoint_minutes": 1e-3}
    assert train(config_of(vectors, one, max_minutes=1e-9, **short)) == 130

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(programs, "make_plan", fail)
    monkeypatch.setattr(measure, "time_update", fail)
    shutil.copytree(one.parent, two.parent)
    assert train(config_of(vectors, one, **short)) == 0
    assert train(config_of(vectors, two, max_minutes=1e-9, **short)) == 130
    assert train(config_of(vectors, two, **short)) == 0
    first, second = (load_file(out / WEIGHTS_FILE) for out in (one, two))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert load(one).cameras == ()
    with pytest.raises(CheckpointError, match="it holds another run"):
        train(config_of(vectors, one, budget="4s"))
    with pytest.raises(CheckpointError, match="it holds another run"):
        train(config_of(vectors, one, recipe="tiny"))
    options = json.loads((one / "checkpoint" / "run.json").read_text())["options"]
    made = Plan.from_json(options["plan"])
    assert (
        sum(made.scale.phase_updates)
        == json.loads((one / "checkpoint" / "dynamics" / "state.json").read_text())["update"]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": "soon"}, "--budget soon: it must be a time"),
        ({"size": "huge"}, "--size huge: choose one of mini, small"),
        ({"budget": "1h", "recipe": "tiny"}, "--recipe tiny: it has its own sizes"),
        ({"size": "small", "recipe": "tiny"}, "--recipe tiny: it has its own sizes"),
        ({"budget": "1h", "update_share": 0.5}, "--update-share: the budget decides"),
        ({"budget": "1h", "from_": "pusht"}, "--budget: it is for a new world"),
        ({"budget": "1h", "heads": True}, "--budget: it is for a new world"),
    ],
)
def test_options_that_contradict_one_another_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(Path("data"), Path("world"), **fields)


def test_the_quality_of_measured_trainings_is_said(tmp_path: Path) -> None:
    for world, training, skill in (
        ("balls", "--budget 1h", 0.9),
        ("arm", "--budget 50m", 0.4),
        ("other", "--budget 2h", 0.1),
        ("old", "--recipe base --update-share 1.0", 0.1),
    ):
        numbers = {"skill/frame/1": skill, "skill/frame/10": math.nan}
        rows = [Row(key=key, what="skill", value=value, unit="") for key, value in numbers.items()]
        result = Result(
            name=world,
            world="world",
            data="data",
            axis="step",
            protocol={"training": training},
            rows=rows,
            series=[],
            notes=[],
        )
        (tmp_path / f"{world}.json").write_text(result.to_json())
    (tmp_path / "broken.json").write_text("{")
    assert "2 worlds reached" in say_quality("1h", True, tmp_path)
    assert "0.65 (0.40 to 0.90) at step 1;" in say_quality("1h", True, tmp_path)
    for budget, has_cameras in (("1h", False), ("9h", True), (None, True)):
        assert "no comparable training" in say_quality(budget, has_cameras, tmp_path)
