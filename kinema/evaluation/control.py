"""``kinema evaluate control``: does a world obey its actions, and do its pictures tell which they were?

The same starts are simulated with the recorded actions, with these in another order, late, and with none at
all. A world that obeys is right with the true ones alone. And the world's own inverse dynamics is asked which
actions its pictures show: for an obedient world the ones that it was given.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from kinema.evaluation import bootstrap, rollout
from kinema.evaluation.result import Result, Row, Series, describe_run, plain
from kinema.evaluation.rollout import (
    PICTURE,
    PROPRIO,
    Clip,
    Sweep,
    by_camera,
    load_clips,
    note_on_training,
    open_recordings,
)
from kinema.kits import Probe, Quantity, Target, find_probe
from kinema.simulation.world import World, load
from kinema.types import Frames

WRONG = ("shuffled", "delayed", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id."""
    data: str | None = None
    """Recorded episodes (a LeRobot folder or Hub id); by default what the world brings along."""
    steps: int = 50
    """Steps to simulate."""
    rollouts: int = 32
    """Pieces of episodes to start from."""
    seeds: int = 3
    """Simulations of each, each with its own noise."""
    seed: int = 0
    """The first of the seeds."""
    context: int = 4
    """Recorded frames to start from."""
    delay: int = 5
    """Steps by which the delayed actions are late."""
    batch: int = 64
    """Sessions simulated together."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("evaluation")
    """Folder for control.json, control.png and control.html."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""

    def __post_init__(self) -> None:
        least = {"steps": 2, "rollouts": 1, "seeds": 1, "seed": 0, "context": 1, "delay": 1, "batch": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {value}")


def control(config: ControlConfig) -> int:
    """Measure, write and print; 0 when done.

    Raises:
        ValueError: the world or the data cannot be read, or do not fit each other.
    """
    world = load(config.world, device=config.device)
    dataset = open_recordings(config.world, config.data)
    probe = find_probe(world.name, world.cameras, dataset.features)
    clips = load_clips(world, dataset, num=config.rollouts, length=config.context + config.steps, probe=probe)
    result = measure_control(world, clips, config, source=str(dataset.root), probe=probe)
    result.notes.extend(note_on_training(config.world, dataset, {clip.episode for clip in clips}))
    paths = result.write(config.out)
    result.tell(paths, as_json=config.json)
    return 0


def measure_control(
    world: World, clips: Sequence[Clip], config: ControlConfig, *, source: str, probe: Probe | None
) -> Result:
    """Errors with the true actions beside those with wrong ones, and what inverse dynamics says."""
    rng = np.random.default_rng(config.seed)
    seeds = tuple(range(config.seed, config.seed + config.seeds))
    sweep = Sweep(
        context=config.context,
        seeds=seeds,
        batch=config.batch,
        num_denoising_steps=config.num_denoising_steps,
    )
    driven = driven_actions(clips, config, rng)
    errors = {
        kind: rollout.compare(world, list(clips), actions, sweep, probe=probe, label=f"{kind} actions")
        for kind, actions in driven.items()
    }
    errors["still"] = rollout.repeat_last(world, list(clips), context=config.context, probe=probe)
    quantities = [*(probe.quantities if probe is not None else ()), PICTURE, PROPRIO]
    quantities = [quantity for quantity in quantities if quantity.key in errors["true"]]
    rows, series = [], []
    for quantity in quantities:
        rows += _obedience(quantity, errors, rng)
        series += _curves(quantity, errors, config, rng)
    rows += _agreement(world, clips, driven, sweep, rng)
    return Result(
        name="control",
        world=world.name,
        data=source,
        axis="step",
        protocol={**plain(config), "rollouts": len(clips)},
        run=describe_run(world),
        rows=rows,
        series=series,
        notes=[
            f"{len(clips)} pieces of {len({clip.episode for clip in clips})} episodes, {config.seeds} seeds, "
            f"{config.context} frames given. Intervals are 95%, over pieces.",
            f"Shuffled: the same actions in another order. Delayed: by {config.delay} steps, the first one "
            "repeated. Zero: zeros in the units of the dataset.",
            "Inverse dynamics: the world's own estimate of the actions between frames; its agreement is the "
            "share of their variance that it explains, 100% at best. That of real frames is what can be had.",
        ],
    )


def driven_actions(
    clips: Sequence[Clip], config: ControlConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Actions ``B S A`` by kind."""
    first = config.context - 1
    true = np.stack([clip.actions[first : first + config.steps] for clip in clips])
    late = np.maximum(np.arange(config.steps) - config.delay, 0)
    return {
        "true": true,
        "shuffled": np.stack([rng.permutation(row) for row in true]),
        "delayed": true[:, late],
        "zero": np.zeros_like(true),
    }


def _obedience(
    quantity: Quantity, errors: dict[str, dict[str, np.ndarray]], rng: np.random.Generator
) -> list[Row]:
    rows = []
    key, true = quantity.key, errors["true"][quantity.key]
    for kind in WRONG:
        pair = errors[kind][key], true
        what = f"{quantity.label} error with {kind} actions over that with true ones"
        row = Row.measure(f"obey/{key}/{kind}", what, "x", bootstrap.ratio_of_medians, *pair, rng=rng)
        target = Target(must=5.0, aim=15.0) if (kind, key) == ("shuffled", "agent") else None
        rows.append(dataclasses.replace(row.with_target(target), is_higher_better=True))
    return rows


def _curves(
    quantity: Quantity,
    errors: dict[str, dict[str, np.ndarray]],
    config: ControlConfig,
    rng: np.random.Generator,
) -> list[Series]:
    steps = list(range(1, config.steps + 1))
    curves = []
    for kind, measured in errors.items():
        what = "last frame repeated" if kind == "still" else f"{kind} actions"
        values = [measured[quantity.key][:, :, step - 1] for step in steps]
        panel = f"{quantity.label} error, median"
        key = f"{kind}/{quantity.key}"
        curves.append(
            Series.measure(key, what, quantity.unit, panel, steps, bootstrap.median, values, rng=rng)
        )
    return curves


def _agreement(
    world: World,
    clips: Sequence[Clip],
    driven: dict[str, np.ndarray],
    sweep: Sweep,
    rng: np.random.Generator,
) -> list[Row]:
    """What inverse dynamics reads in real and in simulated frames against what was done."""
    first = sweep.context - 1
    rows = []
    real = np.stack([_infer(world, clip.frames, clip.proprio, clip.num_frames)[first:] for clip in clips])
    rows.append(_agreement_row(world, "real frames", "infer/real", real, driven["true"], rng))
    for kind in ("true", "shuffled"):
        inferred = _infer_simulated(world, clips, driven[kind], sweep, label=f"inferring, {kind} actions")
        what = f"frames simulated with {kind} actions"
        rows.append(_agreement_row(world, what, f"infer/{kind}", inferred, driven[kind], rng))
    what = "the same, against the actions that were recorded"
    rows.append(_agreement_row(world, what, "infer/chance", inferred, driven["true"], rng))
    return rows


def _infer(world: World, frames: Frames, proprio: np.ndarray | None, num_frames: int) -> np.ndarray:
    given = None if proprio is None else proprio[:num_frames]
    return world.infer(frames or None, proprio=given)


def _infer_simulated(
    world: World, clips: Sequence[Clip], actions: np.ndarray, sweep: Sweep, *, label: str
) -> np.ndarray:
    """Inferred actions ``B S A`` of one simulation of each clip."""
    one = dataclasses.replace(sweep, seeds=sweep.seeds[:1])
    frames: list[dict[str, list[np.ndarray]]] = [{key: [] for key in world.cameras} for _ in clips]
    proprio: list[list[np.ndarray]] = [[] for _ in clips]
    for owners, _, _, step in one.run(world, list(clips), actions, label=label):
        shown = by_camera(world, step)
        for row, clip in enumerate(owners):
            for key, pictures in shown.items():
                frames[clip][key].append(pictures[row])
            if step.proprio is not None:
                proprio[clip].append(step.proprio[row])
    inferred = []
    for clip, simulated, felt in zip(tqdm(clips, desc="inferring"), frames, proprio, strict=True):
        joined = {
            key: np.concatenate([clip.frames[key][: sweep.context], np.stack(pictures)])
            for key, pictures in simulated.items()
        }
        given = None
        if clip.proprio is not None and felt:
            given = np.concatenate([clip.proprio[: sweep.context], np.stack(felt)])
        inferred.append(_infer(world, joined, given, sweep.context + actions.shape[1]))
    return np.stack(inferred)[:, sweep.context - 1 :]


def _agreement_row(
    world: World, what: str, key: str, inferred: np.ndarray, true: np.ndarray, rng: np.random.Generator
) -> Row:
    scale = world.action_normalizer.scale.cpu().numpy()
    samples = inferred / scale, true / scale
    what = f"inverse dynamics, agreement in {what}"
    return Row.measure(key, what, "share", explained, *samples, rng=rng, is_higher_better=True)


def explained(inferred: np.ndarray, true: np.ndarray) -> float:
    """Share of the variance of the true actions ``B S A`` that the inferred ones explain; negative where the
    mean would have been nearer."""
    spread = ((true - true.mean(axis=(0, 1))) ** 2).sum()
    return float(1.0 - ((inferred - true) ** 2).sum() / spread) if spread > 0 else float("nan")
