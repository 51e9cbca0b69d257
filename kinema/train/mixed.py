"""One recipe for several datasets: the cameras and the numbers of all of them."""

import dataclasses
from collections.abc import Mapping, Sequence

from kinema.data.dimensions import Dimension
from kinema.data.layout import Feature
from kinema.data.lerobot import Dataset
from kinema.data.mixture import MixedDataset, Source, Union, shares_of, unify, unite
from kinema.data.segments import Segments, SegmentsConfig
from kinema.recipes import Recipe
from kinema.tokenizers.convolutional import STRIDE


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Datasets that one world learns from, side by side."""

    sources: Sequence[Source]
    datasets: Sequence[Dataset]
    recipe: Recipe
    """Of the world."""
    configs: Sequence[SegmentsConfig]
    """By dataset, which cameras and vectors of it are learned."""
    actions: Union
    proprio: Union

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        datasets: Sequence[Dataset],
        recipes: Sequence[Recipe],
        dimensions: Sequence[Mapping[str, tuple[Dimension, ...]]],
    ) -> "Mixture":
        """Unite datasets; ``recipes`` are those of each alone, and the first one with cameras decides."""
        configs = [recipe.segments for recipe in recipes]
        sizes: dict[str, tuple[int, int]] = {}
        for config in reversed(configs):
            sizes |= config.sizes_of(config.cameras or ())
        names = [str(each.info.get("robot_type") or each.root.name) for each in datasets]
        actions = unite([each.get("action", ()) for each in dimensions], names)
        keys = [config.proprio for config in configs]
        proprio = unite([each[key] if key else () for each, key in zip(dimensions, keys, strict=True)], names)
        cameras = tuple(dict.fromkeys(key for config in configs for key in config.cameras or ()))
        main = next((recipe for recipe in recipes if recipe.tokenizer is not None), recipes[0])
        grids = tuple((sizes[key][0] // STRIDE, sizes[key][1] // STRIDE) for key in cameras)
        is_divided = all(size % main.dynamics.patch == 0 for grid in grids for size in grid)
        segments = SegmentsConfig(
            cameras=cameras,
            proprio=next((key for key in keys if key), None),
            sizes=tuple(sizes[key] for key in cameras),
        )
        tokenizer = main.tokenizer
        if tokenizer is not None:
            tokenizer = dataclasses.replace(tokenizer, guide_dim=0)
        recipe = dataclasses.replace(
            main,
            segments=segments,
            num_held_out=recipes[0].num_held_out,
            tokenizer=tokenizer,
            dynamics=dataclasses.replace(
                main.dynamics,
                grids=grids,
                patch=main.dynamics.patch if is_divided else 1,
                action_dim=sum(each.num_columns for each in actions.dimensions),
                proprio_dim=sum(each.num_columns for each in proprio.dimensions),
            ),
            # A manifold takes all of a frame, of which some recordings lack a part.
            manifold=None,
            manifold_schedule=None,
            decoder_schedule=None,
            still_change=0.0,
        )
        configs = [
            dataclasses.replace(config, sizes=tuple(sizes[key] for key in config.cameras or ()))
            for config in configs
        ]
        return cls(sources, datasets, recipe, configs, actions, proprio)

    @property
    def shares(self) -> Sequence[float] | None:
        """Shares of the segments by dataset; None where every row counts the same."""
        return shares_of(self.sources)

    @property
    def features(self) -> dict[str, Feature]:
        """Features of all datasets; of those with one key that of the first."""
        features: dict[str, Feature] = {}
        for dataset in reversed(self.datasets):
            features |= dataset.features
        return features

    def dataset(self, number: int) -> MixedDataset:
        """A dataset as the world has it."""
        return MixedDataset(
            self.datasets[number],
            number,
            actions=self.actions,
            proprio=self.proprio,
            proprio_key=self.recipe.segments.proprio,
        )

    def unify(self, segments: Segments, number: int) -> Segments:
        """Segments of a dataset as the world has them."""
        cameras = self.recipe.segments.cameras or ()
        return unify(segments, number, actions=self.actions, proprio=self.proprio, cameras=cameras)
