"""Which objective samples a world that flips a coin, in few network calls? Trains a small denoiser for each.

    python benchmarks/sampling.py [--updates 6000] [--context-noise 0.15]

A ball falls; at step 4 it turns left or right, each with probability one half, and goes on. A multilayer
perceptron predicts the next position from the last two, as the dynamics predicts a frame: clean values from
noised ones, beside what the last position explains already. Each objective is trained alike, then simulates
1,000 futures with 1, 2, 4 and 16 network calls a step.

- ``distance``: the root of the squared error, with no step size.
- ``mean``: the squared error of flow matching (2210.02747), with no step size.
- ``shortcut``: the same, and the network is given its step size; a large step learns to be two small ones
  (2410.12557; in terms of clean values 2509.24527).
- ``score``: the energy score of two predictions from the same noised value, which differ by an extra noise
  input. Its optimum samples the posterior of the clean value, so any number of calls is right (2502.02483).
"""

import dataclasses
import itertools
import time

import torch
import tyro
from torch import Tensor, nn

NUM_STEPS = 12
TURN = 4
"""Step at which the ball turns."""
PRIOR_ERROR = 0.3
"""Root mean square by which the last position misses the next, roughly."""
NUM_FUTURES = 1000
NUM_EXTRA = 4
"""Numbers of extra noise."""
SMALLEST_STEP = 1 / 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    updates: int = 6000
    """Optimizer updates of each objective."""
    context_noise: float = 0.15
    """Largest deviation of the noise on past positions in training."""
    batch: int = 256
    """Positions in an update."""
    objectives: tuple[str, ...] = ("distance", "mean", "shortcut", "score")
    """Objectives to compare."""


def episodes(num: int, generator: torch.Generator) -> Tensor:
    """Positions ``num T 2``: right and up."""
    side = 2.0 * (torch.rand(num, generator=generator) < 0.5) - 1.0
    time_T = torch.arange(NUM_STEPS)
    right = side[:, None] * 0.2 * (time_T - TURN).clamp(0, 5)
    return torch.stack([right, (1.0 - 0.15 * time_T).expand(num, -1)], dim=-1)


class Denoiser(nn.Module):
    """Predicts the clean next position from a noised one, its noise time ``tau`` and the step size."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.register_buffer("octaves", torch.pi * 2.0 ** torch.arange(4))
        sizes = [4 + 2 + 2 * 9 + NUM_EXTRA, width, width, width]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(
        self,
        past_B22: Tensor,
        noised_B2: Tensor,
        tau_B: Tensor,
        step_B: Tensor,
        extra_BX: Tensor | None = None,
    ) -> Tensor:
        """Clean positions; ``extra_BX`` is the extra noise, zeros by default."""
        if extra_BX is None:
            extra_BX = noised_B2.new_zeros(len(noised_B2), NUM_EXTRA)
        tau, prior = tau_B[:, None], past_B22[:, -1]
        variance = PRIOR_ERROR**2 * tau**2 + (1.0 - tau) ** 2
        expected = prior + PRIOR_ERROR**2 * tau / variance.clamp_min(1e-6) * (noised_B2 - tau * prior)
        unknown = PRIOR_ERROR * (1.0 - tau) / variance.sqrt().clamp_min(1e-6)
        features = [past_B22.flatten(1), noised_B2, self._features(tau_B), self._features(step_B), extra_BX]
        return expected + unknown * self.layers(torch.cat(features, dim=-1))

    def _features(self, values_B: Tensor) -> Tensor:
        phases = values_B[:, None] * self.octaves
        return torch.cat([values_B[:, None], phases.sin(), phases.cos()], dim=-1)


def train(objective: str, config: Config) -> Denoiser:
    """Train one denoiser; returns its moving average."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network, average = Denoiser(), Denoiser()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, config.updates, pct_start=0.05)
    for update in range(config.updates):
        loss = objective_loss(objective, network, average, config, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 0.005 if update > 500 else 0.05)
    return average


