"""The real simulator of a world, set to any state: what physical floors, tasks and comparisons need."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Twin(Protocol):
    """One environment whose state can be read and set.

    A state is a vector of ``S`` numbers that decides all that follows: places, angles and their velocities.
    """

    def get_state(self) -> Float[np.ndarray, " S"]:
        """Return the present state."""
        ...

    def set_state(self, state: Float[np.ndarray, " S"]) -> None:
        """Put the simulator into a state."""
        ...

    def advance(self, action: np.ndarray) -> None:
        """Advance the physics by one step of the environment, without reward and frame."""
        ...

    def perturb(self, rng: np.random.Generator, size: float) -> None:
        """Move each thing by ``size`` in a direction drawn from ``rng``."""
        ...

    def observation(self) -> Any:
        """Return the environment's observation of the present state."""
        ...

    def columns(self) -> dict[str, np.ndarray]:
        """Return the present state as one row of the simulator's ``columns``."""
        ...

    def recorded_states(self, columns: Mapping[str, np.ndarray]) -> Float[np.ndarray, "T S"]:
        """Compute the states of the ``T`` rows of an episode from ``columns`` and ``action``.

        Velocities that no column holds come from the next row; things rest in the last one.
        """
        ...

    def draw_where(self, is_needed: Callable[[], bool]) -> None:
        """Let the environment draw the frame of an observation only where ``is_needed``; elsewhere the last
        frame that was drawn stands for it. A simulator that draws no frame has nothing to do."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulator:
    """How twins are made."""

    env: str
    """Gymnasium id of the environment."""
    module: str
    """Module without which there is no environment."""
    columns: tuple[str, ...]
    """Columns of a recording from which states are computed, beside ``action``; ``info.NAME`` is recorded by
    ``kinema record --info-keys NAME``."""
    wrap: Callable[[Any], Twin]
    """Makes the twin of an environment that ``gymnasium.make`` made and that was reset."""
    blind_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments with which the environment draws no frame."""
    blur: float
    """Half a pixel in the simulator's units: what no frame tells apart."""

    @property
    def is_installed(self) -> bool:
        """Tell whether the simulator can be imported."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    @property
    def info_keys(self) -> tuple[str, ...]:
        """Entries of the environment's info that a recording needs."""
        return tuple(key.removeprefix("info.") for key in self.columns if key.startswith("info."))

    def has_states(self, columns: Mapping[str, Any]) -> bool:
        """Tell whether these columns of a recording, or features of a dataset, hold the state."""
        return set(self.columns) <= set(columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Success:
    """When a state counts as a goal that was reached."""

    criterion: str
    """The rule as a sentence, for reports."""
    is_met: Callable[[Float[np.ndarray, "*n S"], Float[np.ndarray, " S"]], np.ndarray]
    """By states and a goal: bool ``*n``."""
    distance: Callable[[Float[np.ndarray, "*n S"], Float[np.ndarray, " S"]], np.ndarray]
    """By states and a goal: ``*n``, 0 at the goal and about 1 where it is just missed."""
