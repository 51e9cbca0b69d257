"""The stages of a world, one after the other: tokenizer, manifold, decoder, dynamics."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from kinema.data import mixture
from kinema.data.lerobot import Dataset
from kinema.data.segments import Segments
from kinema.hardware.machine import uses_bfloat16
from kinema.model.decoder_objective import DecoderBatch, DecoderObjective
from kinema.model.manifold import Manifold, ManifoldBatch, ManifoldObjective
from kinema.model.objective import DynamicsBatch, DynamicsObjective
from kinema.model.tokens import Values
from kinema.recipes import Phase, Recipe, Schedule
from kinema.simulation.world import World
from kinema.tokenizers import TokenizerObjective
from kinema.train.latents import (
    Encoded,
    encode_all,
    fit_response,
    fit_support,
    fit_units,
    sample_frames,
    sample_pictures,
    surprise_by_row,
)
from kinema.train.loader import Draw, Loader, Split
from kinema.train.loop import Run, Stage
from kinema.train.optim import build_optimizer
from kinema.train.progress import evaluate_progress

MAX_GOAL_STEPS = 50
"""Goals are at most so many steps behind the end of a segment."""
RADIUS_ROWS = 20_000
"""Frames from which the manifold's radius is computed."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """Episodes of a dataset that a world learns from."""

    dataset: Dataset
    segments: Segments
    fingerprint: str
    """Names the frames: data and episodes."""


class Job:
    """A world in training, its recipe, and the recordings that it learns from."""

    def __init__(
        self,
        run: Run,
        world: World,
        recipe: Recipe,
        recordings: Sequence[Recording],
        held_out: np.ndarray,
        shares: Sequence[float] | None = None,
    ):
        """``held_out`` are positions of episodes in the first recording's dataset, ``shares`` those of the
        segments by recording; by default every row counts the same."""
        self.run, self.world, self.recipe, self.recordings = run, world, recipe, recordings
        self.held_out, self.shares = held_out, shares

    @functools.cached_property
    def encoded(self) -> list[Encoded]:
        """Encoded rows of each recording; the tokenizer is trained by then."""
        return [encode(self.run, self.world, recording) for recording in self.recordings]

    @functools.cached_property
    def values(self) -> Encoded:
        """Encoded rows of all recordings."""
        return functools.reduce(Encoded.followed_by, self.encoded)

    @functools.cached_property
    def segments(self) -> Segments:
        """Segments of all recordings, without frames where there are several recordings."""
        return functools.reduce(Segments.followed_by, (each.segments for each in self.recordings))

    @functools.cached_property
    def surprise(self) -> np.ndarray | None:
        """Weights by which a share of the segments is drawn."""
        if not self.recipe.surprising_share:
            return None
        return surprise_by_row(self.world, self.segments, self.values)

    def draw_rows(self, rng: np.random.Generator, phase: Phase) -> np.ndarray:
        """Rows ``B T`` of segments."""
        if self.shares is not None:
            parts = [recording.segments for recording in self.recordings]
            return mixture.draw_rows(rng, parts, self.shares, phase.batch, phase.length)
        return self.segments.draw_rows(
            rng,
            phase.batch,
            phase.length,
            weights=self.surprise,
            weighted_share=self.recipe.surprising_share,
        )

    def draw_recording(self, rng: np.random.Generator, numbers: Sequence[int]) -> int:
        """The number of a recording, one of these, drawn by its share or its rows."""
        if len(numbers) == 1:
            return numbers[0]
        weights = np.array([self.recordings[number].segments.num_rows for number in numbers], float)
        if self.shares is not None:
            weights = np.array([self.shares[number] for number in numbers])
        return int(rng.choice(numbers, p=weights / weights.sum()))

    def recorded(self, rows: np.ndarray) -> Values | None:
        """For rows ``B T`` 1 for each number that was recorded, 0 for others; None in a world without
        holes."""
        if not self.world.config.has_holes:
            return None
        masks, world = self.segments.masks(rows), self.world
        cells = [rows * columns for rows, columns in world.config.dynamics.grids]
        cameras = masks.cameras.repeat(cells, axis=-1)[..., None]
        columns = [
            part[..., normalizer.dimension_of.cpu().numpy()]
            for part, normalizer in (
                (masks.proprio_numbers & masks.proprio[..., None], world.proprio_normalizer),
                (masks.action_numbers, world.action_normalizer),
            )
        ]
        return Values(*(torch.from_numpy(part.astype(np.float32)) for part in (cameras, *columns)))

    def evaluate(self, update: int) -> dict[str, float]:
        """Simulate held-out episodes. The numbers are there to look at: where this fails, training goes
        on."""
        sheet = self.run.config.out / "progress" / f"{update:07d}.png"
        try:
            return evaluate_progress(self.world, self.recordings[0].dataset, self.held_out.tolist(), sheet)
        except Exception as error:
            print(
                f"the evaluation after update {update} failed, which changes nothing of what is learned: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
            )
            return {}

    def evaluate_last(self) -> None:
        """Evaluate the dynamics once its world is written."""
        update = self.recipe.dynamics_schedule.updates
        self.run.log.write("dynamics", update, self.evaluate(update))


