"""Functions from a dataset to a complete training configuration."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from kinema.data.lerobot import Dataset
from kinema.recipes.base import base, tiny
from kinema.recipes.recipe import Phase, Recipe, Schedule


def _named(entry: EntryPoint) -> Callable[[Dataset], Recipe]:
    """Recipe that is imported when it is used."""
    return lambda dataset: entry.load()(dataset)


RECIPES = {entry.name: _named(entry) for entry in sorted(entry_points(group="kinema.recipes"))}
"""By the names that ``kinema train --recipe`` takes; other packages add theirs to the group
``kinema.recipes`` of entry points."""

__all__ = ["RECIPES", "Phase", "Recipe", "Schedule", "base", "tiny"]
