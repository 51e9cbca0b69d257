import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.model.flow import euler_step, interpolate, sample_tau, velocity

TAUS = st.floats(0.0, 0.95)


@pytest.fixture
def ends() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)


def test_the_path_begins_in_noise_and_ends_in_data(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    data, noise = ends
    assert torch.equal(interpolate(data, noise, torch.zeros(4, 1)), noise)
    assert torch.equal(interpolate(data, noise, torch.ones(4, 1)), data)


def test_each_row_has_its_own_tau(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    data, noise = ends
    tau = torch.tensor([[0.0], [0.25], [0.5], [1.0]])
    together = interpolate(data, noise, tau)
    for row in range(4):
        assert torch.equal(together[row], interpolate(data[row], noise[row], tau[row]))


@settings(deadline=None)
@given(tau=TAUS)
def test_velocity_is_data_minus_noise_everywhere_on_the_path(tau: float) -> None:
    data, noise = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    x_tau = interpolate(data, noise, torch.tensor(tau))
    torch.testing.assert_close(velocity(x_tau, data, tau), data - noise, atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(tau=TAUS, share=st.floats(0.0, 1.0))
def test_an_euler_step_with_the_right_prediction_stays_on_the_path(tau: float, share: float) -> None:
    data, noise = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    next_tau = tau + share * (1.0 - tau)
    reached = euler_step(interpolate(data, noise, torch.tensor(tau)), data, tau, next_tau)
    torch.testing.assert_close(
        reached, interpolate(data, noise, torch.tensor(next_tau)), atol=1e-4, rtol=1e-4
    )


def test_the_last_step_gives_the_prediction_exactly(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, x = ends
    assert torch.equal(euler_step(x, prediction, 2.0 / 3.0, 1.0), prediction)


def test_noise_times_are_pure_as_often_as_asked_and_else_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    tau = sample_tau((100, 100), pure_noise_share=0.3, generator=generator, device=torch.device("cpu"))
    assert (tau == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    others = tau[tau > 0]
    assert others.max() < 1
    assert others.mean().item() == pytest.approx(0.5, abs=0.02)
    assert others.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_noise_times_come_from_the_generator_alone() -> None:
    def sample() -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        return sample_tau((5,), pure_noise_share=0.5, generator=generator, device=torch.device("cpu"))

    first = sample()
    torch.manual_seed(99)
    assert torch.equal(first, sample())
