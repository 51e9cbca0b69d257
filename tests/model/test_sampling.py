"""A trained dynamics samples: in a world that flips a coin, each side comes about half of the time."""

import pytest
import torch

from kinema.model.objective import DynamicsBatch, DynamicsObjective, DynamicsObjectiveConfig
from kinema.model.sampler import solve
from kinema.model.tokens import DynamicsConfig, Values
from kinema.model.transformer import Dynamics
from kinema.recipes import Phase, Schedule
from kinema.train.optim import build_optimizer

LENGTH, TURN, NUM_GIVEN = 8, 3, 3
UPDATES, NUM_FUTURES = 1000, 1000
BATCH = 128
CONFIG = DynamicsConfig(
    grids=(), latent_dim=1, action_dim=1, proprio_dim=2, width=32, depth=2, num_heads=1, num_directions=16
)


def episodes(num: int, generator: torch.Generator) -> Values:
    """A ball falls; at the turn it goes left or right, and goes on."""
    side = 2.0 * (torch.rand(num, generator=generator) < 0.5) - 1.0
    time = torch.arange(LENGTH)
    right = side[:, None] * 0.2 * (time - TURN + 1).clamp(0, 5)
    state = torch.stack([right, (0.8 - 0.2 * time).expand(num, -1)], dim=-1)
    return Values(torch.zeros(num, LENGTH, 0, 1), state, torch.zeros(num, LENGTH, 1))


@pytest.fixture(scope="module")
def dynamics() -> Dynamics:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    dynamics = Dynamics(CONFIG)
    recorded = episodes(200, generator)
    is_third = torch.arange(200 * LENGTH) % LENGTH >= 2
    assert dynamics.response is not None
    rows = [part.flatten(0, 1) for part in (recorded.latents, recorded.proprio, recorded.action)]
    dynamics.response.fit(rows[0], rows[1], rows[2], is_third)
    only = dict.fromkeys(("generate_prob", "act_prob", "infer_prob"), 0.0)
    objective = DynamicsObjective(dynamics, DynamicsObjectiveConfig(mixed_share=1.0, **only))
    schedule = Schedule(
        phases=(Phase(updates=UPDATES, batch=BATCH, length=LENGTH),),
        learning_rate=3e-3,
        optimizer="muon",
    )
    optimizer = build_optimizer(objective, schedule)
    has_action = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    average = [parameter.detach().clone() for parameter in dynamics.parameters()]
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(update)
        batch = DynamicsBatch(episodes(BATCH, generator), has_action, 0.3 * (update > UPDATES // 2), 2)
        loss, _ = objective(batch, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average, dynamics.parameters(), strict=True):
                mean.lerp_(parameter, 0.01)
    with torch.no_grad():
        for parameter, mean in zip(dynamics.parameters(), average, strict=True):
            parameter.copy_(mean)
    return dynamics.eval()


@torch.no_grad()
def simulate(dynamics: Dynamics, num_calls: int) -> torch.Tensor:
    """Horizontal places ``N T`` of futures of one beginning."""
    generator = torch.Generator().manual_seed(1)
    given, cache = episodes(NUM_FUTURES, generator), dynamics.new_cache(NUM_FUTURES)
    tau, action = torch.ones(NUM_FUTURES, 1, 2), torch.zeros(NUM_FUTURES, 1, 1)
    places = []

    def noise(size: int) -> torch.Tensor:
        return torch.randn(NUM_FUTURES, 1, size, generator=generator)

    for time in range(LENGTH):
        frame = given.map(lambda x, t=time: x[:, t : t + 1])
        if time < NUM_GIVEN:
            dynamics.keep(frame, tau, cache, noise(CONFIG.noise_size))
        else:

            def model(x: torch.Tensor, level: float) -> torch.Tensor:
                noised = Values(torch.zeros(NUM_FUTURES, 1, 0, 1), x, action)
                levels = torch.tensor([level, 1.0]).expand(NUM_FUTURES, 1, 2)
                extra = noise(CONFIG.noise_dim)
                return dynamics.step(noised, levels, cache, noise=extra, commits=level == 0.0).proprio

            frame = Values(frame.latents, solve(model, noise(2), num_calls), action)
            dynamics.keep(frame, tau, cache)
        places.append(frame.proprio[:, 0, 0])
    return torch.stack(places, dim=1)


@pytest.mark.parametrize(("num_calls", "least"), [(1, 0.4), (2, 0.4), (4, 0.4), (16, 0.2)])
def test_both_sides_of_a_coin_come(dynamics: Dynamics, num_calls: int, least: float) -> None:
    """So short a training leaves a bias in each call, which many calls add up."""
    places = simulate(dynamics, num_calls)
    last = places[:, -1]
    left, right = ((last - side).abs() < 0.25 for side in (-1.0, 1.0))
    assert least < left.float().mean() < 1.0 - least
    assert (left | right).float().mean() > 0.9
    # A ball goes on to the side to which it turned.
    assert (places[:, TURN + 1].sign() == last.sign()).float().mean() > 0.95
