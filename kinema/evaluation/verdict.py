"""The verdict at the end of ``kinema evaluate control``, for any world: how many steps to trust, in which
cameras and action dimensions, and what to record next.

A simulation is about *this* future while its squared error is less than half of that between unrelated
rollouts. Action dimensions are judged by shuffling each alone; ranges of them by the growth of errors
within.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.protocol import Run
from kinema.evaluation.rollout import FRAME, PROPRIO, Segment, measure_errors
from kinema.evaluation.skill import partners, useful_steps

USEFUL = 0.5
"""Share of the squared error between unrelated rollouts under which a simulation is about this future."""
SURE = 0.9
"""Share of the steps above the trust threshold that are about this future."""
OBEYED = 1.05
"""Least error with a dimension shuffled over that with the true actions, by the lower end of its interval."""
NUM_BINS = 5
"""Equal parts of the range of an action dimension."""


def add_verdict(
    run: Run, segments: Sequence[Segment], actions: np.ndarray, errors: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Add rows and notes of the verdict.

    Args:
        run: the measurement.
        segments: real segments.
        actions: ``B S A``, the recorded actions after the context.
        errors: errors ``B seeds S`` by quantity, under ``true`` actions and of the last frame repeated
            (``still``).
    """
    key = FRAME.key if FRAME.key in errors["true"] else PROPRIO.key
    notes = []
    unrelated = unrelated_errors(run, segments)
    for name in [key, *(name for name in errors["true"] if name.startswith(f"{FRAME.key}/"))]:
        if name in unrelated:
            notes += _add_horizon(run, name, errors, unrelated[name])
    if key in unrelated:
        notes += _add_threshold(run, errors["true"].get("trust"), errors["true"][key], unrelated[key])
    ignored, obeyed = _add_dimensions(run, segments, actions, key, errors["true"][key])
    if obeyed:
        notes.append(f"obeyed: {', '.join(obeyed)}.")
    if ignored:
        notes.append(f"not shown to be obeyed: {', '.join(ignored)}.")
    advice = [f"episodes in which {name} changes while the rest stays" for name in ignored]
    advice += _add_ranges(run, actions, errors["true"][key])
    run.notes += [f"Verdict: {note}" for note in notes]
    is_short = any(row.key == f"horizon/{key}" and row.value < run.config.steps for row in run.rows)
    otherwise = "more of the same, longer or more varied" if is_short else "nothing stands out"
    run.notes.append(f"Record next: {'; '.join(advice) or otherwise}.")


