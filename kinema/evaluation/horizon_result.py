"""Result of ``kinema evaluate horizon``: series over the marks of the schedule, rows, notes."""

import dataclasses
from typing import Any

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.frame_distance import psnr, sliced_frechet
from kinema.evaluation.horizon_run import WINDOW, Horizon
from kinema.evaluation.result import Result, Row, Series, Statistic, describe_run, plain
from kinema.evaluation.rollout import PROPRIO
from kinema.evaluation.trust import trust_rows
from kinema.kits import Quantity

LONG = 10_000
"""Marks from which on the sliced Frechet distance has a target."""
VALIDITY = {
    "valid": ("simulated, trained detector", "valid/simulated"),
    "valid/probe": ("simulated, probe", "valid/probe"),
    "valid/real": ("real, trained detector", "valid/real"),
    "valid/codec": ("codec alone, trained detector", "valid/codec"),
    "valid/probe-real": ("real, probe", "valid/probe-real"),
}
"""Label and measurement of the curves of valid frames, by their key."""
STATES = {
    "simulated": "simulated",
    "floor": "physical floor",
    "still": "last frame repeated",
    "other": "another rollout's",
}
IMAGES = {
    "simulated": "simulated to real",
    "codec": "codec floor",
    "model": "model error: simulated to reconstructed",
    "still": "last frame repeated",
    "other": "another rollout's",
}
FRECHET = {
    "simulated": ("simulated to real", "simulated", "real"),
    "codec": ("codec floor", "codec", "real"),
    "model": ("model error: simulated to reconstructed", "simulated", "codec"),
    "real": ("real to real", "real", "real"),
}


def summarize(run: Horizon, *, notes: list[str]) -> Result:
    """Return the result of all marks that were reached; ``notes`` are appended to its own."""
    summary = _Summary(run)
    # The order decides which random numbers each interval gets.
    series = [*summary.validity(), *summary.state(), *summary.image()]
    return Result(
        name="horizon",
        world=run.world.name,
        data=run.reality.source,
        axis="step",
        protocol={**plain(run.config), "rollouts": run.reality.num_rollouts},
        run=describe_run(run.world),
        rows=summary.rows(series),
        series=series,
        notes=[*summary.notes(), *notes],
    )


