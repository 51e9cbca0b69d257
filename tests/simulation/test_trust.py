"""Trust from a twin: the same actions, other noise."""

import numpy as np
import pytest
import torch

from kinema.model.world import WorldError
from kinema.simulation.batching import step_together
from kinema.simulation.session import Simulation
from kinema.simulation.trust import expected_error, trust
from kinema.simulation.world import World

from ..worlds import random_actions, random_frames, random_world

KINDS: dict[str, dict[str, int]] = {
    "cameras": {"num_cameras": 2, "proprio_dim": 3},
    "vectors": {"num_cameras": 0, "proprio_dim": 3},
}


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    world = random_world(**KINDS[request.param])
    world.manifold = None
    world.error_fit.copy_(torch.tensor([50.0, 2.0, 20.0]).expand_as(world.error_fit))
    return world


def start(world: World, *, has_trust: bool | None = None) -> Simulation:
    frames = {key: random_frames(3) for key in world.cameras}
    proprio = np.random.default_rng(0).uniform(-5, 20, (3, 3)).astype(np.float32)
    return world.start(frames or None, random_actions(2), proprio=proprio, has_trust=has_trust)


def test_trust_changes_no_simulation(world: World) -> None:
    with_trust, without = start(world), start(world, has_trust=False)
    for action in random_actions(4):
        one, other = with_trust.step(action), without.step(action)
        assert one.proprio is not None
        assert np.array_equal(one.proprio, other.proprio)
        assert other.trust is other.expected_error is None
        assert 0.0 < one.trust < 1.0
        assert one.expected_error.shape == (len(world.cameras) or 3,)


def test_trust_follows_a_session(world: World) -> None:
    sim = start(world)
    steps = [sim.step(action) for action in random_actions(4)]
    copy = sim.copy()
    sim.rewind(3)
    again = [sim.step(action) for action in random_actions(4)[1:]]
    for step, same in zip(steps[1:], again, strict=True):
        assert same.trust == pytest.approx(step.trust)
    assert copy.step(random_actions(1)[0]).trust == pytest.approx(sim.step(random_actions(1)[0]).trust)
    assert sim.fork(2).step(random_actions(2)).trust is None


def test_sessions_with_trust_step_together(world: World) -> None:
    sims, alone = [start(world) for _ in range(2)], start(world)
    actions = random_actions(2)
    steps = step_together(sims, actions)
    assert steps[0].trust == pytest.approx(alone.step(actions[0]).trust, rel=1e-3)
    with pytest.raises(WorldError, match="with trust and sessions without it"):
        step_together([sims[0], start(world, has_trust=False)], actions)


def test_expected_error_is_spread_and_codec_in_quadrature(world: World) -> None:
    number = len(world.error_fit)
    still, apart = torch.zeros(1, number), torch.full((1, number), 0.4)
    torch.testing.assert_close(expected_error(world, still), torch.full((1, number), 2.0))
    torch.testing.assert_close(expected_error(world, apart), torch.full((1, number), (20.0**2 + 4.0) ** 0.5))
    assert trust(world, expected_error(world, still)).item() == pytest.approx(1.0)
    assert trust(world, torch.full((1, number), 22.0)).item() == pytest.approx(0.5)


def test_a_session_without_trust_has_no_spread(world: World) -> None:
    with pytest.raises(WorldError, match="has_trust=True"):
        start(world, has_trust=False)._batch.spread()
