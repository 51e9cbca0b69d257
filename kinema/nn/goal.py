"""A frame that is to be reached, as the network is told of it."""

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.nn.embeddings import FourierFeatures


@dataclasses.dataclass(frozen=True)
class GoalFrame:
    """A goal of each session or segment."""

    latents: Float[Tensor, "B L Z"]
    """Latents of all cameras."""
    proprio: Float[Tensor, "B P"]
    """Normalised proprioception."""
    knows_proprio: Bool[Tensor, " B"]
    """Where that is known: a goal may be a picture alone."""

    def to(self, device: torch.device) -> "GoalFrame":
        """The same on another device."""
        return GoalFrame(self.latents.to(device), self.proprio.to(device), self.knows_proprio.to(device))


class GoalInput(nn.Module):
    """What tokens of a frame are given of a goal: those of a picture the goal's latents at their place, those
    of vectors its proprioception; where there is no goal, a learned null, which is zero at first."""

    def __init__(self, *, patch_dim: int, num_patches: int, proprio_dim: int, num_tokens: int, width: int):
        super().__init__()
        self.num_patches, self.num_tokens = num_patches, num_tokens
        self.latents = nn.Linear(patch_dim, width) if num_patches else None
        self.features = FourierFeatures(proprio_dim, 4)
        self.proprio = nn.Linear(self.features.size + 1, width)
        self.null = nn.Parameter(torch.zeros(num_tokens, width))

    def forward(
        self,
        patches: Float[Tensor, "B K V"] | None,
        goal: GoalFrame | None,
        has_goal: Bool[Tensor, "B U"],
    ) -> Float[Tensor, "B U N D"]:
        """``patches``: the goal's latents as the tokens of a picture have them (``K``, none in a world
        without cameras)."""
        if goal is None:
            return self.null.expand(*has_goal.shape, -1, -1)
        known = goal.knows_proprio.to(goal.proprio.dtype).unsqueeze(-1)
        vector = self.proprio(torch.cat([known * self.features(goal.proprio), known], dim=-1))
        told = vector.unsqueeze(1).expand(-1, self.num_tokens - self.num_patches, -1)
        if self.latents is not None and patches is not None:
            told = torch.cat([self.latents(patches), told], dim=1)
        told, null = told.unsqueeze(1), self.null.to(told.dtype)
        return torch.where(has_goal[:, :, None, None], told, null)