class _Summary:
    """Statistics of one run."""

    def __init__(self, run: Horizon) -> None:
        self._run = run
        self._marks = run.schedule.marks[: run.num_finished]
        self._rng = np.random.default_rng(run.config.seed)
        self._quantities: tuple[Quantity, ...] = run.probe.quantities if run.probe is not None else ()

    def validity(self) -> list[Series]:
        """Return the shares of valid frames."""
        return [
            series
            for key, (what, name) in VALIDITY.items()
            for series in self._series(key, what, "share", "valid frames", bootstrap.share, name)
        ]

    def state(self) -> list[Series]:
        """Return the errors of the state, and their multiples of the physical floor."""
        found = []
        for quantity in (*self._quantities, PROPRIO):
            panel = f"{quantity.label} error, median"
            for kind, what in STATES.items():
                key = f"{kind}/{quantity.key}"
                found += self._series(key, what, quantity.unit, panel, bootstrap.median, key)
        for quantity in self._quantities:
            names = f"simulated/{quantity.key}", f"floor/{quantity.key}"
            if names[1] in self._run.found and not _is_below_sight(self._run.found[names[1]]):
                panel = "error over the physical floor, means"
                key, last = f"multiple/{quantity.key}", self._run.config.floor_steps
                found += self._series(key, quantity.label, "x", panel, _ratio_of_means, *names, last=last)
        return found

    def image(self) -> list[Series]:
        """Return PSNR, SSIM and the sliced Frechet distance."""
        found = []
        for kind, what in IMAGES.items():
            found += self._series(f"psnr/{kind}", what, "dB", "PSNR", _median_psnr, f"square/{kind}")
        for kind, what in IMAGES.items():
            found += self._series(f"ssim/{kind}", what, "", "SSIM", bootstrap.median, f"ssim/{kind}")
        if self._run.reality.num_rollouts < 2:
            return found
        panel = "sliced Frechet distance, tokenizer features"
        for key, (what, one, other) in FRECHET.items():
            samples = [list(self._run.slices.pairs(kind)[: len(self._marks)]) for kind in (one, other)]
            found.append(
                Series.measure(
                    f"frechet/{key}", what, "", panel, self._marks, sliced_frechet, *samples, rng=self._rng
                )
            )
        return found

    def _series(
        self,
        key: str,
        what: str,
        unit: str,
        panel: str,
        statistic: Statistic,
        *names: str,
        last: float = np.inf,
    ) -> list[Series]:
        """Return a statistic of measurements at all marks up to ``last``; nothing where one is missing."""
        if any(name not in self._run.found for name in names):
            return []
        marks = [mark for mark in self._marks if mark <= last]
        samples = [list(self._run.found[name][: len(marks)]) for name in names]
        return [Series.measure(key, what, unit, panel, marks, statistic, *samples, rng=self._rng)]

    def rows(self, series: list[Series]) -> list[Row]:
        """Return the last validity, the near state errors, the growth of image distance, and trust."""
        by_key = {entry.key: entry for entry in series}
        marks, last = self._marks, self._marks[-1]
        rows = []
        for key, what in (("valid", "trained detector"), ("valid/probe", "probe")):
            if key in by_key:
                what = f"valid frames at step {last:,}, {what}"
                rows.append(_row(f"{key}/{last}", what, by_key[key], -1, is_higher_better=True))
        near = max([mark for mark in marks if mark <= 100], default=marks[0])
        for quantity in self._quantities:
            entry = by_key.get(f"multiple/{quantity.key}")
            if entry is not None and near in entry.at:
                what = f"{quantity.label} error over the physical floor at step {near}"
                rows.append(_row(f"floor/{quantity.key}/{near}", what, entry, entry.at.index(near)))
        if near < last and self._run.reality.num_rollouts > 1:
            rows.append(self._frechet_growth(marks.index(near), len(marks) - 1))
        return [self._with_target(row) for row in (*rows, *self._trust())]

    def _with_target(self, row: Row) -> Row:
        """Return the row with the target of the kit's probe."""
        if self._run.kit is None or (row.key == "frechet/ratio" and self._marks[-1] < LONG):
            return row
        return row.with_target(self._run.kit.targets.get(row.key))

    def _frechet_growth(self, near: int, last: int) -> Row:
        simulated, real = (self._run.slices.pairs(kind) for kind in ("simulated", "real"))

        def ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
            return sliced_frechet(a, b) / max(sliced_frechet(c, d), 1e-12)

        what = f"sliced Frechet distance at step {self._marks[last]:,} over step {self._marks[near]}"
        samples = simulated[last], real[last], simulated[near], real[near]
        return Row.measure("frechet/ratio", what, "x", ratio, *samples, rng=self._rng)

    def _trust(self) -> list[Row]:
        """Return how well trust ranks errors."""
        found = self._run.found
        if "trust" not in found:
            return []

        def by_rollout(key: str) -> np.ndarray:
            """Return ``rollouts N`` over marks, seeds and samples of a window."""
            values = np.moveaxis(found[key][: len(self._marks)], 1, 0)
            return values.reshape(len(values), -1)

        steps = np.repeat(np.array(self._marks), found["trust"][0, 0].size)
        kinds = [(f"simulated/{q.key}", q.key, q.label, q.unit) for q in self._quantities]
        kinds.append(("square/model", "picture", "squared picture", ""))
        rows = []
        for name, key, what, unit in kinds:
            if name in found:
                values: Any = by_rollout("trust"), by_rollout(name), steps
                rows += trust_rows(*values, key=key, what=what, unit=unit, rng=self._rng)
        return [dataclasses.replace(row, is_higher_better="correlation" in row.key) for row in rows]

    def notes(self) -> list[str]:
        """Return what was compared, and what was left out and why."""
        run, config = self._run, self._run.config
        notes = [
            f"{run.reality.num_rollouts} rollouts of {run.reality.source}, {config.seeds} seeds, "
            f"{config.context} frames given. Intervals are 95%, over rollouts.",
            f"A mark stands for the steps up to it: a tenth of them, at most {WINDOW}.",
        ]
        if run.detector is not None:
            notes.append(run.detector.describe())
        if self._marks[-1] < config.steps:
            notes.append(f"Interrupted: {self._marks[-1]:,} of {config.steps:,} steps.")
        if run.num_ended:
            notes.append(f"{run.num_ended} real rollouts ended early and are left out from there on.")
        if run.floor is not None:
            notes.append(
                f"Physical floor: {run.floor.num_restarts} restarts of each rollout with every thing moved "
                f"by {run.floor.blur:g} of the simulator's units."
            )
        elif run.probe is not None:
            notes.append(
                "No physical floor: left out, or the recordings lack the state, or the simulator is not "
                "installed."
            )
        if run.reality.num_rollouts < 2:
            notes.append("One rollout alone has no meaningful interval and no Frechet distance.")
        return notes


def _median_psnr(squares: np.ndarray) -> float:
    """Return the PSNR of the median frame: PSNR falls as the square grows."""
    return float(psnr(np.array(bootstrap.median(squares))))


def _ratio_of_means(values: np.ndarray, others: np.ndarray) -> float:
    """Return a ratio of means: a floor of rollouts most of which rest has a median that no error has."""
    known, below = values[~np.isnan(values)], others[~np.isnan(others)]
    if not len(known) or not len(below) or below.mean() <= 0:
        return float("nan")
    return float(known.mean() / below.mean())


def _is_below_sight(floor: np.ndarray) -> bool:
    """Return whether restarts meet again closer than any frame shows: then no multiple has a meaning."""
    known = floor[~np.isnan(floor)]
    return not len(known) or float(np.median(known)) < 0.01


def _row(key: str, what: str, series: Series, index: int, *, is_higher_better: bool = False) -> Row:
    return Row(
        key=key,
        what=what,
        value=series.value[index],
        unit=series.unit,
        low=series.low[index],
        high=series.high[index],
        is_higher_better=is_higher_better,
    )