def encode(run: Run, world: World, recording: Recording) -> Encoded:
    """Encode a recording; the first process writes the shards, the others read them."""
    use_bfloat16 = uses_bfloat16(run.config.precision, world.device)
    arguments = (world, recording.segments, use_bfloat16, run.folder / "latents", recording.fingerprint)
    with run.ranks.first_goes_ahead() as is_first:
        if is_first:
            encode_all(*arguments)
    return encode_all(*arguments)


def build_stage(
    run: Run,
    name: str,
    module: nn.Module,
    schedule: Schedule,
    draw: Draw,
    *,
    split: Split | None = None,
    num_ahead: int = 2,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
) -> Stage:
    """A stage with its loader and optimizer."""
    loader = Loader(
        draw,
        schedule,
        stage=name,
        seed=run.config.seed,
        split=split,
        accumulate=run.config.accumulate,
        ranks=run.ranks,
        num_ahead=num_ahead,
    )
    return Stage(
        name=name,
        module=module,
        loader=loader,
        optimizer=build_optimizer(module, schedule),
        schedule=schedule,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
    )


def new_world_stages(job: Job) -> Iterator[Stage]:
    """The stages of a world that is learned from nothing."""
    world, recipe = job.world, job.recipe
    if world.tokenizer is not None:
        yield tokenizer_stage(job)
    with torch.inference_mode():
        fit_units(world, job.segments, [recording.segments for recording in job.recordings])
    fit_response(world, job.segments, job.values)
    if world.manifold is not None:
        world.manifold.fit_robot(job.values.latents, job.values.proprio)
        yield manifold_stage(job)
        fit_manifold(job)
    if recipe.decoder_schedule is not None:
        yield decoder_stage(job)
    yield dynamics_stage(job)


def further_stages(job: Job, parts: Sequence[str]) -> Iterator[Stage]:
    """The stages of a finished world of which some parts go on learning."""
    manifold = job.world.manifold
    fit_support(job.world, job.segments)
    # Codes that a world keeps stay: as many of more recordings would be wider apart, and what lies between
    # them be drawn further.
    if manifold is not None and "manifold" not in parts and not manifold.keeps_codes:
        _fit_recorded(manifold, job)
    for part in parts:
        if part == "manifold":
            yield manifold_stage(job)
            fit_manifold(job)
        else:
            yield decoder_stage(job) if part == "decoder" else dynamics_stage(job)


