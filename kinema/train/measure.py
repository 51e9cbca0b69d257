"""Seconds that the parts of a training take on this machine, from a few real updates of networks of the same
sizes on noise. Nothing else changes, and nothing is written."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema.data.frames import as_rgb, resize
from kinema.data.latents import Rows
from kinema.data.lerobot import Dataset
from kinema.data.segments import Segments
from kinema.hardware.machine import dtype_of, uses_bfloat16
from kinema.model.world import WorldConfig
from kinema.recipes import Recipe, Scale, sized
from kinema.recipes.budget import Rates
from kinema.recipes.sizes import Size
from kinema.simulation.world import World
from kinema.train.latents import SAMPLE_ROWS, Encoded
from kinema.train.loop import Run, Stage, make_update
from kinema.train.optim import MovingAverage
from kinema.train.stages import Job, Recording, dynamics_stage, tokenizer_stage
from kinema.train.trust import HORIZON, NUM_EPISODES

SKETCH_ROWS = 64
"""Rows of noise; no segment of a recipe is longer."""
NUM_WARM, FEWEST_TIMED, MOST_TIMED = 3, 4, 40
"""Updates that are not timed, since the first ones prepare much; least and largest number of timed ones."""
OUTLIER = 3.0
"""Updates that take so many times the median were disturbed, and do not count."""
NUM_STEPS = 6
"""Simulated steps that are timed."""
EVALUATED, EVALUATED_STEPS = 3, 48
"""Episodes of an evaluation in training, and simulated steps of each."""
DISK_RATE = 2e8
"""Bytes a second of a checkpoint."""
MATRIX_SECONDS = 0.3


@dataclasses.dataclass(frozen=True)
class Timed:
    """An update."""

    seconds: float
    num_operations: float
    """Multiplications and additions in matrix products and convolutions."""


class Meter:
    """Measures scales of the recipe for any dataset."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        episodes: np.ndarray,
        world_of: Callable[[Recipe], WorldConfig],
        seconds: float,
    ):
        """``world_of`` makes a world's configuration of a recipe; each measurement takes ``seconds``."""
        self._run, self._dataset, self._episodes = run, dataset, episodes
        self._world_of, self._seconds = world_of, seconds

    def rates(self, scale: Scale) -> Rates:
        """Return seconds of the parts of a training of this scale."""
        config = self._run.config
        encoding, evaluation, num_weights = self._others(scale.size)
        lengths = self._dataset.lengths()
        evaluation += EVALUATED * float(lengths.mean()) * self._decoding
        checkpoint = 4 * 4 * num_weights / DISK_RATE
        # Trust is fitted once, to held-out episodes that are simulated twice.
        num_held_out = min(NUM_EPISODES, max(1, len(lengths) // 20))
        trust = 2.0 * num_held_out * HORIZON / (EVALUATED * EVALUATED_STEPS) * evaluation
        tokenizer = self._tokenizer(scale.size)
        return Rates(
            frame=self._decoding + encoding,
            tokenizer=tokenizer.seconds if tokenizer else 0.0,
            phases=tuple(each.seconds for each in self._phases(scale)),
            overhead=evaluation / (evaluation + 60.0 * config.evaluate_minutes)
            + checkpoint / (checkpoint + 60.0 * config.checkpoint_minutes),
            once=evaluation + trust + min(SAMPLE_ROWS, int(lengths.sum())) * encoding,
        )

    def first_phase(self, scale: Scale) -> float:
        """Return seconds of an update of the first phase of the dynamics."""
        return self._phase(scale.size, scale.batch, 0).seconds

    def operations_a_second(self, scale: Scale) -> float:
        """Return the mean rate of the updates of a scale."""
        timed = list(zip(scale.phase_updates, self._phases(scale), strict=True))
        tokenizer = self._tokenizer(scale.size)
        if tokenizer is not None:
            timed.append((scale.tokenizer_updates, tokenizer))
        operations = sum(number * each.num_operations for number, each in timed)
        return operations / sum(number * each.seconds for number, each in timed)

    @functools.cache  # noqa: B019 (a meter is short-lived)
    def _tokenizer(self, size: Size) -> Timed | None:
        """An update of the tokenizer, if there is one."""
        with self._sketch(size) as job:
            if job.world.tokenizer is None:
                return None
            return time_update(tokenizer_stage(job), 0, self._run, self._seconds)

    def _phases(self, scale: Scale) -> list[Timed]:
        """An update of the dynamics, by phase."""
        return [self._phase(scale.size, scale.batch, index) for index in range(len(scale.phase_updates))]

    @functools.cache  # noqa: B019
    def _phase(self, size: Size, batch: int, index: int) -> Timed:
        with self._sketch(size, batch) as job:
            stage = dynamics_stage(job)
            first = sum(phase.updates for phase in stage.schedule.phases[:index])
            return time_update(stage, first, self._run, self._seconds)

    @functools.cache  # noqa: B019
    def _others(self, size: Size) -> tuple[float, float, int]:
        """Seconds to encode a frame of all cameras, and to simulate for an evaluation; number of weights."""
        with self._sketch(size) as job:
            num_weights = sum(p.numel() for p in job.world.parameters())
            return self._encoding(job), self._evaluation(job), num_weights

    @functools.cached_property
    def _decoding(self) -> float:
        """Seconds to decode a frame of all cameras and to bring it to its size."""
        dataset, began, num_frames = self._dataset, time.perf_counter(), 0
        config = sized(dataset, Scale.of("small")).segments
        sizes = config.sizes_of(config.cameras or ())
        for index in self._episodes[:: max(1, len(self._episodes) // 10)].tolist():
            dataset.episode(index, cameras=())
            for key, size in sizes.items():
                resize(as_rgb(dataset.pictures(index, key), key), *size)
            num_frames += int(dataset.lengths()[index])
            if time.perf_counter() - began > 2.0 * self._seconds:
                break
        return (time.perf_counter() - began) / num_frames

    def _encoding(self, job: Job) -> float:
        segments, world, device = job.segments, job.world, self._run.device
        if world.tokenizer is None:
            return 0.0
        is_half = uses_bfloat16(self._run.config.precision, device)

        def encode() -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_half):
                world.encode(segments.frames).half().cpu()

        return _second_of_two(encode, device) / segments.num_rows

    def _evaluation(self, job: Job) -> float:
        """Seconds to simulate the episodes of an evaluation."""
        world, segments = job.world.eval(), job.segments
        frames = {key: each[:2] for key, each in segments.frames.items()} or None
        proprio = np.zeros((2, len(world.config.proprio)), np.float32)
        began = time.perf_counter()
        session = world.start(
            frames, segments.actions[:1], proprio=proprio if world.config.proprio_key else None
        )
        session.step(segments.actions[1])
        started = time.perf_counter()
        for action in segments.actions[:NUM_STEPS]:
            session.step(action)
        step = (time.perf_counter() - started) / NUM_STEPS
        return (started - began) + EVALUATED * EVALUATED_STEPS * step

    @contextlib.contextmanager
    def _sketch(self, size: Size, batch: int = 1) -> Iterator[Job]:
        """A job of a size, of which the rows are noise."""
        many = NUM_WARM + MOST_TIMED
        scale = Scale(size=size, tokenizer_updates=many, phase_updates=(many,) * 3, batch=batch)
        recipe = sized(self._dataset, scale)
        with torch.random.fork_rng():
            yield sketch(self._run, recipe, self._world_of(recipe), self._dataset)


def sketch(run: Run, recipe: Recipe, config: WorldConfig, dataset: Dataset) -> Job:
    """Make a job of the sizes of a recipe, of which the rows are noise."""
    rng, dynamics = np.random.default_rng(0), config.dynamics
    segments = Segments(
        frames={
            camera.key: rng.integers(0, 256, (SKETCH_ROWS, *size, 3), dtype=np.uint8)
            for camera, size in zip(config.cameras, config.learned_sizes, strict=True)
        },
        actions=rng.normal(size=(SKETCH_ROWS, len(config.actions))).astype(np.float32),
        proprio=None,
        lengths=np.array([SKETCH_ROWS]),
        native_sizes={},
    )
    values = Encoded(
        Rows([torch.randn(SKETCH_ROWS, dynamics.num_latents, dynamics.latent_dim).half()]),
        torch.randn(SKETCH_ROWS, dynamics.proprio_dim),
        torch.randn(SKETCH_ROWS, dynamics.action_dim),
    )
    job = Job(run, World(config).to(run.device), recipe, [Recording(dataset, segments, "")], np.zeros(0))
    job.encoded, job.values, job.surprise = [values], values, None
    return job


def time_update(stage: Stage, first: int, run: Run, seconds: float) -> Timed:
    """Time updates from the one with index ``first`` on, for about ``seconds``, with all that an update in
    ``fit`` does; the mean of those that were not disturbed."""
    average, taken, num_operations = MovingAverage(stage.module, stage.schedule.ema), [], 0.0
    stage.loader.load_state_dict({"update": first})
    with contextlib.closing(stage.loader):
        mark = time.perf_counter()
        for index, batches in enumerate(itertools.islice(stage.loader, NUM_WARM + MOST_TIMED)):
            with FlopCounterMode(display=False) if not index else contextlib.nullcontext() as counter:
                make_update(stage.module, batches, stage.optimizer, run.config.precision)
            if counter is not None:
                num_operations = float(counter.get_total_flops())
            average.follow(index)
            synchronize(run.device)
            now = time.perf_counter()
            taken.append(now - mark)
            mark = now
            timed = taken[NUM_WARM:]
            if len(timed) >= FEWEST_TIMED and sum(timed) > seconds:
                break
    return Timed(typical(taken[NUM_WARM:] or taken), num_operations)


def typical(seconds: Sequence[float]) -> float:
    """Return the mean of times without outliers. It is not the median, since updates do not all do the
    same."""
    times = np.asarray(seconds)
    return float(times[times <= OUTLIER * np.median(times)].mean())


def matrix_rate(run: Run) -> float:
    """Return operations a second in a product of large matrices, in the precision of the training."""
    size = 1024 if run.device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=run.device, dtype=dtype_of(run.config.precision, run.device))
    (matrix @ matrix).sum().item()
    began, num = time.perf_counter(), 0
    while time.perf_counter() - began < MATRIX_SECONDS:
        torch.mm(matrix, matrix)
        synchronize(run.device)
        num += 1
    return 2.0 * size**3 * num / (time.perf_counter() - began)


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _second_of_two(compute: Callable[[], None], device: torch.device) -> float:
    """Seconds of the second call; the first one prepares much."""
    taken = 0.0
    for _ in range(2):
        synchronize(device)
        began = time.perf_counter()
        compute()
        synchronize(device)
        taken = time.perf_counter() - began
    return taken
