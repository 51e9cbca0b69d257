"""The protocol of ``kinema simulate --report``: how well a world holds on episodes that it has not seen.

Codec first, then a short simulation under the recorded actions beside two trivial baselines (the last frame
repeated, the actions shuffled), then a long one, then speed and size. Intervals are 95%, from drawing clips
again.
"""

import dataclasses
from pathlib import Path

import numpy as np

from kinema.data.lerobot import Dataset
from kinema.evaluation import bootstrap, rollout, validity
from kinema.evaluation.image_distance import psnr_of_rms
from kinema.evaluation.result import Result, Row, Series, Statistic, describe_run
from kinema.evaluation.rollout import PICTURE, PROPRIO, Clip, Sweep
from kinema.evaluation.speed import measure_speed
from kinema.kits import Probe, Quantity, Target, errors, find_probe
from kinema.model.world import CONFIG_FILE, WEIGHTS_FILE
from kinema.simulation.world import BUNDLED_WORLDS, World


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    episodes: int = 50
    """Clips to start from: the beginnings of episodes, then later pieces of long ones."""
    seeds: int = 3
    """Simulations of each clip, each with its own noise."""
    steps: int = 50
    """Steps of the short simulation."""
    long_steps: int = 2000
    """Steps of the long simulation; 0 leaves it out."""
    batch: int = 50
    """Sessions simulated together."""
    speed_steps: int = 100
    """Steps of each of five timed repeats; 0 leaves speed out."""

    def __post_init__(self) -> None:
        least = {"episodes": 1, "seeds": 1, "steps": 1, "long_steps": 0, "batch": 1, "speed_steps": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"protocol.{name} is {getattr(self, name)}, but must be at least {value}")


def measure(
    world: World,
    source: str,
    dataset: Dataset,
    *,
    config: ReportConfig,
    context: int,
    seed: int,
    num_denoising_steps: int | None = None,
) -> Result:
    """Measure a world on recorded episodes.

    Args:
        source: what the world was loaded from, to weigh it.
        context: recorded frames that every simulation starts from.
        seed: the first of the seeds.
        num_denoising_steps: network calls for a frame; the world's own by default.

    Raises:
        DataError: the dataset does not fit the world, or no episode is long enough.
    """
    probe = find_probe(world.name, world.cameras, dataset.features)
    clips = rollout.load_clips(
        world, dataset, num=config.episodes, length=context + config.steps, probe=probe
    )
    seeds = tuple(range(seed, seed + config.seeds))
    sweep = Sweep(context=context, seeds=seeds, batch=config.batch, num_denoising_steps=num_denoising_steps)
    measurement = _Measurement(world, clips, probe, config, sweep)
    measurement.describe(dataset)
    measurement.notes += rollout.note_on_training(source, dataset, {clip.episode for clip in clips})
    rows = [*measurement.tokenizer(), *measurement.simulation()]
    if probe is not None and config.long_steps:
        rows += measurement.validity(probe)
    if config.speed_steps:
        rows.append(measurement.speed())
    rows += _size(source)
    return Result(
        name="report",
        world=world.name,
        data=str(dataset.root),
        axis="step",
        protocol={**dataclasses.asdict(config), **dataclasses.asdict(sweep), "clips": len(clips)},
        rows=[row.with_target(_target(row.key, probe)) for row in rows],
        run=describe_run(world),
        series=measurement.series,
        notes=measurement.notes,
    )


