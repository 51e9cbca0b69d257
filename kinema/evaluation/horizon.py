"""``kinema evaluate horizon``: a world beside reality under the same actions, for up to 100,000 steps.

Three questions are answered apart, each as a curve over the steps. Is the frame still a possible one
(validity)? Is the state right (in multiples of the physical floor: chaos is not collapse)? How far is the
frame from the real one, and how much of that is the codec's alone (frame distance)?
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from kinema.data.options import JsonObject
from kinema.evaluation.detector import Detector, TooFewFramesError
from kinema.evaluation.floor import Floor, find_floor
from kinema.evaluation.frame_distance import Slices, ssim
from kinema.evaluation.horizon_summary import summarize
from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.reality import LiveEnvironments, Reality, RecordedEpisodes
from kinema.evaluation.rollout import (
    Segment,
    measure_errors,
    observe,
    reconstruct,
    session_generator,
)
from kinema.kits import errors, kit_of_environment
from kinema.options import at_least
from kinema.simulation.session import SimulationBatch

FIRST_WRITE = 1000
"""From this mark on, the result so far is written at every mark."""
LIVE_SEED = 2_000_000
"""Away from the seeds that anything was recorded with."""
WINDOW = 100
"""Most steps up to a mark that count for it."""
MAX_SAMPLES = 10
"""Most frames of a window that are measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HorizonConfig(WorldOptions, RecordingOptions, ResultOptions):
    env: str | None = None
    """Gymnasium id of a live environment to compare with instead of recordings: nothing limits the steps.
    Rollout i has the environment's seed 2,000,000 + seed + i."""
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
    floor_restarts: int = 4
    """Restarts of the real simulator from a blurred state, for each rollout; 0 leaves the floor out."""
    floor_steps: int = 1000
    """Steps of the restarts: long before, chaos has taken all."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, rollouts=1, seeds=1, seed=0, context=1, floor_restarts=0, floor_steps=0)


def horizon(config: HorizonConfig) -> int:
    """Measure, write and print; return 0.

    Raises:
        ValueError: as ``run_protocol`` does.
        KeyboardInterrupt: after Ctrl-C, once the result so far is written.
    """
    return run_protocol("horizon", config, measure_horizon)


def measure_horizon(run: Run) -> None:
    """Follow real rollouts, and add curves and rows; the result is also written on the way."""
    config, world = run.config, run.world
    if not world.cameras:
        raise ValueError(f"world '{world.name}' has no camera: its horizon is measured in frames")
    detector, notes = None, []
    try:
        detector = Detector.train(world, run.dataset, seed=config.seed)
    except TooFewFramesError as error:
        notes = [f"Validity is left out: {error}."]
    schedule = Schedule(config.steps)
    reality = find_reality(run, schedule)
    run.source, run.protocol["rollouts"] = reality.source, reality.num_rollouts
    floor = find_floor(
        run.kit,
        run.probe,
        run.dataset if config.env is None else None,
        num_rollouts=reality.num_rollouts,
        num_restarts=config.floor_restarts,
        seed=config.seed,
    )
    measurement = Horizon(run, reality, schedule, detector, floor)
    try:
        for mark in measurement.follow():
            if FIRST_WRITE <= mark < config.steps:
                summarize(measurement, notes)
                run.write()
    except KeyboardInterrupt:
        if measurement.num_finished:
            summarize(measurement, notes)
            run.write()
        raise
    finally:
        reality.close()
        if floor is not None:
            floor.close()
    summarize(measurement, notes)


def find_reality(run: Run, schedule: "Schedule") -> Reality:
    """Open the recorded episodes, or make the live environments as ``kinema record`` does."""
    config = run.config
    is_needed = np.concatenate([np.ones(config.context, dtype=bool), schedule.is_needed])
    if config.env is None:
        reality = RecordedEpisodes(
            run.world, run.dataset, num=config.rollouts, is_needed=is_needed, probe=run.probe
        )
        run.compared |= reality.episodes
        return reality
    # Recorded episodes need no simulator installed.
    from kinema.data.environment import find_policy, parse_policy
    from kinema.data.record import RecordConfig

    arguments, num_steps = dict(config.policy_args), config.context + config.steps + 1
    if "steps" in find_policy(parse_policy(config.policy)[0])[1]:
        arguments.setdefault("steps", num_steps)
    kit = kit_of_environment(config.env)
    simulator = None if kit is None else kit.simulator
    record = RecordConfig(
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
    return LiveEnvironments(run.world, record, num=config.rollouts, is_needed=is_needed, probe=run.probe)


class Schedule:
    """Steps that are measured: windows that end at marks 1, 2, 5, 10, 20, ..., and at the last step."""

    def __init__(self, num_steps: int) -> None:
        marks = [m * 10**power for power in range(6) for m in (1, 2, 5)]
        self.marks = [mark for mark in marks if mark < num_steps] + [num_steps]
        self._steps = [self._window(mark) for mark in self.marks]
        self.is_needed = np.zeros(num_steps, dtype=bool)
        """By step, from the first simulated one."""
        for steps in self._steps:
            self.is_needed[steps - 1] = True

    def slots(self, step: int) -> list[tuple[int, int]]:
        """List the marks (by position) that a step counts for, from 1, with its position in their windows."""
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
        run: Run,
        reality: Reality,
        schedule: Schedule,
        detector: Detector | None,
        floor: Floor | None,
    ) -> None:
        self.run, self.reality, self.schedule = run, reality, schedule
        self.detector, self.floor = detector, floor
        self.num_finished = 0
        """Marks that were reached."""
        self.slices = Slices(len(schedule.marks), reality.num_rollouts)
        self.measured: dict[str, np.ndarray] = {}
        """By key of a measurement: ``marks rollouts seeds samples``, NaN where there is none."""
        self.num_ended = 0
        """Real rollouts that are over."""

    def follow(self) -> Iterator[int]:
        """Simulate and measure; yield each mark once it is reached."""
        config, num_rollouts = self.run.config, self.reality.num_rollouts
        sessions: SimulationBatch | None = None
        given: list[Segment] = []
        actions = np.zeros(0)
        total = config.steps * num_rollouts * config.seeds
        with tqdm(total=total, desc="simulating", unit=" steps") as bar:
            for time, real in enumerate(self.reality.steps()):
                if time < max(config.context, 2):
                    given.append(real)
                if self.floor is not None and time == max(config.context - 1, 1):
                    self.floor.begin(given, context=config.context)
                step = time - config.context + 1
                if step >= 1:
                    if sessions is None:
                        self._last = given[config.context - 1]
                        sessions = self._start(given[: config.context])
                    self._advance(sessions, step, actions, real)
                    bar.update(len(sessions))
                    if step in self.schedule.marks:
                        self.num_finished += 1
                        yield step
                actions = real.columns["action"]

    def _start(self, given: list[Segment]) -> SimulationBatch:
        run, seeds = self.run, self.run.config.seeds

        def stacked(parts: list[np.ndarray]) -> np.ndarray:
            return np.repeat(np.stack(parts, axis=1), seeds, axis=0)

        proprio = [real.proprio for real in given if real.proprio is not None]
        return run.world.start_batch(
            {camera: stacked([real.frames[camera] for real in given]) for camera in run.world.cameras},
            stacked([real.columns["action"] for real in given])[:, :-1],
            proprio=stacked(proprio) if proprio else None,
            generators=[
                session_generator(run.config.seed + seed, rollout)
                for rollout in range(self.reality.num_rollouts)
                for seed in range(seeds)
            ],
            num_denoising_steps=run.config.num_denoising_steps,
            max_rewind=0,
        )

    def _advance(self, sessions: SimulationBatch, step: int, actions: np.ndarray, real: Segment) -> None:
        config, probe, world = self.run.config, self.run.probe, self.run.world
        is_needed = bool(self.schedule.is_needed[step - 1])
        simulated = sessions.step(np.repeat(actions, config.seeds, axis=0), decode=is_needed)
        restarted = None
        if self.floor is not None and step <= config.floor_steps:
            restarted = self.floor.step(actions)
        assert real.is_running is not None
        self.num_ended = int((~real.is_running).sum())
        if not is_needed:
            return
        codec = Segment(frames=reconstruct(world, real.frames, proprio=real.proprio))
        shown = observe(world, simulated, probe)
        measured = self._measure(shown, real, codec)
        reference = real[self._repeated(config.floor_restarts)].state
        if self.floor is not None and restarted is not None and reference is not None and probe is not None:
            measured |= {f"floor/{q.key}": errors(q, restarted, reference) for q in probe.quantities}
        self._keep(step, real.is_running, measured)
        self._keep_features(step, real.is_running, {"real": real, "codec": codec, "simulated": shown})

    def _repeated(self, times: int) -> np.ndarray:
        return np.repeat(np.arange(self.reality.num_rollouts), times)

    def _measure(self, shown: Segment, real: Segment, codec: Segment) -> dict[str, np.ndarray]:
        """Measure all by key, for each session or for each rollout."""
        world, probe = self.run.world, self.run.probe
        owners = self._repeated(self.run.config.seeds)
        pairs = {
            "simulated": (shown, real[owners]),
            "model": (Segment(frames=shown.frames), codec[owners]),
            "codec": (codec, real),
            "still": (self._last, real),
        }
        if self.reality.num_rollouts > 1:
            pairs["other"] = real[np.roll(np.arange(self.reality.num_rollouts), 1)], real
        measured: dict[str, np.ndarray] = {}
        for kind, pair in pairs.items():
            by_key = measure_errors(world, pair[0], pair[1], probe)
            measured |= {f"{kind}/{key}": values for key, values in by_key.items()}
            measured[f"ssim/{kind}"] = ssim(pair[0].frames, pair[1].frames)
        if self.detector is not None:
            for kind, segment in {"simulated": shown, "codec": codec, "real": real}.items():
                measured[f"valid/{kind}"] = self.detector.is_valid(segment.frames).astype(float)
        if probe is not None and shown.state is not None:
            measured["valid/probe"] = shown.state.is_valid.astype(float)
            measured["valid/probe-real"] = probe.read(real.frames).is_valid.astype(float)
        return measured

    def _keep(self, step: int, is_running: np.ndarray, measured: dict[str, np.ndarray]) -> None:
        for key, values in measured.items():
            # After a rollout's end there is nothing real to compare with.
            table = np.where(is_running[:, None], values.reshape(len(is_running), -1), np.nan)
            if key not in self.measured:
                shape = (len(self.schedule.marks), *table.shape, MAX_SAMPLES)
                self.measured[key] = np.full(shape, np.nan)
            for mark, slot in self.schedule.slots(step):
                self.measured[key][mark, :, :, slot] = table

    def _keep_features(self, step: int, is_running: np.ndarray, segments: dict[str, Segment]) -> None:
        """Add the tokenizer's features of frames of rollouts that go on."""
        marks = np.array([mark for mark, _ in self.schedule.slots(step)])
        for kind, segment in segments.items():
            owners = self._repeated(len(segment) // len(is_running))
            rows = np.flatnonzero(is_running[owners])
            if len(rows):
                features = self.run.world.encode(segment[rows].frames).flatten(1).cpu().double().numpy()
                self.slices.add(kind, marks, owners[rows], features)
