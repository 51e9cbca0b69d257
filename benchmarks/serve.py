"""Measure a server of many clients: the cost of HTTP, the gain of batching, and memory after many sessions.

    python benchmarks/serve.py                     # 16 clients, 1,000 sessions
    python benchmarks/serve.py --sessions 100      # smaller

Clients are threads of this process and the server is ``kinema serve`` itself, in a process of its own. The
same clients step one after another, then all at once, for several rounds: the numbers are ratios within one
run.
"""

import dataclasses
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import tyro

import kinema
from kinema.serve.client import RemoteSimulation, RemoteWorld


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    world: str = "pusht"
    """The world to serve."""
    clients: int = 16
    """Clients that step."""
    steps: int = 30
    """Steps of each client in a round."""
    rounds: int = 3
    """Rounds; the median counts."""
    sessions: int = 1000
    """Sessions that are opened and closed."""


@contextmanager
def serving(world: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server."""
    limits = ["--limits.requests-per-second", "100000"]
    command = [sys.executable, "-m", "kinema", "serve", world, "--port", "0", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"at (http://\S+?),", server.stdout.readline())
            yield url, server.pid
        finally:
            server.terminate()
            server.wait(30)


def rate(sims: list[RemoteSimulation], steps: int, *, together: bool) -> float:
    """Steps a second of all clients, at once or one after another."""
    barrier = threading.Barrier(len(sims) if together else 1)

    def run(sim: RemoteSimulation) -> None:
        rng = np.random.default_rng(0)
        barrier.wait()
        for _ in range(steps):
            sim.step(rng.uniform(100, 400, sim.world.action_dim))

    threads = [threading.Thread(target=run, args=(sim,)) for sim in sims]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    return len(sims) * steps / (time.perf_counter() - started)


def http_ratios(url: str, sim: RemoteSimulation, num: int) -> tuple[float, float]:
    """Median times of ``/health`` and of a step by HTTP, each over that of a step by stream, in turns."""
    action = [256.0] * sim.world.action_dim
    body = {"action": action, "format": "jpeg"}
    http = httpx.Client(base_url=url)
    asks = {
        "health": lambda: http.get("/health"),
        "step": lambda: http.post(f"/v1/sessions/{sim.id}/step", json=body),
        "stream": lambda: sim.step(action),
    }
    took: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(num):
        for name, ask in asks.items():
            started = time.perf_counter()
            ask()
            took[name].append(time.perf_counter() - started)
    health, step, stream = (statistics.median(took[name]) for name in asks)
    return health / stream, step / stream


def batched(world: RemoteWorld) -> tuple[float, float]:
    """Steps that the server has made so far, and the batches that it made them in."""
    text = world.connection.request("GET", "/metrics").text
    (steps,) = re.findall(r"^kinema_batch_sessions_sum (\S+)", text, re.M)
    (batches,) = re.findall(r"^kinema_batch_sessions_count (\S+)", text, re.M)
    return float(steps), float(batches)


def resident(pid: int) -> int:
    """Bytes that a process holds."""
    (line,) = re.findall(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(line) * 1024


def main(config: Config) -> None:
    with serving(config.world) as (url, pid):
        worlds = [kinema.connect(url) for _ in range(config.clients)]
        sims = [world.start_episode(generator=None) for world in worlds]
        for sim in sims:
            for _ in range(10):  # Until every past is full.
                sim.step(np.full(sim.world.action_dim, 256.0))
        health, step = http_ratios(url, sims[0], 10 * config.steps)
        print(f"over a step by stream: /health {health:.2f}, a step by HTTP {step:.2f}", flush=True)
        ratios = []
        for _ in range(config.rounds):
            apart = rate(sims, config.steps, together=False)
            steps, batches = batched(worlds[0])
            together = rate(sims, config.steps, together=True)
            all_steps, all_batches = batched(worlds[0])
            ratios.append(together / apart)
            print(
                f"{apart:.1f} steps a second one after another, {together:.1f} at once, "
                f"{(all_steps - steps) / (all_batches - batches):.1f} sessions a batch",
                flush=True,
            )
        print(
            f"{config.clients} clients at once: {statistics.median(ratios):.2f} times as many steps a second"
        )
        for world in worlds:
            world.close()
    with serving(config.world) as (url, pid), kinema.connect(url) as world:
        early = 0
        for number in range(1, config.sessions + 1):
            with world.start_episode() as sim:
                sim.step(np.full(world.action_dim, 256.0))
            if number == 50:
                early = resident(pid)
        print(f"memory after {config.sessions} sessions over that after 50: {resident(pid) / early:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
