"""Writers that end badly, each in a process of its own; a program that ``test_crashes.py`` runs once.

Children are forked, so that they need not import everything again, and so that a kill is a kill.
"""

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# pyarrow imports it at its first conversion: once here, not in every child.
import pandas  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))

from conftest import FPS, make_recording  # pyright: ignore[reportAttributeAccessIssue]

from kinema.data import DatasetWriter


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def record_two_more(root: Path) -> None:
    with DatasetWriter(root, fps=FPS) as writer:
        for number in (2, 3):
            writer.add(**make_recording(number))


def die_at_rename(nth: int, *, is_after: bool) -> None:
    """Let this process be killed at its ``nth`` rename, just before or just after it."""
    count = 0

    def wrap(rename: Callable[..., None]) -> Callable[..., None]:
        def dying(*arguments: object) -> None:
            nonlocal count
            count += 1
            if count == nth and not is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments)
            if count == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        return dying

    os.rename, os.replace = wrap(os.rename), wrap(os.replace)


def killed_at_every_rename(folder: Path) -> int:
    """One folder for each rename and side of it, with two episodes recorded before and two under way."""
    base = folder / "base"
    in_child(lambda: record_first_two(base))
    for nth in range(1, 30):
        codes = []
        for is_after in (False, True):
            root = folder / f"{nth}-{'after' if is_after else 'before'}"
            shutil.copytree(base, root)

            def work(root: Path = root, nth: int = nth, is_after: bool = is_after) -> None:
                die_at_rename(nth, is_after=is_after)
                record_two_more(root)

            codes.append(in_child(work))
        if codes == [0, 0]:
            return nth - 1
    raise AssertionError("more renames than expected")


def record_first_two(root: Path) -> None:
    with DatasetWriter(root, fps=FPS) as writer:
        for number in (0, 1):
            writer.add(**make_recording(number))


def killed_while_adding(root: Path) -> int:
    """Kill a writer that goes on adding; returns how many episodes it had reported as added."""
    reader, teller = os.pipe()
    child = os.fork()
    if child == 0:
        writer = DatasetWriter(root, fps=FPS)
        for number in range(10_000):
            writer.add(**make_recording(number))
            os.write(teller, b".")
    os.close(teller)
    reported = 0
    while reported < 4:
        reported += len(os.read(reader, 1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reported += len(os.read(reader, 10_000))
    return reported


def full_disk(root: Path, message: Path, *, limit: int, is_last_long: bool) -> None:
    """Record with files limited to ``limit`` bytes, which is what a full disk looks like to a program."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with DatasetWriter(root, fps=FPS) as writer:
                for number in range(6):
                    writer.add(**make_recording(number))
                if is_last_long:
                    writer.add(**make_recording(6, length=400))
        except ValueError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            message.write_text(f"{type(error).__name__}: {error}")

    in_child(work)


def main(folder: Path) -> None:
    num_renames = killed_at_every_rename(folder)
    reported = killed_while_adding(folder / "adding")
    full_disk(folder / "full-add", folder / "full-add.txt", limit=15_000, is_last_long=True)
    full_disk(folder / "full-close", folder / "full-close.txt", limit=9_000, is_last_long=False)
    (folder / "result.json").write_text(json.dumps({"num_renames": num_renames, "reported": reported}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
