"""Run numbered jobs in worker processes and return their results in the order of the numbers.

``concurrent.futures`` would not do: one process that dies breaks its whole pool, without saying which job
it had or why it died, and the results of the other jobs are lost with it.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
POLL_SECONDS = 0.1
"""Time until a request to stop is noticed while no result arrives."""
STOP_SECONDS = 3.0
"""Time that a worker may take to close its task before it is killed."""


@runtime_checkable
class Task(Protocol[T_co]):
    """Work of a process: made once in it, then called for each of its jobs."""

    def __call__(self, job: int, /) -> T_co: ...

    def close(self) -> None: ...


class JobError(Exception):
    """A job or its worker failed.

    ``job`` is None when the worker could not even begin; ``trace`` is the traceback in the worker, empty
    where the process died.
    """

    def __init__(self, job: int | None, message: str, trace: str):
        super().__init__(job, message, trace)  # What a process sends to another is made again from these.
        self.job, self.message, self.trace = job, message, trace


@dataclasses.dataclass(frozen=True)
class _Result(Generic[T]):
    value: T


def run_in_order(
    make: Callable[[], Task[T]],
    jobs: range,
    *,
    num_workers: int,
    is_stopped: Callable[[], bool],
) -> Generator[T, None, None]:
    """Run the jobs in processes, yield their results in order of the jobs; ``make`` must be picklable.

    After ``is_stopped()`` the results that have arrived are still yielded, up to the first one missing. A
    failure is raised as ``JobError`` in its turn, so the results before it do not depend on the number of
    workers. Workers run at most two jobs each ahead of the result that is due, to bound memory. Close the
    iterator to end the processes.
    """
    workers: list[_Worker] = []
    try:
        workers += [_Worker(make) for _ in range(min(num_workers, len(jobs)))]
        outcomes: dict[int, _Result[T] | JobError] = {}
        due = begun = jobs.start
        while due < jobs.stop:
            stopped = is_stopped()
            if not stopped and not any(isinstance(outcome, JobError) for outcome in outcomes.values()):
                begun = _dispatch(workers, begun, min(jobs.stop, due + 2 * num_workers))
            busy: dict[Any, _Worker] = {
                worker.connection: worker for worker in workers if worker.job is not None
            }
            for connection in wait(list(busy), 0.0 if stopped or due in outcomes else POLL_SECONDS):
                job, outcome = busy[connection].receive()
                outcomes[job] = outcome
            if due in outcomes:
                outcome = outcomes.pop(due)
                if isinstance(outcome, JobError):
                    raise outcome
                due += 1
                yield outcome.value
            elif stopped:
                return
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()


def _dispatch(workers: "Sequence[_Worker]", begun: int, limit: int) -> int:
    """Begin jobs up to a limit on the workers that are free; returns the first job not begun."""
    for worker in workers:
        if begun < limit and worker.job is None and worker.alive:
            worker.start(begun)
            begun += 1
    return begun


class _Worker:
    """Parent's side of a process."""

    def __init__(self, make: Callable[[], Task[Any]]):
        # Spawned, because a fork copies the locks of whatever threads the caller has, and simulators and
        # tensor libraries bring threads.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: int | None = None
        self.alive = True
        self._process = context.Process(target=_work, args=(theirs, make))
        with _interrupts_blocked():
            self._process.start()
        theirs.close()

    def start(self, job: int) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # receive() reports the death of the process.
            self.connection.send(job)

    def receive(self) -> tuple[int, Any]:
        assert self.job is not None
        job, self.job = self.job, None
        try:
            outcome = self.connection.recv()
        except (EOFError, ConnectionError):
            self.alive = False
            self._process.join(10 * STOP_SECONDS)  # To learn why; it has let go of the pipe, so it is ending.
            outcome = JobError(job, f"the worker process died ({_exit_reason(self._process.exitcode)})", "")
        if isinstance(outcome, JobError) and outcome.job is None:
            raise outcome
        return job, outcome

    def end(self) -> None:
        if self.job is not None:
            self._process.terminate()
        self.connection.close()  # An idle worker reads the end of the pipe and closes what it holds.

    def join(self) -> None:
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _work(connection: Connection, make: Callable[[], Task[Any]]) -> None:
    """Make the task in the process, then answer every job with a result or an error."""
    # Ctrl-C reaches every process of a terminal; when to stop is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    try:
        with contextlib.suppress(EOFError, ConnectionError):  # The parent has closed its end, or is gone.
            try:
                task = make()
            except Exception as error:
                connection.send(JobError(None, describe(error), traceback.format_exc()))
                return
            with contextlib.closing(task):
                while True:
                    job = connection.recv()
                    try:
                        outcome = _Result(task(job))
                    except Exception as error:
                        outcome = JobError(job, describe(error), traceback.format_exc())
                    connection.send(outcome)
    finally:
        connection.close()


def describe(error: BaseException) -> str:
    """Name an error: its text, and its type unless it only says that a value is wrong."""
    text = str(error)
    return text if text and isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: {text}"


def _exit(*_: object) -> None:
    raise SystemExit(0)


def _exit_reason(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}: the system may be out of memory" if name == "SIGKILL" else name


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process started inside inherits the block, so Ctrl-C cannot break into its imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
