"""``kinema evaluate skill``: measure how much better a world forecasts than the last frame repeated.

Skill is ``1 - E / E_repeat``: 1 is perfect, 0 is as bad as the last given frame repeated. ``E`` is the mean
squared error of simulated frames against what the codec makes of the real ones, ``E_repeat`` that of the last
given frame through the codec; states are compared in the same way. In a stochastic world the mean of forks is
compared, since no single future can be right. The useful horizon says for how many steps a single future is
about the real one: until its squared error reaches half of that of an unrelated future (for a state that a
probe reads: its distance).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.forecast import (
    FRAME,
    UNITS,
    Forecast,
    Truth,
    forecast,
    mean_of_forks,
    read_truth,
    squared_error,
)
from kinema.evaluation.frame_distance import psnr, ssim
from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.rollout import Segment, concatenate
from kinema.kits import Probe, Reading, errors
from kinema.options import at_least

MARKS = (1, 10, 50, 100)
"""Steps at which skill is reported."""
OBEDIENCE_STEP = 10
"""Step at which the error with shuffled actions is compared with that with true ones."""
CURVE_POINTS = 12
"""Further steps at which errors are measured, from the first to the last, ever farther apart."""
NUM_FORKS = 16
"""Forks whose mean is compared where the world is stochastic."""
STOCHASTIC = 0.1
"""A world is stochastic where the variance of its forks is more than this share of their squared error."""
TRIED_SEGMENTS, TRIED_FORKS = 8, 4
"""Segments and forks from which it is decided."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillConfig(WorldOptions, RecordingOptions, ResultOptions):
    steps: int = 100
    """Steps to simulate."""
    rollouts: int = 32
    """Segments of episodes to start from."""
    num_forks: int | None = None
    """Futures of each segment whose mean is compared; by default 16 where forks differ, else 1."""
    batch: int = 64
    """Sessions simulated together."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, rollouts=1, seed=0, context=1, batch=1)
        if self.num_forks is not None:
            at_least(self, num_forks=1)


def skill(config: SkillConfig) -> int:
    """Measure, write and print; return 0. Raises ValueError, as ``run_protocol`` does."""
    return run_protocol("skill", config, measure_skill)


def measure_skill(run: Run) -> None:
    """Add skill, its baselines, the codec's own error and the useful horizon."""
    config: SkillConfig = run.config
    segments = run.segments(num=config.rollouts, length=config.context + config.steps)
    actions = run.recorded_actions(segments, config.steps)
    truth = read_truth(run.world, segments, context=config.context, steps=curve_steps(config.steps))
    options: dict[str, Any] = {"context": config.context, "seed": config.seed, "batch": config.batch}
    options["num_denoising_steps"] = config.num_denoising_steps
    num_forks = config.num_forks or find_num_forks(run, segments, actions, truth, options)
    run.protocol |= {"rollouts": len(segments), "num_forks": num_forks}
    options["num_forks"] = num_forks
    measured = _measure(run, segments, actions, truth, truth.steps, "true actions", **options)
    wrong = np.stack([run.rng.permutation(row) for row in actions])
    steps = [OBEDIENCE_STEP] if OBEDIENCE_STEP in truth.steps else [truth.steps[-1]]
    shuffled = _measure(run, segments, wrong, truth, steps, "shuffled actions", **options)
    unrelated = _unrelated(run, segments, truth, config.context)
    for modality in truth.target:
        _add_skill(run, truth, modality, measured, shuffled, unrelated)
    if truth.frames:
        _add_codec(run, truth, measured)
    _add_horizons(run, truth, measured, unrelated)
    run.notes += [
        f"{len(segments)} segments of {len({segment.episode for segment in segments})} episodes, "
        f"{config.context} frames given, forks: {num_forks}. Intervals are 95%, over segments.",
        "Skill: 1 - E / E_repeat, where E is the mean squared error against the codec's real frame (or the "
        "normalised state), E_repeat that of the last given one. 1 is perfect, 0 no better than repeating.",
        "Useful horizon: steps until the error of one future reaches half of that of an unrelated one.",
    ]


