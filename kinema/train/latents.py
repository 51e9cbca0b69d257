"""Recordings as a world has them: its units and its linear response are fitted to them, and every row is
encoded once, before the dynamics learns."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from kinema.data.files import write_tensors
from kinema.data.segments import Segments
from kinema.model.parts import add_weights
from kinema.model.tokens import NUM_BEFORE, Values
from kinema.model.world import Normalizer
from kinema.simulation.session import World
from kinema.tokenizers import to_pixels
from kinema.types import FileError

SAMPLE_ROWS = 1024
"""Pictures from which statistics are taken: of colours, and of latents."""


def fit_units(world: World, segments: Segments) -> None:
    """Take the units of actions, proprioception and latents from the data."""
    world.action_normalizer.fit(segments.actions)
    if segments.proprio is not None:
        world.proprio_normalizer.fit(segments.proprio)
    fit_support(world, segments)
    if world.tokenizer is not None:
        samples = []
        for frames in sample_pictures(segments):
            pixels = to_pixels(frames.to(world.device))
            samples.append(torch.cat([world.tokenizer.encode_raw(x) for x in pixels.split(128)]))
        world.tokenizer.set_statistics(*samples)


def fit_support(world: World, segments: Segments) -> None:
    """Take where actions were recorded from the data, and where proprioception was, if the world keeps that.

    Proprioception but once: what the linear response and the manifold know of where the robot is drawn is
    fitted once, too, and knows no more of it when a dynamics goes on learning from other data.
    """
    episode = segments.first_rows(np.arange(segments.num_rows))
    if world.action_support is not None:
        world.action_support.fit(_normalized(world.action_normalizer, segments.actions).numpy(), episode)
    support = world.proprio_support
    if support is not None and not support.is_fitted and segments.proprio is not None:
        support.fit(_normalized(world.proprio_normalizer, segments.proprio).numpy(), episode)


def _normalized(normalizer: Normalizer, rows: np.ndarray) -> Tensor:
    return normalizer.normalize(torch.from_numpy(rows).to(normalizer.center.device)).cpu()


def encode_all(world: World, segments: Segments, use_bfloat16: bool, cache: Path | None = None) -> Values:
    """Normalised values of every row: latents (half precision), proprioception, the action that led to it.

    Latents are kept in the folder ``cache``, where one is given, so that a resumed run does not encode
    again; they are found again by what the pictures and the tokenizer hold.
    """
    latents = torch.zeros(segments.num_rows, 0, world.config.dynamics.latent_dim)
    if world.tokenizer is not None:
        path = None if cache is None else cache / f"{_fingerprint(world, segments, use_bfloat16)}.safetensors"
        found = _read_latents(path)
        latents = _encode(world, segments, use_bfloat16) if found is None else found
        if path is not None and found is None:
            _keep_latents(path, latents)
    proprio = torch.zeros(segments.num_rows, 0)
    with torch.no_grad():
        if segments.proprio is not None:
            proprio = _normalized(world.proprio_normalizer, segments.proprio)
        action = _normalized(world.action_normalizer, segments.prev_action)
    return Values(latents[None], proprio[None], action[None])


@torch.no_grad()
def _encode(world: World, segments: Segments, use_bfloat16: bool) -> Tensor:
    parts = []
    for start in tqdm(range(0, segments.num_rows, 256), desc="encoding", unit="batch"):
        piece = {key: frames[start : start + 256] for key, frames in segments.frames.items()}
        with torch.autocast(world.device.type, torch.bfloat16, enabled=use_bfloat16):
            parts.append(world.encode(piece).half().cpu())
    return torch.cat(parts)


def _fingerprint(world: World, segments: Segments, use_bfloat16: bool) -> str:
    assert world.tokenizer is not None
    digest = hashlib.blake2b(
        f"{torch.__version__} {world.device.type} {use_bfloat16}".encode(), digest_size=12
    )
    # The decoder may learn on: latents are the same.
    add_weights(digest, world.tokenizer.encoder)
    for statistics in (world.tokenizer.latent_mean, world.tokenizer.latent_std):
        digest.update(statistics.cpu().numpy().tobytes())
    for key, frames in segments.frames.items():
        digest.update(f"{key} {frames.shape}".encode())
        for start in range(0, len(frames), 4096):
            digest.update(np.ascontiguousarray(frames[start : start + 4096]).data)
    return digest.hexdigest()


def _read_latents(path: Path | None) -> Tensor | None:
    if path is None or not path.is_file():
        return None
    try:
        return load_file(path)["latents"]
    except (SafetensorError, OSError, KeyError):
        return None  # Damaged: encoded again, and written anew.


def _keep_latents(path: Path, latents: Tensor) -> None:
    try:
        write_tensors(path, {"latents": latents})
    except FileError as error:
        print(f"latents are not kept ({error}): if this run is stopped, it will encode again")


def sample_pictures(segments: Segments) -> list[Tensor]:
    """Draw frames ``N H W 3`` from all episodes, for each size of frames."""
    rng, num_cameras = np.random.default_rng(0), len(segments.frames)
    return [
        segments.draw_pairs(
            rng, -(-min(SAMPLE_ROWS, segments.num_rows) * len(group) // num_cameras), cameras=group
        ).pictures[:, 0]
        for group in segments.cameras_by_size
    ]


def sample_frames(values: Values, count: int) -> tuple[Tensor, Tensor]:
    """Latents and proprioception of about as many frames, evenly spread."""
    step = -(-values.latents.shape[1] // count)
    return values.latents[0, ::step], values.proprio[0, ::step]


def fit_response(world: World, segments: Segments, values: Values) -> None:
    is_third = segments.has_action.copy()
    is_third[1:] &= segments.has_action[:-1]
    if world.dynamics.response is not None:
        rows = (values.latents[0], values.proprio[0], values.action[0])
        world.dynamics.response.fit(*rows, torch.from_numpy(is_third))


@torch.inference_mode()
def surprise_by_row(world: World, segments: Segments, values: Values) -> np.ndarray:
    """By row: the mean square of what the linear response does not foresee of the latents, ten times its mean
    at most."""
    surprise = np.zeros(segments.num_rows)
    for start in range(0, segments.num_rows, 4096):
        begin = max(0, start - NUM_BEFORE)
        piece = values.map(lambda x, a=begin, b=start + 4096: x[:, a:b].float().to(world.device))
        error = (piece.latents - world.dynamics.foresee(piece).latents).square().mean((2, 3))
        surprise[start : start + 4096] = error[0, start - begin :].cpu().numpy()
    surprise[~segments.has_action] = 0.0
    return np.minimum(surprise, 10.0 * surprise.mean())
