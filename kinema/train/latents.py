"""Fits a world's units and linear response to recordings, and encodes every row once, before the dynamics
learns."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.data.latents import Rows, write_rows
from kinema.data.segments import Segments
from kinema.model.parts import add_weights
from kinema.model.tokens import NUM_BEFORE, Values
from kinema.model.units import Normalizer
from kinema.simulation.world import World
from kinema.tokenizers import to_pixels

SAMPLE_ROWS = 1024
"""Frames from which the statistics of colours and of latents are taken."""


def fit_units(world: World, segments: Segments, recordings: Sequence[Segments]) -> None:
    """Fit the units of actions and proprioception to ``segments``, those of latents to the frames of
    ``recordings``."""
    world.action_normalizer.fit(segments.actions)
    if segments.proprio is not None:
        world.proprio_normalizer.fit(segments.proprio)
    fit_support(world, segments)
    if world.tokenizer is not None:
        samples = []
        for frames in (frames for each in recordings for frames in sample_pictures(each)):
            pixels = to_pixels(frames.to(world.device))
            samples.append(torch.cat([world.tokenizer.encode_raw(x) for x in pixels.split(128)]))
        world.tokenizer.set_statistics(*samples)


def fit_support(world: World, segments: Segments) -> None:
    """Fit the support of actions and, once, that of proprioception, in a world that keeps them.

    The linear response and the manifold are fitted to proprioception once, too, and predict nothing beyond
    it when a dynamics goes on learning from other data.
    """
    episode = segments.first_rows(np.arange(segments.num_rows))
    if world.action_support is not None:
        world.action_support.fit(_normalized(world.action_normalizer, segments.actions).numpy(), episode)
    support = world.proprio_support
    if support is not None and not support.is_fitted and segments.proprio is not None:
        support.fit(_normalized(world.proprio_normalizer, segments.proprio).numpy(), episode)


def _normalized(normalizer: Normalizer, rows: np.ndarray) -> Tensor:
    return normalizer.normalize(torch.from_numpy(rows).to(normalizer.center.device)).cpu()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """All rows of some recordings as the dynamics has them: normalised, latents on disk."""

    latents: Rows
    """``N L Z``, half precision."""
    proprio: Float[Tensor, "N P"]
    action: Float[Tensor, "N A"]
    """Action that led to the frame."""

    def frames(self, rows: np.ndarray) -> Values:
        """Rows ``B T`` in single precision. Only numpy works here, since threads beside training read."""
        latents = self.latents.read(rows).astype(np.float32)
        proprio, action = (part.numpy()[rows] for part in (self.proprio, self.action))
        return Values(*map(torch.from_numpy, (latents, proprio, action)))

    def followed_by(self, other: "Encoded") -> "Encoded":
        """These rows, then others."""
        proprio, action = (
            torch.cat(pair) for pair in ((self.proprio, other.proprio), (self.action, other.action))
        )
        return Encoded(self.latents.followed_by(other.latents), proprio, action)


def encode_all(world: World, segments: Segments, use_bfloat16: bool, cache: Path, data: str = "") -> Encoded:
    """Encode every row.

    Latents go into shards below the folder ``cache``, by the tokenizer's weights and ``data``, which names
    the frames; what is there is not encoded again.
    """

    @torch.no_grad()
    def encode(rows: slice) -> Tensor:
        with torch.autocast(world.device.type, torch.bfloat16, enabled=use_bfloat16):
            return world.encode({key: frames[rows] for key, frames in segments.frames.items()})

    config = world.config.dynamics
    latents = Rows([torch.zeros(segments.num_rows, 0, config.latent_dim)])
    if world.tokenizer is not None and not segments.frames:
        latents = Rows(
            [
                torch.zeros(1, dtype=torch.half).expand(
                    segments.num_rows, config.num_latents, config.latent_dim
                )
            ]
        )
    elif world.tokenizer is not None:
        shape = (segments.num_rows, config.num_latents, config.latent_dim)
        folder = cache / _fingerprint(world, use_bfloat16, data, shape)
        latents = write_rows(folder, shape, encode, "encoding")
    proprio = torch.zeros(segments.num_rows, config.proprio_dim)
    with torch.no_grad():
        if segments.proprio is not None:
            proprio = _normalized(world.proprio_normalizer, segments.proprio)
        action = _normalized(world.action_normalizer, segments.prev_action)
    return Encoded(latents, proprio, action)


def _fingerprint(world: World, use_bfloat16: bool, data: str, shape: tuple[int, ...]) -> str:
    assert world.tokenizer is not None
    settings = f"{torch.__version__} {world.device.type} {use_bfloat16} {data} {shape}"
    digest = hashlib.blake2b(settings.encode(), digest_size=12)
    # The decoder may learn on: latents are the same.
    add_weights(digest, world.tokenizer.encoder)
    for statistics in (world.tokenizer.latent_mean, world.tokenizer.latent_std):
        digest.update(statistics.cpu().numpy().tobytes())
    return digest.hexdigest()


def sample_pictures(segments: Segments) -> list[Tensor]:
    """Draw frames ``N H W 3`` from all episodes, for each size of frames."""
    rng, num_cameras = np.random.default_rng(0), len(segments.frames)
    return [
        segments.draw_pairs(
            rng, -(-min(SAMPLE_ROWS, segments.num_rows) * len(group) // num_cameras), cameras=group
        ).pictures[:, 0]
        for group in segments.cameras_by_size
    ]


def sample_frames(values: Encoded, count: int) -> tuple[Tensor, Tensor]:
    """Latents and proprioception of about ``count`` frames, evenly spread."""
    step = -(-len(values.latents) // count)
    return values.latents[::step], values.proprio[::step]


def fit_response(world: World, segments: Segments, values: Encoded) -> None:
    """Fit the linear response of the dynamics."""
    is_third = segments.has_action.copy()
    is_third[1:] &= segments.has_action[:-1]
    if world.dynamics.response is not None:
        rows = (values.latents, values.proprio, values.action)
        world.dynamics.response.fit(*rows, torch.from_numpy(is_third))


@torch.inference_mode()
def surprise_by_row(world: World, segments: Segments, values: Encoded) -> np.ndarray:
    """By row: the mean square of the latents' part that the linear response does not predict, ten times its
    mean at most."""
    surprise = np.zeros(segments.num_rows)
    for start in range(0, segments.num_rows, 4096):
        begin = max(0, start - NUM_BEFORE)
        rows = np.arange(begin, min(start + 4096, segments.num_rows))[None]
        piece = values.frames(rows).to(world.device)
        error = (piece.latents - world.dynamics.prior(piece).latents).square().mean((2, 3))
        surprise[start : start + 4096] = error[0, start - begin :].cpu().numpy()
    surprise[~segments.has_action] = 0.0
    return np.minimum(surprise, 10.0 * surprise.mean())
