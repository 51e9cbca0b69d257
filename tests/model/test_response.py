import pytest
import torch
from torch import Tensor

from kinema.model import response as response_module
from kinema.model.embeddings import FourierFeatures
from kinema.model.response import LinearResponse, fit_frequencies, ridge

ROWS = 5000


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def robot() -> tuple[Tensor, Tensor, Tensor]:
    """Proprioception and actions of a damped robot under position control, and which rows are third."""
    action = torch.rand(ROWS, 2, generator=generator()) * 2 - 1
    proprio = torch.zeros(ROWS, 2)
    for t in range(2, ROWS):
        velocity = proprio[t - 1] - proprio[t - 2]
        proprio[t] = proprio[t - 1] + 0.5 * velocity + 0.2 * (action[t] - proprio[t - 1]) + 0.01
    is_third = torch.arange(ROWS) > 1
    return proprio, action, is_third


def fitted() -> tuple[LinearResponse, Tensor, Tensor, Tensor]:
    """A response fitted to latents in which a bump is drawn where the robot is, on a background that each
    episode has for itself."""
    proprio, action, is_third = robot()
    places = torch.linspace(-1, 1, 8)
    bumps = torch.exp(-((proprio[:, :1] - places) ** 2) / 0.1)
    latents = (bumps + 3.0).reshape(ROWS, 4, 2)
    response = LinearResponse(latents=(4, 2), proprio_dim=2, action_dim=2)
    response.fit(latents, proprio, action, is_third)
    return response, latents, proprio, action


def test_a_linear_robot_is_predicted_exactly() -> None:
    response, _, proprio, action = fitted()
    t = torch.arange(100, 200)
    change = response.proprio_change(proprio[t - 1], proprio[t - 2], action[t], action[t - 1])
    torch.testing.assert_close(change, proprio[t] - proprio[t - 1], atol=1e-5, rtol=0)
    assert response.proprio_error.max() < 1e-5


def swinging() -> tuple[Tensor, Tensor, Tensor]:
    """Proprioception (where the tip is, how fast it turns) and actions of a driven pendulum, and which rows
    are third."""
    angle, turn = torch.zeros(ROWS), torch.zeros(ROWS)
    action = torch.rand(ROWS, 1, generator=generator()) * 2 - 1
    for t in range(1, ROWS):
        turn[t] = 0.97 * turn[t - 1] - 0.1 * angle[t - 1].sin() + 0.12 * action[t, 0] * angle[t - 1].cos()
        angle[t] = angle[t - 1] + turn[t]
    return torch.stack([angle.cos(), angle.sin(), turn], dim=-1), action, torch.arange(ROWS) > 1


def of_motion(num_directions: int, proprio: Tensor, action: Tensor, is_seen: Tensor) -> LinearResponse:
    response = LinearResponse(latents=(1, 1), proprio_dim=3, action_dim=1, num_directions=num_directions)
    response.fit(torch.zeros(ROWS, 1, 1), proprio, action, is_seen)
    return response


def test_a_robot_that_swings_is_predicted_by_random_features() -> None:
    proprio, action, is_third = swinging()
    t = torch.arange(ROWS - 500, ROWS)
    errors = {}
    for num_directions in (0, 200):
        response = of_motion(num_directions, proprio, action, is_third & (torch.arange(ROWS) < ROWS - 500))
        change = response.proprio_change(proprio[t - 1], proprio[t - 2], action[t], action[t - 1])
        left = (change - (proprio[t] - proprio[t - 1])).square().mean(0).sqrt()
        torch.testing.assert_close(left, response.proprio_error, rtol=0.6, atol=1e-4)
        errors[num_directions] = left.max()
    assert errors[200] < 0.1 * errors[0]


