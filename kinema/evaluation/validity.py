"""Whether a world still shows possible pictures after thousands of steps."""

from collections.abc import Sequence

import numpy as np

from kinema.evaluation.rollout import Clip, Sweep, by_camera
from kinema.kits import Probe
from kinema.simulation.world import World

WINDOW = 100
"""Steps up to a milestone that count for it."""
EVERY = 10
"""One picture of so many is looked at, but every one before the last milestone."""
MILESTONES = (10, 100, 500, 1000, 2000, 5000, 10_000)


def milestones(num_steps: int) -> list[int]:
    """The steps at which validity is told, up to ``num_steps``, which is one of them."""
    return [step for step in MILESTONES if step < num_steps] + [num_steps]


def long_actions(clips: Sequence[Clip], *, context: int, num_steps: int) -> tuple[np.ndarray, int]:
    """Actions ``B num_steps A`` to drive each clip with, and how many clips' own did not suffice.

    A clip is driven with the actions of its episode; when these end, with those of the clips after it, in a
    circle.
    """
    rows, num_chained = [], 0
    for first in range(len(clips)):
        parts, length, index = [], 0, first
        while length < num_steps:
            part = clips[index % len(clips)].actions[context - 1 :]
            parts.append(part)
            length += len(part)
            index += 1
        num_chained += len(parts) > 1
        rows.append(np.concatenate(parts)[:num_steps])
    return np.stack(rows), num_chained


def measure_validity(
    world: World, clips: Sequence[Clip], actions: np.ndarray, sweep: Sweep, *, probe: Probe
) -> dict[int, np.ndarray]:
    """Share of valid pictures of each clip and seed, ``B seeds``, by milestone: over the steps up to it."""
    num_steps = actions.shape[1]
    marks = milestones(num_steps)
    steps = np.arange(1, num_steps + 1)
    is_near = np.any([(steps > mark - WINDOW) & (steps <= mark) for mark in marks], axis=0)
    is_needed = is_near & ((steps % EVERY == 0) | (steps > num_steps - WINDOW))
    is_valid = np.zeros((len(clips), len(sweep.seeds), num_steps), dtype=bool)
    label = f"{num_steps:,} steps"
    for clip, seed, index, step in sweep.run(world, clips, actions, label=label, is_needed=is_needed):
        if is_needed[index]:
            is_valid[clip, seed, index] = probe.read(by_camera(world, step)).is_valid
    shares = {}
    for mark in marks:
        counts = is_needed & (steps > mark - WINDOW) & (steps <= mark)
        shares[mark] = is_valid[:, :, counts].mean(axis=2)
    return shares
