"""The one thread that runs the networks: whoever is ready steps in one batch (continuous batching).

While a batch runs, further steps gather; they are the next batch. Other work (starting, decoding, inverse
dynamics) takes turns with the batches, one piece at a time, so neither waits for all of the other.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from kinema.serve.limits import Limits, Refusal, closing
from kinema.serve.metrics import Metrics
from kinema.simulation.batching import step_together
from kinema.simulation.session import Simulation
from kinema.simulation.step import Step

MAX_LINGER = 0.006
"""Seconds that a batch waits, at most, for sessions that stepped a moment ago and will be back at once."""
LINGER_SHARE = 0.25
"""The same as a share of the time that a batch takes."""

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class _Pending:
    simulation: Simulation
    action: np.ndarray
    decode: bool
    future: "asyncio.Future[Step]"

    @property
    def kind(self) -> tuple[int, bool]:
        """Only steps of one kind can go together."""
        return self.simulation.num_denoising_steps, self.decode


@dataclasses.dataclass(eq=False)
class _Job:
    work: Callable[[], Any]
    future: "asyncio.Future[Any]"


class Engine:
    """Runs steps in batches and other work between them; used from one event loop."""

    def __init__(self, limits: Limits, metrics: Metrics, num_threads: int | None = None):
        """``num_threads`` are those of PyTorch's that it computes on; by default as many as it finds."""
        self._limits, self._metrics = limits, metrics
        self._steps: deque[_Pending] = deque()
        self._jobs: deque[_Job] = deque()
        self._arrival = asyncio.Event()
        self._executor = ThreadPoolExecutor(
            1,
            thread_name_prefix="kinema-engine",
            initializer=torch.set_num_threads,
            initargs=(num_threads or torch.get_num_threads(),),
        )
        self._last_batches: deque[set[int]] = deque(maxlen=2)
        self._last_seconds = 0.0
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    def stop(self) -> None:
        """Refuse the work that waits and all that comes; the work that runs is finished."""
        self._is_closing = True
        for pending in (*self._steps, *self._jobs):
            if not pending.future.done():
                pending.future.set_exception(closing())

    async def close(self) -> None:
        """Stop, and wait for the work that runs."""
        self.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._executor.shutdown)

    async def step(
        self, simulations: Sequence[Simulation], actions: Sequence[np.ndarray], *, decode: bool = True
    ) -> list[Step]:
        """One step of each session, together with others that wait. The caller sees to it that a session
        waits for one step at a time and that the actions fit. Raises Refusal (503) where too many wait."""
        started = time.perf_counter()
        self._check_room(len(simulations))
        loop = asyncio.get_running_loop()
        pending = [
            _Pending(simulation, action, decode, loop.create_future())
            for simulation, action in zip(simulations, actions, strict=True)
        ]
        self._steps.extend(pending)
        self._arrival.set()
        try:
            steps = [await each.future for each in pending]
        finally:
            for each in pending:
                each.future.cancel()
        self._metrics.wait_seconds.observe(time.perf_counter() - started)
        return steps

    async def run(self, work: Callable[[], T]) -> T:
        """Other work with the networks, in its turn. Raises Refusal (503) where too many wait."""
        self._check_room(1)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(work, future))
        self._arrival.set()
        return await future

    def _check_room(self, num: int) -> None:
        if self._is_closing:
            raise closing()
        waiting = len(self._steps) + len(self._jobs)
        if waiting + num > self._limits.max_queue:
            raise Refusal(
                503,
                f"{waiting} requests wait for the networks already, which is the most; try again in a moment",
                reason="queue",
                retry_after=1.0,
            )

    async def _work(self) -> None:
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            while self._steps or self._jobs:
                self._metrics.queue.set(len(self._steps) + len(self._jobs))
                if self._steps:
                    await self._linger()
                    await self._step_batch()
                if self._jobs:
                    await self._run_job()
            self._metrics.queue.set(0)

    async def _linger(self) -> None:
        """Wait a moment for those that were in the last batches: they tend to come back together, and a batch
        that leaves without them makes them wait for all of it."""
        expected = set().union(*self._last_batches)
        deadline = time.perf_counter() + min(MAX_LINGER, LINGER_SHARE * self._last_seconds)
        while len(expected) > len(self._steps):
            left = deadline - time.perf_counter()
            if left <= 0 or expected <= {id(pending.simulation) for pending in self._steps}:
                break
            self._arrival.clear()
            # Not wait_for: in Python 3.11 it may swallow that this task is cancelled, and closing would hang.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival.wait()

    async def _step_batch(self) -> None:
        batch = self._take_batch()
        if not batch:
            return
        self._last_batches.append({id(pending.simulation) for pending in batch})
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        results = await loop.run_in_executor(self._executor, _step_all, batch)
        self._last_seconds = time.perf_counter() - started
        self._metrics.batch.observe(len(batch))
        self._metrics.batch_seconds.observe(self._last_seconds)
        for pending, result in zip(batch, results, strict=True):
            if not isinstance(result, Exception):
                self._metrics.steps.inc()
            _settle(pending.future, result)

    def _take_batch(self) -> list[_Pending]:
        """The steps that waited longest, as far as they can go together."""
        batch: list[_Pending] = []
        left: list[_Pending] = []
        while self._steps and len(batch) < self._limits.max_batch:
            pending = self._steps.popleft()
            if pending.future.done():  # Whoever asked has gone.
                continue
            fits = not batch or pending.kind == batch[0].kind
            (batch if fits else left).append(pending)
        self._steps.extendleft(reversed(left))
        return batch

    async def _run_job(self) -> None:
        job = self._jobs.popleft()
        if not job.future.done():
            loop = asyncio.get_running_loop()
            _settle(job.future, await loop.run_in_executor(self._executor, _result_of, job.work))


def _step_all(batch: Sequence[_Pending]) -> list[Step | Exception]:
    try:
        steps = step_together(
            [pending.simulation for pending in batch],
            np.stack([pending.action for pending in batch]),
            decode=batch[0].decode,
        )
        return [*steps]
    except Exception as error:
        if len(batch) == 1:
            return [error]
        # Whatever it was that one of them cannot do, the others can.
        return [result for pending in batch for result in _step_all([pending])]


def _result_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
