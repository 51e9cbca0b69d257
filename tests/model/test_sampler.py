import pytest
import torch

from kinema.model.sampler import session_noise, solve

MEAN, DEVIATION = 1.5, 0.4


def posterior_mean(x: torch.Tensor, tau: float) -> torch.Tensor:
    """What an ideal network predicts when the data is normal: E[data | x_tau], by Bayes' rule."""
    variance = tau**2 * DEVIATION**2 + (1 - tau) ** 2
    return MEAN + tau * DEVIATION**2 / variance * (x - tau * MEAN)


def test_many_steps_recover_a_gaussian() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    data = solve(posterior_mean, noise, 200)
    assert data.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert data.std().item() == pytest.approx(DEVIATION, rel=0.02)
    # The exact path of a normal distribution keeps the order of the noise.
    torch.testing.assert_close(data, MEAN + DEVIATION * noise, atol=0.03, rtol=0.0)


def test_the_error_falls_with_the_steps() -> None:
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    errors = [
        (solve(posterior_mean, noise, steps) - (MEAN + DEVIATION * noise)).abs().mean().item()
        for steps in (1, 4, 16, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_one_step_gives_the_mean() -> None:
    assert torch.equal(solve(posterior_mean, torch.randn(10), 1), torch.full((10,), MEAN))


def test_the_model_is_called_at_equal_steps_from_noise() -> None:
    taus = []

    def model(x: torch.Tensor, tau: float) -> torch.Tensor:
        taus.append(tau)
        return x

    noise = torch.randn(3)
    torch.testing.assert_close(solve(model, noise, 4), noise)
    assert taus == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("steps", [0, -1])
def test_too_few_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_denoising_steps={steps}: at least 1"):
        solve(posterior_mean, torch.zeros(1), steps)


def test_noise_of_a_session_does_not_depend_on_the_others() -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = session_noise((3, 2), generators(4, 5, 6), torch.device("cpu"))
    alone = session_noise((3, 2), generators(5), torch.device("cpu"))
    assert together.shape == (3, 3, 2)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
