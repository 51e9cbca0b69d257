"""How fast is a simulated frame against other ways to make it? Times kinema and its peers in one run.

    python benchmarks/streaming.py [--world pusht] [--streams 1 64] [--peers no-cache] [--no-decode]
        [--precision float32]

Every peer simulates the same recorded start under the same actions and hands over decoded pictures. They take
turns of some steps, so that whatever else the machine does hits all of them, and each finds its weights in
the processor's caches as it would alone; what is compared is the ratio of their median times. A peer that
claims to compute the same is also told how far its pictures lie from kinema's. With ``--no-decode`` steps
stay in latents, as planners and agents simulate: what is left is mostly the dynamics. A model of someone
else's is a peer once it has an adapter: see ``Peer``.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from kinema import World, load
from kinema.evaluation.rollout import Segment, load_segments, open_recordings
from kinema.evaluation.speed import start_streams, stream_actions
from kinema.model.tokens import NUM_BEFORE, Values
from kinema.model.transformer import Dynamics
from kinema.types import Precision

CONTEXT = 4
"""Recorded frames to start from."""
WARM_UP = 5
"""Steps of each before the clock starts, beside those until the past is as long as it gets."""


TURN = 10
"""Steps of a peer before it is another's turn."""


class Peer(Protocol):
    """``num`` sessions that all begin with a clip."""

    is_same: bool
    """Whether it claims to compute what kinema computes."""

    def step(self, actions: np.ndarray, decode: bool) -> np.ndarray:
        """Pictures ``uint8`` ``num H W 3`` after actions ``num A`` in the units of the dataset; without
        ``decode`` the latents."""
        ...


class Kinema:
    """As users have it."""

    is_same = True

    def __init__(self, world: World, clip: Segment, num: int):
        self.sessions = start_streams(world, clip, num, CONTEXT)

    def step(self, actions: np.ndarray, decode: bool) -> np.ndarray:
        frame = self.sessions.step(actions, decode=decode).frame
        if not decode:
            return self.sessions.latents.numpy()
        return np.concatenate(list(frame.values()), axis=2) if isinstance(frame, dict) else frame


class NoCache(Kinema):
    """Kinema without its cache, as one would write it first: the training path over past and new frame.

    Every call of the network goes through all frames that can matter (``DynamicsConfig.reach`` of them: each
    block that sees time reaches one window further back), since with fewer it would get other numbers. Their
    latents are kept, so no picture is encoded again; proprioception, what follows the network and decoding
    are kinema's own; so is the number of threads, one for so few sessions.
    """

    def __init__(self, world: World, clip: Segment, num: int):
        world.uses_graphs = False
        world.dynamics = _Recomputed(world.dynamics)  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(world, clip, num)


PEERS: dict[str, Callable[[World, Segment, int], Peer]] = {"kinema": Kinema, "no-cache": NoCache}
"""Each is given a world of its own."""


class _Frames:
    """Whole frames in place of keys and values."""

    def __init__(self, reach: int):
        self.kept: deque[tuple[Values, Tensor, Tensor]] = deque(maxlen=reach)
        self.noise: Tensor | None = None
        """What the next frame is remembered with, if a step found it."""

    def join(self, last: int) -> tuple[Values, Tensor, Tensor]:
        """The last frames kept, or those that there are, their noise levels, and what they are remembered
        with."""
        frames, levels, noise = zip(*list(self.kept)[-last:], strict=True)
        joined = frames[0]
        for frame in frames[1:]:
            joined = joined.followed_by(frame)
        return joined, torch.cat(levels, dim=1), torch.cat(noise, dim=1)

    def past(self) -> tuple[Values, Tensor]:
        return self.join(NUM_BEFORE)[:2]

    @property
    def last_latents(self) -> Tensor:
        return self.kept[-1][0].latents[:, -1]

    @property
    def last_proprio(self) -> Tensor:
        return self.kept[-1][0].proprio[:, -1]


