"""The frames that a world can show, as a manifold with few dimensions: an autoencoder with a narrow code.

A rollout leaves the frames that were recorded a little with every step, and what has left them no longer
moves as it should. Latents have many more numbers than a world has degrees of freedom, so where they should
be can be learned from recorded frames alone; ``project`` brings latents back to it. That bounds what a
rollout can come to look like, however long it is, and leaves as they are frames like those recorded.
``recall`` does the same for what is on the manifold, but between recorded frames and not near any.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kinema.data.latents import Rows
from kinema.hardware.machine import exact
from kinema.hardware.packed import PackedLinear, pack_matrix
from kinema.model.embeddings import FourierFeatures
from kinema.model.recorded import NUM_CELLS, RecordedCodes
from kinema.model.response import RIDGE, fit_frequencies, gram_and_moment, ridge

ROBOT_OCTAVES, ROBOT_DIRECTIONS = 5, 300
FIT_ROWS = 60_000
"""Most frames to fit the robot's part to."""
MOST_RECORDED = 600_000
"""Most frames to choose from which codes are kept."""
NUM_RECALLED = 8
"""Recorded codes near that of a frame of which the one is recalled that looks the most like it."""
PLACE_DIM = 8
"""Numbers by which a latent is told what the code says of its own place."""

ANYWHERE_DRAWS, NEAR_DRAWS, NUM_ELITES = 1024, 128, 12
NEAR_SPREAD, LEAST_SPREAD, LOCATE_ROUNDS = 0.15, 1e-3, 5
"""Of the search for the proprioception that fits a frame, in halves of its range."""

CORRUPTED_SHARE = 0.5
"""Share of the frames that are also encoded corrupted, to the code of the clean frame."""
MAX_MIXED = 0.5
"""Share of a frame that is taken from another moment, at most."""
BLENDED_SHARE = 0.5
"""Share of the corrupted frames of which every latent takes that share, instead of that share of the latents
all."""
MAX_NOISE = 0.3
"""Deviation of noise on the latents, at most."""
IMAGINED_SHARE = 0.3
"""Share of the corrupted frames that are not recorded ones changed, but what the decoder makes of changed
codes: between the frames that were recorded, the manifold has some that never were."""
MAX_CODE_NOISE = 0.25
"""Deviation of noise on those codes, at most."""
CODE_WEIGHT = 0.3
"""Weight of the codes' error, a distance, against that of the latents, a square."""
LEAST_CODE_ERROR = 0.01
"""Errors of a code below this count as squares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifoldConfig:
    code_dim: int = 8
    """Numbers K of a code: some more than the world has degrees of freedom besides its proprioception."""
    width: int = 512
    """Width of the residual MLPs."""
    depth: int = 2
    """Their blocks."""
    near_width: int = 160
    """Width of the part that every latent computes for itself."""
    radius_quantile: float = 0.97
    """Share of the recorded frames that ``project`` leaves as they are."""
    num_recorded: int = 0
    """Codes of recorded frames that are kept for ``recall``; 0: none, and it changes nothing."""

    def __post_init__(self) -> None:
        for name in ("code_dim", "width", "depth", "near_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 < self.radius_quantile <= 1:
            raise ValueError(f"radius_quantile={self.radius_quantile}: it must be above 0 and at most 1")
        if self.num_recorded < 0 or self.num_recorded % NUM_CELLS:
            raise ValueError(f"num_recorded={self.num_recorded}: it must be 0 or a multiple of {NUM_CELLS}")


DrawToOne = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``Manifold.draw_to_one``, or what computes the same."""


