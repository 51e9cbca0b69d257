import dataclasses
import importlib
import os
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


def test_options_reach_the_function(command: Callable[[Callable[[Config], None]], None]) -> None:
    seen: list[Config] = []
    command(seen.append)
    assert cli.main(["try", "--number", "7"]) == 0
    assert seen == [Config(number=7)]


def test_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simluate"]) == 2
    assert "no command 'simluate'; there are record, data, train" in capsys.readouterr().err


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


def test_a_defect_keeps_its_traceback(command: Callable[[Callable[[Config], None]], None]) -> None:
    command(raising(AssertionError("a bug")))
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
