"""Options of every command with values of every kind: a mistake ends with exit code 2, without traceback."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinema import cli
from kinema.options import option_names

from .worlds import random_heads, random_world, write_exact_world

NOWHERE = "no/such/place"
REQUIRED = {
    "record": ["nomodule:X-v0", "--episodes", "1", "--out", "recorded"],
    "data": [NOWHERE],
    "train": [NOWHERE, "--out", "world"],
    "simulate": [NOWHERE],
    "view": [NOWHERE],
    "plan": [NOWHERE, "--env", "nomodule:X-v0"],
    "evaluate horizon": [NOWHERE],
    "evaluate control": [NOWHERE],
    "evaluate skill": [NOWHERE],
    "evaluate calibration": [NOWHERE],
    "evaluate planning": [NOWHERE, "--data", NOWHERE],
    "evaluate policy": [NOWHERE, "--env", "X-v0", "--policies", "random", "zero", "random@0.5", "zero@0.5"],
    "evaluate speed": [NOWHERE],
    "serve": [NOWHERE],
    "play": [NOWHERE],
}
"""Arguments with which each command ends at once, because what it needs is not there."""
LEARNING = {"imagine", "learn"} & set(cli.COMMANDS)
REQUIRED |= {name: [NOWHERE, "--data", NOWHERE] for name in LEARNING}

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
value = st.one_of(
    st.sampled_from(
        ["", "-1", "0", "nan", "inf", "-inf", "1e400", "None", "True", "{", "[]", "{}", '{"a":', "a,b"]
    ),
    st.sampled_from(["/dev/null", "/", ".", "..", "~", "x" * 300, "a:b", "a b", "--", "-", "=", "%s", "{0}"]),
    st.integers().map(str),
    st.floats().map(str),
    text,
)


UNSERVED = [*sorted(set(REQUIRED) - {"serve", "play"}), "evaluate"]
"""Commands that do not run for ever where all arguments are right."""
DEFECTS = {"data": {1}}
"""Exit codes that stand for a finding: a dataset that is missing is a defect of it."""


def run(arguments: Sequence[str]) -> tuple[int | str | None, str]:
    """Exit code and output of a command in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code: int | str | None = cli.main(list(arguments))
        except SystemExit as end:
            code = end.code
    return code, printed.getvalue()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINEMA_TRACEBACK", raising=False)


def test_every_command_is_tried() -> None:
    # mcp reads from its standard input, and the demo needs nothing that could be missing.
    assert set(REQUIRED) == set(cli.COMMANDS) - {"mcp", "demo"}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", list(REQUIRED))
@pytest.mark.usefixtures("elsewhere")
def test_a_strange_value_ends_with_2(name: str, data: st.DataObject) -> None:
    options = [option for option in option_names(cli._help_of(name)) if option != "--help"]
    chosen = data.draw(st.lists(st.sampled_from(options), min_size=1, max_size=3, unique=True))
    words = [*name.split(), *REQUIRED[name]]
    for option in chosen:
        words += data.draw(st.sampled_from([[option, "VALUE"], [f"{option}=VALUE"], [option]]))
    words = [word.replace("VALUE", data.draw(value)) if "VALUE" in word else word for word in words]
    code, printed = run(words)
    assert code in {2} | DEFECTS.get(name, set()), (words, printed)
    assert "Traceback" not in printed


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(value, max_size=3), name=st.sampled_from(UNSERVED))
@pytest.mark.usefixtures("elsewhere")
def test_strange_words_end_with_2(words: list[str], name: str) -> None:
    code, printed = run([*name.split(), *words])
    assert code in {2} | DEFECTS.get(name, set()), (words, printed)
    assert "Traceback" not in printed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    random_heads(random_world(proprio_dim=2, depth=2)).save(folder / "world")
    write_exact_world(folder / "data", lengths=(14, 13), has_proprio=True)
    return folder


SMALL = {
    "data": ["DATA", "--no-decode"],
    "simulate": ["WORLD", "--data", "DATA", "--steps", "4"],
    "evaluate control": ["WORLD", "--data", "DATA", "--steps", "4", "--rollouts", "2", "--seeds", "1"],
    "evaluate skill": ["WORLD", "--data", "DATA", "--steps", "4", "--rollouts", "2", "--num-forks", "2"],
    "evaluate calibration": [
        "WORLD",
        "--data",
        "DATA",
        "--steps",
        "4",
        "--rollouts",
        "2",
        "--num-forks",
        "3",
    ],
    "evaluate speed": ["WORLD", "--data", "DATA", "--steps", "1", "--repeats", "1", "--streams", "1"],
}
few = st.sampled_from(["", "-1", "0", "1", "2", "nan", "x", "cuda", "/dev/null", "/dev/null/x", "é", "a:b"])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.usefixtures("elsewhere")
def test_a_strange_value_ends_well_or_with_2_where_all_else_is_there(
    name: str, made: Path, data: st.DataObject
) -> None:
    options = [option for option in option_names(cli._help_of(name)) if option != "--help"]
    words = [
        word.replace("WORLD", str(made / "world")).replace("DATA", str(made / "data")) for word in SMALL[name]
    ]
    code, printed = run([*name.split(), *words, f"{data.draw(st.sampled_from(options))}={data.draw(few)}"])
    assert code in {0, 2} | DEFECTS.get(name, set()), printed
    assert "Traceback" not in printed
