"""``kinema evaluate control``: measure whether a world obeys its actions.

The same starts are simulated with the recorded actions, with these in another order, delayed, and zero: an
obedient world is right with the true ones alone. The world's own inverse dynamics then reads actions from its
frames: those that it was given, where it obeys.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from kinema.evaluation import bootstrap
from kinema.evaluation.frame_distance import psnr
from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.rollout import FRAME, Segment, concatenate_segments, simulate_once
from kinema.evaluation.verdict import add_verdict
from kinema.kits import Quantity
from kinema.kits import errors as state_errors
from kinema.options import at_least
from kinema.simulation.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlConfig(WorldOptions, RecordingOptions, ResultOptions):
    steps: int = 50
    """Steps to simulate."""
    rollouts: int = 32
    """Segments of episodes to start from."""
    seeds: int = 3
    """Simulations of each, each with its own noise."""
    delay: int = 5
    """Steps by which the delayed actions are late."""
    batch: int = 64
    """Sessions simulated together."""
    dimensions: int = 16
    """Most action dimensions that are shuffled alone, for the verdict; 0 leaves them out."""

    def __post_init__(self) -> None:
        at_least(self, steps=2, rollouts=1, seeds=1, seed=0, context=1, delay=1, batch=1, dimensions=0)


def control(config: ControlConfig) -> int:
    """Measure, write and print; return 0. Raises ValueError, as ``run_protocol`` does."""
    return run_protocol("control", config, measure_control)


def measure_control(run: Run) -> None:
    """Add errors with true and with wrong actions, the agreement of inverse dynamics, and the verdict."""
    config = run.config
    segments = run.segments(num=config.rollouts, length=config.context + config.steps)
    run.protocol["rollouts"] = len(segments)
    actions = wrong_actions(run.recorded_actions(segments, config.steps), config.delay, run.rng)
    errors = add_errors(run, segments, actions, seeds=config.seeds, batch=config.batch)
    if run.world.action_dim:
        _add_agreement(run, segments, actions)
    run.notes += [
        f"{len(segments)} segments of {len(run.compared)} episodes, {config.seeds} seeds, {config.context} "
        "frames given. Intervals are 95%, over segments.",
        f"Shuffled: the same actions in another order. Delayed: by {config.delay} steps, the first one "
        "repeated. Zero: zeros in the units of the dataset.",
        "Inverse dynamics: the world's own estimate of the actions between frames; its agreement is the "
        "share of their variance that it explains, 100% at best. That of real frames is the ceiling.",
    ]
    add_verdict(run, segments, actions["true"], errors)


def wrong_actions(true: np.ndarray, delay: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return actions ``B S A`` by kind: ``true``, ``shuffled``, ``delayed`` and ``zero``."""
    late = np.maximum(np.arange(true.shape[1]) - delay, 0)
    shuffled = np.stack([rng.permutation(row) for row in true])
    return {"true": true, "shuffled": shuffled, "delayed": true[:, late], "zero": np.zeros_like(true)}


def add_errors(
    run: Run, segments: Sequence[Segment], actions: Mapping[str, np.ndarray], *, seeds: int, batch: int
) -> dict[str, dict[str, np.ndarray]]:
    """Simulate under ``true`` and wrong actions, and add the errors beside those of the last frame repeated.

    Returns:
        Errors ``B seeds S`` by kind of action (``still`` for the last frame repeated) and quantity.
    """
    errors = {
        kind: run.compare(segments, driven, seeds=seeds, batch=batch, label=f"{kind} actions")
        for kind, driven in actions.items()
    }
    errors["still"] = run.repeat_last(segments)
    quantities = run.quantities(errors["true"])
    for quantity in quantities:
        _add_quantity(run, segments, quantity, {kind: each[quantity.key] for kind, each in errors.items()})
    for quantity in quantities:
        for kind in [kind for kind in actions if kind != "true"]:
            what = f"{quantity.label} error with {kind} actions over that with true ones"
            pair = errors[kind][quantity.key], errors["true"][quantity.key]
            key, statistic = f"obey/{quantity.key}/{kind}", bootstrap.ratio_of_medians
            run.row(key, what, "x", statistic, *pair, is_higher_better=True)
    return errors


