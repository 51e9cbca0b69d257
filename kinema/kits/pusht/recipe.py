"""The bundled world: PushT at 64x64, learned from 2,000 episodes of scripted play."""

from kinema.data.lerobot import DataError, Dataset
from kinema.data.segments import SegmentsConfig
from kinema.model.manifold import ManifoldConfig
from kinema.model.objective import DynamicsObjectiveConfig
from kinema.model.tokens import DynamicsConfig
from kinema.recipes.recipe import Phase, Recipe, Schedule
from kinema.recipes.sizes import PROPRIO
from kinema.tokenizers import ConvTokenizerConfig, TokenizerObjectiveConfig


def pusht(dataset: Dataset) -> Recipe:
    """One camera and the agent's position; about three hours on two cores.

    Raises:
        DataError: the dataset has another number of cameras, or no ``observation.state`` or ``action``.
    """
    _check_features(dataset)
    tokenizer = ConvTokenizerConfig(
        height=64,
        width=64,
        guide_dim=16,
        encoder_widths=(48, 96, 192),
        decoder_widths=(48, 96, 192),
        decoder_blocks=(2, 1, 1),
    )
    return Recipe(
        segments=SegmentsConfig(cameras=dataset.cameras, proprio=PROPRIO, height=64, width=64),
        num_held_out=max(1, dataset.num_episodes // 100),
        tokenizer=tokenizer,
        tokenizer_objective=TokenizerObjectiveConfig(hard_share=0.5),
        tokenizer_schedule=Schedule(
            phases=(Phase(updates=6000, batch=64),), learning_rate=1.2e-3, decay_share=0.5
        ),
        dynamics=DynamicsConfig(
            grids=(tokenizer.grid,),
            latent_dim=tokenizer.latent_dim,
            action_dim=dataset.features["action"]["shape"][0],
            proprio_dim=dataset.features[PROPRIO]["shape"][0],
            patch=1,
            width=128,
            depth=6,
            num_heads=2,
            time_every=2,
            window=8,
        ),
        dynamics_objective=DynamicsObjectiveConfig(
            mixed_share=0.25,
            infer_prob=0.2,
            proprio_prob=0.1,
            locate_prob=0.1,
            hidden_prob=0.15,
            pure_noise_prob=0.5,
            max_context_noise=0.15,
            max_proprio_noise=0.005,
        ),
        dynamics_schedule=Schedule(
            phases=(
                Phase(updates=5000, batch=8, length=13),
                Phase(updates=8000, batch=8, length=13, own_context_share=0.8, own_context_steps=3),
            ),
            learning_rate=1.5e-3,
            optimizer="muon",
        ),
        manifold=ManifoldConfig(radius_quantile=0.75, num_recorded=56 * 1024),
        manifold_schedule=Schedule(
            phases=(Phase(updates=9000, batch=640, length=16),), learning_rate=2e-3, decay_share=0.65
        ),
        decoder_schedule=Schedule(
            phases=(Phase(updates=5000, batch=64),), learning_rate=1e-3, decay_share=0.7
        ),
        num_support=4096,
        still_change=0.08,
        surprising_share=0.5,
        context_tau=0.985,
    )


def _check_features(dataset: Dataset) -> None:
    if len(dataset.cameras) != 1:
        raise DataError(
            f"{dataset.root}: the recipe 'pusht' learns one camera, this dataset has {len(dataset.cameras)} "
            f"({', '.join(dataset.cameras) or 'none'}); train without --recipe"
        )
    for key in ("action", PROPRIO):
        if key not in dataset.features:
            raise DataError(
                f"{dataset.root}: the recipe 'pusht' learns '{key}', which this dataset lacks; record anew, "
                f"or train without --recipe; it has {', '.join(sorted(dataset.features))}"
            )
