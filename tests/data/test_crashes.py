"""Kills and full disks: what was added stays, and recording goes on."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset, DatasetWriter
from kinema.data.defects import find_defects

from .conftest import FPS, SIDE, TOP, make_recording

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and file limits are those of POSIX")


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashed")
    program = Path(__file__).with_name("crashing_writer.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, program, folder], check=True, env=environment)
    return folder


def open_quietly(root: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*folded in .* episodes of an interrupted recording")
        return Dataset.open(root)


def assert_holds_first(dataset: Dataset) -> None:
    """Every episode is the one of its number, and nothing is wrong with the dataset."""
    for index in range(dataset.num_episodes):
        expected, episode = make_recording(index), dataset.episode(index)
        np.testing.assert_array_equal(episode.columns["action"], expected["columns"]["action"])
        for key in (TOP, SIDE):
            np.testing.assert_array_equal(episode.frames[key], expected["frames"][key])
        assert episode.task == expected["task"]
    assert find_defects(dataset.root, is_decoding=False) == []
    assert not (dataset.root / ".staging").exists()
    assert not list(dataset.root.rglob("*.part"))


def result(crashed: Path) -> dict[str, int]:
    return json.loads((crashed / "result.json").read_text())


def test_killed_at_every_rename(crashed: Path) -> None:
    """Every step of recording and folding ends in a rename. Killed on either side of each, the dataset has
    the two old episodes and those whose ``add`` had returned, and takes more."""
    num_renames = result(crashed)["num_renames"]
    # Two episodes; data, two cameras, the episodes table; statistics and info.
    assert num_renames == 8
    for nth in range(1, num_renames + 1):
        for side in ("before", "after"):
            root = crashed / f"{nth}-{side}"
            added = min(2, nth - 1 if side == "before" else nth)
            if nth % 2:
                with DatasetWriter(root, fps=FPS) as writer:
                    assert writer.num_episodes == 2 + added
                    writer.add(**make_recording(2 + added))
                added += 1
            dataset = open_quietly(root)
            assert dataset.num_episodes == 2 + added, root.name
            assert_holds_first(dataset)


def test_killed_while_adding(crashed: Path) -> None:
    with pytest.warns(UserWarning, match=r"folded in \d+ episodes of an interrupted recording"):
        dataset = Dataset.open(crashed / "adding")
    assert dataset.num_episodes - result(crashed)["reported"] in (0, 1)
    assert_holds_first(dataset)


@pytest.mark.parametrize("case", ["full-add", "full-close"])
def test_a_full_disk_loses_nothing(crashed: Path, case: str) -> None:
    message = (crashed / f"{case}.txt").read_text()
    assert message.startswith(f"DataError: {crashed / case}: writing failed")
    assert "File too large" in message
    assert "the 6 finished episodes are safe. Make room on the disk" in message
    with DatasetWriter(crashed / case, fps=FPS) as writer:
        assert writer.num_episodes == 6
        writer.add(**make_recording(6))
    assert_holds_first(open_quietly(crashed / case))


def test_what_a_power_cut_left_half_written_is_dropped(tmp_path: Path) -> None:
    root = tmp_path / "d"
    writer = DatasetWriter(root, fps=FPS)
    for number in range(3):
        writer.add(**make_recording(number))
    # In earnest the lock goes with the process; here it is this one's.
    writer._resources.close()
    (root / ".staging/00000002/columns.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"dropped the recorded episode .*00000002, which is not whole"):
        dataset = open_quietly(root)
    assert dataset.num_episodes == 2
    assert_holds_first(dataset)
