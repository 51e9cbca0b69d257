"""Recipes for any dataset: all its cameras and its proprioception."""

import dataclasses
import math

from kinema.data.layout import picture_shape
from kinema.data.lerobot import DataError, Dataset
from kinema.data.segments import SegmentsConfig
from kinema.model.manifold import ManifoldConfig
from kinema.model.objective import DynamicsObjectiveConfig
from kinema.model.tokens import DynamicsConfig
from kinema.recipes.recipe import Phase, Recipe, Schedule
from kinema.tokenizers import ConvTokenizerConfig, TokenizerObjectiveConfig

PROPRIO = "observation.state"
MAX_ASPECT = 4.0
"""Width over height from which frames are learned less high, so that their area grows no more."""


def base(dataset: Dataset) -> Recipe:
    """A few hours on two cores: pictures about 64 pixels high, 6M parameters.

    Raises:
        DataError: the dataset has no action, or neither a camera nor ``observation.state``.
    """
    return _recipe(dataset, height=64, width_of_network=256, depth=6, tokenizer_updates=6000, updates=18000)


def tiny(dataset: Dataset) -> Recipe:
    """A minute on two cores, to see that everything works: pictures 32 pixels high, 0.2M parameters.

    Raises:
        DataError: as ``base``.
    """
    recipe = _recipe(dataset, height=32, width_of_network=64, depth=2, tokenizer_updates=150, updates=150)
    if recipe.tokenizer is None:
        return recipe
    guide_dim = recipe.tokenizer.latent_dim if recipe.segments.proprio else 0
    small = dataclasses.replace(
        recipe.tokenizer, guide_dim=guide_dim, encoder_widths=(16, 32, 64), decoder_widths=(16, 32, 64)
    )
    return dataclasses.replace(
        recipe,
        tokenizer=small,
        manifold=ManifoldConfig(width=64, depth=1, near_width=32),
        manifold_schedule=Schedule(phases=(Phase(updates=150, batch=64, length=7),), learning_rate=2e-3),
        decoder_schedule=Schedule(phases=(Phase(updates=150, batch=8),), learning_rate=1e-3)
        if guide_dim
        else None,
        still_change=0.05,
    )


def _recipe(
    dataset: Dataset, *, height: int, width_of_network: int, depth: int, tokenizer_updates: int, updates: int
) -> Recipe:
    if "action" not in dataset.features:
        raise DataError(
            f"{dataset.root}: no feature 'action', so there is nothing to learn control from; it has "
            f"{', '.join(sorted(dataset.features))}"
        )
    proprio = PROPRIO if PROPRIO in dataset.features else None
    if not dataset.cameras and proprio is None:
        raise DataError(
            f"{dataset.root}: neither a camera (observation.images.*) nor '{PROPRIO}'; it has "
            f"{', '.join(sorted(dataset.features))}"
        )
    sizes = tuple(_learned_size(picture_shape(dataset.features[key]), height) for key in dataset.cameras)
    tokenizer = None
    if sizes:
        tokenizer = ConvTokenizerConfig(
            height=sizes[0][0],
            width=sizes[0][1],
            encoder_widths=(48, 96, 192),
            decoder_widths=(48, 96, 192),
        )
    grids = tuple((rows // 16, columns // 16) for rows, columns in sizes)
    patch = 2 if grids and not any(size % 2 for grid in grids for size in grid) else 1
    return Recipe(
        segments=SegmentsConfig(cameras=dataset.cameras, proprio=proprio, sizes=sizes),
        num_held_out=max(1, dataset.num_episodes // 20),
        tokenizer=tokenizer,
        tokenizer_objective=TokenizerObjectiveConfig(),
        tokenizer_schedule=Schedule(
            phases=(Phase(updates=tokenizer_updates, batch=32),), learning_rate=1.2e-3
        ),
        dynamics=DynamicsConfig(
            grids=grids,
            latent_dim=tokenizer.latent_dim if tokenizer else 1,
            action_dim=_size(dataset, "action"),
            proprio_dim=_size(dataset, proprio) if proprio else 0,
            patch=patch,
            width=width_of_network,
            depth=depth,
            num_heads=width_of_network // 64,
        ),
        dynamics_objective=DynamicsObjectiveConfig(),
        dynamics_schedule=Schedule(
            phases=(
                Phase(updates=round(0.75 * updates), batch=16, length=9),
                Phase(updates=round(0.25 * updates), batch=8, length=17, own_context_share=0.5),
            ),
            learning_rate=1.5e-3,
            optimizer="muon",
        ),
    )


def _learned_size(shape: tuple[int, int, int], height: int) -> tuple[int, int]:
    """Height and width in pixels, multiples of 16, of a camera's frames: as high as ``height`` and of the
    recorded aspect, less high where they would be more than four times as wide."""
    aspect = shape[1] / shape[0]
    if aspect > MAX_ASPECT:
        height = max(16, 16 * round(height * math.sqrt(MAX_ASPECT / aspect) / 16))
    return height, max(16, 16 * round(height * aspect / 16))


def _size(dataset: Dataset, key: str) -> int:
    size = 1
    for number in dataset.features[key]["shape"]:
        size *= number
    return size


def check_one_camera(dataset: Dataset, recipe: str) -> None:
    """Whether a dataset has just one camera, and what else a recipe of this name learns. Raises DataError."""
    if len(dataset.cameras) != 1:
        raise DataError(
            f"{dataset.root}: the recipe '{recipe}' learns one camera, this dataset has "
            f"{len(dataset.cameras)} ({', '.join(dataset.cameras) or 'none'}); use the recipe 'base'"
        )
    for key in ("action", PROPRIO):
        if key not in dataset.features:
            raise DataError(
                f"{dataset.root}: the recipe '{recipe}' learns '{key}', which this dataset lacks; record "
                f"anew, or use the recipe 'base'; it has {', '.join(sorted(dataset.features))}"
            )
