"""``kinema evaluate control``: measure whether a world obeys its actions.

The same starts are simulated with the recorded actions, with these in another order, delayed, and zero: an
obedient world is right with the true ones alone. The world's own inverse dynamics then reads actions from its
frames: those that it was given, where it obeys.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from kinema.evaluation import bootstrap
from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.rollout import Segment, concatenate_segments, simulate_once
from kinema.evaluation.verdict import add_verdict
from kinema.kits import Quantity
from kinema.options import at_least
from kinema.simulation.world import World

WRONG = ("shuffled", "delayed", "zero")


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
    """Add errors with true and with wrong actions, and the agreement of inverse dynamics."""
    config = run.config
    segments = run.segments(num=config.rollouts, length=config.context + config.steps)
    run.protocol["rollouts"] = len(segments)
    actions = wrong_actions(run.recorded_actions(segments, config.steps), config.delay, run.rng)
    errors = {
        kind: run.compare(segments, driven, seeds=config.seeds, batch=config.batch, label=f"{kind} actions")
        for kind, driven in actions.items()
    }
    errors["still"] = run.repeat_last(segments)
    for quantity in run.quantities(errors["true"]):
        _add_obedience(run, quantity, {kind: each[quantity.key] for kind, each in errors.items()})
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
    """Return actions ``B S A`` by kind: ``true``, and those of ``WRONG``."""
    late = np.maximum(np.arange(true.shape[1]) - delay, 0)
    return {
        "true": true,
        "shuffled": np.stack([rng.permutation(row) for row in true]),
        "delayed": true[:, late],
        "zero": np.zeros_like(true),
    }


def _add_obedience(run: Run, quantity: Quantity, errors: dict[str, np.ndarray]) -> None:
    key, label = quantity.key, quantity.label
    for kind in WRONG:
        run.row(
            f"obey/{key}/{kind}",
            f"{label} error with {kind} actions over that with true ones",
            "x",
            bootstrap.ratio_of_medians,
            errors[kind],
            errors["true"],
            is_higher_better=True,
            target=f"obey/{key}" if kind == "shuffled" else None,
        )
    steps = range(1, run.config.steps + 1)
    for kind, values in errors.items():
        what = "last frame repeated" if kind == "still" else f"{kind} actions"
        columns = list(np.moveaxis(values, -1, 0))
        panel = f"{label} error, median"
        run.curve(f"{kind}/{key}", what, quantity.unit, panel, steps, bootstrap.median, columns)


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
