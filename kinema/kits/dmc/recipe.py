"""A task of the DeepMind Control Suite at 64x64: one body, whose senses tell its whole state."""

from kinema.data.lerobot import Dataset
from kinema.data.segments import SegmentsConfig
from kinema.model.manifold import ManifoldConfig
from kinema.model.objective import DynamicsObjectiveConfig
from kinema.model.tokens import DynamicsConfig
from kinema.recipes.base import PROPRIO, check_one_camera
from kinema.recipes.recipe import Phase, Recipe, Schedule
from kinema.tokenizers import ConvTokenizerConfig, TokenizerObjectiveConfig


def dmc(dataset: Dataset) -> Recipe:
    """One camera and all that the task observes; about forty minutes on one core.

    Raises:
        DataError: the dataset has another number of cameras, or no ``observation.state`` or ``action``.
    """
    check_one_camera(dataset, "dmc")
    tokenizer = ConvTokenizerConfig(
        height=64, width=64, guide_dim=16, encoder_widths=(32, 64, 128), decoder_widths=(32, 64, 128)
    )
    return Recipe(
        segments=SegmentsConfig(cameras=dataset.cameras, proprio=PROPRIO, height=64, width=64),
        num_held_out=max(1, dataset.num_episodes // 20),
        tokenizer=tokenizer,
        tokenizer_objective=TokenizerObjectiveConfig(hard_share=0.5),
        tokenizer_schedule=Schedule(
            phases=(Phase(updates=1000, batch=32),), learning_rate=1.2e-3, decay_share=0.5
        ),
        dynamics=DynamicsConfig(
            grids=(tokenizer.grid,),
            latent_dim=tokenizer.latent_dim,
            action_dim=dataset.features["action"]["shape"][0],
            proprio_dim=dataset.features[PROPRIO]["shape"][0],
            patch=2,
            width=128,
            depth=3,
            num_heads=2,
            time_every=2,
            window=4,
            motion_directions=500,
        ),
        dynamics_objective=DynamicsObjectiveConfig(
            infer_prob=0.04,
            proprio_prob=0.15,
            locate_prob=0.03,
            hidden_prob=0.05,
            pure_noise_prob=0.85,
            max_context_noise=0.15,
            max_proprio_noise=0.005,
        ),
        dynamics_schedule=Schedule(
            phases=(
                Phase(updates=1600, batch=16, length=6),
                Phase(updates=900, batch=16, length=6, own_context_share=0.6, own_context_steps=2),
            ),
            learning_rate=1.5e-3,
            optimizer="muon",
        ),
        manifold=ManifoldConfig(code_dim=4, width=256, near_width=96, radius_quantile=0.9),
        manifold_schedule=Schedule(
            phases=(Phase(updates=600, batch=320, length=16),), learning_rate=2e-3, decay_share=0.65
        ),
        decoder_schedule=Schedule(
            phases=(Phase(updates=800, batch=32),), learning_rate=1e-3, decay_share=0.7
        ),
        context_tau=0.985,
    )
