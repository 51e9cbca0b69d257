"""Where vectors were recorded, and what is made of those beyond."""

import numpy as np
import pytest
import torch

from kinema.data.segments import Segments
from kinema.model.support import Support
from kinema.train.latents import fit_support

from ..worlds import random_actions, random_frames, random_world


def ring(num: int, seed: int = 0) -> torch.Tensor:
    """Points on a disc with a hole: there is nothing in the middle, in corners and outside."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, num), np.sqrt(rng.uniform(0.25, 1.0, num))
    return torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32))


def fitted(vectors: torch.Tensor, num: int = 256) -> Support:
    support = Support(num, vectors.shape[1])
    fit(support, vectors)
    return support


def fit(support: Support, vectors: torch.Tensor) -> None:
    support.fit(vectors.numpy(), np.arange(len(vectors)) // 10)


def test_what_was_recorded_stays_as_it_is() -> None:
    support, asked = fitted(ring(20_000)), ring(5000, seed=1)
    held = support.hold(asked.view(50, 100, 2)).view(-1, 2)
    stays = (held == asked).all(-1)
    assert stays.float().mean() > 0.97
    # The rest hardly moves.
    assert (held - asked).norm(dim=-1).max() < 0.05


def test_what_lies_beyond_is_taken_for_the_nearest_that_was_recorded() -> None:
    recorded = ring(20_000)
    support = fitted(recorded)
    # Outside, in a corner that no single number tells from what was recorded, and in the hole.
    asked = torch.tensor([[3.0, 0.0], [0.9, 0.9], [-0.9, 0.9], [0.1, 0.0]])
    held = support.hold(asked)
    nearest = recorded[torch.cdist(asked, recorded).argmin(-1)]
    assert (held - nearest).norm(dim=-1).max() < 0.15
    assert (torch.cdist(held, recorded).amin(-1) < 0.1).all()
    # Held once, it stays.
    torch.testing.assert_close(support.hold(held), held, atol=1e-5, rtol=1e-5)
    # A little beyond is moved a little.
    step = support.hold(torch.tensor([[1.0 + delta, 0.0] for delta in np.linspace(0.0, 0.2, 21).tolist()]))
    assert (step[1:] - step[:-1]).norm(dim=-1).max() < 0.02


def test_a_few_strays_do_not_count() -> None:
    recorded = torch.cat([ring(20_000), torch.tensor([[5.0, 5.0]])])
    assert fitted(recorded).hold(torch.tensor([[5.0, 5.0]])).norm() < 1.2


@pytest.mark.parametrize("num", [400, 4000])
def test_vectors_of_many_numbers_are_known_from_few(num: int) -> None:
    """No two of them are near each other; others like them stay as they are all the same."""
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(num + 1000, 14)).astype(np.float32))
    support, others = fitted(vectors[:num]), vectors[num:]
    assert (support.hold(others) == others).all(-1).float().mean() > 0.8
    far = support.hold(10.0 * others)
    assert (far.norm(dim=-1) < 12).all()


def test_before_it_is_fitted_all_stays() -> None:
    vectors = 100.0 * ring(10)
    assert torch.equal(Support(8, 2).hold(vectors), vectors)


def test_sessions_take_commands_as_far_as_they_were_recorded() -> None:
    world = random_world(proprio_dim=2)
    assert world.action_support is not None
    assert world.proprio_support is not None
    fit(world.action_support, 0.8 * ring(5000))
    fit(world.proprio_support, 0.8 * ring(5000, seed=1))

    def after(scale: float) -> tuple[np.ndarray, np.ndarray]:
        center, unit = world.action_normalizer.center.numpy(), world.action_normalizer.scale.numpy()
        sim = world.start(random_frames(3), random_actions(2), proprio=np.zeros((3, 2)))
        step = sim.step(center + scale * unit * np.array([0.8, 0.0]))
        assert step.proprio is not None
        place = world.proprio_normalizer.normalize(torch.from_numpy(step.proprio)).numpy()
        return np.asarray(step.frame), place

    # Ten times as far, and a hundred times, is the same command; within, each is another.
    found = [after(scale) for scale in (0.7, 1.0, 10.0, 100.0)]
    near, edge, far, further = (frame.astype(int) for frame, _ in found)
    assert np.abs(far - further).mean() < 0.2 * np.abs(near - edge).mean()
    for _, place in found:
        assert 0.3 < np.linalg.norm(place) < 0.9


def test_a_world_that_goes_on_learning_keeps_where_it_knows_the_robot() -> None:
    world = random_world(proprio_dim=2)

    def fit_to(size: float) -> None:
        rows = size * ring(2000).numpy()
        actions = world.action_normalizer.restore(torch.from_numpy(rows)).numpy()
        places = world.proprio_normalizer.restore(torch.from_numpy(rows)).numpy()
        lengths = np.full(40, 50)
        fit_support(
            world,
            Segments(frames={}, actions=actions, proprio=places, lengths=lengths, native_sizes={}),
        )

    far = torch.tensor([[1.5, 0.0]])
    fit_to(1.0)
    first = world.held_action(far), world.held_proprio(far)
    fit_to(1.4)
    assert world.held_action(far)[0, 0] > first[0][0, 0] + 0.2
    assert torch.equal(world.held_proprio(far), first[1])