def objective_loss(
    objective: str, network: Denoiser, average: Denoiser, config: Config, generator: torch.Generator
) -> Tensor:
    """The loss of one batch."""
    batch = config.batch

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    rows, t = torch.arange(batch), torch.randint(2, NUM_STEPS, (batch,), generator=generator)
    positions = episodes(batch, generator)
    past, target = torch.stack([positions[rows, t - 2], positions[rows, t - 1]], dim=1), positions[rows, t]
    noise = torch.randn(past.shape, generator=generator)
    past = past + config.context_noise * random(batch, 1, 1) * noise
    tau = random(batch) * (random(batch) > 0.2)
    step = torch.zeros(batch)
    if objective == "shortcut":
        num_bootstrapped = batch // 4
        sizes = 2.0 ** -torch.randint(0, 4, (num_bootstrapped,), generator=generator)
        step = torch.cat([sizes, torch.full((batch - num_bootstrapped,), SMALLEST_STEP)])
        tau[:num_bootstrapped] = torch.floor(tau[:num_bootstrapped] / sizes) * sizes
    start = torch.randn(target.shape, generator=generator)
    noised = tau[:, None] * target + (1.0 - tau[:, None]) * start
    if objective == "shortcut":
        target = torch.cat([
            two_half_steps(average, *(x[:num_bootstrapped] for x in (past, noised, tau, step))),
            target[num_bootstrapped:],
        ])  # fmt: skip
    if objective == "score":
        extra = torch.randn(2, batch, NUM_EXTRA, generator=generator)
        other_start = torch.randn(target.shape, generator=generator)
        # Where the value is all noise, the two may have different noise.
        other = torch.where(tau[:, None] > 0, noised, other_start)
        first, second = network(past, noised, tau, step, extra[0]), network(past, other, tau, step, extra[1])
        return ((distance(first, target) + distance(second, target) - distance(first, second)) / 2).mean()
    error = (network(past, noised, tau, step) - target).square().mean(-1)
    if objective == "distance":
        return (error + 0.03**2).sqrt().mean()
    return (error / (1.0 - tau).clamp_min(0.05)).mean()


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance, smooth at zero."""
    return ((first - second).square().mean(-1) + 0.03**2).sqrt() - 0.03


@torch.no_grad()
def two_half_steps(network: Denoiser, past: Tensor, noised: Tensor, tau: Tensor, step: Tensor) -> Tensor:
    """The clean position towards which one step leads as two half steps do."""
    half = step / 2
    first = (network(past, noised, tau, half) - noised) / (1.0 - tau)[:, None]
    between = noised + half[:, None] * first
    second = (network(past, between, tau + half, half) - between) / (1.0 - tau - half).clamp_min(1e-3)[
        :, None
    ]
    return noised + (1.0 - tau)[:, None] * (first + second) / 2


@torch.no_grad()
def simulate(network: Denoiser, num_calls: int, objective: str) -> Tensor:
    """The last horizontal position of each future."""
    generator = torch.Generator().manual_seed(1)
    start = episodes(NUM_FUTURES, generator)
    frames = [start[:, 0], start[:, 1]]
    step = torch.full((NUM_FUTURES,), 1.0 / num_calls if objective == "shortcut" else 0.0)
    deviation = float(objective == "score")
    for _ in range(2, NUM_STEPS):
        past, x = torch.stack(frames[-2:], dim=1), torch.randn(NUM_FUTURES, 2, generator=generator)
        for call in range(num_calls):
            tau = call / num_calls
            extra = deviation * torch.randn(NUM_FUTURES, NUM_EXTRA, generator=generator)
            clean = network(past, x, torch.full((NUM_FUTURES,), tau), step, extra)
            x = clean if call == num_calls - 1 else x + (clean - x) / num_calls / (1.0 - tau)
        frames.append(x)
    return frames[-1][:, 0]


def main(config: Config) -> None:
    """Print the share of futures that end left, right, and at neither side."""
    torch.set_num_threads(1)
    print(f"{'objective':<12}{'calls':>6}{'left':>8}{'right':>8}{'neither':>9}")
    for objective in config.objectives:
        began = time.perf_counter()
        network = train(objective, config)
        seconds = time.perf_counter() - began
        for num_calls in (1, 2, 4, 16):
            last = simulate(network, num_calls, objective)
            left, right = ((last - side).abs().lt(0.2).float().mean().item() for side in (-1.0, 1.0))
            print(f"{objective:<12}{num_calls:>6}{left:>8.1%}{right:>8.1%}{1.0 - left - right:>9.1%}")
        print(f"trained in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
