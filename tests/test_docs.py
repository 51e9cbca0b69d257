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
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<skip><!-- test: skip[^\n]*-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.S | re.M
)
MINIATURE = {
    "record": {"--episodes": "3", "--max-steps": "40", "--workers": "1"},
    "data": {},
    "train": {"--budget": "5s"},
    "simulate": {"--steps": "6"},
}
"""Options that make a command of the README small enough for a test."""


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block["text"] for block in found if block["language"] == language]


def commands(page: Path) -> list[list[str]]:
    """The words after ``kinema`` of each command in the shell blocks."""
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
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
    (program,) = blocks(README, "python")
    scope: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), scope)
    assert Path("rollout.mp4").stat().st_size > 0
    frames, step, inferred = scope["frames"], scope["step"], scope["inferred"]
    assert isinstance(frames, np.ndarray)
    assert getattr(step, "frame").shape == (8, *frames.shape[1:])  # noqa: B009
    assert isinstance(inferred, np.ndarray)
    assert inferred.shape == (8, 2)


def test_commands_run_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for words in commands(README):
        assert cli.main(in_miniature(words)) == 0, words
        names.append(words[0])
    assert names == ["record", "data", "train", "simulate"]
    assert Path("data/pusht/meta/info.json").is_file()
    assert Path("worlds/mine/config.json").is_file()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(page, words, id=f"{page.name}: {' '.join(words)}")
        for page in PAGES
        for words in commands(page)
    ],
)
def test_options_exist_as_written(page: Path, words: list[str]) -> None:
    name, arguments = cli.split(words)
    command = cli.COMMANDS[name]
    tyro.cli(getattr(importlib.import_module(command.module), command.config), args=arguments)


def test_make_targets_and_extras_exist() -> None:
    readme = README.read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^|`)make ([a-z]+)", readme, re.M)
    assert {"demo", "test", "check"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = [name for group in re.findall(r"\[([a-z,]+)\]\"", readme) for name in group.split(",")]
    assert named
    assert set(named) <= set(extras)


def test_tree_names_what_is_there() -> None:
    (tree,) = [text for text in blocks(README, "") if text.startswith("kinema/")]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.M)) | set(re.findall(r"[ ;](\w+\.py)", tree))
    package = REPOSITORY / "kinema"
    there = {path.name for path in package.glob("[a-z]*.py")}
    there |= {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert named == there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert (page.parent / link).exists(), link


def test_the_readme_is_short() -> None:
    assert README.stat().st_size < 8000
    assert max(map(len, README.read_text(encoding="utf-8").splitlines())) <= 130
