"""The command line: each command is one configuration and one function, in the module that does the work.

Only the module of the command is imported, and for its help not even that: ``--help`` answers at once.
"""

import contextlib
import dataclasses
import difflib
import importlib
import io
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import requires, version
from typing import TypeVar

from kinema.hardware.openmp import spin_briefly
from kinema.options import completion_script, configuration, option_names

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Where a command lives and what is said about it."""

    summary: str
    """One line for ``kinema --help``."""
    module: str
    config: str
    """Name of the configuration's dataclass in the module; its fields are the options."""
    function: str
    """Name of the function in the module that takes the configuration; an int that it returns is the exit
    code."""
    after_interrupt: str
    """What to tell after Ctrl-C."""


COMMANDS = {
    "record": Command(
        summary="Record episodes of a Gymnasium environment as a LeRobot dataset.",
        module="kinema.data.record",
        config="RecordConfig",
        function="record",
        after_interrupt="Every finished episode is on disk; the same command continues.",
    ),
    "data": Command(
        summary="Say what a dataset holds, and every defect in it.",
        module="kinema.data.check",
        config="DataConfig",
        function="inspect",
        after_interrupt="Nothing in the dataset was changed.",
    ),
    "train": Command(
        summary="Learn a world from a dataset.",
        module="kinema.train.command",
        config="TrainConfig",
        function="train",
        after_interrupt="The same command resumes from the last checkpoint.",
    ),
    "simulate": Command(
        summary="Simulate recorded episodes with a world and compare: videos, curves, a report.",
        module="kinema.evaluation.simulate",
        config="SimulateConfig",
        function="simulate",
        after_interrupt="The same command starts again.",
    ),
    "view": Command(
        summary="Show an episode, or what a world makes of it, in the Rerun viewer.",
        module="kinema.evaluation.viewer",
        config="ViewConfig",
        function="show",
        after_interrupt="No file was written.",
    ),
    "plan": Command(
        summary="Plan in a world towards a goal picture, and do it in the real environment.",
        module="kinema.evaluation.plan",
        config="PlanConfig",
        function="plan",
        after_interrupt="The same command starts again.",
    ),
    "learn": Command(
        summary="Let a policy learn inside a world, and ask what it is worth for real.",
        module="kinema.train.learn",
        config="LearnConfig",
        function="learn",
        after_interrupt="The same command resumes from the last checkpoint.",
    ),
    "evaluate horizon": Command(
        summary="Measure how long a world stays possible and right, beside reality.",
        module="kinema.evaluation.horizon",
        config="HorizonConfig",
        function="horizon",
        after_interrupt="What was measured so far is in the folder --out.",
    ),
    "evaluate control": Command(
        summary="Measure whether a world obeys its actions, what to trust and what to record next.",
        module="kinema.evaluation.control",
        config="ControlConfig",
        function="control",
        after_interrupt="The same command starts again.",
    ),
    "evaluate skill": Command(
        summary="Measure how much better a world forecasts than the last frame repeated.",
        module="kinema.evaluation.skill",
        config="SkillConfig",
        function="skill",
        after_interrupt="The same command starts again.",
    ),
    "evaluate calibration": Command(
        summary="Measure whether the forks of a world are as different as they are wrong.",
        module="kinema.evaluation.calibration",
        config="CalibrationConfig",
        function="calibration",
        after_interrupt="The same command starts again.",
    ),
    "evaluate planning": Command(
        summary="Measure whether goals are reached by planning in a world.",
        module="kinema.evaluation.planning",
        config="PlanningConfig",
        function="planning",
        after_interrupt="What was measured so far is in the folder --out; the same command goes on.",
    ),
    "evaluate policy": Command(
        summary="Measure whether a world ranks policies as the real environment does.",
        module="kinema.evaluation.policy",
        config="PolicyConfig",
        function="policy",
        after_interrupt="What was measured so far is in the folder --out; the same command goes on.",
    ),
    "evaluate speed": Command(
        summary="Measure frames a second, latency and memory.",
        module="kinema.evaluation.speed",
        config="SpeedConfig",
        function="speed",
        after_interrupt="The same command starts again.",
    ),
    "serve": Command(
        summary="Serve a world over HTTP and WebSocket, many clients at once.",
        module="kinema.serve.command",
        config="ServeConfig",
        function="serve",
        after_interrupt="The server has stopped; its sessions are gone.",
    ),
    "play": Command(
        summary="Drive a world in the browser.",
        module="kinema.serve.play",
        config="PlayConfig",
        function="play",
        after_interrupt="The page's sessions are gone.",
    ),
    "mcp": Command(
        summary="Give a language model a world as tools (Model Context Protocol).",
        module="kinema.serve.mcp",
        config="McpConfig",
        function="serve_mcp",
        after_interrupt="The server has stopped; its sessions are gone.",
    ),
    "demo": Command(
        summary="Simulate the held-out recording of the bundled world: nothing else is needed.",
        module="kinema.evaluation.demo",
        config="DemoConfig",
        function="demo",
        after_interrupt="The same command starts again.",
    ),
}