class _Recomputed(nn.Module):
    """The training path in place of the streaming one."""

    def __init__(self, dynamics: Dynamics):
        super().__init__()
        self.dynamics = dynamics

    @property
    def token_bias(self) -> Tensor:
        return self.dynamics.token_bias

    def new_cache(self, batch: int, *, max_rewind: int = 0) -> _Frames:
        return _Frames(self.dynamics.config.reach)

    def exact_proprio(self, frame: Values, tau: Tensor, cache: _Frames) -> object:
        return self.dynamics.exact_proprio(frame, tau, cache)  # pyright: ignore[reportArgumentType]

    def step(
        self,
        frame: Values,
        tau: Tensor,
        cache: _Frames,
        *,
        noise: Tensor | None = None,
        goal: None = None,
        only_latents: bool = False,
        commits: bool = False,
    ) -> Values:
        past, past_tau, of_past = cache.join(len(cache.kept))
        if commits:
            cache.noise = torch.cat([frame.latents.flatten(2), noise], -1) if noise is not None else None
        return self.dynamics(past, past_tau, frame, tau, context_noise=of_past, target_noise=noise)

    def keep(self, frame: Values, tau: Tensor, cache: _Frames, noise: Tensor | None = None) -> None:
        noise = cache.noise if noise is None else noise
        cache.kept.append(
            (
                frame,
                tau,
                tau.new_zeros(len(tau), 1, self.dynamics.config.noise_size) if noise is None else noise,
            )
        )
        cache.noise = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    world: str = "pusht"
    """Name of a bundled world, folder of one, or its Hub id."""
    data: str | None = None
    """Recorded episodes to start from; by default what the world brings."""
    streams: tuple[int, ...] = (1, 64)
    """Numbers of sessions to step together."""
    peers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="{no-cache}")] = ("no-cache",)
    """Whom to compare with."""
    steps: int = 60
    """Timed steps of each."""
    decode: bool = True
    """Whether to make pictures."""
    precision: Precision = "auto"
    """Of the large matrix products, of kinema and its peers."""


def main(config: Config) -> None:
    unknown = [name for name in config.peers if name not in PEERS]
    if unknown:
        raise SystemExit(f"--peers {' '.join(unknown)}: choose of {', '.join(PEERS)}")
    world = load(config.world, precision=config.precision)
    dataset = open_recordings(config.world, config.data)
    (clip,) = load_segments(world, dataset, num=1, length=CONTEXT + config.steps, probe=None)
    names = ["kinema", *(name for name in config.peers if name != "kinema")]
    print(f"world '{world.name}', {torch.get_num_threads()} threads, precision {world.precision}")
    for num in config.streams:
        worlds = [load(config.world, precision=config.precision) for _ in names]
        peers = [PEERS[name](world, clip, num) for name, world in zip(names, worlds, strict=True)]
        seconds, distances = _measure(peers, clip, num, config, fill=world.config.dynamics.reach)
        for name, its_seconds, distance, peer in zip(names, seconds, distances, peers, strict=True):
            line = f"{num:3d} streams  {name:10s} {num / np.median(its_seconds):8.1f} frames/s"
            if peer is not peers[0]:
                line += f"; kinema is {np.median(its_seconds) / np.median(seconds[0]):.1f}x as fast"
                if peer.is_same:
                    of_what = (
                        "pictures differ by {:.3f} levels of 255"
                        if config.decode
                        else "latents differ by {:.1e}"
                    )
                    line += f"; {of_what.format(distance)} in the mean"
            print(line)


def _measure(
    peers: Sequence[Peer], clip: Segment, num: int, config: Config, *, fill: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each step, ``peers steps``, and mean distance of what comes of it from the first peer's."""
    seconds = np.zeros((len(peers), config.steps))
    distances = np.zeros((len(peers), config.steps))
    steps = range(-fill - WARM_UP, config.steps)
    for first in tqdm(steps[::TURN], desc=f"{num} streams", unit=" turns"):
        shown: dict[int, np.ndarray] = {}
        for index, peer in enumerate(peers):
            for step in range(first, min(first + TURN, config.steps)):
                actions = stream_actions(clip, num, CONTEXT, step)
                began = time.perf_counter()
                found = peer.step(actions, config.decode).astype(np.float32)
                if step >= 0:
                    seconds[index, step] = time.perf_counter() - began
                    distances[index, step] = np.abs(found - shown.setdefault(step, found)).mean()
    return seconds, distances.mean(axis=1)


if __name__ == "__main__":
    main(tyro.cli(Config))
