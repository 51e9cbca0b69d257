"""The recipe for any dataset: all its cameras and its proprioception, in frames and networks of some size."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kinema.data.layout import picture_shape
from kinema.data.lerobot import DataError, Dataset
from kinema.data.segments import SegmentsConfig
from kinema.model.manifold import ManifoldConfig
from kinema.model.objective import DynamicsObjectiveConfig
from kinema.model.tokens import DynamicsConfig
from kinema.recipes.recipe import Phase, Recipe, Schedule
from kinema.tokenizers import ConvTokenizerConfig, TokenizerObjectiveConfig
from kinema.tokenizers.convolutional import STRIDE

PROPRIO = "observation.state"
LEAST_HEIGHT = 64
"""Pixels; frames of lower cameras are enlarged to it, since a latent stands for 16 by 16 pixels."""
MAX_ASPECT = 4.0
"""Width over height from which the area of frames grows no more."""
LENGTHS = (6, 12, 40)
"""Frames in a segment, by phase of the dynamics: most updates see short segments, the last ones the network's
own predictions, and as far back as its registers do."""
NUM_REGISTERS = 4
SHORTEST = 3
"""Frames in the shortest segment that shows where something is and how fast it moves."""
KEPT_SHARE = 0.9
"""Share of all frames that stay in use: segments are not longer than the episodes that hold these."""
PHASE_SHARES = (0.6, 0.15, 0.25)
"""Shares of the updates of the dynamics, by phase."""
TOKENIZER_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of frames and networks, and the updates that they need. All else is the same for all worlds."""

    height: int
    """Height of frames in pixels."""
    max_tokens: int
    """Most tokens of latents in a frame of one camera; each further camera may add half as many. Where there
    are more, tokens are made larger, then frames less high."""
    width: int
    """Width D of the dynamics."""
    depth: int
    """Blocks of the dynamics."""
    channels: int
    """Channels of the tokenizer at a quarter of the frame's height; two and four times as many below."""
    tokenizer_updates: int
    dynamics_updates: int


