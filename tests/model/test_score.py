import torch

from kinema.model.score import distance, energy_score, is_plausible


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_score_is_least_for_the_distribution_of_the_data() -> None:
    data = normal(40_000, 3, seed=0)

    def mean_score(scale: float, shift: float) -> float:
        first, second = (scale * normal(40_000, 3, seed=seed) + shift for seed in (1, 2))
        return energy_score((first, second), data, 0.03).mean().item()

    right = mean_score(1.0, 0.0)
    for scale, shift in ((0.0, 0.0), (0.7, 0.0), (1.4, 0.0), (1.0, 0.4)):
        assert mean_score(scale, shift) > right + 0.005


def test_a_certain_world_costs_a_distance() -> None:
    data, sample = normal(5, 3, seed=0), normal(5, 3, seed=1)
    torch.testing.assert_close(energy_score((sample, sample), data, 0.03), distance(sample, data, 0.03))


def test_distance_is_smooth_at_zero() -> None:
    first = torch.zeros(1, 4, requires_grad=True)
    distance(first, torch.zeros(1, 4), 0.03).sum().backward()
    assert first.grad is not None
    assert torch.equal(first.grad, torch.zeros(1, 4))


def test_data_is_plausible_within_the_spread_of_samples() -> None:
    data, near, far = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert is_plausible(near, far, data, 2.0)
    assert not is_plausible(near + 10.0, far + 10.0, data, 2.0)
