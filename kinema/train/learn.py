"""``kinema learn``: let a policy learn inside a world, then evaluate it in the real environment.

The policy never acts for real while it learns: it begins as the cloned policy, and starts from recorded
frames. A curve of its imagined return beside its real one shows whether it gets better, or only better at
exploiting errors of the world; against the latter, rollouts that lose trust are worth nothing.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float

from kinema.data.drawing import read_frame
from kinema.data.files import write_text
from kinema.data.lerobot import Dataset
from kinema.data.options import JsonObject
from kinema.evaluation import protocol
from kinema.evaluation.result import Result
from kinema.hardware.machine import find_device
from kinema.model.goals import encode_goal, encode_place
from kinema.model.parts import save_part
from kinema.model.world import CONFIG_FILE
from kinema.policies.cloned import ClonedPolicy, load_clone
from kinema.policies.imagined import (
    IMAGINED_FILE,
    ImaginedBatch,
    ImaginedConfig,
    ImaginedObjective,
    ImaginedPolicy,
    Reward,
    RewardKind,
    check_trust,
    imagine,
)
from kinema.recipes import Phase, Schedule
from kinema.simulation.real_env import Arena
from kinema.simulation.session import SimulationBatch
from kinema.simulation.starts import Starts, begin
from kinema.simulation.world import World, load
from kinema.train.facts import Identity, fingerprint
from kinema.train.loop import LoopConfig, Run, Stage, Stopped, fit, open_run, say_stopped
from kinema.train.parallel import ALONE
from kinema.train.stages import build_stage
from kinema.types import Seen

VALUE_SHARE, VALUE_PASSES = 0.1, 8
"""Share of the updates, the first ones, in which only the value learns, and passes over the rollouts of each:
the policy stays as it is, so the rollouts stay right."""
STAGE, FREE_STAGE = "imagine", "imagine-free"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnConfig(LoopConfig):
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id; it needs heads."""
    data: str
    """Recorded episodes to start from: a LeRobot folder or Hub id."""
    out: Path = Path()
    """Folder of the world, where the policy goes too; an unfinished run in it is resumed. By default the
    world's."""
    reward: RewardKind = "recorded"
    """Reward to learn for: the recorded one, or the steps by which --goal comes nearer, by the heads."""
    goal: Path | None = None
    """File of a frame of the goal, which the policy sees."""
    clone: str | None = None
    """Folder of the cloned policy to begin with; by default that of the world."""
    learning: ImaginedConfig = dataclasses.field(default_factory=ImaginedConfig)
    """How policy and value learn."""
    updates: int = 300
    """Updates of policy and value, each from new rollouts."""
    learning_rate: float = 3e-4
    """Learning rate of policy and value."""
    starts: int = 128
    """Recorded frames at which rollouts start."""
    min_trust: float | None = None
    """Least trust of a rollout: steps from the one on that falls below it are worth nothing. Choose a trust
    that few rollouts of the recorded actions fall below in as many steps. By default all steps count."""
    compare: bool = False
    """With --min-trust: let a second policy learn without it, and show both curves."""
    env: str | None = None
    """Real environment in which the policy is evaluated: a Gymnasium id, or MODULE:ID."""
    env_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the environment."""
    episodes: int = 20
    """Episodes of an evaluation."""
    steps: int = 100
    """Most steps of an episode."""
    evaluate_every: int = 50
    """Updates from one point of the curve to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates", "starts", "episodes", "steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if (self.reward == "goal") and self.goal is None:
            raise ValueError("--reward goal: give a frame of the goal as --goal")
        if self.compare and self.min_trust is None:
            raise ValueError("--compare: it compares with and without --min-trust, which is not given")

    @property
    def schedule(self) -> Schedule:
        """Schedule of the updates; in the first phase only the value learns."""
        updates = max(2, round(self.update_share * self.updates))
        num_value = max(1, round(VALUE_SHARE * updates))
        batch, length = self.learning.batch, self.learning.horizon + 1
        phases = (
            Phase(updates=num_value, batch=batch, length=length),
            Phase(updates=updates - num_value, batch=batch, length=length),
        )
        rate = self.learning_rate
        return Schedule(phases=phases, learning_rate=rate, warmup=max(1, updates // 20), ema=0.99)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return (STAGE, FREE_STAGE) if self.compare else (STAGE,)

    @property
    def clone_folder(self) -> str:
        """Folder of the cloned policy to begin with."""
        return self.clone or self.world

    def options(self) -> dict[str, Any]:
        """The options that decide the weights, as JSON holds them."""
        names = ("data", "seed", "reward", "updates", "learning_rate", "starts", "min_trust", "update_share")
        fields = {name: getattr(self, name) for name in (*names, "accumulate")}
        return {**fields, "goal": str(self.goal), "learning": dataclasses.asdict(self.learning)}


class Judge:
    """Measures the returns of policies, imagined and real, from the same starts."""

    def __init__(self, world: World, reward: Reward, starts: Starts, config: LearnConfig):
        """Raises RecordError where the real environment cannot be made, or does not fit the world."""
        self.world, self.reward, self.config = world, reward, config
        self.arena = None if config.env is None else Arena(world, config.env, config.env_args)
        self._starts = starts

    def real(self, policy: ClonedPolicy) -> Float[np.ndarray, " E"]:
        """Returns of episodes in the real environment."""
        assert self.arena is not None
        config, is_for_goal = self.config, self.reward.kind == "goal"
        returns = np.zeros(config.episodes)
        for index in range(config.episodes):
            seen, _ = self.arena.reset(config.seed + index)
            policy.begin(np.random.default_rng(config.seed + index))
            far = self._distance(seen) if is_for_goal else None
            for _ in range(config.steps):
                outcome = self.arena.step(policy.choose(seen))
                seen = outcome.seen
                returns[index] += outcome.reward
                if outcome.terminated or outcome.truncated:
                    break
            if far is not None:
                returns[index] = far - self._distance(seen)
        return returns

    @torch.inference_mode()
    def _distance(self, seen: Seen) -> float:
        """Steps from an observation to the goal, by the heads."""
        assert self.reward.goal is not None
        here = encode_place(self.world, seen)
        return float(self.world.require_heads().distance(here, self.reward.goal)[0])

    def imagined(self, objective: ImaginedObjective) -> Float[np.ndarray, " E"]:
        """Expected returns of as many imagined episodes: from where the real ones begin, or from recorded
        frames where there is no real environment."""
        config = self.config
        rng = np.random.default_rng(config.seed)
        rollout = imagine(objective, self._sessions(), num_steps=config.steps, rng=rng, is_greedy=True)
        reached = torch.cat([torch.ones_like(rollout.continues[:1]), rollout.continues[:-1]]).cumprod(0)
        return (reached * rollout.rewards).sum(0).double().numpy()

    def _sessions(self) -> SimulationBatch:
        config = self.config
        seeds = list(range(config.episodes))
        if self.arena is None:
            chosen = [self._starts.starts[index % len(self._starts.starts)] for index in seeds]
            return begin(self.world, chosen, seeds)
        seen = [self.arena.reset(config.seed + index)[0] for index in seeds]
        proprio = [one.proprio for one in seen if one.proprio is not None]
        return self.world.start_batch(
            {key: np.stack([one.frames[key] for one in seen])[:, None] for key in self.world.cameras} or None,
            proprio=np.stack(proprio)[:, None] if proprio else None,
            seeds=seeds,
            max_rewind=0,
        )

    def close(self) -> None:
        if self.arena is not None:
            self.arena.close()


def learn(config: LearnConfig) -> int:
    """Learn a policy, evaluate it, write and print the results; 0 when done, 130 where it was stopped, with a
    checkpoint.

    Raises:
        ValueError: the world has no heads or clone, or data, goal or environment do not fit it.
        CheckpointError: the folder holds another run.
    """
    started, device = time.monotonic(), find_device(config.device)
    if config.out == Path():
        config = dataclasses.replace(config, out=Path(config.world))
        if not (config.out / CONFIG_FILE).is_file():
            raise ValueError(
                f"{config.world}: it is no folder of a world; name one for the policy with --out"
            )
    world = load(config.world, device=device, precision=config.precision)
    world.require_heads()
    check_trust(world, config.min_trust)
    load_clone(world, config.clone_folder)
    goal_frame = None if config.goal is None else read_frame(config.goal)
    goal = None if goal_frame is None else encode_goal(world, goal_frame).clone()
    reward = Reward(kind=config.reward, goal=goal)
    dataset = Dataset.open(config.data)
    identity = Identity("imagine", config.options(), [fingerprint(dataset)])
    identity.check(config.out, [dataset])
    starts = Starts(world, dataset, num=config.starts, seed=config.seed)
    judge = Judge(world, reward, starts, config)
    try:
        with open_run(config, device, ALONE, started) as run:
            if not (config.out / CONFIG_FILE).is_file():
                world.save(config.out)
            identity.keep(run)
            for stage in _stages(run, world, starts, judge, goal_frame, config):
                fit(stage, run)
            policy = ClonedPolicy(world, load_clone(world, config.clone_folder), goal=goal_frame)
            result = _result(world, config, None if judge.arena is None else judge.real(policy))
    except Stopped:
        return say_stopped(config)
    finally:
        judge.close()
    paths = result.write(config.out / "imagination")
    print(result.table() + "\n\n" + "\n".join(map(str, [config.out / IMAGINED_FILE, *paths])))
    return 0


def _stages(
    run: Run, world: World, starts: Starts, judge: Judge, goal_frame: np.ndarray | None, config: LearnConfig
) -> Iterator[Stage]:
    """The policy, and a second one that learns without trust where both are compared."""
    sessions = begin(world, starts.starts, list(range(config.starts)))
    for name in config.stages:
        torch.manual_seed(config.seed)
        clone = load_clone(world, config.clone_folder)
        objective = ImaginedObjective(clone, world, config.learning, judge.reward).to(world.device)
        yield _stage(run, name, objective, sessions, judge, goal_frame, config)
        if name == STAGE:
            save_part(config.out / IMAGINED_FILE, objective.policy.config, objective.policy)


def _stage(
    run: Run,
    name: str,
    objective: ImaginedObjective,
    sessions: SimulationBatch,
    judge: Judge,
    goal_frame: np.ndarray | None,
    config: LearnConfig,
) -> Stage:
    """A stage of which each update draws its own rollouts from the sessions, which stay where they are."""
    schedule = config.schedule

    def draw(rng: np.random.Generator, phase: Phase) -> ImaginedBatch:
        chosen = sessions.select(
            rng.integers(0, len(sessions), config.learning.batch).tolist(),
            rng.integers(0, 2**62, config.learning.batch).tolist(),
        )
        return imagine(
            objective,
            chosen,
            num_steps=config.learning.horizon,
            rng=rng,
            min_trust=config.min_trust if name == STAGE else None,
            is_value_only=phase is schedule.phases[0],
        )

    def split(batch: ImaginedBatch, rng: np.random.Generator) -> Iterator[ImaginedBatch]:
        learning = config.learning
        for _ in range(VALUE_PASSES if batch.is_value_only else learning.passes):
            for part in np.array_split(rng.permutation(learning.batch), learning.minibatches):
                yield batch.select(torch.from_numpy(part).to(batch.rewards.device))

    def evaluate(update: int) -> dict[str, float]:
        point = {"imagined": judge.imagined(objective).tolist()}
        if judge.arena is not None:
            policy = ImaginedPolicy(judge.world, objective.policy, goal=goal_frame)
            point["real"] = judge.real(policy).tolist()
        curve = _curve(config, name)
        _write_curve(config, name, curve | {update: point})
        return {f"{key}_return": float(np.mean(values)) for key, values in point.items()}

    # Rollouts are those of the policy as it is, so none is made ahead.
    return build_stage(
        run,
        name,
        objective,
        schedule,
        draw,
        split=split,
        num_ahead=0,
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
    )


def _curve(config: LearnConfig, name: str) -> dict[int, dict[str, list[float]]]:
    """Returns by update, as far as they were measured."""
    path = config.out / "imagination" / f"{name}-curve.json"
    return {int(key): point for key, point in json.loads(path.read_text()).items()} if path.is_file() else {}


def _write_curve(config: LearnConfig, name: str, curve: dict[int, dict[str, list[float]]]) -> None:
    ordered = {str(update): curve[update] for update in sorted(curve)}
    write_text(config.out / "imagination" / f"{name}-curve.json", json.dumps(ordered) + "\n")


def _result(world: World, config: LearnConfig, cloned: Float[np.ndarray, " E"] | None) -> Result:
    """Rows of the returns, and the curves."""
    run = protocol.Run("imagine", world, config, axis="update")
    run.source = config.data

    def add(key: str, what: str, values: np.ndarray) -> None:
        run.row(key, what, "", _mean, values)

    if cloned is not None:
        add("cloned/real", "cloned policy, real return", cloned)
    for name in config.stages:
        curve = _curve(config, name)
        updates = sorted(curve)
        trusts = ", without trust" if name == FREE_STAGE else ""
        last = {key: np.array(values) for key, values in curve[updates[-1]].items()}
        for kind in sorted(last, reverse=True):
            add(f"{name}/{kind}", f"learned policy{trusts}, {kind} return", last[kind])
            values = [np.array(curve[update][kind]) for update in updates]
            what = f"{kind}{trusts}"
            run.curve(f"{name}/{kind}", what, "", "return", updates, _mean, values)
        if cloned is not None:
            gain = last["real"] - cloned
            add(f"{name}/gain", f"learned policy{trusts}, real return over the cloned one's", gain)
    begins = "first observations of the real environment" if config.env else "recorded frames"
    run.notes = [
        f"{config.episodes} episodes of {config.steps} steps at most, from {begins}, the same for all. "
        "Intervals are 95%, over episodes. Policies take their likeliest actions.",
        "At update 0 the learned policy is the cloned one, but observes after each action.",
        *([] if config.env else ["Real returns were not measured: --env does that."]),
    ]
    return run.result()


def _mean(values: np.ndarray) -> float:
    return float(values.mean())
