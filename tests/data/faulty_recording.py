"""Trials of random faults while recording, folding and reading: no finished episode may be lost.

``python tests/data/faulty_recording.py FOLDER NUM_TRIALS SEED`` prints one JSON object; ``test_faults.py``
runs a few trials of it. In a trial several sessions, one after the other or two at once, write to one folder
of an odd name or read from it, and each meets a fault. At the end all is well again, and every episode whose
``add`` had returned must be there once, equal to the last number and pixel.

Faults come from the system itself where it has them (a kill at a random time, a limit on the size of files
or on their number, permissions taken from another user), and otherwise from Python's audit events: the n-th
access to a file ends in a kill or an error.
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# pyarrow imports it at its first conversion: once here, not in every child.
import pandas  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from conftest import FPS, make_recording  # pyright: ignore[reportAttributeAccessIssue]

from kinema.data import DataError, Dataset, DatasetWriter, recover
from kinema.data.check import DataConfig, inspect
from kinema.data.defects import find_defects

NAMES = (
    "plain",
    "2026-01-01T10:22:05",
    "with space",
    "überprüfung 数据",
    'it\'s "quoted"',
    "100%03d",
    "{chunk_index}",
    "s3:bucket",
    "~",
    "a&b#c?d",
    "-dash",
    "new\nline",
    "[0-9]*",
)
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE, errno.EROFS, errno.EDQUOT)
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "fcntl.flock"}
NOBODY = 65534
Session = Callable[[], None]


def fork(work: Session, log: Path) -> int:
    """Start a session in a process of its own; an error that is not kinema's own goes into the log."""
    child = os.fork()
    if child == 0:
        # A session may have no descriptor left to write with.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        with open(log, "a") as file:
            try:
                work()
            except (DataError, OSError, MemoryError):
                pass
            except BaseException:
                with contextlib.suppress(OSError):
                    file.write(traceback.format_exc())
                    file.flush()
        os._exit(0)
    return child


def fail_at(nth: int, root: Path, fault: Callable[[], None]) -> None:
    """Let the ``nth`` access to a file in the folder, or the write of one to the disk, meet a fault."""
    count = 0
    inside = os.path.basename(root)

    def meet() -> None:
        nonlocal count
        count += 1
        if count == nth:
            fault()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (event == "fcntl.flock" or inside in os.fsdecode(_text(arguments[0]))):
            meet()

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        meet()
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(watch)


def _text(path: Any) -> Any:
    return path if isinstance(path, str | bytes | os.PathLike) else ""