class _Measurement:
    """One run of the protocol: each method measures one part of it."""

    def __init__(
        self, world: World, clips: list[Clip], probe: Probe | None, config: ReportConfig, sweep: Sweep
    ) -> None:
        self.world, self.clips, self.probe, self.config, self.sweep = world, clips, probe, config, sweep
        self.series: list[Series] = []
        self.notes: list[str] = []
        self.rng = np.random.default_rng(sweep.seeds[0])

    def describe(self, dataset: Dataset) -> None:
        """Notes on what is measured and on what is left out."""
        context, length = self.sweep.context, self.sweep.context + self.config.steps
        num_episodes = len({clip.episode for clip in self.clips})
        self.notes.append(
            f"{len(self.clips)} clips from {num_episodes} episodes, {len(self.sweep.seeds)} seeds, "
            f"{context} frames given. Intervals are 95%, over clips."
        )
        self.notes.append("Shuffled actions are the same actions in another order.")
        num_short = int((dataset.lengths() < length).sum())
        if num_short:
            self.notes.append(f"{num_short} episodes are shorter than {length} frames and were left out.")
        if len(self.clips) < self.config.episodes:
            self.notes.append(f"{self.config.episodes} clips were asked for, but the data holds no more.")
        if self.probe is None:
            return
        if self.clips[0].is_recorded:
            self.notes.append("Errors are against the recorded state.")
        else:
            self.notes.append("No state was recorded: errors are against what is found in the real frames.")
        certain = [
            clip.reference.is_certain[quantity.key]
            for quantity in self.probe.quantities
            for clip in self.clips
            if clip.reference is not None
        ]
        self.notes.append(
            "A thing that is not found counts as the largest possible error; real values that their picture "
            f"does not tell (the thing lies mostly outside it), {1 - np.mean(certain):.1%}, are left out."
        )

    def tokenizer(self) -> list[Row]:
        """How well pictures survive the tokenizer."""
        if not self.world.cameras:
            return []
        found: list[np.ndarray] = []
        measured: dict[str, list[np.ndarray]] = {}
        for clip in self.clips:
            proprio = None if clip.proprio is None else clip.proprio[: clip.num_frames]
            pictures = rollout.reconstruct(self.world, clip.frames, proprio=proprio)
            difference = rollout.picture_error(pictures, clip.frames)
            measured.setdefault(PICTURE.key, []).append(difference)
            if self.probe is None or clip.reference is None:
                continue
            seen, decoded = self.probe.read(clip.frames), self.probe.read(pictures)
            # A real picture that the detector itself rejects says nothing about the tokenizer.
            found.append(np.where(seen.is_valid, decoded.is_valid, np.nan))
            for quantity in self.probe.quantities:
                for name, reading, reference in (
                    ("", decoded, seen),
                    ("/recorded", decoded, clip.reference),
                    ("/detector", seen, clip.reference),
                ):
                    distance = errors(quantity, reading, reference)
                    measured.setdefault(quantity.key + name, []).append(distance)
        rows = []
        if self.probe is not None:
            what = f"tokenizer: {self.probe.things} found in reconstructions"
            rows.append(self._row("tokenizer/found", what, "share", bootstrap.share, np.stack(found)))
            for quantity in self.probe.quantities:
                kinds = [("", f"tokenizer: {quantity.label} error, against the real frame as seen")]
                if self.clips[0].is_recorded:
                    kinds += [
                        ("/recorded", "  against the recorded state"),
                        ("/detector", "  of the detector itself, on real frames"),
                    ]
                for name, what in kinds:
                    key = quantity.key + name
                    values = np.stack(measured[key])
                    rows.append(self._row(f"tokenizer/{key}", what, quantity.unit, bootstrap.median, values))
        differences = np.stack(measured[PICTURE.key])
        rows.append(self._psnr_row("tokenizer/psnr", "tokenizer: PSNR", differences))
        return rows

    def simulation(self) -> list[Row]:
        """A short simulation beside its baselines."""
        steps, first = self.config.steps, self.sweep.context - 1
        actions = np.stack([clip.actions[first : first + steps] for clip in self.clips])
        shuffled = np.stack([self.rng.permutation(row) for row in actions])
        true, wrong = (
            rollout.compare(self.world, self.clips, driven, self.sweep, probe=self.probe, label=label)
            for driven, label in ((actions, f"{steps} steps"), (shuffled, "shuffled actions"))
        )
        still = rollout.repeat_last(self.world, self.clips, context=self.sweep.context, probe=self.probe)
        known = [*(self.probe.quantities if self.probe is not None else ()), PICTURE, PROPRIO]
        quantities = [quantity for quantity in known if quantity.key in true]
        rows: list[Row] = []
        for quantity in quantities:
            key = quantity.key
            rows += self._quantity_rows(quantity, true[key], wrong[key], still[key])
            for name, values in (("", true), (", shuffled actions", wrong), (", last frame repeated", still)):
                self.series.append(_series(quantity, name, values[key]))
        for quantity in quantities:
            what = f"obedience: {quantity.label} error, shuffled over true actions"
            pair = wrong[quantity.key], true[quantity.key]
            row = self._row(f"obey/{quantity.key}", what, "x", bootstrap.ratio_of_medians, *pair)
            rows.append(dataclasses.replace(row, is_higher_better=True))
        return rows

    def _quantity_rows(
        self, quantity: Quantity, true: np.ndarray, wrong: np.ndarray, still: np.ndarray
    ) -> list[Row]:
        key, unit, steps = f"simulate/{quantity.key}", quantity.unit, self.config.steps
        baselines = (("still", "  last frame repeated", still), ("shuffled", "  shuffled actions", wrong))
        if quantity is PICTURE:
            rows = [self._psnr_row(key, f"simulate {steps} steps: PSNR", true)]
            return rows + [self._psnr_row(f"{key}/{name}", what, values) for name, what, values in baselines]
        rows = [
            self._row(key, f"simulate {steps} steps: {quantity.label} error", unit, bootstrap.median, true),
            self._row(f"{key}/last", f"  at step {steps}", unit, bootstrap.median, true[:, :, -1]),
        ]
        has_moved = self._has_moved(quantity)
        if has_moved.any():
            what = (
                f"  at step {steps}, in the {int(has_moved.sum())} of {len(has_moved)} clips where it moved"
            )
            rows.append(self._row(f"{key}/moved", what, unit, bootstrap.median, true[has_moved][:, :, -1]))
        for name, what, values in baselines:
            rows.append(self._row(f"{key}/{name}", what, unit, bootstrap.median, values))
        return rows

    def _has_moved(self, quantity: Quantity) -> np.ndarray:
        """``B`` bool: whether a thing that mostly rests moved in the clip; False for what always moves."""
        flags = np.zeros(len(self.clips), dtype=bool)
        if quantity.moved is None:
            return flags
        for index, clip in enumerate(self.clips):
            assert clip.reference is not None
            last = np.full(clip.num_frames - self.sweep.context, self.sweep.context - 1)
            distance = errors(quantity, clip.reference[last], clip.reference[self.sweep.context :])
            flags[index] = bool((distance > quantity.moved).any())
        return flags

    def validity(self, probe: Probe) -> list[Row]:
        """A long simulation: does it still show what can be."""
        steps = self.config.long_steps
        actions, num_chained = validity.long_actions(self.clips, context=self.sweep.context, num_steps=steps)
        if num_chained:
            self.notes.append(
                f"{num_chained} of {len(self.clips)} clips have fewer than {steps:,} actions: after their "
                "own they were driven with those of the next clips, which nobody tried in that state."
            )
        shares = validity.measure_validity(self.world, self.clips, actions, self.sweep, probe=probe)
        what = f"after {steps:,} steps: frames that show exactly {probe.things}"
        rows = [self._row("valid", what, "share", bootstrap.share, shares.pop(steps))]
        for mark, values in shares.items():
            row = self._row(f"valid/{mark}", f"  after {mark:,} steps", "share", bootstrap.share, values)
            rows.append(row)
        return rows

    def speed(self) -> Row:
        """One stream alone."""
        context, steps = self.sweep.context, self.config.speed_steps
        speed = measure_speed(self.world, self.clips[0], context=context, steps=steps, repeats=5)
        self.notes.append(
            f"One step takes {speed.p50_ms:.1f} ms (p50), {speed.p99_ms:.1f} ms (p99) on {self.world.device} "
            f"with {speed.num_threads} threads; speed is 1 / p50, the median of five repeats and their range."
        )
        return Row(
            key="speed",
            what="one stream, decoded frames a second",
            value=speed.fps,
            unit="fps",
            low=speed.slowest,
            high=speed.fastest,
            is_higher_better=True,
        )

    def _row(self, key: str, what: str, unit: str, statistic: Statistic, *samples: np.ndarray) -> Row:
        return Row.measure(
            key, what, unit, statistic, *samples, rng=self.rng, is_higher_better=unit == "share"
        )

    def _psnr_row(self, key: str, what: str, differences: np.ndarray) -> Row:
        """From root mean square differences: the median of PSNR is the PSNR of their median."""
        low, high = bootstrap.interval(bootstrap.median, differences, rng=self.rng)
        return Row(
            key=key,
            what=what,
            value=psnr_of_rms(bootstrap.median(differences)),
            unit="dB",
            low=psnr_of_rms(high),
            high=psnr_of_rms(low),
            is_higher_better=True,
        )


