"""Curves over the marks, rows and notes of ``kinema evaluate horizon``."""

from typing import TYPE_CHECKING

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.frame_distance import psnr, sliced_frechet
from kinema.evaluation.result import Series
from kinema.evaluation.rollout import FRAME, PROPRIO
from kinema.evaluation.trust import add_trust
from kinema.kits import Quantity

if TYPE_CHECKING:
    from kinema.evaluation.horizon import Horizon

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
FRAMES = {
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


def summarize(horizon: "Horizon", notes: list[str]) -> None:
    """Make the rows, series and notes of its ``Run`` anew, from all marks that were reached."""
    horizon.run.clear()
    _Summary(horizon).add()
    horizon.run.notes += notes


class _Summary:
    """bootstrap.Statistics of the marks that were reached."""

    def __init__(self, horizon: "Horizon") -> None:
        self._horizon, self._run = horizon, horizon.run
        self._marks = horizon.schedule.marks[: horizon.num_finished]
        probe = horizon.run.probe
        self._quantities: tuple[Quantity, ...] = () if probe is None else probe.quantities

    def add(self) -> None:
        for key, (what, name) in VALIDITY.items():
            self._curve(key, what, "share", "valid frames", bootstrap.mean, name)
        self._add_states()
        for kind, what in FRAMES.items():
            self._curve(f"psnr/{kind}", what, "dB", "PSNR", _median_psnr, f"{kind}/{FRAME.key}")
        for kind, what in FRAMES.items():
            self._curve(f"ssim/{kind}", what, "", "SSIM", bootstrap.median, f"ssim/{kind}")
        if self._horizon.reality.num_rollouts > 1:
            panel = "sliced Frechet distance, tokenizer features"
            for key, (what, *kinds) in FRECHET.items():
                samples = [list(self._horizon.slices.pairs(kind)[: len(self._marks)]) for kind in kinds]
                self._run.curve(f"frechet/{key}", what, "", panel, self._marks, sliced_frechet, *samples)
        self._add_rows()
        self._add_trust()
        self._add_notes()

    def _add_states(self) -> None:
        """Add the errors of the state, and their multiples of the physical floor."""
        for quantity in (*self._quantities, PROPRIO):
            panel = f"{quantity.label} error, median"
            for kind, what in STATES.items():
                key = f"{kind}/{quantity.key}"
                self._curve(key, what, quantity.unit, panel, bootstrap.median, key)
        for quantity in self._quantities:
            names = f"simulated/{quantity.key}", f"floor/{quantity.key}"
            floor = self._horizon.measured.get(names[1])
            if floor is not None and not _is_below_sight(floor):
                panel = "error over the physical floor, means"
                key, last = f"multiple/{quantity.key}", self._run.config.floor_steps
                self._curve(key, quantity.label, "x", panel, _ratio_of_means, *names, last=last)

    def _curve(
        self,
        key: str,
        what: str,
        unit: str,
        panel: str,
        statistic: bootstrap.Statistic,
        *names: str,
        last: float = np.inf,
    ) -> None:
        """Add a statistic of measurements at all marks up to ``last``; nothing where one is missing."""
        if all(name in self._horizon.measured for name in names):
            marks = [mark for mark in self._marks if mark <= last]
            samples = [list(self._horizon.measured[name][: len(marks)]) for name in names]
            self._run.curve(key, what, unit, panel, marks, statistic, *samples)

    def _add_rows(self) -> None:
        """Add the last validity, the near state errors, and the growth of the frame distance."""
        series = {entry.key: entry for entry in self._run.series}
        marks, last = self._marks, self._marks[-1]
        for key, what in (("valid", "trained detector"), ("valid/probe", "probe")):
            if key in series:
                self._add_row(f"{key}/{last}", f"valid frames at step {last:,}, {what}", series[key], -1)
        near = max([mark for mark in marks if mark <= 100], default=marks[0])
        for quantity in self._quantities:
            entry = series.get(f"multiple/{quantity.key}")
            if entry is not None and near in entry.at:
                what = f"{quantity.label} error over the physical floor at step {near}"
                self._add_row(f"floor/{quantity.key}/{near}", what, entry, entry.at.index(near))
        if near < last and self._horizon.reality.num_rollouts > 1:
            simulated, real = (self._horizon.slices.pairs(kind) for kind in ("simulated", "real"))
            at = marks.index(near)
            samples = simulated[len(marks) - 1], real[len(marks) - 1], simulated[at], real[at]
            what = f"sliced Frechet distance at step {last:,} over step {near}"
            target = "frechet/ratio" if last >= LONG else "frechet/early"
            self._run.row("frechet/ratio", what, "x", _frechet_growth, *samples, target=target)

    def _add_row(self, key: str, what: str, series: Series, index: int) -> None:
        """Add one number of a series; shares are better the higher they are."""
        ends, better = (series.low[index], series.high[index]), series.unit == "share"
        self._run.number(key, what, series.unit, series.value[index], *ends, is_higher_better=better)

    def _add_trust(self) -> None:
        """Add how well trust ranks errors."""
        measured = self._horizon.measured
        if "simulated/trust" not in measured:
            return

        def by_rollout(key: str) -> np.ndarray:
            """Return ``rollouts N`` over marks, seeds and samples of a window."""
            values = np.moveaxis(measured[key][: len(self._marks)], 1, 0)
            return values.reshape(len(values), -1)

        steps = np.repeat(np.array(self._marks), measured["simulated/trust"][0, 0].size)
        for quantity, name in [
            *((q, f"simulated/{q.key}") for q in self._quantities),
            (FRAME, "model/frame"),
        ]:
            if name in measured:
                add_trust(self._run, quantity, by_rollout("simulated/trust"), by_rollout(name), steps)

    def _add_notes(self) -> None:
        """Add what was compared, and what was left out and why."""
        horizon, run, config = self._horizon, self._run, self._run.config
        run.notes += [
            f"{horizon.reality.num_rollouts} rollouts of {horizon.reality.source}, {config.seeds} seeds, "
            f"{config.context} frames given. Intervals are 95%, over rollouts.",
            "A mark stands for the steps up to it: a tenth of them, at most 100.",
        ]
        if horizon.detector is not None:
            run.notes.append(horizon.detector.describe())
        if self._marks[-1] < config.steps:
            run.notes.append(f"Interrupted: {self._marks[-1]:,} of {config.steps:,} steps.")
        if horizon.num_ended:
            run.notes.append(f"{horizon.num_ended} real rollouts ended early and are left out from there on.")
        if horizon.floor is not None:
            run.notes.append(
                f"Physical floor: {horizon.floor.num_restarts} restarts of each rollout with every thing "
                f"moved by {horizon.floor.blur:g} of the simulator's units."
            )
        elif run.probe is not None:
            run.notes.append(
                "No physical floor: left out, or the recordings lack the state, or the simulator is not "
                "installed."
            )
        if horizon.reality.num_rollouts < 2:
            run.notes.append("One rollout alone has no meaningful interval and no Frechet distance.")


def _median_psnr(errors: np.ndarray) -> float:
    """Return the PSNR of the median frame: PSNR falls as the error grows."""
    return psnr(bootstrap.median(errors))


def _ratio_of_means(values: np.ndarray, others: np.ndarray) -> float:
    """Return a ratio of means: most rollouts rest, so that the median of their floor is too near to 0."""
    below = bootstrap.mean(others)
    return bootstrap.mean(values) / below if below > 0 else float("nan")


def _frechet_growth(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
    return sliced_frechet(a, b) / max(sliced_frechet(c, d), 1e-12)


def _is_below_sight(floor: np.ndarray) -> bool:
    """Tell whether restarts meet again closer than any frame shows: then no multiple has a meaning."""
    return not bootstrap.median(floor) >= 0.01
