"""The protocol of ``kinema simulate --report`` and its table: how well a world holds on episodes that it has not seen.

Codec first, then a short simulation under the recorded actions beside two trivial baselines (the last frame repeated,
the actions shuffled), then a long one, then speed and size. Intervals are 95%, by drawing clips again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinema.data.lerobot import Dataset
from kinema.evaluation import bootstrap, rollout, validity
from kinema.evaluation.probe import Probe, Quantity, Target, errors, find_probe
from kinema.evaluation.rollout import PICTURE, PROPRIO, Clip
from kinema.evaluation.speed import measure_speed
from kinema.evaluation.table import Curve, Report, Row, psnr
from kinema.simulation import BUNDLED_WORLDS, World
from kinema.world_model import CONFIG_FILE, WEIGHTS_FILE


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


def report(
    world: World, source: str, dataset: Dataset, *, config: ReportConfig, context: int, seed: int
) -> Report:
    """Measures a world on held-out episodes.

    Args:
        source: what the world was loaded from, to weigh it.
        context: recorded frames that every simulation starts from.
        seed: the first of the seeds.

    Raises:
        DataError: the dataset does not fit the world, or no episode is long enough.
    """
    probe = find_probe(world.name, world.cameras, dataset)
    clips = rollout.load_clips(
        world, dataset, num=config.episodes, length=context + config.steps, probe=probe, episodes=None
    )
    session = _Session(world, clips, probe, config, context, list(range(seed, seed + config.seeds)))
    notes = session.notes(dataset)
    rows = [*session.tokenizer_rows(), *session.simulation_rows()]
    if probe is not None and config.long_steps:
        rows += session.validity_rows(notes)
    if config.speed_steps:
        rows.append(session.speed_row(notes))
    size = _size_row(source)
    rows += [size] if size is not None else []
    return Report(
        world=world.name,
        data=str(dataset.root),
        protocol={**dataclasses.asdict(config), "context": context, "seed": seed, "clips": len(clips)},
        rows=[_with_target(row, probe) for row in rows],
        curves=session.curves,
        notes=notes,
    )


class _Session:
    """One run of the protocol: each method measures one part of it."""

    def __init__(
        self,
        world: World,
        clips: list[Clip],
        probe: Probe | None,
        config: ReportConfig,
        context: int,
        seeds: list[int],
    ) -> None:
        self.world, self.clips, self.probe, self.config = world, clips, probe, config
        self.context, self.seeds = context, seeds
        self.curves: list[Curve] = []
        self.rng = np.random.default_rng(seeds[0])

    def notes(self, dataset: Dataset) -> list[str]:
        num_episodes = len({clip.episode for clip in self.clips})
        length = self.context + self.config.steps
        notes = [
            f"{len(self.clips)} clips of {length} frames from {num_episodes} episodes, {len(self.seeds)} seeds, "
            f"{self.context} frames given."
        ]
        num_short = int((dataset.lengths() < length).sum())
        if num_short:
            notes.append(f"{num_short} episodes are shorter than {length} frames and were left out.")
        if len(self.clips) < self.config.episodes:
            notes.append(
                f"Asked for {self.config.episodes} clips, but the data holds only {len(self.clips)}."
            )
        if self.probe is not None:
            notes.append(
                "Errors are against the recorded state."
                if self.clips[0].is_recorded
                else "The recording has no state: errors are against what the detector sees in the real frames."
            )
            certain = np.mean([c.reference.is_certain[q.key] for c, q in self._references()])
            notes.append(
                f"A thing that is not found counts as the largest possible error; {1 - certain:.1%} of the real "
                "values, which their picture does not tell (outside it), are left out."
            )
        return notes

    def _references(self) -> Sequence[tuple[Any, Quantity]]:
        assert self.probe is not None
        return [(clip, quantity) for clip in self.clips for quantity in self.probe.quantities]

    def tokenizer_rows(self) -> list[Row]:
        """How well pictures survive the tokenizer."""
        if not self.world.cameras:
            return []
        found: list[np.ndarray] = []
        measured: dict[str, list[np.ndarray]] = {}
        for clip in self.clips:
            pictures = self.world.reconstruct(clip.frames)
            assert pictures is not None
            pictures = pictures if isinstance(pictures, dict) else {self.world.cameras[0]: pictures}
            squares = [rollout.mean_square(clip.frames[key], pictures[key]) for key in pictures]
            measured.setdefault(PICTURE.key, []).append(np.sqrt(np.mean(squares, axis=0)))
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
        if found:
            assert self.probe is not None
            what = f"tokenizer: {self.probe.things} found in reconstructions"
            rows.append(self._row("tokenizer/found", what, "share", bootstrap.share, np.stack(found)))
        for quantity in self.probe.quantities if self.probe is not None else ():
            kinds = [("", "against the real frame as seen")]
            if self.clips[0].is_recorded:
                kinds += [
                    ("/recorded", "against the recorded state"),
                    ("/detector", "of the detector on real frames"),
                ]
            for name, of in kinds:
                key = quantity.key + name
                prefix = "detector" if name == "/detector" else "tokenizer"
                what = f"{prefix}: {quantity.label} error, {of}"
                values = np.stack(measured[key])
                rows.append(self._row(f"tokenizer/{key}", what, quantity.unit, bootstrap.median, values))
        rows.append(self._psnr_row("tokenizer/psnr", "tokenizer: picture", np.stack(measured[PICTURE.key])))
        return rows

    def simulation_rows(self) -> list[Row]:
        """A short simulation beside its baselines."""
        steps, first = self.config.steps, self.context - 1
        actions = np.stack([clip.actions[first : first + steps] for clip in self.clips])
        shuffled = np.stack([self.rng.permutation(row) for row in actions])
        common = {
            "context": self.context,
            "seeds": self.seeds,
            "probe": self.probe,
            "batch": self.config.batch,
        }
        true = rollout.compare(self.world, self.clips, actions, label=f"{steps} steps", **common)
        wrong = rollout.compare(self.world, self.clips, shuffled, label="shuffled actions", **common)
        still = rollout.repeat_last(self.world, self.clips, context=self.context, probe=self.probe)
        rows: list[Row] = []
        for quantity in self._quantities(true):
            rows += self._quantity_rows(
                quantity, true[quantity.key], wrong[quantity.key], still[quantity.key]
            )
            for name, values in (("", true), (", shuffled actions", wrong), (", last frame repeated", still)):
                self.curves.append(_curve(f"{quantity.label}{name}", quantity.unit, values[quantity.key]))
        for quantity in self._quantities(true):
            what = f"obedience: {quantity.label} error, shuffled over true actions"
            pair = wrong[quantity.key], true[quantity.key]
            row = self._row(f"obey/{quantity.key}", what, "x", bootstrap.ratio_of_medians, *pair)
            rows.append(dataclasses.replace(row, is_higher_better=True))
        return rows

    def _quantities(self, measured: dict[str, np.ndarray]) -> list[Quantity]:
        known = [*(self.probe.quantities if self.probe is not None else ()), PICTURE, PROPRIO]
        return [quantity for quantity in known if quantity.key in measured]

    def _quantity_rows(
        self, quantity: Quantity, true: np.ndarray, wrong: np.ndarray, still: np.ndarray
    ) -> list[Row]:
        key, unit, steps = quantity.key, quantity.unit, self.config.steps
        what = f"simulate {steps} steps: {quantity.label} error"
        if quantity is PICTURE:
            return [
                self._psnr_row("simulate/psnr", f"simulate {steps} steps: picture", true),
                self._psnr_row("simulate/psnr/still", "  last frame repeated", still),
                self._psnr_row("simulate/psnr/shuffled", "  shuffled actions", wrong),
            ]
        rows = [
            self._row(f"simulate/{key}", f"{what}, over all steps", unit, bootstrap.median, true),
            self._row(f"simulate/{key}/last", f"  at step {steps}", unit, bootstrap.median, true[:, :, -1]),
            self._row(f"simulate/{key}/still", "  last frame repeated", unit, bootstrap.median, still),
            self._row(f"simulate/{key}/shuffled", "  shuffled actions", unit, bootstrap.median, wrong),
        ]
        has_moved = self._has_moved(quantity)
        if has_moved is not None and has_moved.any():
            num = int(has_moved.sum())
            name = f"  where it moved ({num} of {len(has_moved)} clips), at step {steps}"
            rows.append(
                self._row(f"simulate/{key}/moved", name, unit, bootstrap.median, true[has_moved][:, :, -1])
            )
        return rows

    def _has_moved(self, quantity: Quantity) -> np.ndarray | None:
        """``B`` bool: whether the recorded thing moved within the clip."""
        if quantity.moved is None:
            return None
        flags = []
        for clip in self.clips:
            assert clip.reference is not None
            still = clip.reference[np.full(clip.num_frames - self.context, self.context - 1)]
            distance = errors(quantity, still, clip.reference[self.context :])
            flags.append(bool((distance[~np.isnan(distance)] > quantity.moved).any()))
        return np.array(flags)

    def validity_rows(self, notes: list[str]) -> list[Row]:
        """A long simulation: does it still show what can be."""
        assert self.probe is not None
        steps = self.config.long_steps
        actions, num_chained = validity.long_actions(self.clips, context=self.context, num_steps=steps)
        if num_chained:
            notes.append(
                f"{num_chained} of {len(self.clips)} clips have fewer than {steps:,} actions: after their own they "
                "were driven with those of the next clips, which nobody tried in that state."
            )
        shares = validity.measure_validity(
            self.world,
            self.clips,
            actions,
            context=self.context,
            seeds=self.seeds,
            probe=self.probe,
            batch=self.config.batch,
        )
        rows = []
        for mark, values in shares.items():
            is_last = mark == steps
            what = f"after {mark:,} steps: frames that show exactly {self.probe.things}"
            what = what if is_last else f"  after {mark:,} steps"
            rows.append(
                self._row("valid" if is_last else f"valid/{mark}", what, "share", bootstrap.share, values)
            )
        return rows[-1:] + rows[:-1]

    def speed_row(self, notes: list[str]) -> Row:
        """One stream alone."""
        speed = measure_speed(
            self.world, self.clips[0], context=self.context, steps=self.config.speed_steps, repeats=5
        )
        notes.append(
            f"One step takes {speed.p50_ms:.1f} ms (p50), {speed.p99_ms:.1f} ms (p99), on {self.world.device} with "
            f"{speed.num_threads} threads; speed is 1 / p50, the median of five repeats."
        )
        return Row(
            key="speed",
            what="one stream, decoded frames a second (slowest to fastest repeat)",
            value=speed.fps,
            unit="fps",
            low=speed.slowest,
            high=speed.fastest,
            is_higher_better=True,
        )

    def _row(self, key: str, what: str, unit: str, statistic: Any, *samples: np.ndarray) -> Row:
        low, high = bootstrap.interval(statistic, *samples, rng=self.rng)
        value = statistic(*samples)
        is_share = unit == "share"
        return Row(key=key, what=what, value=value, unit=unit, low=low, high=high, is_higher_better=is_share)

    def _psnr_row(self, key: str, what: str, differences: np.ndarray) -> Row:
        """From root mean square differences: the median of PSNR is PSNR of the median."""
        row = self._row(key, what, "dB", bootstrap.median, differences)
        value, high, low = (psnr(number) for number in (row.value, row.low, row.high))
        return dataclasses.replace(row, value=value, low=low, high=high, is_higher_better=True)


def _with_target(row: Row, probe: Probe | None) -> Row:
    """The row with what it must reach: that of its key, or of the same number told in another way."""
    targets = probe.targets if probe is not None else {}
    for key in (row.key, row.key.removesuffix("/last"), row.key.removesuffix("/recorded")):
        target: Target | None = targets.get(key)
        if target is not None:
            return dataclasses.replace(row, must=target.must, aim=target.aim)
    return row


def _size_row(source: str) -> Row | None:
    """What has to be shipped: configuration, weights, and the recording where a world brings one."""
    folder = Path(source) if Path(source).is_dir() else BUNDLED_WORLDS / source
    if not folder.is_dir():
        return None
    files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE, *(folder / "recording").rglob("*")]
    size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    return Row(key="size", what="size of the world, its recording included", value=size, unit="MB")


def _curve(what: str, unit: str, values: np.ndarray) -> Curve:
    """Over clips and seeds (the first two axes)."""
    flat = values.reshape(-1, values.shape[-1])
    return Curve(
        what=what,
        unit=unit,
        steps=list(range(1, flat.shape[1] + 1)),
        median=[bootstrap.median(column) for column in flat.T],
        p90=[bootstrap.percentile(column, 90.0) for column in flat.T],
    )
