"""``kinema evaluate horizon``: a world beside reality under the same actions, for up to 100,000 steps.

Three questions are answered apart, each as a curve over the steps. Is the picture still a possible one
(validity)? Is the state right (in multiples of the physical floor: chaos is not collapse)? How far is the
picture from the real one, and how much of that is the codec's alone (image distance)?
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from kinema.data.options import JsonObject
from kinema.evaluation import bootstrap
from kinema.evaluation.detector import Detector
from kinema.evaluation.floor import Floor, find_floor
from kinema.evaluation.image_distance import Slices, mean_square, psnr, sliced_frechet, ssim
from kinema.evaluation.reality import Moment, Reality, RecordedEpisodes
from kinema.evaluation.result import Result, Row, Series, describe_run, plain
from kinema.evaluation.rollout import (
    PROPRIO,
    by_camera,
    open_recordings,
    proprio_error,
    reconstruct,
    session_generator,
)
from kinema.evaluation.trust import trust_rows
from kinema.kits import Probe, Quantity, Reading, errors, find_kit, kit_of_environment
from kinema.simulation.session import SimulationBatch, Step, World, load
from kinema.types import Frames

WINDOW = 100
"""Most steps up to a mark that count for it."""
MAX_SAMPLES = 10
"""Most pictures of a window that are looked at."""
FIRST_WRITE = 1000
"""From this mark on, what was measured so far is written at every mark."""
LONG = 10_000
"""Marks from which on the sliced Frechet distance has a target."""
LIVE_SEED = 2_000_000
"""Away from the seeds that anything was recorded with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HorizonConfig:
    world: Annotated[str, tyro.conf.Positional]
    """Name of a bundled world, folder of a world, or its Hub id."""
    data: str | None = None
    """Recorded episodes to compare with (a LeRobot folder or Hub id), and real frames for the detector; by
    default what the world brings along."""
    env: str | None = None
    """Gymnasium id of a live environment to compare with instead: nothing limits the steps."""
    env_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the environment."""
    policy: str = "random"
    """Policy that acts in it, as for kinema record."""
    policy_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the policy. A policy with an argument steps gets the steps that are needed by default."""
    steps: int = 1000
    """Steps to simulate."""
    rollouts: int = 32
    """Real rollouts to follow."""
    seeds: int = 3
    """Simulations of each rollout, each with its own noise."""
    seed: int = 0
    """The first of the seeds; live rollout i has the environment's seed 2,000,000 + seed + i."""
    context: int = 4
    """Real frames to start from."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""
    floor_restarts: int = 4
    """Restarts of the real simulator from a blurred state, for each rollout; 0 leaves the floor out."""
    floor_steps: int = 1000
    """Steps of the restarts: long before, chaos has taken all."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("evaluation")
    """Folder for horizon.json, horizon.png and horizon.html."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "rollouts": 1, "seeds": 1, "seed": 0, "context": 1}
        least |= {"floor_restarts": 0, "floor_steps": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {value}")


def horizon(config: HorizonConfig) -> int:
    """Measure, write and print; 0 when done.

    Raises:
        ValueError: the world, the data or the environment cannot be had, or do not fit each other.
        KeyboardInterrupt: after Ctrl-C, once what was measured so far is written.
    """
    world = load(config.world, device=config.device)
    if not world.cameras:
        raise ValueError(f"world '{world.name}' has no camera: its horizon is told by pictures")
    dataset = open_recordings(config.world, config.data)
    kit = find_kit(world.name, dataset.features)
    probe = None if kit is None else kit.find_probe(world.cameras)
    detector = Detector.train(world, dataset, seed=config.seed)
    schedule = Schedule(config.steps)
    is_needed = np.concatenate([np.ones(config.context, dtype=bool), schedule.is_needed])
    if config.env is None:
        reality = RecordedEpisodes(world, dataset, num=config.rollouts, is_needed=is_needed, probe=probe)
    else:
        reality = _live(world, config, is_needed, probe)
    floor = find_floor(
        kit,
        probe,
        dataset if config.env is None else None,
        num_rollouts=reality.num_rollouts,
        num_restarts=config.floor_restarts,
        seed=config.seed,
    )
    measurement = Horizon(world, reality, config, schedule, detector=detector, probe=probe, floor=floor)
    is_interrupted = False
    try:
        for mark in measurement.run():
            if mark >= FIRST_WRITE and mark < config.steps:
                measurement.result().write(config.out)
    except KeyboardInterrupt:
        is_interrupted = True
        if not measurement.num_finished:
            raise
    finally:
        reality.close()
        if floor is not None:
            floor.close()
    result = measurement.result()
    paths = result.write(config.out)
    if is_interrupted:
        raise KeyboardInterrupt
    result.tell(paths, as_json=config.json)
    return 0


def _live(world: World, config: HorizonConfig, is_needed: np.ndarray, probe: Probe | None) -> Reality:
    """The environments, told what ``kinema record`` would be told."""
    # Recorded episodes need no simulator installed.
    from kinema.data.environment import find_policy, parse_policy
    from kinema.data.record import RecordConfig
    from kinema.evaluation.live import LiveEnvironments

    assert config.env is not None
    arguments = dict(config.policy_args)
    num_steps = config.context + config.steps + 1
    _, parameters = find_policy(parse_policy(config.policy)[0])
    if "steps" in parameters:
        arguments.setdefault("steps", num_steps)
    kit = kit_of_environment(config.env)
    simulator = None if kit is None else kit.simulator
    recorded = RecordConfig(
        env=config.env,
        episodes=config.rollouts,
        out=config.out,
        policy=config.policy,
        policy_args=arguments,
        env_args=config.env_args,
        seed=LIVE_SEED + config.seed,
        max_steps=num_steps,
        info_keys=() if simulator is None else simulator.info_keys,
        # A live environment may not say how many steps it makes a second, and nothing here needs it.
        fps=1.0,
    )
    return LiveEnvironments(world, recorded, num=config.rollouts, is_needed=is_needed, probe=probe)


class Schedule:
    """Which steps are looked at: windows that end at marks 1, 2, 5, 10, 20, ..., and at the last step."""

    def __init__(self, num_steps: int) -> None:
        marks = [m * 10**power for power in range(6) for m in (1, 2, 5)]
        self.marks = [mark for mark in marks if mark < num_steps] + [num_steps]
        self._steps = [self._window(mark) for mark in self.marks]
        self.is_needed = np.zeros(num_steps, dtype=bool)
        """By step, from the first simulated one."""
        for steps in self._steps:
            self.is_needed[steps - 1] = True

    def places(self, step: int) -> list[tuple[int, int]]:
        """Marks (by position) that a step counts for, from 1, and its place in their windows."""
        return [
            (mark, int(np.flatnonzero(steps == step)[0]))
            for mark, steps in enumerate(self._steps)
            if (steps == step).any()
        ]

    @staticmethod
    def _window(mark: int) -> np.ndarray:
        width = min(WINDOW, max(1, mark // 10))
        return np.arange(mark, mark - width, -max(1, width // MAX_SAMPLES))


class Horizon:
    """One run of the protocol; ``run`` measures, ``result`` tells what was measured so far."""

    def __init__(
        self,
        world: World,
        reality: Reality,
        config: HorizonConfig,
        schedule: Schedule,
        *,
        detector: Detector,
        probe: Probe | None,
        floor: Floor | None,
    ) -> None:
        self.world, self.reality, self.config, self.schedule = world, reality, config, schedule
        self.detector, self.probe, self.floor = detector, probe, floor
        self.num_finished = 0
        """Marks that were reached."""
        self._slices = Slices(len(schedule.marks), reality.num_rollouts)
        self._found: dict[str, np.ndarray] = {}
        self._still: tuple[Frames, Reading | None] | None = None
        self._num_ended = 0

    def run(self) -> Iterator[int]:
        """Simulate and measure; yields each mark once it is reached."""
        config, num_rollouts = self.config, self.reality.num_rollouts
        sessions: SimulationBatch | None = None
        given: list[Moment] = []
        actions = np.zeros(0)
        total = config.steps * num_rollouts * config.seeds
        with tqdm(total=total, desc="simulating", unit=" steps") as bar:
            for time, moment in enumerate(self.reality.moments()):
                if time < max(config.context, 2):
                    given.append(moment)
                if self.floor is not None and time == max(config.context - 1, 1):
                    self.floor.begin(given, context=config.context)
                step = time - config.context + 1
                if step >= 1:
                    if sessions is None:
                        sessions = self._start(given[: config.context])
                    self._advance(sessions, step, actions, moment)
                    bar.update(len(sessions))
                    if step in self.schedule.marks:
                        self.num_finished += 1
                        yield step
                actions = moment.columns["action"]

    def _start(self, given: list[Moment]) -> SimulationBatch:
        seeds = self.config.seeds

        def stacked(parts: list[np.ndarray]) -> np.ndarray:
            return np.repeat(np.stack(parts, axis=1), seeds, axis=0)

        frames = {
            key: stacked([moment.frames[key] for moment in given if moment.frames])
            for key in self.world.cameras
        }
        proprio = self.world.config.proprio_key
        last = given[-1]
        assert last.frames is not None
        self._still = last.frames, last.reference
        return self.world.start_batch(
            frames,
            stacked([moment.columns["action"] for moment in given])[:, :-1],
            proprio=None if proprio is None else stacked([moment.columns[proprio] for moment in given]),
            generators=[
                session_generator(self.config.seed + seed, rollout)
                for rollout in range(self.reality.num_rollouts)
                for seed in range(seeds)
            ],
            num_denoising_steps=self.config.num_denoising_steps,
            max_rewind=0,
        )

    def _advance(self, sessions: SimulationBatch, step: int, actions: np.ndarray, moment: Moment) -> None:
        is_needed = bool(self.schedule.is_needed[step - 1])
        simulated = sessions.step(np.repeat(actions, self.config.seeds, axis=0), decode=is_needed)
        restarted = None
        if self.floor is not None and step <= self.config.floor_steps:
            restarted = self.floor.step(actions)
        self._num_ended = int((~moment.is_running).sum())
        if is_needed:
            reconstructed = self._reconstruct(moment)
            measured = self._measure(simulated, moment, reconstructed)
            if restarted is not None and moment.reference is not None and self.probe is not None:
                reference = _repeat(moment.reference, self.floor.num_restarts if self.floor else 1)
                for quantity in self.probe.quantities:
                    measured[f"floor/{quantity.key}"] = errors(quantity, restarted, reference)
            self._keep(step, moment, measured)
            self._keep_features(step, simulated, moment, reconstructed)

    def _reconstruct(self, moment: Moment) -> dict[str, np.ndarray]:
        assert moment.frames is not None
        proprio = self.world.config.proprio_key
        return reconstruct(
            self.world, moment.frames, proprio=None if proprio is None else moment.columns[proprio]
        )

    def _measure(self, step: Step, moment: Moment, reconstructed: Frames) -> dict[str, np.ndarray]:
        """By key, for each session or for each rollout."""
        seeds = self.config.seeds
        frames, real = by_camera(self.world, step), moment.frames
        assert real is not None
        assert self._still is not None
        still_frames, still = self._still
        tiled = {key: np.repeat(pictures, seeds, axis=0) for key, pictures in real.items()}
        through_codec = {key: np.repeat(pictures, seeds, axis=0) for key, pictures in reconstructed.items()}
        measured = {
            "valid/simulated": self.detector.is_valid(frames).astype(float),
            "valid/codec": self.detector.is_valid(reconstructed).astype(float),
            "valid/real": self.detector.is_valid(real).astype(float),
        }
        pairs = {
            "simulated": (frames, tiled),
            "model": (frames, through_codec),
            "codec": (reconstructed, real),
            "still": (still_frames, real),
        }
        if self.reality.num_rollouts > 1:
            others = {key: np.roll(pictures, 1, axis=0) for key, pictures in real.items()}
            pairs["other"] = others, real
        for kind, (shown, true) in pairs.items():
            measured[f"square/{kind}"] = mean_square(shown, true)
            measured[f"ssim/{kind}"] = ssim(shown, true)
        if step.trust is not None:
            measured["trust"] = step.trust.astype(float)
        if step.proprio is not None and self.world.config.proprio_key is not None:
            proprio = moment.columns[self.world.config.proprio_key]
            true = np.repeat(proprio, seeds, axis=0)
            measured["simulated/proprio"] = proprio_error(self.world, step.proprio, true)
        if self.probe is not None and moment.reference is not None and still is not None:
            reading, reference = self.probe.read(frames), moment.reference
            measured["valid/probe"] = reading.is_valid.astype(float)
            measured["valid/probe-real"] = self.probe.read(real).is_valid.astype(float)
            other = reference[np.roll(np.arange(len(reference)), 1)]
            for quantity in self.probe.quantities:
                key = quantity.key
                measured[f"simulated/{key}"] = errors(quantity, reading, _repeat(reference, seeds))
                measured[f"still/{key}"] = errors(quantity, still, reference)
                if self.reality.num_rollouts > 1:
                    measured[f"other/{key}"] = errors(quantity, other, reference)
        return measured

    def _keep(self, step: int, moment: Moment, measured: dict[str, np.ndarray]) -> None:
        num_rollouts = self.reality.num_rollouts
        for key, values in measured.items():
            table = values.reshape(num_rollouts, -1)
            # After a rollout's end there is nothing real to compare with.
            table = np.where(moment.is_running[:, None], table, np.nan)
            if key not in self._found:
                shape = (len(self.schedule.marks), *table.shape, MAX_SAMPLES)
                self._found[key] = np.full(shape, np.nan)
            for mark, slot in self.schedule.places(step):
                self._found[key][mark, :, :, slot] = table

    def _keep_features(self, step: int, simulated: Step, moment: Moment, reconstructed: Frames) -> None:
        assert moment.frames is not None
        marks = np.array([mark for mark, _ in self.schedule.places(step)])
        rollouts = np.flatnonzero(moment.is_running)
        real, through_codec = (
            {key: pictures[rollouts] for key, pictures in frames.items()}
            for frames in (moment.frames, reconstructed)
        )
        sessions = np.repeat(moment.is_running, self.config.seeds)
        frames = {key: pictures[sessions] for key, pictures in by_camera(self.world, simulated).items()}
        of_session = np.repeat(rollouts, self.config.seeds)
        for kind, pictures, owners in (
            ("real", real, rollouts),
            ("codec", through_codec, rollouts),
            ("simulated", frames, of_session),
        ):
            if len(owners):
                features = self.world.encode(pictures).flatten(1).cpu().double().numpy()
                self._slices.add(kind, marks, owners, features)

    # What was measured.

    def result(self) -> Result:
        """All marks that were reached."""
        rng = np.random.default_rng(self.config.seed)
        marks = self.schedule.marks[: self.num_finished]
        series = [*self._validity(marks, rng), *self._state(marks, rng), *self._image(marks, rng)]
        return Result(
            name="horizon",
            world=self.world.name,
            data=self.reality.source,
            axis="step",
            protocol={**plain(self.config), "rollouts": self.reality.num_rollouts},
            run=describe_run(self.world),
            rows=self._rows(series, marks, rng),
            series=series,
            notes=self._notes(marks),
        )

    def _series(
        self,
        key: str,
        what: str,
        unit: str,
        panel: str,
        marks: list[int],
        statistic: Any,
        *names: str,
        rng: Any,
    ) -> list[Series]:
        if any(name not in self._found for name in names):
            return []
        samples = [[self._found[name][index] for index in range(len(marks))] for name in names]
        return [Series.measure(key, what, unit, panel, marks, statistic, *samples, rng=rng)]

    def _validity(self, marks: list[int], rng: np.random.Generator) -> list[Series]:
        kinds = [
            ("valid", "simulated, trained detector", "valid/simulated"),
            ("valid/probe", "simulated, probe", "valid/probe"),
            ("valid/real", "real, trained detector", "valid/real"),
            ("valid/codec", "codec alone, trained detector", "valid/codec"),
            ("valid/probe-real", "real, probe", "valid/probe-real"),
        ]
        found = []
        for key, what, name in kinds:
            found += self._series(key, what, "share", "valid frames", marks, bootstrap.share, name, rng=rng)
        return found

    def _state(self, marks: list[int], rng: np.random.Generator) -> list[Series]:
        quantities = list(self.probe.quantities) if self.probe is not None else []
        kinds = (("simulated", ""), ("floor", "physical floor"), ("still", "last frame repeated"))
        found = []
        for quantity in [*quantities, PROPRIO]:
            key, panel = quantity.key, f"{quantity.label} error, median"
            for kind, what in (*kinds, ("other", "another rollout's")):
                found += self._series(
                    f"{kind}/{key}",
                    what or "simulated",
                    quantity.unit,
                    panel,
                    marks,
                    bootstrap.median,
                    f"{kind}/{key}",
                    rng=rng,
                )
        for quantity in quantities:
            if f"floor/{quantity.key}" in self._found and not _is_below_sight(
                self._found[f"floor/{quantity.key}"]
            ):
                found += self._multiple(quantity, marks, rng)
        return found

    def _multiple(self, quantity: Quantity, marks: list[int], rng: np.random.Generator) -> list[Series]:
        reached = [mark for mark in marks if mark <= self.config.floor_steps]
        names = f"simulated/{quantity.key}", f"floor/{quantity.key}"
        return self._series(
            f"multiple/{quantity.key}",
            quantity.label,
            "x",
            "error over the physical floor, means",
            reached,
            _ratio_of_means,
            *names,
            rng=rng,
        )

    def _image(self, marks: list[int], rng: np.random.Generator) -> list[Series]:
        kinds = [
            ("simulated", "simulated to real"),
            ("codec", "codec floor"),
            ("model", "model error: simulated to reconstructed"),
            ("still", "last frame repeated"),
            ("other", "another rollout's"),
        ]
        found = []
        for kind, what in kinds:
            found += self._series(
                f"psnr/{kind}", what, "dB", "PSNR", marks, _median_psnr, f"square/{kind}", rng=rng
            )
        for kind, what in kinds:
            found += self._series(
                f"ssim/{kind}", what, "", "SSIM", marks, bootstrap.median, f"ssim/{kind}", rng=rng
            )
        if self.reality.num_rollouts < 2:
            return found
        for key, what, one, other in (
            ("simulated", "simulated to real", "simulated", "real"),
            ("codec", "codec floor", "codec", "real"),
            ("model", "model error: simulated to reconstructed", "simulated", "codec"),
            ("real", "real to real", "real", "real"),
        ):
            samples = [list(self._slices.pairs(kind)[: len(marks)]) for kind in (one, other)]
            panel = "sliced Frechet distance, tokenizer features"
            found.append(
                Series.measure(f"frechet/{key}", what, "", panel, marks, sliced_frechet, *samples, rng=rng)
            )
        return found

    def _rows(self, series: list[Series], marks: list[int], rng: np.random.Generator) -> list[Row]:
        by_key = {entry.key: entry for entry in series}
        last = marks[-1]
        rows = []
        for key, what in (("valid", "trained detector"), ("valid/probe", "probe")):
            if key in by_key:
                name = f"{key}/{last}"
                rows.append(_row(name, f"valid frames at step {last:,}, {what}", by_key[key], -1, True))
        near = max([mark for mark in marks if mark <= 100], default=marks[0])
        for quantity in self.probe.quantities if self.probe is not None else ():
            entry = by_key.get(f"multiple/{quantity.key}")
            if entry is not None and near in entry.at:
                what = f"{quantity.label} error over the physical floor at step {near}"
                rows.append(_row(f"floor/{quantity.key}/{near}", what, entry, entry.at.index(near), False))
        if near < last and self.reality.num_rollouts > 1:
            rows.append(self._frechet_row(marks.index(near), len(marks) - 1, rng))
        return [self._with_target(row, last) for row in (*rows, *self._trust_rows(marks, rng))]

    def _with_target(self, row: Row, last: int) -> Row:
        """The same row with what the kit's probe says that it is to reach."""
        target = None if self.probe is None else self.probe.targets.get(row.key)
        if target is None or (row.key == "frechet/ratio" and last < LONG):
            return row
        return dataclasses.replace(row, must=target.must, aim=target.aim)

    def _trust_rows(self, marks: list[int], rng: np.random.Generator) -> list[Row]:
        """Whether the world knew where it was wrong."""
        if "trust" not in self._found:
            return []

        def by_rollout(key: str) -> np.ndarray:
            """``rollouts N`` over marks, seeds and places of a window."""
            found = np.moveaxis(self._found[key][: len(marks)], 1, 0)
            return found.reshape(len(found), -1)

        per_mark = self._found["trust"][0, 0].size
        steps = np.repeat(np.array(marks), per_mark)
        kinds = [
            (f"simulated/{q.key}", q.key, q.label, q.unit)
            for q in (self.probe.quantities if self.probe else ())
        ]
        kinds.append(("square/model", "picture", "squared picture", ""))
        rows = []
        for name, key, what, unit in kinds:
            if name in self._found:
                rows += trust_rows(
                    by_rollout("trust"), by_rollout(name), steps, key=key, what=what, unit=unit, rng=rng
                )
        return [dataclasses.replace(row, is_higher_better="correlation" in row.key) for row in rows]

    def _frechet_row(self, near: int, last: int, rng: np.random.Generator) -> Row:
        simulated, real = (self._slices.pairs(kind) for kind in ("simulated", "real"))
        samples = simulated[last], real[last], simulated[near], real[near]

        def ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
            return sliced_frechet(a, b) / max(sliced_frechet(c, d), 1e-12)

        low, high = bootstrap.interval(ratio, *samples, rng=rng)
        marks = self.schedule.marks
        return Row(
            key="frechet/ratio",
            what=f"sliced Frechet distance at step {marks[last]:,} over step {marks[near]}",
            value=ratio(*samples),
            unit="x",
            low=low,
            high=high,
        )

    def _notes(self, marks: list[int]) -> list[str]:
        config = self.config
        notes = [
            f"{self.reality.num_rollouts} rollouts of {self.reality.source}, {config.seeds} seeds, "
            f"{config.context} frames given. Intervals are 95%, over rollouts.",
            f"A mark tells of the steps up to it: a tenth of them, at most {WINDOW}.",
            self.detector.describe(),
        ]
        if marks[-1] < config.steps:
            notes.append(f"Interrupted: {marks[-1]:,} of {config.steps:,} steps.")
        if self._num_ended:
            notes.append(f"{self._num_ended} real rollouts ended early and are left out from there on.")
        if self.floor is not None:
            notes.append(
                f"Physical floor: {self.floor.num_restarts} restarts of each rollout with every thing moved "
                f"by {self.floor.blur:g} of the simulator's units."
            )
        elif self.probe is not None:
            notes.append(
                "No physical floor: left out, or the recordings do not tell the state, or the simulator "
                "is not installed."
            )
        if self.reality.num_rollouts < 2:
            notes.append("One rollout alone has no meaningful interval and no Frechet distance.")
        return notes


def _repeat(reading: Reading, times: int) -> Reading:
    return reading[np.repeat(np.arange(len(reading)), times)]


def _median_psnr(squares: np.ndarray) -> float:
    """Of the median picture: PSNR falls as the square grows."""
    return float(psnr(np.array(bootstrap.median(squares))))


def _ratio_of_means(values: np.ndarray, others: np.ndarray) -> float:
    """Means, because a floor of rollouts most of which rest has a median that no error has."""
    known, below = values[~np.isnan(values)], others[~np.isnan(others)]
    if not len(known) or not len(below) or below.mean() <= 0:
        return float("nan")
    return float(known.mean() / below.mean())


def _is_below_sight(floor: np.ndarray) -> bool:
    """Whether restarts come together again closer than any picture could tell: then no multiple means
    anything."""
    known = floor[~np.isnan(floor)]
    return not len(known) or float(np.median(known)) < 0.01


def _row(key: str, what: str, series: Series, index: int, is_higher_better: bool) -> Row:
    return Row(
        key=key,
        what=what,
        value=series.value[index],
        unit=series.unit,
        low=series.low[index],
        high=series.high[index],
        is_higher_better=is_higher_better,
    )
