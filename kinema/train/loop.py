"""The one loop of all training: updates, moving average, evaluations, checkpoints.

Update ``u`` draws all its randomness from the seed, the stage and ``u``, so a run that was stopped and
resumed ends with the same weights, to the bit, as one that was not.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kinema.hardware.machine import uses_bfloat16
from kinema.recipes import Schedule
from kinema.train.checkpoint import load_checkpoint, read_state, save_checkpoint
from kinema.train.loader import Loader, Update
from kinema.train.optim import MovingAverage
from kinema.train.parallel import ALONE, Ranks
from kinema.train.progress import MetricsLog
from kinema.types import Precision

CHECKPOINT = "checkpoint"
"""Folder in ``--out`` of all that a run needs until its world is whole."""
LOG_EVERY = 20
"""Updates from one line of numbers to the next."""
MAX_NORM = 1.0
"""Gradients with a larger norm are scaled down to it."""
NEVER = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Options of all commands that train."""

    out: Path
    """Folder of the world. An unfinished run in it is resumed."""
    seed: int = 0
    """Seed of the weights and of all sampling."""
    device: str = "auto"
    """Device to train on: cpu, cuda, mps, or auto for the fastest there is."""
    precision: Precision = "auto"
    """Precision of large matrix products; auto takes bfloat16 where the hardware multiplies it faster."""
    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints."""
    evaluate_minutes: float = 10.0
    """Minutes between evaluations on held-out episodes."""
    max_minutes: float | None = None
    """Minutes until the run stops with a checkpoint; the same command resumes it."""
    update_share: float = 1.0
    """Share of the recipe's updates to make, for a quick look."""
    accumulate: int = 1
    """Batches of which the gradients are averaged in each update (in each process)."""

    def __post_init__(self) -> None:
        least_of = {"checkpoint_minutes": 0.0, "evaluate_minutes": 0.0, "seed": 0, "accumulate": 1}
        for name, least in least_of.items():
            _check(self, name, getattr(self, name) >= least, f"must be at least {least:g}")
        _check(self, "update_share", 0.0 < self.update_share < math.inf, "must be above 0")
        if self.max_minutes is not None:
            _check(self, "max_minutes", self.max_minutes > 0.0, "must be above 0")


def _check(config: Any, name: str, is_right: bool, rule: str) -> None:
    """Raise ValueError where an option is wrong."""
    if not is_right:
        raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: it {rule}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the stages of one command share."""

    config: LoopConfig
    log: MetricsLog
    device: torch.device
    ranks: Ranks = ALONE
    started: float = 0.0
    """Time (``time.monotonic``) at which the command began."""
    deadline: float = math.inf
    """Time after which the run stops."""

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.config.out / CHECKPOINT


@contextlib.contextmanager
def open_run(config: LoopConfig, device: torch.device, ranks: Ranks, started: float) -> Iterator[Run]:
    """A run while its log is open; ``started`` is when the command began."""
    minutes = math.inf if config.max_minutes is None else config.max_minutes
    with contextlib.closing(MetricsLog(config.out if ranks.is_first else None)) as log:
        deadline = started + 60.0 * minutes
        yield Run(config=config, log=log, device=device, ranks=ranks, started=started, deadline=deadline)


class Stopped(Exception):
    """The run was stopped on purpose; its checkpoint is written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A network in training: everything that ``fit`` needs."""

    name: str
    """Name in files and messages."""
    module: nn.Module
    """``module(batch, generator=...) -> (loss, metrics)``."""
    loader: Loader
    optimizer: torch.optim.Optimizer
    """Optimizer of the module's parameters; the schedule sets its learning rate."""
    schedule: Schedule
    evaluate: Callable[[int], dict[str, float]] | None = None
    """Called with the number of updates, now and then and at the end, while the module holds the moving
    average; returns numbers to log."""
    evaluate_every: int | None = None
    """Updates between evaluations, the first before the first update; by default the clock decides."""


def fit(stage: Stage, run: Run) -> None:
    """Bring a stage to the end of its schedule; its module then holds the moving average of its weights.

    Raises:
        Stopped: by a signal or the time limit, after a checkpoint.
        FloatingPointError: a loss was not finite.
    """
    schedule, optimizer, evaluate, every = (
        stage.schedule,
        stage.optimizer,
        stage.evaluate,
        stage.evaluate_every,
    )
    state = _State(stage, run)
    update = state.resume()
    wrapped = run.ranks.wrap(stage.module)
    clock = _Clock(run.config)
    report = _Report(stage.name, update, schedule.updates, run)
    if evaluate is not None and every is not None and not update:
        state.evaluate(evaluate, update)
    with contextlib.closing(stage.loader), report, Interrupt() as interrupt:
        for batches in stage.loader:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(update)
            metrics = make_update(wrapped, batches, optimizer, run.config.precision)
            state.average.follow(update)
            state.watch(metrics["loss"], update)
            update += 1
            report.show(update, metrics, batches.num_frames)
            is_last = update == schedule.updates
            is_due = clock.is_evaluation_due() if every is None else update % every == 0
            asks = [
                interrupt.was_asked or (time.monotonic() > run.deadline and not is_last),
                clock.is_checkpoint_due() or is_last,
                evaluate is not None and is_due and not is_last,
            ]
            stops, saves, evaluates = run.ranks.any(asks)
            if evaluates and evaluate is not None:
                state.evaluate(evaluate, update)
                clock.evaluated()
            if stops or saves:
                state.save()
                clock.saved()
            if stops:
                raise Stopped
    state.average.swap()
    if evaluate is not None:
        state.log(evaluate, update)


