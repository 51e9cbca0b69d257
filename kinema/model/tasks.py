"""The table of verbs: which parts of a frame are clean, which are noise, and which are denoised.

The training draws its targets from the rows, the sampler follows them, and the tests hold both together. A
row that denoises several parts does so one after the other: first the action, then proprioception, then the
observations, each given those before it (``passes``).
"""

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Role(enum.Enum):
    """The part that a modality plays in a task."""

    CLEAN = "clean"
    NOISE = "noise"
    DENOISE = "denoise"


class Task(NamedTuple):
    """The roles of the modalities of a frame; the frames before it are given."""

    observations: Role
    proprio: Role
    action: Role


TASKS: Mapping[str, Task] = {
    "simulate": Task(Role.DENOISE, Role.DENOISE, Role.CLEAN),
    "generate": Task(Role.DENOISE, Role.NOISE, Role.NOISE),
    "act": Task(Role.NOISE, Role.NOISE, Role.DENOISE),
    "imagine": Task(Role.DENOISE, Role.DENOISE, Role.DENOISE),
    "infer": Task(Role.CLEAN, Role.CLEAN, Role.DENOISE),
    "locate": Task(Role.CLEAN, Role.DENOISE, Role.CLEAN),
}
"""World model, video without actions, policy, video with its actions, inverse dynamics, and proprioception
from a frame that has none."""

ORDER = ("action", "proprio", "observations")


def passes(task: Task, *, has_cameras: bool, has_proprio: bool) -> list[Task]:
    """The steps of a task, each of which denoises one modality.

    A world without cameras observes its proprioception: there it has the role of the observations. A task of
    which nothing is left to denoise has no steps.
    """
    if not has_cameras:
        task = task._replace(observations=Role.NOISE, proprio=task.observations)
    elif not has_proprio:
        task = task._replace(proprio=Role.NOISE)
    denoised = [name for name in ORDER if getattr(task, name) is Role.DENOISE]
    steps = []
    for index, name in enumerate(denoised):
        done = dict.fromkeys(denoised[:index], Role.CLEAN)
        later = dict.fromkeys(denoised[index + 1 :], Role.NOISE)
        steps.append(task._replace(**done, **later, **{name: Role.DENOISE}))
    return steps
