"""Start-goal pairs from recorded episodes, and the real environment set to where they start."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from kinema.data.environment import make_environment
from kinema.data.lerobot import DataError, Dataset
from kinema.kits.pusht.probe import PushTProbe
from kinema.kits.pusht.simulator import PUSHT, advance, agent_velocity, get_bodies, set_bodies
from kinema.planners.scores import worth
from kinema.simulation.real_env import Arena
from kinema.simulation.session import World
from kinema.simulation.starts import History, check_dataset
from kinema.types import Seen

POSITION, ANGLE = 20.0, np.pi / 9
"""A goal is met where agent and block are nearer than this together, in 512ths of the picture (the norm of
all four numbers), and the block's angle is, as in stable-worldmodel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Where to start, and where to go."""

    episode: int
    row: int
    """Row of the episode at which it starts."""
    distance: int
    """Rows from there to the goal."""
    seen: list[Seen]
    """What was seen up to the start, which is the last."""
    actions: np.ndarray
    """``T-1 A``, what was done between."""
    start: Float[np.ndarray, " 5"]
    """Agent and block of the simulator: ``x y x y angle``."""
    velocity: Float[np.ndarray, " 2"]
    """Of the agent at the start."""
    goal_frame: np.ndarray
    """``H W 3``."""
    goal: Float[np.ndarray, " 5"]


def pose_errors(
    state: Float[np.ndarray, "*n 5"], goal: Float[np.ndarray, " 5"]
) -> tuple[np.ndarray, np.ndarray]:
    """How far a state is from a goal: position of agent and block together, and angle of the block."""
    position = np.asarray(np.linalg.norm(state[..., :4] - goal[:4], axis=-1))
    turn = np.asarray(np.abs((state[..., 4] - goal[4] + np.pi) % (2 * np.pi) - np.pi))
    return position, turn


def is_met(state: Float[np.ndarray, "*n 5"], goal: Float[np.ndarray, " 5"]) -> np.ndarray:
    """Whether a state is near enough to a goal."""
    position, turn = pose_errors(state, goal)
    return np.asarray((position < POSITION) & (turn < ANGLE))


