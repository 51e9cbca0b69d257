"""Functions from a dataset to a complete training configuration."""

from collections.abc import Callable

from kinema.data.lerobot import Dataset
from kinema.recipes.base import base, tiny
from kinema.recipes.dmc import dmc
from kinema.recipes.pusht import pusht
from kinema.recipes.recipe import Phase, Recipe, Schedule

RECIPES: dict[str, Callable[[Dataset], Recipe]] = {"base": base, "tiny": tiny, "pusht": pusht, "dmc": dmc}
"""By the names that ``kinema train --recipe`` takes."""

__all__ = ["RECIPES", "Phase", "Recipe", "Schedule", "base", "dmc", "pusht", "tiny"]
