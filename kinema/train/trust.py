"""Fits the expected error of simulated frames to episodes that were held out."""

from collections.abc import Sequence

import numpy as np
import torch

from kinema.data.lerobot import Dataset
from kinema.simulation.world import World
from kinema.types import Episode

CONTEXT, HORIZON = 4, 60
"""Given frames and simulated steps of an episode."""
NUM_EPISODES = 16
"""Most episodes that are used."""
EVERY = 5
"""Steps from one compared frame to the next."""


@torch.inference_mode()
def fit_trust(world: World, dataset: Dataset, episodes: Sequence[int]) -> None:
    """Fit the expected error of a world (``kinema.simulation.trust``) to episodes that it has not learned
    from. It stays without a fit where fewer than two are long enough.

    Args:
        world: gets the fit.
        dataset: where the episodes are.
        episodes: their indices; ``NUM_EPISODES`` at most are used.
    """
    spreads, errors, ends = [], [], []
    for index in list(episodes)[:NUM_EPISODES]:
        episode = dataset.episode(index, cameras=world.cameras)
        if len(episode) < CONTEXT + EVERY:
            continue
        of_episode = _compare(world, episode)
        spreads += [spread for spread, _, _ in of_episode]
        errors += [error for _, error, _ in of_episode]
        ends.append(of_episode[-1][2])
    if len(ends) < 2:
        return
    spread, error = np.array(spreads), np.array(errors)
    floor = np.quantile(error, 0.05, axis=0)
    beyond = np.sqrt(np.maximum(error**2 - floor**2, 0.0))
    slope = (beyond * spread).sum(0) / np.maximum((spread**2).sum(0), 1e-12)
    unrelated = [_errors(one, other) for one, other in zip(ends, ends[1:] + ends[:1], strict=True)]
    half = np.maximum(np.mean(unrelated, axis=0) / 2.0, 1e-6)
    world.error_fit.copy_(torch.from_numpy(np.stack([slope, floor, half], axis=-1)))


def _compare(world: World, episode: Episode) -> list[tuple[list[float], list[float], list[np.ndarray]]]:
    """Spread, error and true observations, each by camera or number, of some steps of an episode."""
    key = world.config.proprio_key
    proprio = None if key is None else np.asarray(episode.columns[key], dtype=np.float32)
    frames = world.by_camera(episode.frames) if world.cameras else {}
    sim = world.start_batch(
        {camera: each[None, :CONTEXT] for camera, each in frames.items()} or None,
        episode.actions[None, : CONTEXT - 1] if world.action_dim else None,
        proprio=None if proprio is None else proprio[None, :CONTEXT],
        has_trust=True,
    )
    compared = []
    for row in range(CONTEXT, min(len(episode), CONTEXT + HORIZON)):
        is_compared = (row - CONTEXT) % EVERY == EVERY - 1
        action = episode.actions[None, row - 1] if world.action_dim else None
        step = sim.step(action, decode=is_compared, judge=False)
        if not is_compared:
            continue
        if world.cameras:
            shown = step.frame if isinstance(step.frame, dict) else {world.cameras[0]: step.frame}
            simulated = [shown[camera][0] for camera in world.cameras]
            true = [frames[camera][row] for camera in world.cameras]
        else:
            assert proprio is not None
            normalized = world.proprio_normalizer.normalize(torch.from_numpy(proprio[row]).to(world.device))
            # One row for each number.
            simulated, true = (
                list(x.cpu().numpy()[:, None]) for x in (sim.normalized_proprio[0], normalized)
            )
        compared.append((sim.spread()[0].tolist(), _errors(simulated, true), true))
    return compared


def _errors(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> list[float]:
    """Root mean square difference of each pair."""
    pairs = zip(one, other, strict=True)
    return [float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))) for a, b in pairs]
