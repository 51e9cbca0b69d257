"""The command line: each command is one configuration and one function, in the module that does the work.

Only the module of the command that was asked for is imported, so that ``kinema --help`` answers at once.
"""

import dataclasses
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import requires, version

from kinema.hardware.openmp import spin_briefly


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
        summary="Measure whether a world obeys its actions.",
        module="kinema.evaluation.control",
        config="ControlConfig",
        function="control",
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
        module="kinema.evaluation.throughput",
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
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"kinema {version('kinema')}")
        return 0
    name, rest = split(arguments)
    if name in RENAMED:
        print(f"error: `kinema {name}` is now `kinema {RENAMED[name]}`", file=sys.stderr)
        return 2
    for (command, old), new in RENAMED_OPTIONS.items():
        if command == name and any(word.split("=")[0] == old for word in rest):
            print(f"error: `kinema {name} {old}` is now `kinema {name} {new}`", file=sys.stderr)
            return 2
    if name not in COMMANDS:
        print(f"error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, COMMANDS[name], rest)


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command that arguments begin with, some have two words, and what follows it."""
    num_words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    return " ".join(arguments[:num_words]), list(arguments[num_words:])


def _run(name: str, command: Command, arguments: list[str]) -> int:
    try:
        import tyro

        if command.module.startswith("kinema.serve."):
            spin_briefly()  # Before the module imports PyTorch.
        module = importlib.import_module(command.module)
        config = tyro.cli(
            getattr(module, command.config),
            prog=f"kinema {name}",
            description=command.summary,
            args=arguments,
        )
        result = getattr(module, command.function)(config)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {command.after_interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`kinema data DIR | head`). Python would complain once more when
        # it flushes at exit, so standard output is pointed at nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        # These are how the package tells users of their mistakes; anything else is a defect of its own
        # and keeps its traceback.
        if os.environ.get("KINEMA_TRACEBACK"):
            raise
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


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


def _help() -> str:
    lines = [
        "usage: kinema COMMAND [OPTIONS]",
        "",
        "Learns a robot's world from its recorded episodes, then simulates that world in real time.",
        "",
        *(f"  {name:<18}{command.summary}" for name, command in COMMANDS.items()),
        "",
        "`kinema COMMAND --help` lists the options of a command; `kinema --version` prints the version.",
        "KINEMA_TRACEBACK=1 in the environment shows where an error came from.",
    ]
    return "\n".join(lines)