def curve_steps(last: int) -> tuple[int, ...]:
    """Choose the steps, up to ``last``, at which errors are measured."""
    spaced = np.geomspace(1, last, CURVE_POINTS).round().astype(int).tolist()
    return tuple(sorted({*spaced, *(mark for mark in MARKS if mark <= last), last}))


def find_num_forks(
    run: Run, segments: Sequence[Segment], actions: np.ndarray, truth: Truth, options: dict[str, Any]
) -> int:
    """Return ``NUM_FORKS`` where the forks of a world differ, 1 where it is deterministic."""
    chosen = segments[:TRIED_SEGMENTS]
    steps = [step for step in truth.steps if step <= OBEDIENCE_STEP]
    spread, error = 0.0, 0.0
    for each in forecast(
        run.world, chosen, actions, steps, num_forks=TRIED_FORKS, label="trying forks", **options
    ):
        for modality, values in each.values.items():
            variance = {key: part.var(axis=1, dtype=np.float32) for key, part in values.items()}
            target = truth.at(modality, each.segments, each.step)
            spread += float(np.mean([part.mean() for part in variance.values()]))
            error += float(squared_error(mean_of_forks(values), target).mean())
    return NUM_FORKS if spread > STOCHASTIC * error else 1


class _Errors:
    """Errors ``B K`` of segments."""

    def __init__(self, truth: Truth, num_segments: int) -> None:
        self._steps, self._shape = truth.steps, (num_segments, len(truth.steps))
        self.values: dict[str, np.ndarray] = {}

    def put(self, name: str, segments: np.ndarray, step: int, values: np.ndarray) -> None:
        """Keep the values ``b`` of some segments at one step."""
        if name not in self.values:
            self.values[name] = np.full(self._shape, np.nan)
        self.values[name][segments, self._steps.index(step)] = values

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def at(self, name: str, step: int) -> np.ndarray:
        """Return the values ``B`` at one step."""
        return self.values[name][:, self._steps.index(step)]


def _measure(
    run: Run,
    segments: Sequence[Segment],
    actions: np.ndarray,
    truth: Truth,
    steps: Sequence[int],
    label: str,
    *,
    context: int,
    **options: Any,
) -> _Errors:
    """Measure the errors of the mean of forks (``frame``), the mean of the errors of each fork
    (``frame/single``), PSNR and SSIM against real frames, and the errors of the probe's quantities."""
    measured = _Errors(truth, len(segments))
    for each in forecast(run.world, segments, actions, steps, label=label, context=context, **options):
        chosen, step = each.segments, each.step
        for modality, values in each.values.items():
            target, mean = truth.at(modality, chosen, step), mean_of_forks(values)
            num_forks = next(iter(values.values())).shape[1]
            single = [
                squared_error({key: part[:, fork] for key, part in values.items()}, target)
                for fork in range(num_forks)
            ]
            measured.put(modality, chosen, step, squared_error(mean, target))
            measured.put(f"{modality}/single", chosen, step, np.mean(single, axis=0))
            if modality == FRAME and step in MARKS:
                place = truth.steps.index(step)
                real = {key: part[chosen, place] for key, part in truth.frames.items()}
                shown = {key: part.round().astype(np.uint8) for key, part in mean.items()}
                measured.put("psnr", chosen, step, squared_error(shown, real))
                measured.put("ssim", chosen, step, ssim(shown, real))
        if run.probe is not None and FRAME in each.values:
            distances = _read(run.probe, each, [segments[index] for index in chosen], context)
            for key, values in distances.items():
                measured.put(key, chosen, step, values)
    return measured


