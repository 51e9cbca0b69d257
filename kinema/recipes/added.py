"""Configurations of additions to a finished world, which stays as it is (heads, a cloned policy, the network
as a policy), and of parts of a finished world that go on learning."""

import dataclasses
from typing import Literal, get_args

from kinema.model.acting import ActingConfig
from kinema.model.heads import HeadsConfig
from kinema.policies.cloned import CloneConfig
from kinema.recipes.recipe import Phase, Recipe, Schedule

Part = Literal["manifold", "decoder", "dynamics"]
"""Parts of a finished world that can go on learning."""
GO_ON: dict[Part, tuple[int, float]] = {
    "manifold": (14000, 1e-3),
    "decoder": (10000, 5e-4),
    "dynamics": (6000, 5e-4),
}
"""Updates and learning rate of a part that goes on learning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedRecipe:
    """Configuration of all that can be added to a finished world."""

    heads: HeadsConfig
    heads_schedule: Schedule
    clone: CloneConfig
    clone_schedule: Schedule
    act: ActingConfig
    act_schedule: Schedule

    def schedule(self, name: str) -> Schedule:
        """Schedule of ``heads``, ``clone`` or ``act``."""
        return getattr(self, f"{name}_schedule")

    def heads_for(self, reward_range: tuple[float, float]) -> HeadsConfig:
        """Configuration of heads for recorded rewards."""
        return dataclasses.replace(self.heads, reward_range=reward_range)


def added() -> AddedRecipe:
    """Return the configuration of additions; each takes minutes on two cores."""
    return AddedRecipe(
        heads=HeadsConfig(),
        heads_schedule=Schedule(phases=(Phase(updates=6000, batch=256),), learning_rate=1e-3),
        clone=CloneConfig(),
        clone_schedule=Schedule(phases=(Phase(updates=8000, batch=256),), learning_rate=1e-3),
        act=ActingConfig(),
        act_schedule=Schedule(phases=(Phase(updates=6000, batch=24, length=12),), learning_rate=2e-3),
    )


def further(recipe: Recipe) -> Recipe:
    """The same recipe for a finished world: each part learns on as in its last phase, for a while."""

    def going_on(part: Part, schedule: Schedule | None) -> Schedule | None:
        if schedule is None:
            return None
        updates, rate = GO_ON[part]
        phase = dataclasses.replace(schedule.phases[-1], updates=updates)
        return dataclasses.replace(schedule, phases=(phase,), learning_rate=rate)

    schedules = {f"{part}_schedule": going_on(part, recipe.schedule(part)) for part in get_args(Part)}
    return dataclasses.replace(recipe, **schedules)