SIZES = {
    "tiny": Size(
        height=32,
        max_tokens=64,
        width=64,
        depth=2,
        channels=16,
        tokenizer_updates=150,
        dynamics_updates=150,
    ),
    "mini": Size(
        height=64,
        max_tokens=12,
        width=128,
        depth=4,
        channels=32,
        tokenizer_updates=2_000,
        dynamics_updates=8_000,
    ),
    "small": Size(
        height=64,
        max_tokens=24,
        width=128,
        depth=6,
        channels=32,
        tokenizer_updates=4_000,
        dynamics_updates=16_000,
    ),
    "base": Size(
        height=64,
        max_tokens=48,
        width=256,
        depth=6,
        channels=48,
        tokenizer_updates=8_000,
        dynamics_updates=30_000,
    ),
    "large": Size(
        height=128,
        max_tokens=128,
        width=512,
        depth=10,
        channels=64,
        tokenizer_updates=20_000,
        dynamics_updates=80_000,
    ),
    "xl": Size(
        height=256,
        max_tokens=512,
        width=1024,
        depth=16,
        channels=128,
        tokenizer_updates=50_000,
        dynamics_updates=200_000,
    ),
}
"""Sizes by name, from cheap to dear. ``tiny`` is for tests, ``mini`` for times too short for ``small``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """A size, adapted to a dataset, a machine and a time."""

    size: Size
    tokenizer_updates: int
    phase_updates: tuple[int, ...]
    """Updates of the dynamics, by phase."""
    batch: int = 16
    """Segments in a batch of the first phase; longer ones are fewer."""
    num_episodes: int | None = None
    """Episodes to learn from, evenly spread over the dataset; all by default."""

    @classmethod
    def of(cls, name: str) -> "Scale":
        """The size with this name, with the updates that it needs."""
        size = SIZES[name]
        updates = tuple(round(share * size.dynamics_updates) for share in PHASE_SHARES)
        return cls(size=size, tokenizer_updates=size.tokenizer_updates, phase_updates=updates)


def sized(dataset: Dataset, scale: Scale) -> Recipe:
    """Return the recipe of a scale for a dataset.

    Raises:
        DataError: the dataset has neither a camera nor ``observation.state``.
    """
    proprio, size = _check_features(dataset), scale.size
    shapes = [picture_shape(dataset.features[key]) for key in dataset.cameras]
    sizes, patch = _layout(shapes, size)
    tokenizer = None
    if sizes:
        widths = (size.channels, 2 * size.channels, 4 * size.channels)
        tokenizer = ConvTokenizerConfig(
            height=sizes[0][0], width=sizes[0][1], encoder_widths=widths, decoder_widths=widths
        )
    return Recipe(
        segments=SegmentsConfig(cameras=dataset.cameras, proprio=proprio, sizes=sizes),
        num_held_out=max(1, dataset.num_episodes // 20),
        tokenizer=tokenizer,
        tokenizer_objective=TokenizerObjectiveConfig(),
        tokenizer_schedule=_schedule(
            [Phase(updates=scale.tokenizer_updates, batch=TOKENIZER_BATCH)], learning_rate=1.2e-3
        ),
        dynamics=DynamicsConfig(
            grids=tuple((height // STRIDE, width // STRIDE) for height, width in sizes),
            latent_dim=tokenizer.latent_dim if tokenizer else 1,
            action_dim=math.prod(dataset.features["action"]["shape"]) if "action" in dataset.features else 0,
            proprio_dim=math.prod(dataset.features[proprio]["shape"]) if proprio else 0,
            patch=patch,
            width=size.width,
            depth=size.depth,
            num_heads=size.width // 64,
            num_registers=NUM_REGISTERS,
            memory=min(LENGTHS[-1], _longest(dataset.lengths())),
            has_goals=True,
        ),
        dynamics_objective=DynamicsObjectiveConfig(),
        dynamics_schedule=_schedule(
            _phases(scale, _longest(dataset.lengths())), learning_rate=1.5e-3, optimizer="muon"
        ),
    )


def tiny(dataset: Dataset) -> Recipe:
    """A minute on two cores, to see that everything works; with a manifold, as worlds of 0.1.0 have one.

    Raises:
        DataError: as ``sized``.
    """
    recipe = sized(dataset, Scale.of("tiny"))
    schedule = recipe.dynamics_schedule
    schedule = dataclasses.replace(schedule, phases=(schedule.phases[0], schedule.phases[-1]))
    recipe = dataclasses.replace(recipe, dynamics_schedule=schedule)
    if recipe.tokenizer is None:
        return recipe
    guide_dim = recipe.tokenizer.latent_dim if recipe.segments.proprio else 0
    return dataclasses.replace(
        recipe,
        tokenizer=dataclasses.replace(recipe.tokenizer, guide_dim=guide_dim),
        manifold=ManifoldConfig(width=64, depth=1, near_width=32),
        manifold_schedule=Schedule(phases=(Phase(updates=150, batch=64, length=7),), learning_rate=2e-3),
        decoder_schedule=Schedule(phases=(Phase(updates=150, batch=8),), learning_rate=1e-3)
        if guide_dim
        else None,
        still_change=0.05,
    )


def _check_features(dataset: Dataset) -> str | None:
    """Key of the proprioception, if there is any. Raises DataError where there is nothing to learn."""
    there = f"it has {', '.join(sorted(dataset.features))}"
    proprio = PROPRIO if PROPRIO in dataset.features else None
    if not dataset.cameras and proprio is None:
        raise DataError(f"{dataset.root}: neither a camera (observation.images.*) nor '{PROPRIO}'; {there}")
    return proprio


def _layout(shapes: Sequence[tuple[int, int, int]], size: Size) -> tuple[tuple[tuple[int, int], ...], int]:
    """Height and width of the frames of each camera, and the latents in a token's height: as many pixels as
    ``max_tokens`` allow, first in tokens of one latent, then of two by two."""
    sizes, patch = (), 1
    max_tokens = size.max_tokens * (1 + len(shapes)) // 2
    for height in range(size.height, 0, -STRIDE):
        for patch in (1, 2):
            sizes = tuple(_learned_size(shape, height, patch * STRIDE) for shape in shapes)
            num_tokens = sum(height * width for height, width in sizes) // (patch * STRIDE) ** 2
            if num_tokens <= max_tokens:
                return sizes, patch
    return sizes, patch


def _learned_size(shape: tuple[int, int, int], height: int, multiple: int) -> tuple[int, int]:
    """Height and width in pixels, multiples of a number, of a camera's frames: ``height``, or the recorded
    height where that is less, and of the recorded aspect; of no larger area where they are very wide."""
    height = min(height, max(shape[0], LEAST_HEIGHT))
    aspect = shape[1] / shape[0]
    area = height**2 * min(aspect, MAX_ASPECT)
    height = max(1, round(math.sqrt(area / aspect) / multiple)) * multiple
    width = min(height * aspect, area / height) if aspect > MAX_ASPECT else height * aspect
    return height, max(1, round(width / multiple)) * multiple


def _longest(lengths: np.ndarray) -> int:
    """Rows of the longest segments that episodes with these lengths allow."""
    longest_first = np.sort(lengths)[::-1]
    num_kept = np.searchsorted(np.cumsum(longest_first), KEPT_SHARE * longest_first.sum())
    return max(SHORTEST, int(longest_first[num_kept]))


def _phases(scale: Scale, longest: int) -> list[Phase]:
    short, middle, long = (min(length, longest) for length in LENGTHS)
    updates, half, few = scale.phase_updates, max(1, scale.batch // 2), max(1, scale.batch // 5)
    return [
        Phase(updates=updates[0], batch=scale.batch, length=short),
        Phase(updates=updates[1], batch=half, length=middle),
        Phase(updates=updates[2], batch=few, length=long, own_context_share=0.6, own_context_steps=3),
    ]


def _schedule(phases: list[Phase], **options: object) -> Schedule:
    """A schedule of which a tenth at most is warm-up."""
    schedule = Schedule(phases=tuple(phases), **options)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(schedule, warmup=min(schedule.warmup, max(1, schedule.updates // 10)))
