"""The one loop that all training goes through: updates, moving average, progress, checkpoints.

Update ``u`` draws all its randomness from the seed, the stage and ``u``, so a run that was stopped and
resumed is the same as one that was not.
"""

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kinema.data.files import write_text
from kinema.hardware.machine import uses_bfloat16
from kinema.model.tokens import Values
from kinema.recipes import Phase, Schedule
from kinema.train.checkpoint import CheckpointError, load_checkpoint, read_state, save_checkpoint
from kinema.train.optim import Optimizer, build_optimizer
from kinema.train.progress import MetricsLog
from kinema.types import Precision

CHECKPOINTS = "checkpoints"
LOG_EVERY = 20
"""Updates from one line of numbers to the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What all commands that train have in common."""

    out: Path
    """Folder of the world; an unfinished run in it is resumed."""
    seed: int = 0
    """Of the weights and of all sampling."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """Of the networks' arithmetic; auto takes bfloat16 where the hardware multiplies it faster."""
    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints."""
    evaluate_minutes: float = 10.0
    """Minutes between contact sheets of real against simulated."""
    max_minutes: float | None = None
    """Stop after so long, with a checkpoint; the same command goes on."""
    update_share: float = 1.0
    """Share of the updates to make, for a quick look."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to train: its name, module, schedule and batches."""

    name: str
    objective: nn.Module
    """``objective(*batch, generator=...) -> (loss, metrics)``."""
    schedule: Schedule
    draw: Callable[[np.random.Generator, Phase], tuple[Any, ...]]
    """Draws the arguments of the objective."""
    split: Callable[[tuple[Any, ...], np.random.Generator], Iterable[tuple[Any, ...]]] | None = None
    """Cuts what was drawn into minibatches, each an optimizer step of the same update; by default all is
    one."""
    evaluate: Callable[[int], dict[str, float]] | None = None
    """Called now and then with the moving average of the weights in place; gives numbers to log."""
    evaluate_every: int | None = None
    """Updates from one evaluation to the next, the first before the first update; by default evaluations
    are by the clock."""


class Stopped(Exception):
    """The run was stopped on purpose; its checkpoint is written."""


class Interrupt:
    """Ctrl-C within this context only says so, once: an update that is half done could not be resumed
    exactly. The second Ctrl-C is the usual one and gives up what the last checkpoint does not hold."""

    was_asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.was_asked:
            raise KeyboardInterrupt
        self.was_asked = True


@contextlib.contextmanager
def open_loop(config: LoopConfig, started: float) -> "Iterator[Loop]":
    """A loop while its log is open."""
    with contextlib.closing(MetricsLog(config.out)) as log:
        yield Loop(config, log, started)


def tell_stopped(config: LoopConfig) -> int:
    """Say how a stopped command goes on; its exit code."""
    print(f"stopped; the same command continues from {config.out / CHECKPOINTS}")
    return 130


