"""What the README shows must work: its Python as it stands, its commands in miniature."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tyro

from kinema import cli

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?P<skip><!-- test: skip[^\n]*-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.S | re.M
)
MINIATURE = {
    "record": {"--episodes": "3", "--max-steps": "40", "--workers": "1"},
    "data": {},
    "train": {"--recipe": "tiny", "--update-share": "0.02"},
    "simulate": {"--steps": "6"},
}
"""Options that make a command of the README small enough for a test."""


def blocks(language: str, *, skipped: bool = False) -> list[str]:
    found = BLOCK.finditer(README)
    return [m["text"] for m in found if m["language"] == language and (m["skip"] is None or skipped)]


def commands(*, skipped: bool = False) -> list[list[str]]:
    """The words after ``kinema`` of each command in the shell blocks."""
    lines = [line for text in blocks("bash", skipped=skipped) for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "kinema"]


def in_miniature(words: list[str]) -> list[str]:
    small = list(words)
    for option, value in MINIATURE[words[0]].items():
        if option in small:
            small[small.index(option) + 1] = value
        else:
            small += [option, value]
    return small


def test_python_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    scope: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), scope)
    assert Path("rollout.mp4").stat().st_size > 0
    frames, step, guessed = scope["frames"], scope["step"], scope["guessed"]
    assert isinstance(frames, np.ndarray)
    assert getattr(step, "frame").shape == (8, *frames.shape[1:])  # noqa: B009
    assert isinstance(guessed, np.ndarray)
    assert guessed.shape == (8, 2)


def test_commands_run_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for words in commands():
        assert cli.main(in_miniature(words)) == 0, words
        names.append(words[0])
    assert names == ["record", "data", "train", "simulate"]
    assert Path("data/pusht/meta/info.json").is_file()
    assert Path("worlds/mine/config.json").is_file()


@pytest.mark.parametrize("words", commands(skipped=True), ids=" ".join)
def test_options_exist_as_written(words: list[str]) -> None:
    name, arguments = cli.split(words)
    command = cli.COMMANDS[name]
    config = getattr(importlib.import_module(command.module), command.config)
    # A number that is still to be filled in.
    tyro.cli(config, args=[word.replace("TBD", "1") for word in arguments])


def test_make_targets_and_extras_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^|`)make ([a-z]+)", README, re.M)
    assert {"demo", "test", "check"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = [name for group in re.findall(r"\[([a-z,]+)\]\"", README) for name in group.split(",")]
    assert named
    assert set(named) <= set(extras)


def test_tree_names_what_is_there() -> None:
    (tree,) = [text for text in blocks("") if text.startswith("kinema/")]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.M)) | set(re.findall(r"[ ;](\w+\.py)", tree))
    package = REPOSITORY / "kinema"
    there = {path.name for path in package.glob("[a-z]*.py")}
    there |= {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert named == there


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (REPOSITORY / picture).is_file(), picture
