"""What the decoder learns by itself, once the manifold is known."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from kinema.model.manifold import Manifold
from kinema.tokenizers import ConvTokenizer, TokenizerObjectiveConfig
from kinema.tokenizers.convolutional import STRIDE
from kinema.tokenizers.objective import PictureLoss

DECODER_NOISE = 0.05
"""Deviation of the noise on the latents that the decoder alone is trained on."""
DRAWN_SHARE = 0.5
"""Share of the latents that are drawn towards the manifold, anything from not at all to all of the way."""
GUIDED_SHARE = 0.9
"""Share of the pictures for which the decoder is given its guide."""


class DecoderBatch(NamedTuple):
    """Pairs of frames of one camera each, with the latents of all cameras."""

    pairs: UInt8[Tensor, "B 2 H W 3"]
    latents: Float[Tensor, "B 2 L Z"]
    proprio: Float[Tensor, "B 2 P"]
    cameras: Int[Tensor, " B"]
    """Index of the camera that made the frames."""


class DecoderObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: the decoder alone, once the manifold
    is known.

    Half of the latents are drawn towards the manifold, as those of simulated frames are: what they lose of a
    picture's detail has to come from what all pictures have in common. The decoder is guided by the latents
    of the robot alone: where the robot is, proprioception says better than latents of a picture in which
    other things hide it.
    """

    _first_latent: Tensor
    """First latent of each camera in those of all."""

    def __init__(
        self,
        tokenizer: ConvTokenizer,
        manifold: Manifold,
        config: TokenizerObjectiveConfig,
        grids: Sequence[tuple[int, int]],
    ):
        """``grids``: rows and columns of the latents of each camera."""
        super().__init__()
        self.decoder = tokenizer.decoder
        self.loss = PictureLoss(config)
        # Methods, not modules: they are used here, but not trained.
        self._decode, self._robot, self._distance = tokenizer.decode, manifold.robot, manifold.distance
        first = torch.tensor([0, *(rows * columns for rows, columns in grids[:-1])]).cumsum(0)
        self.register_buffer("_first_latent", first, persistent=False)

    def forward(
        self, batch: DecoderBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch: latents are those of all cameras, frames of the one that ``cameras``
        says; the frames of all of these have one size."""
        pairs, latents, proprio, cameras = batch
        grid = pairs.shape[2] // STRIDE, pairs.shape[3] // STRIDE
        latents, proprio = latents.flatten(0, 1), proprio.flatten(0, 1)
        count, device = len(latents), latents.device
        with torch.no_grad():
            drawn, is_drawn = torch.rand(2, count, 1, 1, generator=generator, device=device)
            nearest = self._distance(latents, proprio)[1]
            latents = torch.lerp(latents, nearest, drawn * (is_drawn < DRAWN_SHARE))
            noise = torch.randn(latents.shape, generator=generator, device=device)
            is_guided = torch.rand(count, 1, 1, generator=generator, device=device) < GUIDED_SHARE
            offsets = torch.arange(grid[0] * grid[1], device=device)
            rows = torch.arange(count, device=device)[:, None]
            columns = self._first_latent[cameras.repeat_interleave(2)][:, None] + offsets
            latents, guide = (
                of_all[rows, columns]
                for of_all in (latents + DECODER_NOISE * noise, self._robot(proprio) * is_guided)
            )
        kept = self.loss.hardest(lambda: self._decode(latents, guide, grid=grid), pairs)
        pictures = torch.stack([2 * kept, 2 * kept + 1], 1).flatten()
        decoded = self._decode(latents[pictures], guide[pictures], grid=grid)
        return self.loss(decoded, pairs[kept])
