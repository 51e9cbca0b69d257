"""A kit: all that kinema knows of one world, in parts of which each is optional."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from kinema.kits.probe import Probe, Target
from kinema.kits.simulator import Simulator, Success

GROUP = "kinema.kits"
"""Group of the entry points by which kits are found."""
DRAWN_SIZE = (64, 64)
"""Height and width of frames that kits draw where the environment draws at any size and none is asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environments:
    """Gymnasium environments of one package, and how they are made to be recorded."""

    namespace: str
    """Part of their ids before the slash."""
    module: str
    """Module that registers them."""
    requirement: str
    """Name by which pip installs them."""
    arguments: Callable[
        [Mapping[str, Any], tuple[int, int] | None], tuple[Mapping[str, Any], tuple[int, int] | None]
    ]
    """Fills in the arguments that were not given, for frames of a height and width where a size is asked
    for; returns them and the size to which frames are then brought."""
    prepare: Callable[[Any], None] = lambda env: None
    """Makes a new environment say what kinema needs, such as its rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kit:
    """One world's own parts. A protocol of evaluation that needs a part is left out where a kit lacks it."""

    name: str
    """Name of the kit; a world of this name is the kit's."""
    columns: tuple[str, ...] = ()
    """Columns of recordings that only this world has, such as its state; they say that a recording is the
    kit's, and they are what ``simulator`` is set from."""
    probe: Callable[[tuple[str, ...]], Probe | None] | None = None
    """Makes the probe for a world's cameras; None for cameras that the probe cannot read."""
    environments: Environments | None = None
    """Environments that ``kinema record`` and the evaluation of policies make."""
    simulator: Simulator | None = None
    """The environment that is set to states."""
    targets: Mapping[str, Target] = dataclasses.field(default_factory=dict)
    """Values that rows of ``kinema evaluate`` must reach and aim at, by the key of the row."""
    success: Success | None = None
    """When a goal is reached; tasks need it and ``simulator``."""
    named_goals: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Goals that have a name in this world: values of the probe's quantities, in the units of the actions."""
    pointer: tuple[tuple[float, float], tuple[float, float]] | None = None
    """Actions that stand for the first and the last corner of the frame, where an action is a place in it."""

    def matches(self, world_name: str, columns: Collection[str] = ()) -> bool:
        """Tell whether a world, by its name or by the columns of its recordings, is the kit's."""
        return world_name == self.name or (bool(self.columns) and set(self.columns) <= set(columns))

    def find_probe(self, cameras: tuple[str, ...]) -> Probe | None:
        """Make the probe for a world's cameras; None where there is none for them."""
        return None if self.probe is None else self.probe(cameras)


@functools.cache
def kits() -> tuple[Kit, ...]:
    """List the kits that are installed, by name: those of kinema and those of other packages."""
    found: dict[str, Kit] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            kit = entry.load()
        except Exception as error:
            # One package that is broken must not keep all worlds from being evaluated.
            warnings.warn(f"kit {entry.name!r} cannot be imported from {entry.value}: {error}", stacklevel=2)
            continue
        found[entry.name] = kit
    return tuple(found.values())


def find_kit(
    world_name: str, columns: Collection[str] = (), candidates: Sequence[Kit] | None = None
) -> Kit | None:
    """Find the kit of a world; None for most worlds.

    Args:
        world_name: name of the world.
        columns: keys of the features of its recordings.
        candidates: kits to choose from; by default those that are installed.
    """
    for kit in kits() if candidates is None else candidates:
        if kit.matches(world_name, columns):
            return kit
    return None


def kit_of_environment(name: str) -> Kit | None:
    """Find the kit that makes an environment, ``ID`` or ``MODULE:ID``; None for most environments."""
    env_id = name.rpartition(":")[2]
    for kit in kits():
        if kit.environments is not None and env_id.startswith(f"{kit.environments.namespace}/"):
            return kit
    return None


def find_probe(world_name: str, cameras: tuple[str, ...], columns: Collection[str] = ()) -> Probe | None:
    """Make the probe of a world's kit; None where the world has none."""
    kit = find_kit(world_name, columns)
    return None if kit is None else kit.find_probe(cameras)
