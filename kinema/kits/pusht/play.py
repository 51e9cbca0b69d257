"""A scripted play policy for PushT: it keeps moving and pushing, with no goal, so a world can be learned.

It reads the simulator's state from ``info`` (gym-pusht gives it), which no learned policy does: it exists to
record data. All lengths are in the units of the environment, where the picture is 512 wide.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

AGENT_RADIUS = 15.0
REACH = 100.0
"""No point of the block lies farther than this from its centre of mass."""
LOW, HIGH = 22.0, 490.0
"""The agent's centre stays inside these, clear of the walls."""
CENTRE_OF_MASS = np.array([0.0, 45.0])
CORNERS = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=np.float64
)
"""Outline of the T in the block's own frame, in order around it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushTPlayConfig:
    steps: int | None = None
    """Steps of every episode; by default each episode draws its own: mostly 40 to 90, a tenth 400 to 450."""
    push_share: float = 0.7
    """Share of the skills that push the block; the others are free motion, rests and jumps."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; an episode has at least 1")
        if not 0.0 <= self.push_share <= 1.0:
            raise ValueError(f"push_share is {self.push_share}; it is a share, from 0 to 1")


class PushTPlay:
    """Draws skills one after the other (push, roam, rest, jump) and follows each with a moving target.

    The action is the moving target itself: PushT's controller makes the agent follow it with a lag of about
    twice the target's speed.
    """

    ends_episodes = True
    """``kinema record`` then lifts the 300 steps that the environment is registered with."""
    is_blind = True

    def __init__(self, config: PushTPlayConfig | None = None):
        self.config = config or PushTPlayConfig()

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        missing = [key for key in ("pos_agent", "block_pose") if key not in info]
        if missing:
            raise ValueError(
                f"the PushT play policy needs {' and '.join(missing)} in info: use gym_pusht/PushT-v0"
            )
        self._rng = rng
        self._target = np.array(info["pos_agent"], dtype=np.float64)
        self._path: list[np.ndarray] = []
        self._rest = int(rng.integers(0, 4))
        self._speed = 8.0
        self._jitter = 0.0
        self._steps_left = self.config.steps if self.config.steps is not None else self._draw_length()

    def act(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray | None:
        """The next target position of the agent, ``(2,)`` float32 in [0, 512]; None ends the episode."""
        if self._steps_left == 0:
            return None
        self._steps_left -= 1
        if not self._path and self._rest == 0:
            self._choose_skill(info)
        if self._path:
            self._advance()
        else:
            self._rest -= 1
        noise = self._rng.normal(0.0, self._jitter, 2) if self._jitter else 0.0
        return np.clip(self._target + noise, 0.0, 512.0).astype(np.float32)

    def _draw_length(self) -> int:
        low, high = ((40, 90), (120, 200), (400, 450))[self._rng.choice(3, p=(0.7, 0.2, 0.1))]
        return int(self._rng.integers(low, high + 1))

    def _advance(self) -> None:
        step = self._path[0] - self._target
        distance = float(np.linalg.norm(step))
        if distance <= self._speed:
            self._target = self._path.pop(0)
        else:
            self._target = self._target + step * (self._speed / distance)

    def _choose_skill(self, info: Mapping[str, Any]) -> None:
        rng = self._rng
        self._jitter = float(rng.choice([0.0, rng.uniform(1.0, 6.0)], p=[0.75, 0.25]))
        self._speed = float(np.exp(rng.uniform(np.log(5.0), np.log(24.0))))
        draw = rng.uniform()
        if draw < self.config.push_share:
            self._push(info)
        elif draw < self.config.push_share + 0.18:
            self._path = [rng.uniform(LOW, HIGH, 2) for _ in range(int(rng.integers(1, 3)))]
        elif draw < self.config.push_share + 0.25:
            self._rest = int(rng.integers(2, 10))
        else:
            self._target = np.clip(self._target + rng.normal(0.0, 90.0, 2), LOW, HIGH)
            self._rest = int(rng.integers(2, 7))

    def _push(self, info: Mapping[str, Any]) -> None:
        rng = self._rng
        x, y, angle = info["block_pose"]
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = CORNERS @ rotation.T + (x, y)
        centre = rotation @ CENTRE_OF_MASS + (x, y)
        for _ in range(30):
            side = int(rng.integers(len(corners)))
            start, end = corners[side], corners[(side + 1) % len(corners)]
            contact = start + rng.uniform(0.05, 0.95) * (end - start)
            edge = (end - start) / np.linalg.norm(end - start)
            inward = np.array([-edge[1], edge[0]])
            turn = rng.normal(0.0, 0.35)
            direction = np.array(
                [
                    np.cos(turn) * inward[0] - np.sin(turn) * inward[1],
                    np.sin(turn) * inward[0] + np.cos(turn) * inward[1],
                ]
            )
            approach = contact - direction * (AGENT_RADIUS + rng.uniform(8.0, 45.0))
            finish = contact + direction * rng.uniform(15.0, 130.0)
            if not (_inside(approach) and _inside(finish)):
                continue
            if _leaves(centre, finish - contact):
                continue
            self._path = [*self._detour(centre, approach), approach, finish]
            return
        self._path = [rng.uniform(LOW, HIGH, 2)]

    def _detour(self, centre: np.ndarray, goal: np.ndarray) -> list[np.ndarray]:
        """Points around the block, so that most approaches do not sweep it along; a third go straight."""
        if self._rng.uniform() < 0.33:
            return []
        here = self._target - centre
        there = goal - centre
        start, end = np.arctan2(here[1], here[0]), np.arctan2(there[1], there[0])
        sweep = (end - start + np.pi) % (2 * np.pi) - np.pi
        points = []
        for share in np.linspace(0.0, 1.0, 2 + int(abs(sweep) / 0.8))[:-1]:
            bearing = start + share * sweep
            point = centre + (REACH + AGENT_RADIUS) * np.array([np.cos(bearing), np.sin(bearing)])
            points.append(np.clip(point, LOW, HIGH))
        return points if abs(sweep) > 0.5 else []


def make(*, steps: int | None = None, push_share: float = 0.7) -> PushTPlay:
    """The policy from plain arguments, as ``kinema record --policy-args`` has them."""
    return PushTPlay(PushTPlayConfig(steps=steps, push_share=push_share))


def _inside(point: np.ndarray) -> bool:
    return bool(((point >= LOW) & (point <= HIGH)).all())


def _leaves(centre: np.ndarray, push: np.ndarray) -> bool:
    """Whether the push would drive the block's centre towards a wall that it is already near."""
    near = (centre < 120.0) & (push < 0.0) | (centre > 392.0) & (push > 0.0)
    return bool((near & (np.abs(push) > 8.0)).any())