def unrelated_errors(run: Run, segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """Return the errors ``B S`` by quantity between each segment and another one; empty for a single
    one."""
    others, later = partners(segments), [segment[run.config.context :] for segment in segments]
    if others is None:
        return {}
    measured = [measure_errors(run.world, a, later[b], run.probe) for a, b in zip(later, others, strict=True)]
    return {key: np.stack([each[key] for each in measured]) for key in measured[0]}


def _add_horizon(
    run: Run, name: str, errors: Mapping[str, Mapping[str, np.ndarray]], unrelated: np.ndarray
) -> list[str]:
    label = f"camera {name.removeprefix('frame/')}" if "/" in name else {"frame": "frames"}.get(name, name)
    steps = range(1, run.config.steps + 1)

    def horizon(errors: np.ndarray, unrelated: np.ndarray) -> float:
        return useful_steps(steps, (errors**2).mean(axis=1), unrelated**2)

    what, pair = f"useful horizon of {label}", (errors["true"][name], unrelated)
    row = run.row(f"horizon/{name}", what, "steps", horizon, *pair, is_higher_better=True, num_draws=100)
    still = horizon(errors["still"][name], unrelated)
    run.number(f"horizon/{name}/still", "  last frame repeated", "steps", still)
    least = "at least " if row.value == run.config.steps else ""
    return [
        f"{label}: about this future for {least}{row.value:.0f} steps (95%: {row.low:.0f} to "
        f"{row.high:.0f}); the last frame repeated, for {still:.0f}."
    ]


def _add_threshold(
    run: Run, trust: np.ndarray | None, errors: np.ndarray, unrelated: np.ndarray
) -> list[str]:
    """Add the trust above which most steps are about this future, where the world computes trust."""
    if trust is None or not np.isfinite(trust).all():
        return []
    is_useful = (errors**2 < USEFUL * (unrelated**2).mean()).ravel()
    order = np.argsort(-trust.ravel(), kind="stable")
    share = np.cumsum(is_useful[order]) / np.arange(1, len(order) + 1)
    if not (share >= SURE).any():
        return ["no threshold of trust separates the steps that are about this future."]
    threshold = float(trust.ravel()[order[np.flatnonzero(share >= SURE)[-1]]])
    what = f"trust above which {SURE:.0%} of the steps are about this future"
    run.number("trust/threshold", what, "", threshold)
    return [f"{SURE:.0%} of the steps with a trust of at least {threshold:.2f} are about this future."]


def _add_dimensions(
    run: Run, segments: Sequence[Segment], actions: np.ndarray, key: str, true: np.ndarray
) -> tuple[list[str], list[str]]:
    """Add the error with each action dimension shuffled alone over that with the true actions; return the
    names of the dimensions that are not shown to be obeyed, and of those that are. Constant ones are left
    out."""
    names: tuple[list[str], list[str]] = [], []
    varying = np.flatnonzero(np.ptp(actions, axis=(0, 1)) > 0)
    for dimension in varying[: run.config.dimensions]:
        name = run.world.config.action_names[dimension]
        wrong = actions.copy()
        wrong[:, :, dimension] = run.rng.permuted(actions[:, :, dimension], axis=1)
        measured = run.compare(segments, wrong, seeds=1, batch=run.config.batch, label=f"{name} shuffled")
        what = f"error with {name} alone shuffled over that with true actions"
        pair = measured[key], true[:, :1]
        row = run.row(f"obey/{name}", what, "x", error_ratio, *pair, is_higher_better=True)
        names[row.low is not None and row.low > OBEYED].append(name)
    return names


def error_ratio(wrong: np.ndarray, true: np.ndarray) -> float:
    """Return a ratio of median errors, at most 1,000; 1 where both are 0."""
    above, below = bootstrap.median(wrong), bootstrap.median(true)
    return 1.0 if above == below else min(above / max(below, 1e-9), 1e3)


def _add_ranges(run: Run, actions: np.ndarray, errors: np.ndarray) -> list[str]:
    """Add the range of each action dimension in which errors grow fastest, where that is beyond chance;
    return advice to record there."""
    growth = np.maximum(np.diff(errors.mean(axis=1), axis=1, prepend=0.0), 0.0)[:, 1:]
    advice = []
    for dimension, name in enumerate(run.world.config.action_names[: run.config.dimensions]):
        values = actions[:, 1:, dimension]
        edges = np.linspace(values.min(), values.max(), NUM_BINS + 1)
        bins = np.clip(np.digitize(values, edges) - 1, 0, NUM_BINS - 1)
        ratios = [growth_within(growth, bins == index) for index in range(NUM_BINS)]
        if not np.isfinite(ratios).any() or edges[0] == edges[-1]:
            continue
        worst = int(np.nanargmax(ratios))
        is_inside = bins == worst
        low, high = bootstrap.interval(growth_within, growth, is_inside, rng=run.rng, num=200)
        if low > 1.0:
            span = f"{name} between {edges[worst]:.3g} and {edges[worst + 1]:.3g}"
            what = f"growth of errors with {span} over the mean one"
            run.number(f"range/{name}", what, "x", ratios[worst], low, high)
            share = f"{is_inside.mean():.0%} of the recorded steps"
            advice.append(f"more with {span} ({share}, errors grow {ratios[worst]:.1f} times as fast there)")
    return advice


def growth_within(growth: np.ndarray, is_inside: np.ndarray) -> float:
    """Return the mean growth of errors (``B S``) of the steps inside over that of all; NaN without any."""
    mean = growth.mean()
    return float(growth[is_inside].mean() / mean) if is_inside.any() and mean > 0 else float("nan")