def _add_quantity(
    run: Run, segments: Sequence[Segment], quantity: Quantity, errors: Mapping[str, np.ndarray]
) -> None:
    """Add rows and curves of the errors ``B seeds S`` of one quantity by kind of action."""
    key, label, unit, true = f"simulate/{quantity.key}", quantity.label, quantity.unit, errors["true"]
    steps = true.shape[-1]
    others = {kind: f"{kind} actions" for kind in errors if kind not in ("true", "still")}
    others = {"still": "last frame repeated", **others}
    if quantity is FRAME:
        add_psnr(run, key, f"simulate {steps} steps: PSNR", true)
        for kind, what in others.items():
            add_psnr(run, f"{key}/{kind}", f"  {what}", errors[kind])
    else:
        run.row(key, f"simulate {steps} steps: {label} error", unit, bootstrap.median, true)
        last = true[:, :, -1]
        run.row(f"{key}/last", f"  at step {steps}", unit, bootstrap.median, last, target=key)
        has_moved = _has_moved(quantity, segments, run.config.context)
        if has_moved.any():
            where = f"in the {int(has_moved.sum())} of {len(has_moved)} segments where it moved"
            run.row(f"{key}/moved", f"  at step {steps}, {where}", unit, bootstrap.median, last[has_moved])
        for kind, what in others.items():
            run.row(f"{key}/{kind}", f"  {what}", unit, bootstrap.median, errors[kind])
    panel, at = f"{label}: median, shaded up to the 90th percentile", range(1, steps + 1)
    for kind, what in {"true": "", **others}.items():
        columns = errors[kind].reshape(-1, steps).T
        spans = [[middle := bootstrap.median(c), middle, bootstrap.percentile(c, 90.0)] for c in columns]
        run.line(f"{kind}/{quantity.key}", ", ".join(filter(None, [label, what])), unit, panel, at, spans)


def _has_moved(quantity: Quantity, segments: Sequence[Segment], context: int) -> np.ndarray:
    """Tell, ``B`` bool, whether a thing that mostly rests moved; False for one that always moves."""
    flags = np.zeros(len(segments), dtype=bool)
    for index, segment in enumerate(segments if quantity.moved is not None else ()):
        assert segment.state is not None
        last = np.full(len(segment) - context, context - 1)
        distance = state_errors(quantity, segment.state[last], segment.state[context:])
        flags[index] = bool((distance > quantity.moved).any())
    return flags


def add_psnr(run: Run, key: str, what: str, differences: np.ndarray) -> None:
    """Add the median PSNR of root mean square differences, which is the PSNR of their median."""
    low, high = bootstrap.interval(bootstrap.median, differences, rng=run.rng)
    middle = bootstrap.median(differences)
    run.number(key, what, "dB", psnr(middle), psnr(high), psnr(low), is_higher_better=True)


def _add_agreement(run: Run, segments: Sequence[Segment], actions: dict[str, np.ndarray]) -> None:
    """Add how well inverse dynamics reads the actions of real and of simulated frames."""
    context = run.config.context
    scale = run.world.action_normalizer.scale.cpu().numpy()

    def add(key: str, frames: str, inferred: np.ndarray, true: np.ndarray) -> None:
        what = f"inverse dynamics, agreement in {frames}"
        run.row(f"infer/{key}", what, "share", explained, inferred / scale, true / scale)

    add("real", "real frames", _infer(run.world, segments, context, "real"), actions["true"])
    for kind in ("true", "shuffled"):
        simulated = simulate_once(
            run.world, segments, actions[kind], label=f"inferring, {kind} actions", **run.simulation(1)
        )
        pairs = zip(segments, simulated, strict=True)
        joined = [concatenate_segments([real[:context], rest]) for real, rest in pairs]
        inferred = _infer(run.world, joined, context, kind)
        add(kind, f"frames simulated with {kind} actions", inferred, actions[kind])
    add("chance", "the same, against the recorded actions", inferred, actions["true"])


def _infer(world: World, segments: Sequence[Segment], context: int, label: str) -> np.ndarray:
    """Return inferred actions ``B S A``, those that follow the context."""
    inferred = [
        world.infer(segment.frames or None, proprio=segment.proprio)
        for segment in tqdm(segments, desc=f"inferring, {label} frames")
    ]
    return np.stack(inferred)[:, context - 1 :]


def explained(inferred: np.ndarray, true: np.ndarray) -> float:
    """Return the share of the variance of true actions ``B S A`` that inferred ones explain; negative where
    the mean would be nearer."""
    spread = ((true - true.mean(axis=(0, 1))) ** 2).sum()
    return float(1.0 - ((inferred - true) ** 2).sum() / spread) if spread > 0 else float("nan")
