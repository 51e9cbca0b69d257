"""PushT in its own simulator, set to any state."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from kinema.kits.pusht.probe import PushTProbe

POSITION, ANGLE = 20.0, np.pi / 9
"""A goal is met where agent and block are nearer than this together, in 512ths of the frame (the norm of all
four numbers), and the block's angle is, as in stable-worldmodel."""


class PushTTwin:
    """PushT whose bodies are set directly.

    A state has ten numbers: place of the agent, place of the block's origin and its angle, velocity of the
    agent, velocity of the block and its rate of turning. The environment's own ``reset`` takes a state too,
    but sets the block's place before its angle, and an angle turns the block about its centre of mass: the
    block lands elsewhere.
    """

    def __init__(self, env: Any):
        self._env: Any = env.unwrapped

    def get_state(self) -> Float[np.ndarray, " S"]:
        agent, block = self._env.agent, self._env.block
        moving = (*agent.velocity, *block.velocity, block.angular_velocity)
        return np.array([*agent.position, *block.position, block.angle, *moving])

    def set_state(self, state: Float[np.ndarray, " S"]) -> None:
        agent, block = self._env.agent, self._env.block
        numbers = np.asarray(state, dtype=float).tolist()
        agent.position, agent.velocity = numbers[:2], numbers[5:7]
        # The angle first: it turns the block about its centre of mass, and so moves its position.
        block.angle = numbers[4]
        block.position = numbers[2:4]
        block.velocity, block.angular_velocity = numbers[7:9], numbers[9]
        self._reindex()

    def advance(self, action: np.ndarray) -> None:
        env = self._env
        for _ in range(self._num_substeps):
            agent = env.agent
            pull = env.k_p * (action - np.array(agent.position))
            agent.velocity = (
                np.array(agent.velocity) + env.dt * (pull - env.k_v * np.array(agent.velocity))
            ).tolist()
            env.space.step(env.dt)

    def perturb(self, rng: np.random.Generator, size: float) -> None:
        bodies = self._env.agent, self._env.block
        for body, angle in zip(bodies, rng.uniform(0.0, 2.0 * np.pi, 2), strict=True):
            offset = size * np.array([np.cos(angle), np.sin(angle)])
            body.position = (np.array(body.position) + offset).tolist()
        self._reindex()

    def observation(self) -> Any:
        return self._env.get_obs()

    def columns(self) -> dict[str, np.ndarray]:
        info = self._env._get_info()
        return {key: info[key.removeprefix("info.")] for key in PushTProbe.COLUMNS}

    def recorded_states(self, columns: Mapping[str, np.ndarray]) -> Float[np.ndarray, "T S"]:
        agent, block = (np.asarray(columns[key], dtype=np.float64) for key in PushTProbe.COLUMNS)
        velocity = np.zeros_like(agent)
        velocity[:-1] = self._velocity(agent[:-1], agent[1:], columns["action"][:-1])
        return np.concatenate([agent, block, velocity, np.zeros_like(block)], axis=1)

    def draw_where(self, is_needed: Callable[[], bool]) -> None:
        draw = self._env._render
        last: Any = None

        def drawn(visualize: bool = False) -> Any:
            nonlocal last
            if last is None or is_needed():
                last = draw(visualize)
            return last

        self._env._render = drawn

    def _velocity(self, before: np.ndarray, after: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Velocity of the agent, ``T 2``, that takes it from one place to the next. Nothing stops the agent,
        whose controller is linear, so there is one."""
        env = self._env

        def end(place: np.ndarray, velocity: np.ndarray, target: np.ndarray) -> np.ndarray:
            for _ in range(self._num_substeps):
                pull = env.k_p * (target - place) - env.k_v * velocity
                velocity = velocity + env.dt * pull
                place = place + env.dt * velocity
            return place

        zero = np.zeros(1)
        per_velocity = end(zero, np.ones(1), zero)
        return (after - end(before, np.zeros_like(before), action)) / per_velocity

    @property
    def _num_substeps(self) -> int:
        """Steps of the physics in one of the environment."""
        return round(1.0 / (self._env.dt * self._env.control_hz))

    def _reindex(self) -> None:
        for body in (self._env.agent, self._env.block):
            self._env.space.reindex_shapes_for_body(body)


def pose_errors(
    state: Float[np.ndarray, "*n S"], goal: Float[np.ndarray, " S"]
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how far a state is from a goal: position of agent and block together in the simulator's units,
    and angle of the block in radians."""
    position = np.asarray(np.linalg.norm(state[..., :4] - goal[:4], axis=-1))
    turn = np.asarray(np.abs((state[..., 4] - goal[4] + np.pi) % (2 * np.pi) - np.pi))
    return position, turn


def is_met(state: Float[np.ndarray, "*n S"], goal: Float[np.ndarray, " S"]) -> np.ndarray:
    """Tell whether a state is near enough to a goal."""
    position, turn = pose_errors(state, goal)
    return np.asarray((position < POSITION) & (turn < ANGLE))


def distance(state: Float[np.ndarray, "*n S"], goal: Float[np.ndarray, " S"]) -> np.ndarray:
    """Measure how far a state is from a goal, as shares of the limits of ``is_met``."""
    position, turn = pose_errors(state, goal)
    return position / POSITION + turn / ANGLE
