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
    of vectors its proprioception, and how far each is from the frame before, which is what there is to do."""

    def __init__(self, *, patch_dim: int, num_patches: int, proprio_dim: int, num_tokens: int, width: int):
        super().__init__()
        self.num_vectors = num_tokens - num_patches
        self.latents = nn.Linear(2 * patch_dim, width) if num_patches else None
        self.features = FourierFeatures(proprio_dim, 4)
        self.proprio = nn.Linear(2 * self.features.size + 1, width)

    def forward(
        self,
        patches: tuple[Float[Tensor, "B K V"], Float[Tensor, "B U K V"]] | None,
        goal: GoalFrame,
        last_proprio: Float[Tensor, "B U P"],
    ) -> Float[Tensor, "B U N D"]:
        """``patches``: latents of the goal and of the frames before, as the tokens of a picture have them
        (``K``, none in a world without cameras). What is not known of the frames before is zero."""
        known = goal.knows_proprio.to(goal.proprio.dtype).view(-1, 1, 1).expand(*last_proprio.shape[:2], 1)
        place = goal.proprio.unsqueeze(1)
        parts = [known * self.features(place), known * self.features(place - last_proprio), known]
        vector = self.proprio(torch.cat(parts, dim=-1))
        told = vector.unsqueeze(2).expand(-1, -1, self.num_vectors, -1)
        if self.latents is not None and patches is not None:
            wanted, last = patches[0].unsqueeze(1).expand_as(patches[1]), patches[1]
            told = torch.cat([self.latents(torch.cat([wanted, wanted - last], dim=-1)), told], dim=2)
        return told
