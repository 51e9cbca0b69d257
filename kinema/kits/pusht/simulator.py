"""PushT in its own simulator, set to any state.

Its ``reset`` takes a state too, but sets the block's place before its angle, and an angle turns the block
about its centre of mass: the block lands elsewhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

PUSHT = "gym_pusht/PushT-v0"


def set_bodies(
    environment: Any,
    agent: np.ndarray,
    block: np.ndarray,
    velocity: np.ndarray,
    block_velocity: np.ndarray | None = None,
) -> None:
    """Put the agent (``2``) and the block (``3``: place of its origin, angle) where they shall be, with their
    velocities (``2`` and ``3``; the block rests by default)."""
    environment.agent.position = agent.astype(float).tolist()
    environment.agent.velocity = velocity.astype(float).tolist()
    # The angle first: it turns the block about its centre of mass, and so moves its position.
    environment.block.angle = float(block[2])
    environment.block.position = block[:2].astype(float).tolist()
    moves = np.zeros(3) if block_velocity is None else block_velocity
    environment.block.velocity = moves[:2].astype(float).tolist()
    environment.block.angular_velocity = float(moves[2])
    environment.space.reindex_shapes_for_body(environment.agent)
    environment.space.reindex_shapes_for_body(environment.block)


def get_bodies(environment: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Agent, block and their velocities, as ``set_bodies`` takes them."""
    agent, block = environment.agent, environment.block
    return (
        np.array(agent.position),
        np.array([*block.position, block.angle]),
        np.array(agent.velocity),
        np.array([*block.velocity, block.angular_velocity]),
    )


def advance(environment: Any, action: np.ndarray) -> None:
    """The physics of one step of the environment, without the reward, which takes most of its time."""
    for _ in range(num_substeps(environment)):
        agent = environment.agent
        pull = environment.k_p * (action - np.array(agent.position))
        agent.velocity = (
            np.array(agent.velocity) + environment.dt * (pull - environment.k_v * np.array(agent.velocity))
        ).tolist()
        environment.space.step(environment.dt)


def draw_where(environment: Any, is_wanted: Callable[[], bool]) -> None:
    """Have the environment draw its observations only where that is wanted; elsewhere they show the picture
    that was drawn last. Drawing takes most of the time of a step."""
    draw = environment._render
    last: Any = None

    def drawn(visualize: bool = False) -> Any:
        nonlocal last
        if last is None or is_wanted():
            last = draw(visualize)
        return last

    environment._render = drawn


def agent_velocity(environment: Any, before: np.ndarray, after: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Velocity of the agent, ``R 2``, that takes it from one place to the next. Nothing stops the agent,
    whose controller is linear, so there is one."""

    def end(place: np.ndarray, velocity: np.ndarray, target: np.ndarray) -> np.ndarray:
        for _ in range(num_substeps(environment)):
            pull = environment.k_p * (target - place) - environment.k_v * velocity
            velocity = velocity + environment.dt * pull
            place = place + environment.dt * velocity
        return place

    zero = np.zeros(1)
    per_velocity = end(zero, np.ones(1), zero)
    places = np.asarray(before, dtype=np.float64)
    return (after - end(places, np.zeros_like(places), action)) / per_velocity


def num_substeps(environment: Any) -> int:
    """Steps of the physics in one of the environment."""
    return round(1.0 / (environment.dt * environment.control_hz))
