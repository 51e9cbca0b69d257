import contextlib
import dataclasses
import importlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from kinema import cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    number: int = 1
    """Any number."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Config], None]], None]:
    """Makes ``kinema try`` run a function."""

    def install(function: Callable[[Config], None]) -> None:
        module = types.ModuleType("kinema_try")
        module.__dict__.update(Config=Config, function=function)
        monkeypatch.setitem(sys.modules, "kinema_try", module)
        entry = cli.Command(
            summary="Try.",
            module="kinema_try",
            config="Config",
            function="function",
            after_interrupt="Go on.",
        )
        monkeypatch.setitem(cli.COMMANDS, "try", entry)

    return install


def raising(error: BaseException) -> Callable[[Config], None]:
    def function(config: Config) -> None:
        raise error

    return function


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in printed
        assert entry.summary in printed


def _options(config: type) -> Iterator[str]:
    """Fields of a configuration, and of those that stand in it."""
    for name, kind in get_type_hints(config).items():
        name = name.rstrip("_")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _options(kind)
        else:
            yield name


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_exists_and_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"usage: kinema {name}" in printed
    entry = cli.COMMANDS[name]
    config = getattr(importlib.import_module(entry.module), entry.config)
    for name in _options(config):
        # Options are named as the field, positional arguments in capitals.
        assert name.replace("_", "-") in printed or name.upper().replace("_", "-") in printed


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys, kinema.cli\n"
        "assert kinema.cli.main(['--help']) == 0 and kinema.cli.main(['--version']) == 0\n"
        "heavy = {'torch', 'numpy', 'av', 'pyarrow', 'matplotlib', 'gymnasium', 'tyro'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kinema 0." in done.stdout


def test_help_of_no_command_imports_what_the_command_computes_with() -> None:
    """In one process of its own, and without the extras."""
    program = (
        "import sys, kinema.cli\n"
        "heavy = {'torch', 'pyarrow', 'av', 'PIL', 'safetensors', 'gymnasium', 'fastapi', 'mcp', 'httpx'}\n"
        "for name in kinema.cli.COMMANDS:\n"
        "    try:\n"
        "        kinema.cli.main([*name.split(), '--help'])\n"
        "        sys.exit(f'{name}: --help did not end the process')\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, (name, end.code)\n"
        "    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))\n"
        "assert kinema.cli.main(['train', 'data', '--out', 'x', '--recip', 'tiny']) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "--recipe {tiny" in done.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_without_the_module_is_that_of_the_module(name: str) -> None:
    """What stands in the help was read from the source; here it is compared with the imported class."""
    program = f"from kinema import cli; print(cli._help_of({name!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    importlib.import_module(cli.COMMANDS[name].module)
    assert done.stdout == cli._help_of(name) + "\n"


def test_options_reach_the_function(command: Callable[[Callable[[Config], None]], None]) -> None:
    seen: list[Config] = []
    command(seen.append)
    assert cli.main(["try", "--number", "7"]) == 0
    assert seen == [Config(number=7)]


def test_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simluate"]) == 2
    assert "no command 'simluate'; did you mean 'simulate'?" in capsys.readouterr().err
    assert cli.main(["elephant"]) == 2
    assert "no command 'elephant'; there are record, data, train" in capsys.readouterr().err
    assert cli.main(["evaluate", "contrl"]) == 2
    assert "no command 'evaluate contrl'; did you mean 'evaluate control'?" in capsys.readouterr().err


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate"]) == 2
    assert "evaluate horizon" in capsys.readouterr().err
    for arguments in (["evaluate", "--help"], ["help", "evaluate"]):
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert "evaluate control" in printed
        assert "  record " not in printed


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("data", " DATASET "),
        ("train", " DATASET "),
        ("simulate", " WORLD "),
        ("evaluate control", " WORLD "),
        ("train", "--size {mini,small,base,large,xl}"),
        ("serve", "Advanced: limits on clients."),
    ],
)
def test_help_names_values_and_choices(name: str, shown: str) -> None:
    assert shown in cli._help_of(name)


def test_help_takes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["help", "data"], ["help", "evaluate", "control"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        assert f"usage: kinema {' '.join(arguments[1:])}" in capsys.readouterr().out
    assert cli.main(["help", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("typo", ["--hlep", "--hepl", "-help", "--halp"])
def test_a_typo_in_help_is_corrected(typo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", typo]) == 2
    assert capsys.readouterr().err == f"error: no option '{typo}'; did you mean '--help'?\n"


def complete(*words: str) -> list[str]:
    """Complete the last word by the script for bash."""
    script = f"source /dev/stdin; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
    script += 'kinema_words() { _kinema; printf "%s\\n" "${COMPREPLY[@]}"; }; kinema_words'
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert cli.main(["completion", "bash"]) == 0
    done = subprocess.run(
        ["bash", "-c", script], input=text.getvalue(), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_bash_completes_commands_and_options() -> None:
    assert complete("kinema", "tr") == ["train"]
    assert set(complete("kinema", "evaluate", "")) >= {"horizon", "control", "speed"}
    assert complete("kinema", "evaluate", "control", "--devi") == ["--device"]
    assert complete("kinema", "simulate", "--protocol.e") == ["--protocol.episodes"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for option in ("update-share", "protocol.episodes", "num-denoising-steps"):
        assert option in script
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=script, text=True, check=True)


def test_completion_names_the_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 2
    assert "bash|zsh|fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("episode 3: two\nlines"), "error: episode 3: two lines"),
        (FileNotFoundError(2, "No such file or directory", "data"), "error: data: No such file or directory"),
        (FileNotFoundError("worlds/x: no world there"), "error: worlds/x: no world there"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (
            ModuleNotFoundError("No module named 'gym_pusht'", name="gym_pusht.envs"),
            "error: No module named 'gym_pusht'; install it with: pip install 'kinema[pusht]'",
        ),
        (
            ModuleNotFoundError("a hub id needs: pip install 'kinema[hub]'", name="huggingface_hub"),
            "error: a hub id needs: pip install 'kinema[hub]'",
        ),
        (ValueError(), "error: ValueError"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(
    error: Exception,
    line: str,
    command: Callable[[Callable[[Config], None]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KINEMA_TRACEBACK", raising=False)
    command(raising(error))
    assert cli.main(["try"]) == 2
    assert capsys.readouterr().err == line + "\n"


def test_traceback_on_request(
    command: Callable[[Callable[[Config], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMA_TRACEBACK", "1")
    command(raising(ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        cli.main(["try"])


def test_a_defect_is_said_to_be_one(
    command: Callable[[Callable[[Config], None]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KINEMA_TRACEBACK", raising=False)
    command(raising(AssertionError("a bug")))
    assert cli.main(["try"]) == 1
    printed = capsys.readouterr().err
    assert "error: AssertionError: a bug" in printed
    assert "KINEMA_TRACEBACK=1" in printed
    monkeypatch.setenv("KINEMA_TRACEBACK", "1")
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["try"])


def test_interrupt_says_how_to_go_on(
    command: Callable[[Callable[[Config], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "\nInterrupted. Go on.\n"


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    program = (
        "import sys, types, dataclasses\n"
        "from kinema import cli\n"
        "Config = dataclasses.make_dataclass('Config', [], frozen=True)\n"
        "def function(config):\n"
        "    for _ in range(100_000):\n"
        "        print('a line')\n"
        "sys.modules['kinema_try'] = types.ModuleType('kinema_try')\n"
        "sys.modules['kinema_try'].__dict__.update(Config=Config, function=function)\n"
        "cli.COMMANDS['try'] = cli.Command(summary='', module='kinema_try', config='Config',\n"
        "                                  function='function', after_interrupt='')\n"
        "sys.exit(cli.main(['try']))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        os.close(reader)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kinema", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("kinema ")