def _read(probe: Probe, each: Forecast, segments: Sequence[Segment], context: int) -> dict[str, np.ndarray]:
    """Measure the errors ``b`` of the probe's quantities, the mean over forks."""
    parts = each.values[FRAME]
    reading = probe.read({key: part.reshape(-1, *part.shape[2:]) for key, part in parts.items()})
    num_forks = len(reading) // len(segments)
    reference = _states(segments, context, each.step)
    if reference is None:
        return {}
    repeated = reference[np.repeat(np.arange(len(segments)), num_forks)]
    return {
        quantity.key: errors(quantity, reading, repeated).reshape(-1, num_forks).mean(axis=1)
        for quantity in probe.quantities
    }


def _states(segments: Sequence[Segment], context: int, step: int) -> Reading | None:
    """Stack the states of segments at one step; None where there are none."""
    row = context - 1 + step
    states = [segment.state[row : row + 1] for segment in segments if segment.state is not None]
    return concatenate(states) if states else None


def _unrelated(run: Run, segments: Sequence[Segment], truth: Truth, context: int) -> _Errors:
    """Measure what happened in each segment against what happened in another one, of another episode where
    there is one."""
    measured = _Errors(truth, len(segments))
    others = partners(segments)
    if others is None:
        return measured
    everywhere = np.arange(len(segments))
    for step in truth.steps:
        for modality in truth.target:
            pair = truth.at(modality, others, step), truth.at(modality, everywhere, step)
            measured.put(modality, everywhere, step, squared_error(*pair))
        reading = _states(segments, context, step)
        if run.probe is not None and reading is not None:
            for quantity in run.probe.quantities:
                measured.put(quantity.key, everywhere, step, errors(quantity, reading[others], reading))
    return measured


def partners(segments: Sequence[Segment]) -> np.ndarray | None:
    """Choose for each segment another one; None for one segment alone."""
    num, episodes = len(segments), [segment.episode for segment in segments]
    if num < 2:
        return None
    chosen = []
    for index in range(num):
        others = [(index + offset) % num for offset in range(1, num)]
        chosen.append(next((o for o in others if episodes[o] != episodes[index]), others[0]))
    return np.array(chosen)


def share_explained(error: np.ndarray, repeated: np.ndarray) -> float:
    """Return ``1 - E / E_repeat`` of squared errors; NaN where nothing moves."""
    whole = float(np.mean(repeated))
    return 1.0 - float(np.mean(error)) / whole if whole > 0 else float("nan")


def ratio_of_roots(error: np.ndarray, other: np.ndarray) -> float:
    """Return the ratio of root mean squares of two sets of squared errors; NaN where the second is zero."""
    below = float(np.mean(other))
    return float(np.sqrt(np.mean(error) / below)) if below > 0 else float("nan")


def root(error: np.ndarray) -> float:
    """Return the root of the mean of squared errors."""
    return float(np.sqrt(bootstrap.mean(error)))


def decibels(error: np.ndarray) -> float:
    """Return the PSNR of the mean of squared errors in squared levels."""
    return psnr(root(error))


def useful_steps(steps: Sequence[int], error: np.ndarray, unrelated: np.ndarray) -> float:
    """Return the step at which errors ``B K``, averaged over segments, reach half of the unrelated ones; the
    last step where they do not. NaN where nothing is known of one of them."""
    if not np.isfinite(error).any() or not np.isfinite(unrelated).any():
        return float("nan")
    level = 0.5 * float(np.nanmean(unrelated))
    known = np.isfinite(error).any(axis=0)
    curve = np.nanmean(error[:, known], axis=0)
    # Before the first step nothing is wrong.
    at, values = np.array([0, *np.array(steps)[known]]), np.array([0.0, *curve])
    above = np.flatnonzero(values >= level)
    if not len(above) or level <= 0:
        return float(at[-1])
    after = max(1, int(above[0]))
    part = (level - values[after - 1]) / max(values[after] - values[after - 1], 1e-12)
    return float(at[after - 1] + np.clip(part, 0.0, 1.0) * (at[after] - at[after - 1]))


