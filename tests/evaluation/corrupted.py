"""Pictures of PushT with something wrong in them, drawn by its own simulator."""

import copy
from typing import Any

import numpy as np

from kinema.data.environment import make_environment

KINDS = ("missing", "doubled", "faded", "recoloured")
THINGS = ("agent", "block")


class Painter:
    """Draws states of PushT as gym-pusht does, 64 pixels wide, right or with a mistake."""

    def __init__(self) -> None:
        environment = make_environment("gym_pusht/PushT-v0", {}, render="never", frame_size=None)
        self._env: Any = environment.env.unwrapped
        self._env.reset(seed=0)

    def draw(self, agent: np.ndarray, block: np.ndarray) -> np.ndarray:
        """The right picture, ``64 64 3``."""
        env = self._env
        env.agent.position = agent.astype(float).tolist()
        env.block.angle = float(block[2])
        env.block.position = block[:2].astype(float).tolist()
        for body in (env.agent, env.block):
            env.space.reindex_shapes_for_body(body)
        return env._render()

    def corrupt(
        self, agent: np.ndarray, block: np.ndarray, *, thing: str, kind: str, rng: np.random.Generator
    ) -> np.ndarray:
        """The picture with one thing missing, drawn twice, half faded or of another colour."""
        whole = self.draw(agent, block)
        body = getattr(self._env, thing)
        if kind == "doubled":
            return self._doubled(thing, rng)
        shapes = list(body.shapes)
        if kind == "recoloured":
            colours = [copy.copy(shape.color) for shape in shapes]
            colour = self._other_colour(np.array(colours[0])[:3], rng)
            for shape in shapes:
                shape.color = (*colour.tolist(), 255)
            picture = self._env._render()
            for shape, colour in zip(shapes, colours, strict=True):
                shape.color = colour
            return picture
        self._env.space.remove(*shapes)
        without = self._env._render()
        self._env.space.add(*shapes)
        return without if kind == "missing" else ((whole.astype(int) + without) // 2).astype(np.uint8)

    def _doubled(self, thing: str, rng: np.random.Generator) -> np.ndarray:
        env = self._env
        here = np.array(getattr(env, thing).position)
        place = here
        while np.linalg.norm(place - here) < 120.0:
            place = rng.uniform(100.0, 412.0, 2)
        if thing == "agent":
            other = env.add_circle(env.space, place.tolist(), 15)
        else:
            other, _ = env.add_tee(env.space, place.tolist(), rng.uniform(-np.pi, np.pi))
        picture = env._render()
        env.space.remove(other, *other.shapes)
        return picture

    def _other_colour(self, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Well away from its own and from white."""
        while True:
            drawn = rng.integers(0, 256, 3)
            if min(np.linalg.norm(drawn - colour), np.linalg.norm(drawn - 255.0)) > 120.0:
                return drawn
