"""Files are written whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinema.data.files import opened, replacing, write_json, write_tensors, write_text
from kinema.types import FileError, KinemaError
from tests.worlds import full_disk


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_new_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "a")
        write_tensors(tmp_path / "tensors", {"a": torch.ones(2)})
        with replacing(tmp_path / "folder") as part:
            part.mkdir()
            write_tensors(part / "tensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    for name in ("text", "tensors", "folder/tensors"):
        assert permissions(tmp_path / name) == 0o640
    assert permissions(tmp_path / "folder") == 0o750


def test_tensors_come_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new" / "tensors", {"a": torch.arange(3)}, metadata={"b": "c"})
    assert load_file(tmp_path / "new" / "tensors")["a"].tolist() == [0, 1, 2]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, float("nan")], "b": (float("inf"),)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None], "b": [None]}


@pytest.mark.parametrize("old", ["text", "tensors", "folder"])
def test_a_full_disk_leaves_the_old_content(tmp_path: Path, old: str) -> None:
    path = tmp_path / old

    def write(num: int) -> None:
        if old == "text":
            write_text(path, "x" * num)
        elif old == "tensors":
            write_tensors(path, {"a": torch.zeros(num // 4)})
        else:
            with replacing(path) as part:
                part.mkdir()
                write_text(part / "a", "x" * num)

    write(100)
    inside = path / "a" if old == "folder" else path
    before = inside.read_bytes()
    with (
        full_disk(5000),
        pytest.raises(FileError, match=f"{old}.*could not be written .*make room on the disk"),
    ):
        write(100_000)
    assert inside.read_bytes() == before
    assert names(tmp_path) == {old}


def test_a_place_that_is_no_folder_is_named_with_advice(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(FileError, match=r"file/a: could not be written .*choose another place") as caught:
        write_text(tmp_path / "file" / "a", "")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, KinemaError)


def test_what_was_left_by_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".a.part" / "b").touch()
    write_text(tmp_path / "a", "new")
    (tmp_path / "folder.previous").mkdir()
    with replacing(tmp_path / "folder") as part:
        part.mkdir()
    assert names(tmp_path) == {"a", "folder"}


def test_an_error_of_the_caller_stays_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError, match="elsewhere"), opened(tmp_path / "a") as file:
        file.write((tmp_path / "elsewhere").read_bytes())
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == {"a"}


def test_relative_paths_with_a_colon_are_given_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing("a:b.mp4") as part:
        assert part.is_absolute()
        part.touch()
    assert names(tmp_path) == {"a:b.mp4"}
