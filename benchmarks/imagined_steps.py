"""How many steps a second can be imagined? Times sessions of one world, alone and together, without decoding.

    python benchmarks/imagined_steps.py [--world pusht] [--sessions 1 16 64 256]

Prints imagined steps a second for each number of sessions, their ratio to one session alone, and what a plan
of the default search costs, all in one run.
"""

import dataclasses
import time

import numpy as np
import tyro

from kinema.evaluation.rollout import load_segments, open_recordings
from kinema.evaluation.speed import start_streams, stream_actions
from kinema.planners import CrossEntropy, Goal, SearchConfig, WorldScore
from kinema.simulation.world import load

CONTEXT, PLANS = 4, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    world: str = "pusht"
    """A world that brings recordings along."""
    sessions: tuple[int, ...] = (1, 16, 64, 256)
    """Numbers of sessions to step together."""
    steps: int = 10
    """Steps of each."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""


def main(config: Config) -> None:
    world = load(config.world, device=config.device)
    (clip,) = load_segments(world, open_recordings(config.world, None), num=1, length=CONTEXT + 1, probe=None)
    one = start_streams(world, clip, 1, CONTEXT)
    alone = None
    for num in config.sessions:
        sessions = one.fork(num, max_rewind=0)
        sessions.step(stream_actions(clip, num, CONTEXT, 0), decode=False)
        began = time.perf_counter()
        for step in range(config.steps):
            sessions.step(stream_actions(clip, num, CONTEXT, step), decode=False)
        rate = num * config.steps / (time.perf_counter() - began)
        alone = alone or rate / num
        print(f"{num:4d} sessions: {rate:8,.0f} imagined steps a second, {rate / alone:5.1f} times one alone")
    search = SearchConfig()
    goal = Goal(target=world.place(one.latents, one.normalized_proprio), measure="latents")
    start, milliseconds = np.zeros((search.horizon, world.action_dim)), []
    for _ in range(1 + PLANS):
        began = time.perf_counter()
        score = WorldScore(one, goal)
        CrossEntropy(search).plan(score, start, np.random.default_rng(0))
        milliseconds.append(1e3 * (time.perf_counter() - began))
    # The first one is slower: its graph is prepared.
    low, median, high = np.quantile(milliseconds[1:], [0.0, 0.5, 1.0])
    print(f"a plan of {score.num_steps:,} imagined steps: {median:,.0f} ms ({low:,.0f} to {high:,.0f})")


if __name__ == "__main__":
    main(tyro.cli(Config))
