"""``kinema evaluate horizon``: a world beside reality under the same actions, for up to 100,000 steps.

Three questions are answered apart, each as a curve over the steps. Is the picture still a possible one
(validity)? Is the state right (in multiples of the physical floor: chaos is not collapse)? How far is the
picture from the real one, and how much of that is the codec's alone (image distance)?
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from kinema.data.options import JsonObject
from kinema.evaluation.detector import Detector, TooFewFramesError
from kinema.evaluation.floor import find_floor
from kinema.evaluation.horizon_result import summarize
from kinema.evaluation.horizon_run import Horizon, Schedule
from kinema.evaluation.reality import Reality, RecordedEpisodes
from kinema.evaluation.rollout import note_on_training, open_recordings
from kinema.kits import Probe, find_kit, kit_of_environment
from kinema.simulation.world import World, load

FIRST_WRITE = 1000
"""From this mark on, what was measured so far is written at every mark."""
LIVE_SEED = 2_000_000
"""Away from the seeds that anything was recorded with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HorizonConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
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
    detector, notes = None, []
    try:
        detector = Detector.train(world, dataset, seed=config.seed)
    except TooFewFramesError as error:
        notes = [f"Validity is left out: {error}."]
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
    measurement = Horizon(
        world, reality, config, schedule, detector=detector, probe=probe, floor=floor, kit=kit
    )
    if isinstance(reality, RecordedEpisodes):
        notes += note_on_training(config.world, dataset, reality.episodes)
    is_interrupted = False
    try:
        for mark in measurement.run():
            if mark >= FIRST_WRITE and mark < config.steps:
                summarize(measurement, notes=notes).write(config.out)
    except KeyboardInterrupt:
        is_interrupted = True
        if not measurement.num_finished:
            raise
    finally:
        reality.close()
        if floor is not None:
            floor.close()
    result = summarize(measurement, notes=notes)
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