def _add_skill(
    run: Run, truth: Truth, modality: str, measured: _Errors, shuffled: _Errors, unrelated: _Errors
) -> None:
    error, unit, everywhere = measured[modality], UNITS[modality], np.arange(len(measured[modality]))
    repeated = np.stack(
        [squared_error(truth.given[modality], truth.at(modality, everywhere, step)) for step in truth.steps],
        axis=1,
    )
    for step in (mark for mark in MARKS if mark in truth.steps):
        what = f"{modality}: skill at step {step}"
        pair = measured.at(modality, step), repeated[:, truth.steps.index(step)]
        run.row(f"skill/{modality}/{step}", what, "", share_explained, *pair, is_higher_better=True)
    if OBEDIENCE_STEP in truth.steps:
        what = f"{modality}: error at step {OBEDIENCE_STEP} with shuffled actions over that with true ones"
        pair = shuffled.at(modality, OBEDIENCE_STEP), measured.at(modality, OBEDIENCE_STEP)
        run.row(f"obey/{modality}", what, "x", ratio_of_roots, *pair, is_higher_better=True)
    at, columns = list(truth.steps), (list(error.T), list(repeated.T))
    run.curve(f"skill/{modality}", modality, "", "skill", at, share_explained, *columns)
    curves = {"simulated": error, "last one repeated": repeated, "one future": measured[f"{modality}/single"]}
    if modality in unrelated.values:
        curves["unrelated"] = unrelated[modality]
    for what, values in curves.items():
        panel = f"{modality}: root mean square error"
        run.curve(f"error/{modality}/{what}", what, unit, panel, at, root, list(values.T))


def _add_codec(run: Run, truth: Truth, measured: _Errors) -> None:
    """Add the error of the codec alone, and that of simulated against real frames."""
    squares, sums, counts = [], [], []
    for key, real in truth.frames.items():
        square = ((truth.target[FRAME][key].astype(np.float32) - real) ** 2).mean(axis=-1)
        squares.append(square.reshape(len(square), -1).mean(axis=1))
        is_moving = truth.is_moving[key].reshape(len(square), -1)
        sums.append(np.where(is_moving, square.reshape(len(square), -1), 0.0).sum(axis=1))
        counts.append(is_moving.sum(axis=1))
    pair = np.sum(sums, axis=0), np.sum(counts, axis=0)
    what = "codec: PSNR of pixels that move"
    run.row("codec/psnr", "codec: PSNR", "dB", decibels, np.mean(squares, axis=0), is_higher_better=True)
    run.row("codec/psnr/moving", what, "dB", _decibels_of_sums, *pair, is_higher_better=True)
    for step in (mark for mark in MARKS if mark in truth.steps):
        what = f"PSNR at step {step}, against the real frame"
        run.row(f"psnr/{step}", what, "dB", decibels, measured.at("psnr", step), is_higher_better=True)
        what = f"SSIM at step {step}, against the real frame"
        run.row(f"ssim/{step}", what, "", bootstrap.mean, measured.at("ssim", step), is_higher_better=True)


def _decibels_of_sums(total: np.ndarray, count: np.ndarray) -> float:
    return decibels(np.array([total.sum() / count.sum()])) if count.sum() else float("nan")


def _add_horizons(run: Run, truth: Truth, measured: _Errors, unrelated: _Errors) -> None:
    """Add for how many steps one future is about the real one: frames, states, quantities of the probe."""
    names = {f"{modality}/single": (modality, modality) for modality in truth.target}
    quantities = run.probe.quantities if run.probe is not None else ()
    names |= {quantity.key: (quantity.key, quantity.label) for quantity in quantities}
    for name, (key, label) in names.items():
        if name not in measured.values or key not in unrelated.values:
            continue
        row = run.row(
            f"horizon/{key}",
            f"useful horizon: {label}",
            "steps",
            lambda error, other: useful_steps(truth.steps, error, other),
            measured[name],
            unrelated[key],
            is_higher_better=True,
        )
        if row.value >= truth.steps[-1]:
            run.notes.append(f"Useful horizon of {label}: at least the {truth.steps[-1]} steps simulated.")
