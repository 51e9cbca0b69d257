import dataclasses

import pytest
import torch

from kinema.model import objective as objective_module
from kinema.model.objective import SMOOTHNESS, DynamicsBatch, DynamicsObjective, DynamicsObjectiveConfig
from kinema.model.tasks import TASKS, Role
from kinema.model.tokens import DynamicsConfig, Values
from kinema.model.transformer import Dynamics

from ..worlds import dynamics_config, random_dynamics, random_values

CONFIGS = {
    "one camera": dynamics_config(),
    "cameras and proprioception": dynamics_config(num_cameras=2, proprio_dim=3),
    "vectors alone": dynamics_config(num_cameras=0, proprio_dim=3),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def objective_of(config: DynamicsConfig, **fields: float) -> DynamicsObjective:
    return DynamicsObjective(random_dynamics(config), DynamicsObjectiveConfig(**fields))


def seeded(seed: int = 123) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known(batch: int, time: int) -> torch.Tensor:
    has_action = torch.ones(batch, time, dtype=torch.bool)
    has_action[0, 0] = False
    return has_action


@EVERY_CONFIG
@pytest.mark.parametrize("self_forcing_prob", [0.0, 1.0])
def test_loss_and_metrics(config: DynamicsConfig, self_forcing_prob: float) -> None:
    objective = objective_of(config)
    loss, metrics = objective(
        DynamicsBatch(random_values(config, 8, 6), known(8, 6), self_forcing_prob), generator=seeded()
    )
    assert loss.shape == ()
    assert loss.requires_grad
    expected = {"generate", "act", "infer"}
    expected |= {"simulate_observations"} if config.grids else set()
    expected |= {"simulate_proprio"} if config.proprio_dim else set()
    expected |= {"locate"} if config.grids and config.proprio_dim else set()
    assert set(metrics) == expected
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


@EVERY_CONFIG
def test_the_gradient_reaches_every_parameter(config: DynamicsConfig) -> None:
    objective = objective_of(config, mixed_share=1.0, act_prob=0.3, infer_prob=0.2)
    loss, _ = objective(DynamicsBatch(random_values(config, 8, 6), known(8, 6), 0.5), generator=seeded())
    loss.backward()
    for name, parameter in objective.named_parameters():
        if not config.grids and "latents" in name:
            continue  # A world of vectors has none.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_loss_comes_from_the_generator_alone() -> None:
    config = dynamics_config()
    objective, values, has_action = objective_of(config), random_values(config, 3, 5), known(3, 5)
    first, _ = objective(DynamicsBatch(values, has_action, 0.5), generator=seeded(1))
    torch.manual_seed(99)
    again, _ = objective(DynamicsBatch(values, has_action, 0.5), generator=seeded(1))
    other, _ = objective(DynamicsBatch(values, has_action, 0.5), generator=seeded(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class ConstantDynamics(Dynamics):
    """Predicts the same number everywhere."""

    prediction = 0.0

    def forward(
        self, context: Values, context_tau: torch.Tensor, target: Values, *_: object, **__: object
    ) -> Values:
        return target.map(lambda x: torch.full_like(x, self.prediction))

    def forward_from_noise(self, frames: Values, tau: torch.Tensor, noise: object = None) -> Values:
        return frames.map(lambda x: torch.full_like(x, self.prediction))


def constant_objective(config: DynamicsConfig, prediction: float, **fields: float) -> DynamicsObjective:
    dynamics = ConstantDynamics(config)
    dynamics.prediction = prediction
    return DynamicsObjective(dynamics, DynamicsObjectiveConfig(**fields))


@EVERY_CONFIG
@pytest.mark.parametrize("self_forcing_prob", [0.0, 1.0])
def test_perfect_predictions_cost_nothing(config: DynamicsConfig, self_forcing_prob: float) -> None:
    objective = constant_objective(config, 0.7)
    values = random_values(config, 4, 6).map(lambda x: torch.full_like(x, 0.7))
    loss, metrics = objective(DynamicsBatch(values, known(4, 6), self_forcing_prob), generator=seeded())
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in metrics.values())


def only(**probs: float) -> dict[str, float]:
    """Shares that leave one task to train (but in the first frame, which has no past)."""
    none = dict.fromkeys(("generate_prob", "act_prob", "infer_prob", "locate_prob", "proprio_prob"), 0.0)
    return {"mixed_share": 1.0, **none, **probs}


TARGETS = {
    "observations": only(),
    "proprioception": only(proprio_prob=1.0),
    "location": only(locate_prob=1.0),
    "action": only(infer_prob=1.0),
    "policy": only(act_prob=1.0),
    "video": only(generate_prob=1.0),
}


def cost(part: str) -> float:
    """Score of an error of 3 in all numbers, singly and together."""
    return 2 * ((9.0 + SMOOTHNESS[part] ** 2) ** 0.5 - SMOOTHNESS[part])


@pytest.mark.parametrize(
    ("config", "target", "expected"),
    [
        # Of the six frames, the first has no past. Locating weighs a tenth.
        ("one camera", "observations", cost("observations") * 5 / 6),
        ("one camera", "action", 0.1 * cost("action") * 5 / 6),
        ("one camera", "policy", 0.1 * cost("action") * 5 / 6),
        ("one camera", "video", cost("observations") * 5 / 6),
        ("vectors alone", "observations", 10 * cost("proprio") * 5 / 6),
        ("vectors alone", "action", 0.1 * cost("action") * 5 / 6),
        # With both, proprioception is located in the first frame too.
        ("cameras and proprioception", "observations", cost("observations") * 5 / 6 + cost("proprio") / 6),
        ("cameras and proprioception", "proprioception", 10 * cost("proprio") * 5 / 6 + cost("proprio") / 6),
        ("cameras and proprioception", "location", cost("proprio")),
        ("cameras and proprioception", "action", 0.1 * cost("action") * 5 / 6 + cost("proprio") / 6),
    ],
)
def test_the_loss_is_the_weighted_mean_score_of_what_is_denoised(
    config: str, target: str, expected: float
) -> None:
    objective = constant_objective(
        CONFIGS[config],
        3.0,
        action_weight=0.1,
        proprio_weight=10.0,
        locate_weight=0.1,
        motion_weight=0.0,
        **TARGETS[target],
    )
    values = random_values(CONFIGS[config], 4, 6).map(torch.zeros_like)
    loss, _ = objective(DynamicsBatch(values, torch.ones(4, 6, dtype=torch.bool)), generator=seeded())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_spread_of_the_samples_lowers_the_score() -> None:
    """Two samples at 3 and -3 of a value at 0: each is 3 off, and they are 6 apart."""
    objective = objective_of(CONFIGS["one camera"])
    sample = torch.full((1, 1, 4, 4), 3.0)
    score = objective._score("observations", sample, -sample, torch.zeros_like(sample))
    assert score.item() == pytest.approx(0.0, abs=0.05)
    assert objective._score("observations", sample, sample, torch.zeros_like(sample)).item() > 5.0


def test_latents_near_motion_count_more_in_the_frames_after_it() -> None:
    """A latent changes in the third frame of six: the frames after it weigh its surroundings, and the third
    frame itself does not, since its weights may not know what happened in it."""
    config = dynamics_config(grid=(4, 4))
    objective = constant_objective(config, 0.0, motion_weight=8.0)
    values = random_values(config, 1, 6).map(torch.zeros_like)
    values.latents[:, 2:, 0] = 2.0
    weights = objective._motion_weights(values, values.map(lambda x: x[:, :-1]))[0].view(6, 4, 4)
    assert weights.sum((1, 2)).mean().item() == pytest.approx(1.0)
    assert torch.equal(weights[2], weights[0])
    for after in (3, 4, 5):
        torch.testing.assert_close(weights[after, :2, :2] / weights[2, 0, 0], torch.full((2, 2), 9.0))
        torch.testing.assert_close(weights[after, 2:], weights[2, 2:])


@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_what_is_denoised_is_not_shown(target: str) -> None:
    """From pure noise, no prediction depends on the answer."""
    config = CONFIGS["cameras and proprioception"]
    values, has_action = random_values(config, 4, 5), torch.ones(4, 5, dtype=torch.bool)
    name = {"observations": "latents", "video": "latents", "action": "action", "policy": "action"}
    part = name.get(target, "proprio")
    # The last frame is no context, so only its own target can show the answer.
    answer = getattr(values, part).clone()
    answer[:, -1] += 2.0
    other = dataclasses.replace(values, **{part: answer})

    def predict(values: Values, pure_noise_prob: float) -> torch.Tensor:
        objective = objective_of(config, pure_noise_prob=pure_noise_prob, **TARGETS[target])
        predictions: list[Values] = []
        objective.dynamics.register_forward_hook(lambda module, given, result: predictions.append(result))
        objective(DynamicsBatch(values, has_action, 0.0), generator=seeded())
        return getattr(predictions[-1], part)[:, [4, -1]]

    assert torch.equal(predict(values, 1.0), predict(other, 1.0))
    # Half noise does show it.
    assert not torch.equal(predict(values, 0.0), predict(other, 0.0))


@pytest.mark.parametrize("task", ["generate", "act"])
@torch.no_grad()
def test_a_task_does_not_see_what_is_noise_in_it(task: str) -> None:
    """A policy does not see the frame that its action leads to; video without actions does not see them."""
    config = CONFIGS["cameras and proprioception"]
    values, has_action = random_values(config, 4, 5), torch.ones(4, 5, dtype=torch.bool)
    objective = objective_of(config, pure_noise_prob=0.0, **only(**{f"{task}_prob": 1.0}))
    roles = dict(zip(("latents", "proprio", "action"), TASKS[task], strict=True))
    hidden = {
        part: getattr(values, part).clone().index_fill_(1, torch.tensor([4]), 7.0)
        for part, role in roles.items()
        if role is Role.NOISE
    }
    predictions: list[Values] = []
    objective.dynamics.register_forward_hook(lambda module, given, result: predictions.append(result))
    part = next(part for part, role in roles.items() if role is Role.DENOISE)
    for frames in (values, dataclasses.replace(values, **hidden)):
        objective(DynamicsBatch(frames, has_action, 0.0), generator=seeded())
    first, second = (getattr(prediction, part)[:, [4, -1]] for prediction in predictions)
    assert torch.equal(first, second)


def test_unknown_actions_change_nothing() -> None:
    """They are hidden behind pure noise, and are no target."""
    config = dynamics_config(proprio_dim=3)
    objective = objective_of(config, infer_prob=0.3, act_prob=0.3, mixed_share=1.0)
    values = random_values(config, 4, 6)
    has_action = torch.rand(4, 6, generator=seeded()) < 0.5
    other = dataclasses.replace(
        values, action=torch.where(has_action.unsqueeze(-1), values.action, torch.tensor(50.0))
    )
    for self_forcing_prob in (0.0, 1.0):
        batches = (DynamicsBatch(frames, has_action, self_forcing_prob) for frames in (values, other))
        (loss, metrics), (same, same_metrics) = (objective(each, generator=seeded(1)) for each in batches)
        assert torch.equal(loss, same)
        assert metrics == same_metrics
    everything = torch.ones(4, 6, dtype=torch.bool)
    assert not torch.equal(
        objective(DynamicsBatch(values, everything, 0.0), generator=seeded(1))[0],
        objective(DynamicsBatch(other, everything, 0.0), generator=seeded(1))[0],
    )


def test_noise_goes_to_the_part_that_it_is_meant_for() -> None:
    config = dynamics_config(num_cameras=2, proprio_dim=3)
    objective, values = objective_of(config), random_values(config, 2, 4)
    per_camera = config.num_latents // 2

    def parts(noised: Values) -> list[tuple[torch.Tensor, torch.Tensor]]:
        first, second = noised.latents.split(per_camera, dim=2)
        clean_first, clean_second = values.latents.split(per_camera, dim=2)
        return [
            (first, clean_first),
            (second, clean_second),
            (noised.proprio, values.proprio),
            (noised.action, values.action),
        ]

    for modality in range(4):
        tau = torch.ones(2, 4, 4)
        tau[:, 2, modality] = 0.4
        for index, (noised, clean) in enumerate(parts(objective.add_noise(values, tau, seeded()))):
            is_noised = (noised != clean).flatten(2).any(-1)
            expected = torch.zeros(2, 4, dtype=torch.bool)
            expected[:, 2] = index == modality
            assert torch.equal(is_noised, expected)


@torch.no_grad()
@EVERY_CONFIG
def test_simulated_context_is_a_step_of_the_network(config: DynamicsConfig) -> None:
    """The first frame, the actions and the segments that are not simulated stay."""
    objective = constant_objective(config, 0.0)
    past = random_values(config, 2, 5)
    zeros = past.map(torch.zeros_like)
    own = objective._simulated_context(past, torch.ones(2, 5, config.num_modalities), zeros, seeded(3))
    observed, given = (x.latents if config.grids else x.proprio for x in (own, past))
    assert torch.equal(observed[:, 0], given[:, 0])
    assert torch.equal(observed[:, 1:], torch.zeros_like(observed[:, 1:]))
    assert torch.equal(own.action, past.action)


@torch.no_grad()
def test_a_frame_that_took_another_turn_is_not_simulated() -> None:
    """Two samples that agree, and are far from what was recorded, are no context for it."""
    config = dynamics_config()
    values, tau = random_values(config, 2, 5), torch.ones(2, 5, config.num_modalities)
    far = constant_objective(config, 3.0)._simulated_context(values, tau, values, seeded())
    assert torch.equal(far.latents, values.latents)


@torch.no_grad()
def test_segments_that_are_not_simulated_keep_their_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "PLAUSIBLE_SPREADS", torch.inf)
    config = dynamics_config()
    contexts: list[Values] = []
    for prob in (0.0, 0.5, 1.0):
        objective = objective_of(config, mixed_share=1.0, max_context_noise=0.0, hidden_prob=0.0)
        objective.dynamics.register_forward_pre_hook(lambda module, given: contexts.append(given[0]))
        objective(DynamicsBatch(random_values(config, 8, 5), known(8, 5) | True, prob), generator=seeded())
    none, some, everything = (context.latents for context in contexts)
    is_own = (some != none).flatten(1).any(1)
    assert 0 < is_own.sum() < 8
    assert (everything != none).flatten(1).any(1).sum() >= is_own.sum()


def test_two_frames_are_enough() -> None:
    """One frame of context and one target; of its own context there is then no frame to simulate."""
    config = dynamics_config()
    objective = objective_of(config)
    for self_forcing_prob in (0.0, 1.0):
        loss, _ = objective(
            DynamicsBatch(random_values(config, 2, 2), known(2, 2), self_forcing_prob), generator=seeded()
        )
        assert loss.isfinite()


@pytest.mark.parametrize("task", ["act", "generate", "infer"])
def test_goals_are_context_of_what_leads_to_them(task: str) -> None:
    config = dynamics_config(proprio_dim=3, has_goals=True, memory=5)
    objective = objective_of(config, goal_dropout=0.0, **only(**{f"{task}_prob": 1.0}))
    values, goal = random_values(config, 3, 5), random_values(config, 3, 1, seed=4)
    batch = DynamicsBatch(values, torch.ones(3, 5, dtype=torch.bool), goal=goal)
    loss, _ = objective(batch, generator=seeded())
    other, _ = objective(batch._replace(goal=goal.map(lambda x: x + 1.0)), generator=seeded())
    assert torch.equal(loss, other) == (task == "infer")
    loss.backward()
    assert objective.dynamics.goal_in is not None
    gradient = objective.dynamics.goal_in.bias.grad
    assert (gradient is not None and bool((gradient.abs().amax(1) > 0).all())) == (task != "infer")