def test_its_motion_holds_step_after_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its prediction the next is predicted, fifty times."""
    proprio, action, is_third = swinging()
    starts = torch.arange(ROWS - 500, ROWS - 60, 20)
    errors = {}
    for noise in (0.0, response_module.STATE_NOISE):
        monkeypatch.setattr(response_module, "STATE_NOISE", noise)
        response = of_motion(200, proprio, action, is_third & (torch.arange(ROWS) < ROWS - 500))
        last, earlier = proprio[starts], proprio[starts - 1]
        for step in range(1, 51):
            known = (last, earlier, action[starts + step], action[starts + step - 1])
            last, earlier = last + response.proprio_change(*known), last
        errors[noise] = (last - proprio[starts + 50]).abs().mean()
    assert errors[response_module.STATE_NOISE] < 0.05
    assert errors[response_module.STATE_NOISE] < 0.5 * errors[0.0]


def test_what_a_motion_comes_to_stays_within_what_was_recorded() -> None:
    proprio, action, is_third = swinging()
    response = of_motion(200, proprio, action, is_third)
    last = torch.tensor([[5.0, -7.0, 3.0]])
    reached = last + response.proprio_change(last, last, action[:1], action[:1])
    assert (reached <= proprio.amax(0) + response_module.MARGIN + 1e-4).all()
    assert (reached >= proprio.amin(0) - response_module.MARGIN - 1e-4).all()


def test_the_action_is_read_off_a_linear_robot() -> None:
    response, _, proprio, action = fitted()
    t = torch.arange(100, 200)
    found = response.action(proprio[t], proprio[t - 1], proprio[t - 2])
    torch.testing.assert_close(found, action[t], atol=1e-3, rtol=0)
    assert response.action_error.max() < 1e-3


def test_what_is_drawn_where_the_robot_is_is_predicted() -> None:
    response, latents, proprio, _ = fitted()
    t = torch.arange(100, 600)
    change = latents[t] - latents[t - 1]
    error = response.latents_change(proprio[t], proprio[t - 1]) - change
    assert error.square().mean() < 1e-3 * change.square().mean()


def test_rows_without_two_before_them_are_left_out() -> None:
    proprio, action, is_third = robot()
    broken, latents = proprio.clone(), torch.zeros(ROWS, 1, 1)
    broken[1000:] += 0.7  # Another episode begins.
    responses = []
    for values, third in ((proprio, is_third), (broken, is_third.clone())):
        if values is broken:
            third[1000:1002] = False
        response = LinearResponse(latents=(1, 1), proprio_dim=2, action_dim=2)
        response.fit(latents, values, action, third)
        responses.append(response)
    weights = [response.to_proprio[:-1] for response in responses]
    torch.testing.assert_close(weights[0][2:], weights[1][2:], atol=0.05, rtol=0)


def test_noise_shows_in_the_expected_error() -> None:
    proprio, action, is_third = robot()
    noisy = proprio + 0.02 * torch.randn(ROWS, 2, generator=generator())
    response = LinearResponse(latents=(1, 1), proprio_dim=2, action_dim=2)
    response.fit(torch.zeros(ROWS, 1, 1), noisy, action, is_third)
    assert response.proprio_error.tolist() == pytest.approx([0.03, 0.03], abs=0.015)


def test_what_is_left_of_the_latents_is_measured() -> None:
    proprio, action, is_third = robot()
    latents = torch.cat([proprio, proprio], dim=-1).unsqueeze(1)
    latents[..., 2:] += torch.randn(ROWS, 1, 2, generator=generator())
    response = LinearResponse(latents=(1, 4), proprio_dim=2, action_dim=2)
    response.fit(latents, proprio, action, is_third)
    still, noisy = response.latents_error[0, :2], response.latents_error[0, 2:]
    assert still.max() < 0.01
    # The difference of two noises, a fifth of it fitted by 2000 numbers to 5000 rows.
    assert noisy.tolist() == pytest.approx([1.4, 1.4], abs=0.25)


@pytest.mark.parametrize("rows", [0, 3, 12])
def test_too_few_rows_predict_no_change(rows: int) -> None:
    response = LinearResponse(latents=(2, 3), proprio_dim=2, action_dim=1)
    response.fit(torch.ones(rows, 2, 3), torch.ones(rows, 2), torch.ones(rows, 1), torch.arange(rows) > 1)
    ones = torch.ones(4, 2)
    assert not response.latents_change(ones, 0 * ones).any()
    assert not response.proprio_change(ones, ones, ones[:, :1], ones[:, :1]).any()
    assert not response.action(ones, ones, ones).any()
    assert (response.action_error == 1.0).all()


def test_features_find_out_which_numbers_matter_and_how_finely() -> None:
    """Of four numbers one moves what is drawn fast, one slowly, and two not at all."""
    values = torch.rand(4000, 4, generator=generator()) * 2 - 1
    outputs = torch.stack([(6.0 * values[:, 0]).sin() * values[:, 1], (6.0 * values[:, 0]).cos()], dim=-1)
    features = FourierFeatures(4, 2, 60)

    def left() -> float:
        inputs = features(values).double()
        seen, unseen, wanted = inputs[:3000], inputs[3000:], outputs.double()
        weights = ridge(seen.T @ seen, seen.T @ wanted[:3000], 0.1)
        return float((unseen @ weights - wanted[3000:]).square().mean())

    before = left()
    fit_frequencies(features, values, outputs)
    assert left() < 0.01 * before
    fine, coarse, *idle = features.frequencies.std(1).tolist()
    assert fine > coarse > max(idle)


def test_few_rows_leave_frequencies_as_they_are() -> None:
    features = FourierFeatures(5, 2, 60)
    before = features.frequencies.clone()
    fit_frequencies(features, torch.rand(200, 5), torch.rand(200, 3))
    assert torch.equal(features.frequencies, before)
