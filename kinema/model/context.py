"""The context of frames: tokens that they attend to, made of what is wanted."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.model.embeddings import FourierFeatures
from kinema.model.tokens import DynamicsConfig, Values


class GoalInput(nn.Module):
    """Context tokens from goal frames: one for each patch of latents, and one for proprioception."""

    def __init__(self, config: DynamicsConfig):
        super().__init__()
        self.patch = nn.Linear(config.patch**2 * config.latent_dim, config.width) if config.grids else None
        self.features = FourierFeatures(config.proprio_dim, config.num_octaves, config.num_directions)
        self.proprio = nn.Linear(self.features.size, config.width) if config.proprio_dim else None
        self.unknown = nn.Parameter(torch.zeros(config.width))
        num_tokens = config.num_patches + (config.proprio_dim > 0)
        self.bias = nn.Parameter(0.02 * torch.randn(num_tokens, config.width))

    def forward(
        self, patches: Float[Tensor, "B C P"], goal: Values, knows_proprio: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B N D"]:
        """Tokens of goals (T = 1), their latents as patches; proprioception may be unknown."""
        tokens = [self.patch(patches)] if self.patch is not None else []
        if self.proprio is not None:
            known = self.proprio(self.features(goal.proprio))
            tokens.append(torch.where(knows_proprio[:, None, None], known, self.unknown))
        return torch.cat(tokens, dim=1) + self.bias