def make_update(
    module: nn.Module, batches: Update, optimizer: torch.optim.Optimizer, precision: Precision
) -> dict[str, Tensor]:
    """Make the optimizer steps of an update; metrics of the last one, on the module's device."""
    parameters = list(module.parameters())
    device = parameters[0].device
    generators = [torch.Generator(device).manual_seed(seed) for seed in batches.seeds]
    use_bfloat16 = uses_bfloat16(precision, device)
    metrics: dict[str, Tensor] = {}
    for step in batches.steps:
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, batch in enumerate(step):
            is_last = index == len(step) - 1
            # Gradients are averaged over processes once, with the last batch.
            no_sync = getattr(module, "no_sync", contextlib.nullcontext)
            with contextlib.nullcontext() if is_last else no_sync():
                with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
                    loss, metrics = module(_to(batch, device), generator=generators[index])
                (loss / len(step) if len(step) > 1 else loss).backward()
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        metrics = {"loss": sum(losses[1:], losses[0]) / len(losses), "gradient_norm": norm, **metrics}
    return metrics


class _State:
    """Everything that a checkpoint holds, and the check that it is worth keeping."""

    def __init__(self, stage: Stage, run: Run):
        self.name, self.loader, self.run = stage.name, stage.loader, run
        self.average = MovingAverage(stage.module, stage.schedule.ema)
        self._parts: dict[str, Any] = {
            "module": stage.module,
            "average": self.average,
            "optimizer": stage.optimizer,
        }
        self._folder = run.folder / stage.name
        device = next(stage.module.parameters()).device
        self._first_bad = torch.full((), NEVER, dtype=torch.int64, device=device)

    def resume(self) -> int:
        """Load the checkpoint, if there is one; the number of updates it holds."""
        state = read_state(self._folder) or {"update": 0}
        if state["update"]:
            load_checkpoint(self._folder, **self._parts)
        self.loader.load_state_dict(state)
        return state["update"]

    def watch(self, loss: Tensor, update: int) -> None:
        """Remember the first update with a loss that is not finite, without waiting for the device."""
        self._first_bad = torch.where(loss.isfinite(), self._first_bad, self._first_bad.clamp_max(update))

    def check(self) -> None:
        """Raise FloatingPointError where a loss was not finite."""
        update = int(self._first_bad)
        if update < NEVER:
            raise FloatingPointError(
                f"{self.name}, update {update}: the loss is not finite; the last good checkpoint is in "
                f"{self._folder}: lower the learning rate"
            )

    def save(self) -> None:
        """Write a checkpoint."""
        self.check()
        with self.run.ranks.first_goes_ahead() as is_first:
            if is_first:
                save_checkpoint(self._folder, state=self.loader.state_dict(), **self._parts)

    def evaluate(self, evaluate: Callable[[int], dict[str, float]], update: int) -> None:
        """Evaluate the moving average."""
        self.check()
        self.average.swap()
        try:
            self.log(evaluate, update)
        finally:
            self.average.swap()

    def log(self, evaluate: Callable[[int], dict[str, float]], update: int) -> None:
        """Evaluate the module as it is, in the first process."""
        with self.run.ranks.first_goes_ahead() as is_first:
            if is_first:
                self.run.log.write(self.name, update, evaluate(update))


class _Clock:
    """Says when checkpoints and evaluations are due."""

    def __init__(self, config: LoopConfig):
        self._config = config
        self.saved()
        self.evaluated()

    def saved(self) -> None:
        self._saved_at = time.monotonic()

    def evaluated(self) -> None:
        self._evaluated_at = time.monotonic()

    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved_at > 60.0 * self._config.checkpoint_minutes

    def is_evaluation_due(self) -> bool:
        return time.monotonic() - self._evaluated_at > 60.0 * self._config.evaluate_minutes


class _Report:
    """The bar on the terminal and the lines of the log. Only a line waits for the device."""

    def __init__(self, name: str, update: int, num_updates: int, run: Run):
        self._name, self._log, self._is_first = name, run.log, run.ranks.is_first
        self._bar = tqdm(
            total=num_updates,
            initial=update,
            desc=f"training the {name}",
            unit="update",
            disable=not self._is_first,
        )
        self._at, self._num_frames = time.monotonic(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, update: int, metrics: dict[str, Tensor], num_frames: int) -> None:
        """Count an update, and write a line every ``LOG_EVERY``."""
        self._bar.update()
        self._num_frames += num_frames
        if update % LOG_EVERY or not self._is_first:
            return
        numbers = {key: value.item() for key, value in metrics.items()}
        now = time.monotonic()
        numbers["frames_per_second"] = self._num_frames / (now - self._at)
        self._at, self._num_frames = now, 0
        self._log.write(self._name, update, numbers)
        self._bar.set_postfix_str(" ".join(f"{key} {value:.4g}" for key, value in numbers.items()))


class Interrupt:
    """Within this context Ctrl-C and SIGTERM only ask, once: an update that is half done could not be resumed
    exactly. The second one is a KeyboardInterrupt and gives up what the last checkpoint does not hold."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    was_asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = [signal.signal(number, self._on_signal) for number in self.SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, previous in zip(self.SIGNALS, self._previous, strict=True):
                signal.signal(number, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.was_asked:
            raise KeyboardInterrupt
        self.was_asked = True


def say_stopped(config: LoopConfig) -> int:
    """Say how a stopped command resumes; its exit code."""
    print(f"stopped; the same command continues from {config.out / CHECKPOINT}")
    return 130


def _to(batch: Any, device: torch.device) -> Any:
    """A batch on a device: a tensor, something with a method ``to``, or a named tuple of these."""
    if isinstance(batch, tuple):
        return type(batch)(*(_to(item, device) for item in batch))
    return batch.to(device) if hasattr(batch, "to") else batch