REQUIREMENT_OF_MODULE = {"rerun": "rerun-sdk"}
"""Names by which pip knows modules that are called otherwise."""
RENAMED = {"imagine": "learn"}
"""New names of commands, by the old ones."""
RENAMED_OPTIONS = {("train", "--world"): "--from"}
"""New names of options, by the command and the old ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake of the user's, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"], ["help"], []):
        arguments = [*arguments[1:], "--help"]
    if arguments == ["--help"]:
        print(_help(COMMANDS))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"kinema {version('kinema')}")
        return 0
    if arguments[0] == "completion":
        return _print_completion(arguments[1:])
    name, rest = split(arguments)
    if name in RENAMED:
        print(f"error: `kinema {name}` is now `kinema {RENAMED[name]}`", file=sys.stderr)
        return 2
    for (command, old), new in RENAMED_OPTIONS.items():
        if command == name and any(word.split("=")[0] == old for word in rest):
            print(f"error: `kinema {name} {old}` is now `kinema {name} {new}`", file=sys.stderr)
            return 2
    group = {other: command for other, command in COMMANDS.items() if other.startswith(f"{name} ")}
    if group and (not rest or rest[0] in ("-h", "--help")):
        print(_help(group), file=sys.stdout if rest else sys.stderr)
        return 0 if rest else 2
    if name not in COMMANDS:
        return _refuse(" ".join(arguments[: 2 if group else 1]), group or COMMANDS)
    return _run(name, COMMANDS[name], rest)


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command that arguments begin with, some have two words, and what follows it."""
    num_words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    return " ".join(arguments[:num_words]), list(arguments[num_words:])


def _refuse(name: str, commands: Iterable[str]) -> int:
    """Say that there is no such command, and which one was meant."""
    names = [*commands, *({"help", "completion"} if commands is COMMANDS else ())]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    meant = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(names)}"
    print(f"error: no command {name!r}{meant}", file=sys.stderr)
    return 2


def _run(name: str, command: Command, arguments: list[str]) -> int:
    typo = next(
        (word for word in arguments if difflib.get_close_matches(word, ["--help"], cutoff=0.8)), "--help"
    )
    if typo != "--help":
        print(f"error: no option '{typo}'; did you mean '--help'?", file=sys.stderr)
        return 2
    try:
        # PyTorch takes seconds to import, so help and mistakes in options are answered before that.
        with (
            contextlib.suppress(NameError, AttributeError, ImportError, KeyError, TypeError),
            configuration(command.module, command.config) as config,
        ):
            _parse(name, config, arguments)
        _show_log()
        if command.module.startswith("kinema.serve."):
            spin_briefly()  # Before the module imports PyTorch.
        module = importlib.import_module(command.module)
        config = _parse(name, getattr(module, command.config), arguments)
        result = getattr(module, command.function)(config)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {command.after_interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`kinema data DIR | head`). Python would complain once more when
        # it flushes at exit, so standard output is pointed at nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("KINEMA_TRACEBACK"):
            raise
        # These are how the package tells users of their mistakes; anything else is a defect of its own.
        if isinstance(error, ValueError | FloatingPointError | OSError | ImportError):
            print(f"error: {_explain(error)}", file=sys.stderr)
            return 2
        print(
            f"error: {type(error).__name__}: {_explain(error)}\nThis is a defect of kinema. Please report it "
            "with the output of the same command after KINEMA_TRACEBACK=1, which shows where it happened.",
            file=sys.stderr,
        )
        return 1
    return result if isinstance(result, int) else 0


def _parse(name: str, config: type[Config], arguments: Sequence[str]) -> Config:
    """The configuration of a command; ends the process after help, or with 2 where options are wrong."""
    import tyro

    return tyro.cli(config, prog=f"kinema {name}", description=COMMANDS[name].summary, args=arguments)


def _show_log() -> None:
    """Print what the package logs, such as the device, to standard error."""
    log = logging.getLogger("kinema")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.stream = sys.stderr  # The present one: one process may run several commands.


def _print_completion(arguments: Sequence[str]) -> int:
    shells = ("bash", "zsh", "fish")
    if len(arguments) != 1 or arguments[0] not in shells:
        print(f"usage: kinema completion {'|'.join(shells)}", file=sys.stderr)
        print('for bash: eval "$(kinema completion bash)" in ~/.bashrc', file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    options = {name: option_names(_help_of(name)) for name in COMMANDS}
    print(completion_script(arguments[0], options | {"help": [], "completion": []}))
    return 0


def _help_of(name: str) -> str:
    """Help of a command."""
    command, text = COMMANDS[name], io.StringIO()
    with (
        configuration(command.module, command.config) as config,
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        _parse(name, config, ["--help"])
    return text.getvalue()


def _explain(error: Exception) -> str:
    """The error in one line, with what to do where Python's own message does not say it."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = _extra_of(error.name.partition(".")[0])
        if extra is not None and "pip install" not in message:
            message += f"; install it with: pip install 'kinema[{extra}]'"
    return message


def _extra_of(module: str) -> str | None:
    """Find the extra of kinema that brings a module with the fewest others."""
    name = REQUIREMENT_OF_MODULE.get(module, module).replace("_", "-")
    found = re.findall(r"(?m)^([\w.-]+).*extra == ['\"]([\w-]+)", "\n".join(requires("kinema") or ()))
    sizes = Counter(extra for _, extra in found)
    extras = [extra for package, extra in found if package.replace("_", "-") == name]
    return min(extras, key=lambda extra: sizes[extra], default=None)


def _help(commands: Mapping[str, Command]) -> str:
    lines = [
        "usage: kinema COMMAND [OPTIONS]",
        "",
        "Learns a robot's world from its recorded episodes, then simulates that world in real time.",
        "",
        *(f"  {name:<22}{command.summary}" for name, command in commands.items()),
        "",
        "`kinema help COMMAND` lists the options of a command; `kinema --version` prints the version.",
        "`kinema completion bash|zsh|fish` prints a script that completes commands and options.",
        "KINEMA_TRACEBACK=1 in the environment shows where an error came from.",
    ]
    return "\n".join(lines)