class Loop:
    """Runs stages: updates, moving average, progress, checkpoints."""

    def __init__(self, config: LoopConfig, log: MetricsLog, started: float):
        self.config = config
        self.log = log
        self.deadline = started + 60.0 * config.max_minutes if config.max_minutes is not None else None

    def run(self, stage: Stage) -> None:
        """Bring a stage to its end; its module then holds the moving average of its weights.

        Raises:
            Stopped: by Ctrl-C or the time limit, after a checkpoint.
        """
        config, schedule = self.config, stage.schedule
        device = next(stage.objective.parameters()).device
        folder = config.out / CHECKPOINTS / stage.name
        parameters = dict(stage.objective.named_parameters())
        ema = {key: value.detach().clone() for key, value in parameters.items()}
        optimizer = build_optimizer(stage.objective, schedule)
        state = read_state(folder) or {"update": 0}
        if state["update"]:
            load_checkpoint(folder, module=stage.objective, ema=ema, optimizer=optimizer)
        generator = torch.Generator(device)

        def save(update: int) -> None:
            save_checkpoint(
                folder, state={"update": update}, module=stage.objective, ema=ema, optimizer=optimizer
            )

        saved_at = evaluated_at = logged_at = time.monotonic()
        logged_update = state["update"]
        bar = tqdm(
            total=schedule.updates, initial=state["update"], desc=f"training the {stage.name}", unit="update"
        )
        update = state["update"]
        if stage.evaluate_every is not None and not update:
            self._evaluate(stage, parameters, ema, update)
        with bar, Interrupt() as interrupt:
            while update < schedule.updates:
                phase = schedule.phase_at(update)
                seeds = np.random.SeedSequence([config.seed, _stage_number(stage.name), update])
                generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
                rng = np.random.default_rng(seeds)
                drawn = tuple(_to(item, device) for item in stage.draw(rng, phase))
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate_at(update)
                batches = [drawn] if stage.split is None else stage.split(drawn, rng)
                try:
                    numbers = self._learn(stage, batches, optimizer, generator)
                except FloatingPointError as error:
                    raise FloatingPointError(
                        f"{stage.name}, update {update}: {error}; the last good checkpoint is in {folder}: "
                        "lower the learning rate"
                    ) from error
                decay = min(schedule.ema, (update + 1) / (update + 10))
                torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                    list(ema.values()), [p.detach() for p in parameters.values()], 1.0 - decay
                )
                update += 1
                bar.update()
                if update % LOG_EVERY == 0:
                    logged = {key: value.item() for key, value in numbers.items()}
                    seconds = time.monotonic() - logged_at
                    frames = (update - logged_update) * phase.batch * phase.length
                    logged["frames_per_second"] = frames / seconds
                    logged_at, logged_update = time.monotonic(), update
                    self.log.write(stage.name, update, logged)
                    bar.set_postfix_str(" ".join(f"{key} {value:.4g}" for key, value in logged.items()))
                now = time.monotonic()
                is_due = now - evaluated_at > 60.0 * config.evaluate_minutes
                if stage.evaluate_every is not None:
                    is_due = update % stage.evaluate_every == 0 and update < schedule.updates
                if stage.evaluate and is_due:
                    self._evaluate(stage, parameters, ema, update)
                    evaluated_at = now
                is_late = self.deadline is not None and now > self.deadline and update < schedule.updates
                if interrupt.was_asked or is_late:
                    save(update)
                    raise Stopped
                if now - saved_at > 60.0 * config.checkpoint_minutes:
                    save(update)
                    saved_at = now
        if update > state["update"]:
            save(update)
        _swap(parameters, ema)
        if stage.evaluate:
            self.log.write(stage.name, update, stage.evaluate(update))

    def _learn(
        self,
        stage: Stage,
        batches: Iterable[tuple[Any, ...]],
        optimizer: Optimizer,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """One optimizer step for each batch; the numbers of the last.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        parameters = list(stage.objective.parameters())
        device = parameters[0].device
        use_bfloat16 = uses_bfloat16(self.config.precision, device)
        numbers: dict[str, Tensor] = {}
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
                loss, metrics = stage.objective(*batch, generator=generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()}")
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            numbers = {"loss": loss.detach(), "gradient_norm": norm, **metrics}
        return numbers

    def _evaluate(
        self, stage: Stage, parameters: dict[str, nn.Parameter], ema: dict[str, Tensor], update: int
    ) -> None:
        assert stage.evaluate is not None
        _swap(parameters, ema)
        try:
            self.log.write(stage.name, update, stage.evaluate(update))
        finally:
            _swap(parameters, ema)


def check_same_run(out: Path, name: str, run: dict[str, Any]) -> None:
    """A folder holds one run of a kind: another recipe, dataset or seed must go elsewhere."""
    path = out / CHECKPOINTS / name
    text = json.dumps(run, indent=2) + "\n"
    if not path.exists():
        write_text(path, text)
    elif path.read_text() != text:
        raise CheckpointError(
            f"{out}: it holds another run (recipe, data or seed differ: {path}); choose another --out"
        )


def _stage_number(name: str) -> int:
    return (
        "tokenizer",
        "dynamics",
        "manifold",
        "decoder",
        "heads",
        "clone",
        "act",
        "imagine",
        "imagine-free",
    ).index(name)


def _to(item: Any, device: torch.device) -> Any:
    if isinstance(item, Values):
        return item.map(lambda x: x.to(device))
    return item.to(device) if hasattr(item, "to") else item


def _swap(parameters: dict[str, nn.Parameter], ema: dict[str, Tensor]) -> None:
    """Exchange the weights and their moving average."""
    for key, parameter in parameters.items():
        kept = parameter.detach().clone()
        parameter.data.copy_(ema[key])
        ema[key].copy_(kept)
