"""Simulate beside real rollouts under the same actions, and measure both at the steps of a schedule."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from kinema.evaluation.detector import Detector
from kinema.evaluation.floor import Floor
from kinema.evaluation.frame_distance import Slices, mean_square, ssim
from kinema.evaluation.reality import Moment, Reality
from kinema.evaluation.rollout import by_camera, proprio_error, reconstruct, session_generator
from kinema.kits import Kit, Probe, Reading, errors
from kinema.simulation.session import SimulationBatch
from kinema.simulation.step import Step
from kinema.simulation.world import World
from kinema.types import Frames

if TYPE_CHECKING:
    from kinema.evaluation.horizon import HorizonConfig

WINDOW = 100
"""Most steps up to a mark that count for it."""
MAX_SAMPLES = 10
"""Most frames of a window that are measured."""


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
    """Follows real rollouts with simulated ones and measures both at the steps of a schedule."""

    def __init__(
        self,
        world: World,
        reality: Reality,
        config: "HorizonConfig",
        schedule: Schedule,
        *,
        detector: Detector | None,
        probe: Probe | None,
        floor: Floor | None,
        kit: Kit | None = None,
    ) -> None:
        self.world, self.reality, self.config, self.schedule = world, reality, config, schedule
        self.detector, self.probe, self.floor, self.kit = detector, probe, floor, kit
        self.num_finished = 0
        """Marks that were reached."""
        self.slices = Slices(len(schedule.marks), reality.num_rollouts)
        self.found: dict[str, np.ndarray] = {}
        """By key of a measurement: ``marks rollouts seeds samples``, NaN where there is none."""
        self._still: tuple[Frames, Reading | None] | None = None
        self.num_ended = 0
        """Real rollouts that are over."""

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
        self.num_ended = int((~moment.is_running).sum())
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
        frames, real = by_camera(self.world, step.frame), moment.frames
        assert real is not None
        assert self._still is not None
        still_frames, still = self._still
        tiled = {key: np.repeat(pictures, seeds, axis=0) for key, pictures in real.items()}
        through_codec = {key: np.repeat(pictures, seeds, axis=0) for key, pictures in reconstructed.items()}
        judged = {"simulated": frames, "codec": reconstructed, "real": real}
        measured = {}
        if self.detector is not None:
            measured = {
                f"valid/{kind}": self.detector.is_valid(f).astype(float) for kind, f in judged.items()
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
            if key not in self.found:
                shape = (len(self.schedule.marks), *table.shape, MAX_SAMPLES)
                self.found[key] = np.full(shape, np.nan)
            for mark, slot in self.schedule.places(step):
                self.found[key][mark, :, :, slot] = table

    def _keep_features(self, step: int, simulated: Step, moment: Moment, reconstructed: Frames) -> None:
        assert moment.frames is not None
        marks = np.array([mark for mark, _ in self.schedule.places(step)])
        rollouts = np.flatnonzero(moment.is_running)
        real, through_codec = (
            {key: pictures[rollouts] for key, pictures in frames.items()}
            for frames in (moment.frames, reconstructed)
        )
        sessions = np.repeat(moment.is_running, self.config.seeds)
        frames = {key: pictures[sessions] for key, pictures in by_camera(self.world, simulated.frame).items()}
        of_session = np.repeat(rollouts, self.config.seeds)
        for kind, pictures, owners in (
            ("real", real, rollouts),
            ("codec", through_codec, rollouts),
            ("simulated", frames, of_session),
        ):
            if len(owners):
                features = self.world.encode(pictures).flatten(1).cpu().double().numpy()
                self.slices.add(kind, marks, owners, features)


def _repeat(reading: Reading, times: int) -> Reading:
    return reading[np.repeat(np.arange(len(reading)), times)]