def draw_tasks(
    world: World, dataset: Dataset, *, num: int, distances: Sequence[int], context: int, seed: int
) -> dict[int, list[Task]]:
    """``num`` tasks for each distance, spread over the episodes, without those whose start meets the goal.

    Raises:
        DataError: the dataset does not fit the world, does not tell the simulator's state, or has too few
            places.
    """
    check_dataset(world, dataset)
    for key in PushTProbe.COLUMNS:
        if key not in dataset.features:
            raise DataError(
                "planning is judged where the real simulator can be set to recorded states, which is PushT "
                "recorded with --info-keys pos_agent,block_pose; this column is missing",
                path=dataset.root,
                key=key,
            )
    found: dict[int, list[Task]] = {distance: [] for distance in distances}
    rng = np.random.default_rng(seed)
    per_episode = -(-num // max(1, dataset.num_episodes))
    environment = _bare_simulator()
    for index in rng.permutation(dataset.num_episodes).tolist():
        if all(len(tasks) >= num for tasks in found.values()):
            break
        columns = dataset.episode(index, cameras=()).columns
        agent, block = (np.asarray(columns[key], dtype=np.float64) for key in PushTProbe.COLUMNS)
        states = np.concatenate([agent, block], axis=1)
        rows = {
            distance: _places(states, distance, context, min(per_episode, num - len(found[distance])), rng)
            for distance in distances
        }
        if not any(len(chosen) for chosen in rows.values()):
            continue
        episode = dataset.episode(index, cameras=world.cameras)
        for distance, chosen in rows.items():
            for row in chosen:
                first = row - context + 1
                key = world.config.proprio_key
                proprio = None if key is None else columns[key]
                frames = {c: episode.frames[c][first : row + 1] for c in world.cameras}
                frames = world.by_camera(frames)
                found[distance].append(
                    Task(
                        episode=index,
                        row=row,
                        distance=distance,
                        seen=[
                            Seen(
                                frames={c: pictures[t] for c, pictures in frames.items()},
                                proprio=None if proprio is None else proprio[first + t],
                            )
                            for t in range(context)
                        ],
                        actions=np.asarray(columns["action"][first:row], dtype=np.float32),
                        start=states[row],
                        velocity=agent_velocity(
                            environment, agent[row], agent[row + 1], columns["action"][row]
                        ),
                        goal_frame=episode.frames[world.cameras[0]][row + distance],
                        goal=states[row + distance],
                    )
                )
    environment.close()
    for distance, tasks in found.items():
        if len(tasks) < num:
            raise DataError(
                f"{num} places with a goal {distance} steps later are needed, but only {len(tasks)} were "
                "found that do not meet it at once; record more episodes, or ask for fewer --tasks",
                path=dataset.root,
            )
    return found


def _places(states: np.ndarray, distance: int, context: int, num: int, rng: np.random.Generator) -> list[int]:
    """Up to ``num`` rows of an episode to start from."""
    rows = np.arange(context - 1, len(states) - distance)
    if not len(rows) or num <= 0:
        return []
    trivial = np.array([is_met(states[row], states[row + distance]) for row in rows])
    usable = rows[~trivial]
    return rng.choice(usable, min(num, len(usable)), replace=False).tolist() if len(usable) else []


def _bare_simulator() -> Any:
    made = make_environment(PUSHT, {"obs_type": "state"}, render="never", picture_size=None)
    made.env.reset(seed=0)
    return made.env.unwrapped


class PushTReality:
    """The real environment, set to where a task starts."""

    def __init__(self, world: World):
        """Raises RecordError where gym-pusht is not installed, or does not show what the world needs."""
        self.arena = Arena(world, PUSHT)
        self.arena.reset(seed=0)

    def begin(self, task: Task, context: int) -> History:
        """Set it to the start; gives what was seen and done before, which is as it was recorded."""
        set_bodies(self._simulator, task.start[:2], task.start[2:], task.velocity)
        history = History(self.arena.world, context)
        history.begin(task.seen[0])
        for action, seen in zip(task.actions, task.seen[1:], strict=True):
            history.add(action, seen)
        return history

    def step(self, action: np.ndarray) -> Seen:
        """Do an action."""
        return self.arena.step(action).seen

    @property
    def state(self) -> Float[np.ndarray, " 5"]:
        """Agent and block now."""
        agent, block, *_ = self.bodies
        return np.concatenate([agent, block])

    @property
    def bodies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All that the simulator knows, as ``get_bodies`` gives it."""
        return get_bodies(self._simulator)

    @property
    def _simulator(self) -> Any:
        return self.arena.env.unwrapped

    def close(self) -> None:
        self.arena.close()


class SimulatorScore:
    """Scores candidates in the real simulator, by the real distance to the goal: with this as its model, a
    planner makes no other mistakes than those of its search."""

    def __init__(self, low: np.ndarray, high: np.ndarray, *, end_share: float):
        """Candidates of [-1, 1] stand for actions from ``low`` to ``high``."""
        self._low, self._high, self._end_share = low, high, end_share
        self._environment = _bare_simulator()
        self.num_steps = 0

    def set(self, bodies: tuple[np.ndarray, ...], goal: Float[np.ndarray, " 5"]) -> None:
        """Where candidates begin, and where they shall go."""
        self._bodies, self._goal = bodies, goal

    def __call__(self, candidates: Float[np.ndarray, "K H A"]) -> Float[np.ndarray, " K"]:
        actions = self._low + 0.5 * (candidates + 1.0) * (self._high - self._low)
        states = np.empty((*candidates.shape[:2], 5))
        for candidate, plan in enumerate(actions):
            set_bodies(self._environment, *self._bodies)
            for t, action in enumerate(plan):
                advance(self._environment, action)
                agent, block, *_ = get_bodies(self._environment)
                states[candidate, t] = [*agent, *block]
        self.num_steps += len(states) * actions.shape[1]
        position, turn = pose_errors(states, self._goal)
        each = position / POSITION + turn / ANGLE
        return worth(each, self._end_share)

    def close(self) -> None:
        self._environment.close()