def arm(rng: random.Random, root: Path) -> None:
    """Prepare one random fault for this process."""
    kind = rng.choice(
        ("none", "kill", "kill", "alarm", "error", "error", "memory", "size", "files", "permission")
    )
    nth = rng.randint(1, 60)
    if kind == "kill":
        fail_at(nth, root, lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif kind == "alarm":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, 0.3))
    elif kind == "error":
        number = rng.choice(ERRORS)
        fail_at(nth, root, lambda: _raise(OSError(number, os.strerror(number), str(root))))
    elif kind == "memory":
        fail_at(nth, root, lambda: _raise(MemoryError()))
    elif kind == "size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randint(100, 30_000), resource.RLIM_INFINITY))
    elif kind == "files":
        used = (
            max(int(name) for name in os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 20
        )
        limit = used + rng.randint(1, 5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    elif kind == "permission":
        # To root everything is permitted: from here on this process is somebody else.
        if os.geteuid() == 0:
            for path in (root, *root.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        chosen = rng.random()
        fail_at(nth, root, lambda: _forbid(root, chosen))


def _raise(error: BaseException) -> None:
    raise error


def _forbid(root: Path, chosen: float) -> None:
    paths = sorted(root.rglob("*"))
    if paths:
        path = paths[int(chosen * len(paths))]
        with contextlib.suppress(OSError):
            path.chmod(0o500 if chosen < 0.3 else 0o000)


def permit(root: Path) -> None:
    """Take back what faults did to permissions."""
    root.chmod(0o777)
    for folder, _, names in os.walk(root):
        for name in names:
            (Path(folder) / name).chmod(0o666)
        for child in os.scandir(folder):
            if child.is_dir(follow_symlinks=False):
                os.chmod(child.path, 0o777)


def record(root: Path, ids: list[int], teller: int, *, limit_mb: float) -> None:
    """Add episodes and tell the number of each whose ``add`` has returned."""
    with DatasetWriter(
        root, fps=FPS, data_files_size_in_mb=limit_mb, video_files_size_in_mb=limit_mb
    ) as writer:
        for number in ids:
            writer.add(**make_recording(number))
            os.write(teller, number.to_bytes(4, "little"))


def read(root: Path, sheet: Path) -> None:
    """Read in every way that there is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(DataError, OSError, MemoryError):
            inspect(DataConfig(path=str(root), out=sheet))
        dataset = Dataset.open(root)
        for index in range(dataset.num_episodes):
            dataset.episode(index)
        find_defects(root)


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha1(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in root.rglob("*")
    }


class Trial:
    """Some sessions on one folder."""

    def __init__(self, folder: Path, seed: int):
        self.rng = random.Random(seed)
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        os.chdir(folder)
        self.folder = folder
        name = self.rng.choice(NAMES)
        self.root = Path(name) if self.rng.random() < 0.5 else folder / name
        self.root.mkdir(mode=0o777)
        self.log = folder / "log"
        self.issued: list[int] = []
        self.reported: list[int] = []
        self.problems: list[str] = []

    def run(self) -> dict[str, Any]:
        for _ in range(self.rng.randint(2, 4)):
            if self.rng.random() < 0.3:
                self.read()
            else:
                self.record(2 if self.rng.random() < 0.3 else 1)
            permit(self.root)
        child = os.fork()
        if child == 0:
            try:
                self.check()
            except BaseException:
                self.problems.append(traceback.format_exc())
            (self.folder / "problems.json").write_text(json.dumps(self.problems))
            os._exit(0)
        os.waitpid(child, 0)
        self.problems = json.loads((self.folder / "problems.json").read_text())
        if self.log.stat().st_size:
            self.problems.append("a session ended in another error than its own:\n" + self.log.read_text())
        return {"name": self.root.name, "episodes": len(self.reported), "problems": self.problems}

    def record(self, num_writers: int) -> None:
        reader, teller = os.pipe()
        children = []
        for _ in range(num_writers):
            ids = list(range(len(self.issued), len(self.issued) + self.rng.randint(1, 4)))
            self.issued += ids
            rng = random.Random(self.rng.random())
            limit_mb = self.rng.choice((100.0, 0.005))

            def work(ids: list[int] = ids, rng: random.Random = rng, limit_mb: float = limit_mb) -> None:
                arm(rng, self.root)
                record(self.root, ids, teller, limit_mb=limit_mb)

            children.append(fork(work, self.log))
        os.close(teller)
        for child in children:
            os.waitpid(child, 0)
        with open(reader, "rb") as file:
            told = file.read()
        self.reported += [int.from_bytes(told[i : i + 4], "little") for i in range(0, len(told), 4)]

    def read(self) -> None:
        before = contents(self.root)
        rng = random.Random(self.rng.random())

        def work() -> None:
            arm(rng, self.root)
            read(self.root, self.folder / "sheet.png")

        os.waitpid(fork(work, self.log), 0)
        permit(self.root)
        if contents(self.root) != before:
            self.problems.append("reading has changed the folder")

    def check(self) -> None:
        """Recover what there is and compare it with what was reported."""
        if not self.issued or not (self.root / "meta/info.json").is_file():
            if self.reported:
                self.problems.append(f"there is no dataset, but {self.reported} were finished")
            return
        recover(self.root)
        dataset = Dataset.open(self.root)
        expected = {number: make_recording(number) for number in self.issued}
        held: list[int] = []
        for index in range(dataset.num_episodes):
            episode = dataset.episode(index)
            action = episode.columns["action"]
            number = next(n for n in expected if np.array_equal(expected[n]["columns"]["action"], action))
            for key, frames in expected[number]["frames"].items():
                np.testing.assert_array_equal(episode.frames[key], frames)
            for key, values in expected[number]["columns"].items():
                np.testing.assert_array_equal(episode.columns[key], values)
            assert episode.task == expected[number]["task"]
            held.append(number)
        lost = sorted(set(self.reported) - set(held))
        if lost:
            self.problems.append(f"lost: {lost}")
        if len(held) != len(set(held)):
            self.problems.append(f"twice: {held}")
        if len(set(held) - set(self.reported)) > len(self.issued) - len(self.reported):
            self.problems.append(f"more than was written: {held}, reported {self.reported}")
        # Frames that belong to no row may stay behind where a fold was killed: a warning, no error.
        defects = [defect for defect in find_defects(self.root) if defect.severity == "error"]
        self.problems += [str(defect) for defect in defects if defect.kind != "empty"]
        left = list((self.root / ".staging").glob("*"))
        if left:
            self.problems.append(f"left: {left}")


def main(folder: Path, num_trials: int, seed: int) -> None:
    problems: dict[int, Any] = {}
    num_episodes = 0
    for number in range(seed, seed + num_trials):
        trial = folder / f"trial-{number}"
        result = Trial(trial, number).run()
        num_episodes += result["episodes"]
        if result["problems"]:
            problems[number] = result
        else:
            os.chdir(folder)
            shutil.rmtree(trial)
    print(json.dumps({"trials": num_trials, "episodes": num_episodes, "problems": problems}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
