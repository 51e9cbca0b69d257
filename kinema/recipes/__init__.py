"""Functions from a dataset to a complete training configuration."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from kinema.data.lerobot import Dataset
from kinema.recipes.recipe import Phase, Recipe, Schedule
from kinema.recipes.sizes import SIZES, Scale, sized, tiny


def _sized(name: str) -> Callable[[Dataset], Recipe]:
    return tiny if name == "tiny" else lambda dataset: sized(dataset, Scale.of(name))


def _named(entry: EntryPoint) -> Callable[[Dataset], Recipe]:
    """Recipe that is imported when it is used."""
    return lambda dataset: entry.load()(dataset)


RECIPES = {name: _sized(name) for name in SIZES} | {
    entry.name: _named(entry)
    for entry in sorted(entry_points(group="kinema.recipes"))
    if entry.name not in SIZES
}
"""By the names that ``kinema train --recipe`` takes: sizes, and what kits and other packages add to the group
``kinema.recipes`` of entry points."""

__all__ = ["RECIPES", "SIZES", "Phase", "Recipe", "Scale", "Schedule", "sized"]
