"""Start-goal pairs from recorded episodes, and the real environment set to their starts."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from kinema.data.environment import make_twin
from kinema.data.lerobot import DataError, Dataset
from kinema.kits import Kit, Simulator, Success
from kinema.planners.scores import END_SHARE, worth
from kinema.simulation.real_env import Arena
from kinema.simulation.starts import History, check_dataset
from kinema.simulation.world import World
from kinema.types import Episode, Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A start and a goal in a recorded episode."""

    episode: int
    row: int
    """Row of the episode at which it starts; the goal is ``distance`` rows later."""
    distance: int
    seen: list[Seen]
    """Observations up to the start, which is the last."""
    actions: np.ndarray
    """``T-1 A``, those between the observations."""
    start: Float[np.ndarray, " S"]
    """State of the simulator at the start."""
    goal_frame: np.ndarray
    """``H W 3``."""
    goal: Float[np.ndarray, " S"]
    """State of the simulator at the goal."""


class Judge:
    """Parts of a kit that set and judge tasks in the real environment."""

    def __init__(self, kit: Kit | None, world_name: str):
        """Raises DataError where there is no kit, or it lacks a part."""
        if kit is None or kit.simulator is None or kit.success is None:
            raise DataError(
                f"planning is judged in a real environment that can be set to recorded states; world "
                f"'{world_name}' has no kit with a simulator and a criterion of success, and no other kit "
                "knows the columns of the data (see kinema.kits)"
            )
        self.simulator: Simulator = kit.simulator
        self.success: Success = kit.success


def draw_tasks(
    world: World,
    judge: Judge,
    dataset: Dataset,
    *,
    num: int,
    distances: Sequence[int],
    context: int,
    seed: int,
) -> dict[int, list[Task]]:
    """Draw ``num`` tasks for each distance, spread over the episodes, whose start does not meet the goal.

    Raises:
        DataError: the dataset does not fit the world, lacks the simulator's state, or has too few rows.
    """
    check_dataset(world, dataset)
    _check_states(judge.simulator, dataset)
    tasks: dict[int, list[Task]] = {distance: [] for distance in distances}
    rng = np.random.default_rng(seed)
    per_episode = -(-num // max(1, dataset.num_episodes))
    env, twin = make_twin(judge.simulator)
    for index in rng.permutation(dataset.num_episodes).tolist():
        if all(len(drawn) >= num for drawn in tasks.values()):
            break
        states = twin.recorded_states(dataset.episode(index, cameras=()).columns)
        rows = {
            distance: _rows(judge.success, states, distance, context, min(per_episode, num - len(drawn)), rng)
            for distance, drawn in tasks.items()
        }
        if any(rows.values()):
            episode = dataset.episode(index, cameras=world.cameras)
            for distance, chosen in rows.items():
                tasks[distance] += [_task(world, episode, states, row, distance, context) for row in chosen]
    env.close()
    for distance, drawn in tasks.items():
        if len(drawn) < num:
            raise DataError(
                f"{num} starts with a goal {distance} steps later are needed, but only {len(drawn)} were "
                "found that do not meet it at once; record more episodes, or ask for fewer --tasks",
                path=dataset.root,
            )
    return tasks


def _check_states(simulator: Simulator, dataset: Dataset) -> None:
    """Raise DataError where the dataset lacks the columns from which states are computed."""
    missing = [key for key in simulator.columns if key not in dataset.features]
    if missing:
        option = f" with --info-keys {','.join(simulator.info_keys)}" if simulator.info_keys else ""
        raise DataError(
            f"planning is judged where the real simulator can be set to recorded states: record "
            f"{simulator.env}{option}; this column is missing",
            path=dataset.root,
            key=missing[0],
        )


def _task(world: World, episode: Episode, states: np.ndarray, row: int, distance: int, context: int) -> Task:
    rows = slice(row - context + 1, row + 1)
    key = world.config.proprio_key
    proprio = [None] * context if key is None else episode.columns[key][rows]
    frames = world.by_camera({camera: episode.frames[camera][rows] for camera in world.cameras})
    return Task(
        episode=episode.index,
        row=row,
        distance=distance,
        seen=[
            Seen(frames={camera: each[t] for camera, each in frames.items()}, proprio=proprio[t])
            for t in range(context)
        ],
        actions=episode.actions[rows][:-1],
        start=states[row],
        goal_frame=episode.frames[world.cameras[0]][row + distance],
        goal=states[row + distance],
    )


def _rows(
    success: Success, states: np.ndarray, distance: int, context: int, num: int, rng: np.random.Generator
) -> list[int]:
    """Draw up to ``num`` rows of an episode to start from."""
    rows = range(context - 1, len(states) - distance)
    usable = [row for row in rows if not success.is_met(states[row], states[row + distance])]
    return rng.choice(usable, min(num, len(usable)), replace=False).tolist() if usable and num > 0 else []


class TaskEnvironment:
    """The real environment, set to the start of a task."""

    def __init__(self, world: World, judge: Judge):
        """Raises RecordError where the environment cannot be made, or does not show what the world needs."""
        self.judge = judge
        self.arena = Arena(world, judge.simulator.env)
        self.arena.reset(seed=0)
        self._twin = judge.simulator.wrap(self.arena.env)

    def begin(self, task: Task, context: int) -> History:
        """Set it to the start; return the recorded history up to there."""
        self._twin.set_state(task.start)
        history = History(self.arena.world, context)
        history.begin(task.seen[0])
        for action, seen in zip(task.actions, task.seen[1:], strict=True):
            history.add(action, seen)
        return history

    def step(self, action: np.ndarray) -> Seen:
        """Do an action."""
        return self.arena.step(action).seen

    @property
    def state(self) -> Float[np.ndarray, " S"]:
        """Present state of the simulator."""
        return self._twin.get_state()

    def has_met(self, task: Task) -> bool:
        """Tell whether the goal of a task is met now."""
        return bool(self.judge.success.is_met(self.state, task.goal))

    def close(self) -> None:
        """Close the environment."""
        self.arena.close()


class SimulatorScore:
    """Scores candidates in the real simulator by the real distance to the goal: the only errors of a planner
    are then those of its search."""

    def __init__(self, judge: Judge, low: np.ndarray, high: np.ndarray, *, end_share: float = END_SHARE):
        """Candidates of [-1, 1] stand for actions from ``low`` to ``high``."""
        self._low, self._high, self._end_share = low, high, end_share
        self._success = judge.success
        self._env, self._twin = make_twin(judge.simulator)
        self.num_steps = 0

    def set(self, start: Float[np.ndarray, " S"], goal: Float[np.ndarray, " S"]) -> None:
        """Set the states at which candidates begin, and which they shall reach."""
        self._start, self._goal = start, goal

    def __call__(self, candidates: Float[np.ndarray, "K H A"]) -> Float[np.ndarray, " K"]:
        actions = self._low + 0.5 * (candidates + 1.0) * (self._high - self._low)
        states = np.empty((*candidates.shape[:2], len(self._start)))
        for candidate, plan in enumerate(actions):
            self._twin.set_state(self._start)
            for t, action in enumerate(plan):
                self._twin.advance(action)
                states[candidate, t] = self._twin.get_state()
        self.num_steps += len(states) * actions.shape[1]
        return worth(self._success.distance(states, self._goal), self._end_share)

    def close(self) -> None:
        """Close the simulator."""
        self._env.close()