class _Residual(nn.Module):
    """``x`` plus an MLP of it."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(F.rms_norm(x, x.shape[-1:]))
        return self.down(F.silu(h, inplace=True)).add_(x)


class _MLP(nn.Sequential):
    """A residual MLP."""

    def __init__(
        self, num_inputs: int, num_outputs: int, width: int, depth: int, *, starts_at_zero: bool = False
    ):
        last = nn.Linear(width, num_outputs)
        if starts_at_zero:
            nn.init.zeros_(last.weight)
        blocks = [_Residual(width) for _ in range(depth)]
        super().__init__(
            nn.Linear(num_inputs, width), *blocks, nn.RMSNorm(width, elementwise_affine=False), last
        )


class Manifold(nn.Module):
    """Codes of frames, frames of codes, and the way back to the nearest frame that could have been recorded.

    A frame is the sum of three parts: of the robot alone, linear in Fourier features of proprioception and
    found by least squares; of the code alone; and of both together, by a small network that all latents
    share and that sees both from each latent's own place.
    """

    to_robot: Tensor
    radius: Tensor
    """Root mean square of what recorded latents lie off their projection, at ``radius_quantile``."""

    def __init__(self, config: ManifoldConfig, *, latents: tuple[int, int], proprio_dim: int):
        super().__init__()
        self.config = config
        self.latents = latents
        num_latents, latent_dim = latents
        size = num_latents * latent_dim
        self.robot_features = FourierFeatures(
            proprio_dim, ROBOT_OCTAVES, ROBOT_DIRECTIONS * (proprio_dim > 0)
        )
        self.register_buffer("to_robot", torch.zeros(self.robot_features.size, size))
        self._packed: PackedLinear | None = None
        self.register_buffer("radius", torch.tensor(torch.inf))
        self.proprio_features = FourierFeatures(proprio_dim, 3)
        self.encoder = _MLP(size + self.proprio_features.size, config.code_dim, config.width, config.depth)
        self.code_features = FourierFeatures(config.code_dim, 3, 96)
        self.decoder = _MLP(self.code_features.size, size, config.width, config.depth)
        self.place = nn.Parameter(0.5 * torch.randn(num_latents, config.code_dim + 1, PLACE_DIM))
        self.place_features = FourierFeatures(PLACE_DIM, 2, 64)
        self.offset = nn.Parameter(torch.rand(num_latents, proprio_dim) * 2.0 - 1.0)
        self.near_features = FourierFeatures(proprio_dim, 3, 24 * (proprio_dim > 0))
        self.token = nn.Parameter(0.3 * torch.randn(num_latents, 32))
        num_near = self.place_features.size + self.near_features.size + 32
        self.near = _MLP(num_near, latent_dim, config.near_width, 1, starts_at_zero=True)
        self.recorded = RecordedCodes(config.num_recorded, config.code_dim) if config.num_recorded else None

    def encode(self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]) -> Float[Tensor, "N K"]:
        """Codes, within (-1, 1)."""
        return self._encode(latents - self.robot(proprio), proprio)

    def decode(self, code: Float[Tensor, "N K"], proprio: Float[Tensor, "N P"]) -> Float[Tensor, "N L Z"]:
        """Latents of codes."""
        return self._decode(code, proprio, self.robot(proprio))

    def robot(self, proprio: Float[Tensor, "N P"]) -> Float[Tensor, "N L Z"]:
        """The robot's part of frames: what of their latents proprioception alone tells."""
        if not len(self.to_robot):
            return proprio.new_zeros(proprio.shape[0], *self.latents)
        with exact(proprio.device):
            features = self.robot_features(proprio.float())
            found = features @ self.to_robot if self._packed is None else self._packed(features)
            return found.unflatten(-1, self.latents)

    def pack(self, dtype: torch.dtype) -> None:
        """Have the robot's part computed by packed weights."""
        self._packed = pack_matrix(self.to_robot)

    def distance(
        self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N L Z"]]:
        """How far latents are from the manifold (root mean square), and their places on it."""
        return self._find(latents, proprio)[:2]

    def project(
        self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]
    ) -> Float[Tensor, "N L Z"]:
        """Latents drawn towards the manifold until they are within ``radius`` of it."""
        return self.draw(latents, proprio)[0]

    def draw(
        self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]
    ) -> tuple[Float[Tensor, "N L Z"], Float[Tensor, " N"], Float[Tensor, "N K"]]:
        """Latents as ``project`` leaves them, and of what they were before how far from the manifold it was,
        in radii, and its codes."""
        distance, nearest, code = self._find(latents, proprio)
        return self._drawn(latents, nearest, distance), distance / self.radius, code

    def recall(
        self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"], code: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N L Z"]:
        """Latents of which the codes are not near that of any recorded frame, drawn towards one that was
        recorded, as ``project`` draws them; the others as they are."""
        if self.recorded is None:
            return latents
        return self.recall_near(latents, proprio, *self.recorded.nearest(code, NUM_RECALLED))

    def recall_near(
        self,
        latents: Float[Tensor, "N L Z"],
        proprio: Float[Tensor, "N P"],
        away: Float[Tensor, "N C"],
        candidates: Float[Tensor, "N C K"],
        draw_to_one: DrawToOne | None = None,
    ) -> Float[Tensor, "N L Z"]:
        """The same, once the recorded codes are found that are the nearest, and how far they are.
        ``draw_to_one`` stands for the method of that name."""
        assert self.recorded is not None
        is_between = away[:, 0] > self.recorded.reach
        if not is_between.any():
            return latents
        draw_to_one = draw_to_one or self.draw_to_one
        recalled = latents.clone()
        recalled[is_between] = draw_to_one(latents[is_between], proprio[is_between], candidates[is_between])
        return recalled

    def draw_to_one(
        self,
        latents: Float[Tensor, "N L Z"],
        proprio: Float[Tensor, "N P"],
        codes: Float[Tensor, "N C K"],
    ) -> Float[Tensor, "N L Z"]:
        """Latents drawn towards what the one of some codes shows that looks the most like them."""
        num = codes.shape[1]
        shown = self.decode(codes.flatten(0, 1), proprio.repeat_interleave(num, 0)).unflatten(0, (-1, num))
        distance, index = _rms(shown - latents.unsqueeze(1)).min(1)
        index = index.view(-1, 1, 1, 1).expand(-1, 1, *self.latents)
        return self._drawn(latents, shown.gather(1, index).squeeze(1), distance)

    def _find(self, latents: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How far latents are from the manifold, their places on it, and the codes of these."""
        robot = self.robot(proprio)
        code = self._encode(latents - robot, proprio)
        nearest = self._decode(code, proprio, robot)
        return _rms(latents - nearest), nearest, code

    def _drawn(self, latents: Tensor, nearest: Tensor, distance: Tensor) -> Float[Tensor, "N L Z"]:
        """Latents within ``radius`` of what they are drawn to."""
        share = (self.radius / distance.clamp_min(1e-9)).clamp_max(1.0).view(-1, 1, 1)
        return torch.lerp(nearest, latents, share)

    def locate(
        self, latents: Float[Tensor, "L Z"], guess: Float[Tensor, " P"] | None = None
    ) -> tuple[Float[Tensor, " P"], float]:
        """The proprioception with which a frame is nearest to the manifold, and how near: found by the
        cross-entropy method, near a guess or anywhere."""
        device, size = latents.device, self.offset.shape[1]
        generator = torch.Generator().manual_seed(0)
        if guess is None:
            tried = (2.2 * torch.rand(ANYWHERE_DRAWS, size, generator=generator) - 1.1).to(device)
        else:
            tried = guess + NEAR_SPREAD * torch.randn(NEAR_DRAWS, size, generator=generator).to(device)
        best, least = tried[0], math.inf
        for last in [False] * LOCATE_ROUNDS + [True]:
            distance = self.distance(latents.expand(len(tried), -1, -1), tried)[0]
            order = distance.argsort()[:NUM_ELITES]
            if distance[order[0]] < least:
                best, least = tried[order[0]], float(distance[order[0]])
            if last:
                break
            spread = tried[order].std(0).clamp_min(LEAST_SPREAD)
            draws = torch.randn(NEAR_DRAWS, size, generator=generator).to(device)
            tried = tried[order].mean(0) + spread * draws
        return best, least

    def _encode(self, rest: Tensor, proprio: Tensor) -> Float[Tensor, "N K"]:
        """Codes of latents without the robot's part."""
        inputs = torch.cat([rest.flatten(1), self.proprio_features(proprio)], dim=-1)
        return self.encoder(inputs).float().tanh()

    def _decode(self, code: Tensor, proprio: Tensor, robot: Tensor) -> Float[Tensor, "N L Z"]:
        alone = self.decoder(self.code_features(code)).float().unflatten(-1, self.latents)
        with exact(code.device):
            seen = F.pad(code.float(), (0, 1), value=1.0)
            of_code = self.place_features(torch.einsum("nk,lkj->nlj", seen, self.place))
            of_robot = self.near_features(proprio.unsqueeze(1) + self.offset)
        near = torch.cat([of_code, of_robot, self.token.expand(code.shape[0], -1, -1)], dim=-1)
        return robot + alone + self.near(near).float()

    @property
    def keeps_codes(self) -> bool:
        """Whether there are codes of recorded frames."""
        return self.recorded is not None and self.recorded.is_fitted

    @torch.no_grad()
    def fit_robot(self, latents: Rows | Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]) -> None:
        """Find the robot's part of recorded frames by ridge regression."""
        if not len(self.to_robot):
            return
        fit_frequencies(self.robot_features, proprio, latents)
        device = self.to_robot.device
        step = -(-len(latents) // FIT_ROWS)
        gram, moment = gram_and_moment(
            (
                self.robot_features(proprio[piece].float().to(device)),
                latents[piece].float().flatten(1).to(device),
            )
            for piece in torch.arange(0, len(latents), step).split(4096)
        )
        self.to_robot.copy_(ridge(gram.double(), moment.double(), RIDGE * len(latents[::step])))

    @torch.no_grad()
    def fit_radius(self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]) -> None:
        """Set the radius from recorded frames."""
        distances = [
            self.distance(z.float().to(self.radius.device), p.float().to(self.radius.device))[0]
            for z, p in zip(latents.split(1024), proprio.split(1024), strict=True)
        ]
        self.radius.copy_(torch.cat(distances).quantile(self.config.radius_quantile))

    @torch.no_grad()
    def fit_recorded(
        self,
        latents: Rows | Float[Tensor, "N L Z"],
        proprio: Float[Tensor, "N P"],
        episode: Int[np.ndarray, " N"],
    ) -> None:
        """Choose the codes that are kept of recorded frames, of a manifold that keeps any; ``episode`` tells
        which frames are of the same one."""
        assert self.recorded is not None
        device, step = self.radius.device, -(-len(latents) // MOST_RECORDED)
        code = [
            self.encode(latents[piece].float().to(device), proprio[piece].float().to(device)).cpu()
            for piece in torch.arange(0, len(latents), step).split(4096)
        ]
        self.recorded.fit(torch.cat(code), episode[::step])


def _rms(x: Float[Tensor, "*N L Z"]) -> Float[Tensor, "*N"]:
    return x.square().mean((-2, -1)).sqrt()


class ManifoldBatch(NamedTuple):
    """Frames, and frames of other times of the same episodes."""

    latents: Float[Tensor, "N L Z"]
    other: Float[Tensor, "N L Z"]
    proprio: Float[Tensor, "N P"]
    other_proprio: Float[Tensor, "N P"]


class ManifoldObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: frames from their codes; and the same codes
    from frames that do not hang together, as those of a rollout that went wrong.

    The decoder sees only codes of clean frames, so that whatever it makes is a frame as they were recorded.
    """

    def __init__(self, manifold: Manifold):
        super().__init__()
        self.manifold = manifold

    def forward(
        self, batch: ManifoldBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch."""
        latents, other, proprio, other_proprio = batch
        count = int(CORRUPTED_SHARE * len(latents))
        num_imagined = int(IMAGINED_SHARE * count)
        given = [part[:num_imagined] for part in (latents, other, proprio, other_proprio)]
        imagined = self._imagine(*given, generator=generator)
        mixed = self._corrupt(latents[num_imagined:count], other[num_imagined:count], generator)
        corrupted = torch.cat([imagined, mixed])
        code = self.manifold.encode(torch.cat([latents, corrupted]), torch.cat([proprio, proprio[:count]]))
        clean, from_corrupted = code[: len(latents)], code[len(latents) :]
        latent_error = (self.manifold.decode(clean, proprio) - latents).square().mean()
        # A distance and not its square: the mean of two codes may be the code of nothing that there is.
        square = (from_corrupted - clean[:count].detach()).square().sum(-1)
        code_error = (square + LEAST_CODE_ERROR**2).sqrt().mean()
        metrics = {"latents": latent_error.detach(), "codes": code_error.detach()}
        return latent_error + CODE_WEIGHT * code_error, metrics

    @torch.no_grad()
    def _imagine(
        self,
        latents: Tensor,
        other: Tensor,
        proprio: Tensor,
        other_proprio: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """What the decoder makes of codes that are on the way to another frame's, or noised."""
        code, other_code = (
            self.manifold.encode(frames, known)
            for frames, known in ((latents, proprio), (other, other_proprio))
        )

        def random() -> Tensor:
            return torch.rand(len(code), 1, generator=generator, device=code.device)

        blended = torch.lerp(code, other_code, MAX_MIXED * random())
        noise = torch.randn(code.shape, generator=generator, device=code.device)
        noised = code + MAX_CODE_NOISE * random() * noise
        changed = torch.where(random() < BLENDED_SHARE, blended, noised).clamp(-1.0, 1.0)
        return self.manifold.decode(changed, proprio)

    def _corrupt(self, latents: Tensor, other: Tensor, generator: torch.Generator | None) -> Tensor:
        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=latents.device)

        count, num_latents = latents.shape[:2]
        share = MAX_MIXED * random(count, 1, 1)
        is_blended = random(count, 1, 1) < BLENDED_SHARE
        taken = torch.where(is_blended, share, (random(count, num_latents, 1) < share).to(share.dtype))
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        return torch.lerp(latents, other, taken) + MAX_NOISE * random(count, 1, 1).square() * noise