def _target(key: str, probe: Probe | None) -> Target | None:
    """The target of a row, by its key or by that of the same number at another place."""
    targets = probe.targets if probe is not None else {}
    return targets.get(key) or targets.get(key.removesuffix("/last").removesuffix("/recorded"))


def _size(source: str) -> list[Row]:
    """What has to be shipped: configuration, weights, and the recording where a world brings one."""
    folder = Path(source) if Path(source).is_dir() else BUNDLED_WORLDS / source
    if not folder.is_dir():
        return []
    files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE, *(folder / "recording").rglob("*")]
    size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    return [Row(key="size", what="size of the world, its recording included", value=size, unit="MB")]


def _series(quantity: Quantity, name: str, values: np.ndarray) -> Series:
    """Medians over clips and seeds, the first two axes, with the 90th percentile as their upper end."""
    columns = values.reshape(-1, values.shape[-1]).T
    medians = [bootstrap.median(column) for column in columns]
    return Series(
        key=f"{quantity.key}{name.replace(', ', '/')}",
        what=f"{quantity.label}{name}",
        unit=quantity.unit,
        panel=f"{quantity.label}: median, shaded up to the 90th percentile",
        at=list(range(1, len(columns) + 1)),
        value=medians,
        low=medians,
        high=[bootstrap.percentile(column, 90.0) for column in columns],
    )