def tokenizer_stage(job: Job) -> Stage:
    """Frames from their latents."""
    tokenizer, parts = job.world.tokenizer, [recording.segments for recording in job.recordings]
    assert tokenizer is not None
    tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (PyTorch's stub lacks it)
    objective = TokenizerObjective(tokenizer, job.recipe.tokenizer_objective).to(job.world.device)
    objective.loss.fit_rarity(*(frames for part in parts for frames in sample_pictures(part)))
    with_frames = [number for number, part in enumerate(parts) if part.frames]

    def draw(rng: np.random.Generator, phase: Phase) -> torch.Tensor:
        return parts[job.draw_recording(rng, with_frames)].draw_pairs(rng, phase.batch).pictures

    return build_stage(job.run, "tokenizer", objective, job.recipe.tokenizer_schedule, draw)


def manifold_stage(job: Job) -> Stage:
    """Latents from a few numbers each."""
    assert job.world.manifold is not None
    assert job.recipe.manifold_schedule is not None
    values, _ = job.values, job.surprise

    def draw(rng: np.random.Generator, phase: Phase) -> ManifoldBatch:
        rows = job.draw_rows(rng, phase)
        frame, other = rng.integers(0, phase.length, (2, phase.batch))
        each = np.arange(phase.batch)
        pair = values.frames(np.stack([rows[each, frame], rows[each, other]]))
        return ManifoldBatch(*pair.latents, *pair.proprio)

    objective = ManifoldObjective(job.world.manifold)
    return build_stage(job.run, "manifold", objective, job.recipe.manifold_schedule, draw)


def fit_manifold(job: Job) -> None:
    """Fit the manifold's radius and choose the recorded codes that it keeps."""
    assert job.world.manifold is not None
    job.world.manifold.fit_radius(*sample_frames(job.values, RADIUS_ROWS))
    _fit_recorded(job.world.manifold, job)


def _fit_recorded(manifold: Manifold, job: Job) -> None:
    if manifold.recorded is None:
        return
    print(f"choosing {len(manifold.recorded.codes):,} recorded frames to keep, up to a minute", flush=True)
    episode = job.segments.first_rows(np.arange(job.segments.num_rows))
    manifold.fit_recorded(job.values.latents, job.values.proprio, episode)


def decoder_stage(job: Job) -> Stage:
    """Frames from latents that lie on the manifold. A batch is of one recording, drawn by its rows."""
    world, recipe = job.world, job.recipe
    assert world.tokenizer is not None
    assert world.manifold is not None
    assert recipe.decoder_schedule is not None
    objective = DecoderObjective(
        world.tokenizer, world.manifold, recipe.tokenizer_objective, world.config.dynamics.grids
    ).to(world.device)
    objective.loss.fit_rarity(*sample_pictures(job.recordings[0].segments))
    recordings = [(each.segments, values) for each, values in zip(job.recordings, job.encoded, strict=True)]
    rows_up_to = np.cumsum([segments.num_rows for segments, _ in recordings])

    def draw(rng: np.random.Generator, phase: Phase) -> DecoderBatch:
        chosen = 0
        if len(recordings) > 1:
            chosen = int(np.searchsorted(rows_up_to, rng.integers(rows_up_to[-1]), side="right"))
        segments, values = recordings[chosen]
        pairs = segments.draw_pairs(rng, phase.batch)
        frames = values.frames(pairs.rows)
        return DecoderBatch(pairs.pictures, frames.latents, frames.proprio, torch.from_numpy(pairs.cameras))

    return build_stage(job.run, "decoder", objective, recipe.decoder_schedule, draw)


def dynamics_stage(job: Job) -> Stage:
    """Frames from the frames before them."""
    world, recipe = job.world, job.recipe
    objective = DynamicsObjective(world.dynamics, recipe.dynamics_objective)
    segments, values, _ = job.segments, job.values, job.surprise

    def draw(rng: np.random.Generator, phase: Phase) -> DynamicsBatch:
        rows = job.draw_rows(rng, phase)
        num_steps = int(rng.integers(1, phase.own_context_steps + 1))
        goal = None
        if recipe.dynamics.has_goals:
            last = rows[:, -1]
            ahead = np.minimum(
                rng.integers(0, MAX_GOAL_STEPS + 1, len(last)), segments.last_rows(last) - last
            )
            goal = values.frames((last + ahead)[:, None])
        has_action = torch.from_numpy(segments.has_action[rows])
        recorded = job.recorded(rows)
        return DynamicsBatch(
            values.frames(rows), has_action, phase.own_context_share, num_steps, goal, recorded
        )

    def evaluate(update: int) -> dict[str, float]:
        return {} if update == recipe.dynamics_schedule.updates else job.evaluate(update)

    return build_stage(job.run, "dynamics", objective, recipe.dynamics_schedule, draw, evaluate=evaluate)
