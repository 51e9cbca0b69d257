"""Batches for training, drawn ahead in threads; the loader resumes where its state says.

The batch of update ``u`` depends on the seed, the stage and ``u`` alone, so it does not matter how many
threads draw, how far ahead, or how often training was stopped.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from kinema.recipes import Phase, Schedule
from kinema.train.parallel import ALONE, Ranks

Draw = Callable[[np.random.Generator, Phase], Any]
"""Draws a batch."""
Split = Callable[[Any, np.random.Generator], Iterable[Any]]
"""Cuts what was drawn into minibatches."""

STAGES = (
    "tokenizer",
    "dynamics",
    "manifold",
    "decoder",
    "heads",
    "clone",
    "act",
    "imagine",
    "imagine-free",
)
"""Names of all stages: each draws by its place in here, which must not change."""


@dataclasses.dataclass(frozen=True)
class Update:
    """The batches of one update."""

    steps: Iterable[tuple[Any, ...]]
    """For each optimizer step (mostly one) the batches of which the gradients are averaged."""
    seeds: list[int]
    """For each of these batches the seed of the noise in the objective."""
    num_frames: int


class Loader:
    """The updates of a stage, one after the other: ``next(loader)``.

    An update averages the gradients of ``accumulate`` batches in each of several processes. Two processes
    draw what one with twice the ``accumulate`` draws.
    """

    def __init__(
        self,
        draw: Draw,
        schedule: Schedule,
        *,
        stage: str,
        seed: int,
        split: Split | None = None,
        accumulate: int = 1,
        ranks: Ranks = ALONE,
        num_threads: int = 1,
        num_ahead: int = 2,
    ):
        """``split`` cuts each batch into several optimizer steps; with ``num_ahead=0`` nothing is drawn
        before it is asked for."""
        self.schedule = schedule
        self._draw, self._split = draw, split
        self._seed = (seed, STAGES.index(stage))
        self._indices = range(ranks.rank * accumulate, (ranks.rank + 1) * accumulate)
        self._num_batches = ranks.num * accumulate
        self._num_threads, self._num_ahead = num_threads, num_ahead
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[Update]] = deque()
        self._update = 0

    def state_dict(self) -> dict[str, int]:
        """The number of updates that were handed out."""
        return {"update": self._update}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the updates that were handed out."""
        self.close()
        self._update = state["update"]

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        if self._update >= self.schedule.updates:
            raise StopIteration
        update, self._update = self._update, self._update + 1
        if not self._num_ahead:
            return self.make(update)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="loader")
        first = update + len(self._ahead)
        for later in range(first, min(update + self._num_ahead + 1, self.schedule.updates)):
            self._ahead.append(self._pool.submit(self.make, later))
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Stop drawing ahead."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def make(self, update: int) -> Update:
        """The batches of an update."""
        phase = self.schedule.phase_at(update)
        seeds, drawn = [], []
        for index in self._indices:
            # The first batch of an update has the seed that updates of a single batch always had.
            sequence = np.random.SeedSequence([*self._seed, update, *([index] if index else [])])
            seeds.append(int(sequence.generate_state(1, np.uint64)[0] >> 1))
            rng = np.random.default_rng(sequence)
            batch = self._draw(rng, phase)
            drawn.append([batch] if self._split is None else self._split(batch, rng))
        steps = zip(*drawn, strict=True)
        return Update(steps, seeds, self._num_batches * phase.batch * phase.length)
