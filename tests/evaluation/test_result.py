"""Results say where they come from; libraries that draw and rank are loaded when they are needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kinema import cli
from kinema.evaluation.protocol import Run
from kinema.evaluation.result import Row, describe_run
from kinema.evaluation.speed import SpeedConfig
from kinema.kits import Target
from kinema.model.parts import fingerprint
from kinema.simulation.world import World

from .drawn import tiny_config


def test_a_run_names_command_machine_versions_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kinema", "evaluate", "speed", "my world"])
    world = World(tiny_config())
    run = describe_run(world)
    assert run["command"] == "kinema evaluate speed 'my world'"
    assert run["world_hash"] == fingerprint(world, world.heads)
    assert run["machine"]["cores"] >= 1
    assert set(run["versions"]) == {"kinema", "torch", "numpy"}


def test_a_measured_row_has_its_interval_and_verdict() -> None:
    run = Run("speed", World(tiny_config()), SpeedConfig(world="tiny"))
    row = run.row("a", "b", "px", np.mean, np.arange(20.0), target=Target(must=12.0, aim=5.0))
    assert run.rows == [row]
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.value == 9.5 < row.high
    assert row.verdict == "must"


def test_commands_load_no_library_before_they_need_it() -> None:
    code = (
        "import sys, kinema, kinema.evaluation.simulate, kinema.evaluation.control, kinema.evaluation.demo; "
        "sys.exit(', '.join(sorted({'matplotlib', 'scipy'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("policy", "correlation"):
        monkeypatch.delitem(sys.modules, f"kinema.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "scipy", None)
    words = ["evaluate", "policy", "pusht", "--env", "e", "--out", str(tmp_path)]
    assert cli.main([*words, "--policies", "random", "zero", "random@0.3", "zero@0.3"]) == 2
    assert "pip install 'kinema[evaluate]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "is_higher_better", "expected"),
    [
        (0.5, False, "aim"),
        (0.9, False, "must"),
        (1.1, False, "missed"),
        (0.9, True, "must"),
        (2.0, True, "aim"),
    ],
)
def test_verdicts(value: float, is_higher_better: bool, expected: str) -> None:
    must, aim = (0.8, 1.0) if is_higher_better else (1.0, 0.5)
    row = Row(
        key="k", what="w", value=value, unit="px", must=must, aim=aim, is_higher_better=is_higher_better
    )
    assert row.verdict == expected
    assert Row(key="k", what="w", value=float("nan"), unit="px", must=1.0, aim=0.5).verdict == "missed"
    assert Row(key="k", what="w", value=value, unit="px").verdict == ""
