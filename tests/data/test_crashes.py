"""Kills and full disks: what was added stays, and recording goes on."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kinema.cli import main
from kinema.data import DataError, Dataset, DatasetWriter, recover
from kinema.data.defects import find_defects

from .conftest import EPISODES, FPS, SIDE, TOP, edit_parquet, make_recording, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and file limits are those of POSIX")


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashed")
    program = Path(__file__).with_name("crashing_writer.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, program, folder], check=True, env=environment)
    return folder


def recovered(root: Path) -> Dataset:
    recover(root)
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
    the two old episodes and those that had been written whole, and takes more."""
    num_renames = result(crashed)["num_renames"]
    # Two episodes, each with its summary; data, two cameras, the episodes table; statistics and info; what is
    # deleted, twice.
    assert num_renames == 12
    for nth in range(1, num_renames + 1):
        for side in ("before", "after"):
            root = crashed / f"{nth}-{side}"
            # An episode is whole with its summary, even if it lacks the rename of its folder.
            added = min(2, (nth + (side == "after")) // 2)
            if nth % 2:
                with DatasetWriter(root, fps=FPS) as writer:
                    assert writer.num_episodes == 2 + added
                    writer.add(**make_recording(2 + added))
                added += 1
            dataset = recovered(root)
            assert dataset.num_episodes == 2 + added, root.name
            assert_holds_first(dataset)


def test_killed_while_adding(crashed: Path) -> None:
    root = crashed / "adding"
    with pytest.warns(UserWarning, match=r"left out \d+ episodes of an interrupted.*kinema\.data\.recover"):
        assert Dataset.open(root).num_episodes == 0
    dataset = recovered(root)
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
    assert_holds_first(recovered(crashed / case))


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A dataset without episodes, and three that a kill left in its staging folder."""
    root = tmp_path / "d"
    writer = DatasetWriter(root, fps=FPS)
    for number in range(3):
        writer.add(**make_recording(number))
    # In earnest the lock goes with the process; here it is this one's.
    writer._resources.close()
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["columns.parquet", "episode.json", f"{TOP}.mp4"])
@pytest.mark.parametrize("damage", [b"", b"PAR1 and then something else", None])
def test_an_episode_that_cannot_be_read_is_kept_and_named(
    staged: Path, name: str, damage: bytes | None
) -> None:
    path = staged / ".staging/00000001" / name
    whole = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    before = contents(staged)
    for writes in (lambda: DatasetWriter(staged, fps=FPS), lambda: recover(staged)):
        with pytest.raises(DataError, match=r"00000001: this recorded episode cannot be read .*Nothing was"):
            writes()
        assert contents(staged) == before
    path.write_bytes(whole)
    assert recover(staged) == 3
    assert_holds_first(recovered(staged))


def test_reading_changes_nothing(staged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (staged / ".staging/00000002/columns.parquet").write_bytes(b"")
    (staged / ".staging/00000003.part").mkdir()
    before = contents(staged)
    with pytest.warns(UserWarning, match="left out 3 episodes"):
        Dataset.open(staged)
    with pytest.warns(UserWarning, match="left out 3 episodes"):
        assert main(["data", str(staged), "--out", str(tmp_path / "sheet.png")]) == 1
    assert "3 episodes of an interrupted or running recording wait here" in capsys.readouterr().out
    assert contents(staged) == before
    assert (staged / ".staging/00000003.part").is_dir()


def test_episodes_that_others_added_do_not_hide_those_staged(staged: Path, tmp_path: Path) -> None:
    """A staged episode counts as folded only where the table holds the very same one under its number."""
    for _ in range(2):
        shutil.copytree(staged / ".staging", tmp_path / "staging", dirs_exist_ok=True)
        recover(staged)
        shutil.copytree(tmp_path / "staging", staged / ".staging")
    assert recover(staged) == 0
    assert_holds_first(Dataset.open(staged))
    for number, folder in enumerate(sorted((tmp_path / "staging").glob("0*"))):
        shutil.copytree(folder, staged / ".staging" / f"{number + 1:08d}")
    assert recover(staged) == 3
    actions = [Dataset.open(staged).episode(index).columns["action"] for index in range(6)]
    for first, second in zip(actions[:3], actions[3:], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user reaches, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


UNREADABLE = """
import os, shutil, sys
from pathlib import Path
from kinema.data import DataError, recover
# Modules that are imported on demand: the other user may not reach them.
recover(shutil.copytree("d", "warm"))
root, closed = Path("d"), Path("d") / sys.argv[1]
if os.geteuid() == 0:
    for path in (Path("."), root, *root.rglob("*")):
        os.chown(path, 65534, 65534)
    os.setuid(65534)  # To root everything is permitted.
mode = closed.stat().st_mode
closed.chmod(0)
try:
    recover(root)
except (DataError, OSError) as error:
    print(error)
else:
    print("no error")
finally:
    closed.chmod(mode)
"""


@pytest.mark.parametrize(
    "closed", ["meta", "meta/episodes", "meta/episodes/chunk-000", "data", "videos", ".staging", EPISODES]
)
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(closed: str, open_folder: Path) -> None:
    """Where the table of episodes was taken for empty, the next episodes were written over the first ones."""
    root = write(open_folder / "d", [make_recording(number) for number in range(2)])
    writer = DatasetWriter(root, fps=FPS)
    writer.add(**make_recording(2))
    writer._resources.close()
    before = contents(root)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", UNREADABLE, closed]
    done = subprocess.run(command, cwd=open_folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"d/{closed}" in done.stdout
    # Data files may have grown already: they begin with the same rows.
    assert contents(root).keys() == before.keys()
    assert recover(root) == 1
    assert_holds_first(Dataset.open(root))


def test_a_table_that_lacks_episodes_is_not_written_on(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [make_recording(number) for number in range(2)])
    shutil.rmtree(root / "meta/episodes")
    before = contents(root)
    with (
        pytest.raises(DataError, match=r"says 2 episodes, but the table .* ends after 0.*Restore"),
        DatasetWriter(root, fps=FPS) as writer,
    ):
        writer.add(**make_recording(2))
    assert contents(root).items() >= before.items()


def test_a_file_that_holds_other_episodes_is_not_overwritten(tmp_path: Path) -> None:
    """The last episode may stand in the first file and others in the second, as after a merge."""
    root = tmp_path / "d"
    for number in range(2):
        with DatasetWriter(root, fps=FPS, data_files_size_in_mb=1e-9) as writer:
            writer.add(**make_recording(number))
    folder = root / "data/chunk-000"
    first, second = folder / "file-000.parquet", folder / "file-001.parquet"
    for table, file in ((EPISODES, 1), (EPISODES.replace("file-000", "file-001"), 0)):
        edit_parquet(root / table, functools.partial(with_column, name="data/file_index", value=file))
    first.rename(folder / "swap")
    second.rename(first)
    (folder / "swap").rename(second)
    with DatasetWriter(root, fps=FPS) as writer:
        writer.add(**make_recording(2))
    assert len(list(folder.iterdir())) == 3
    assert_holds_first(Dataset.open(root))


def with_column(table: pa.Table, name: str, value: int) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array([value] * len(table)))
