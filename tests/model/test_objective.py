import dataclasses

import pytest
import torch

from kinema.model.objective import LEAST_ERROR, DynamicsBatch, DynamicsObjective, DynamicsObjectiveConfig
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
@pytest.mark.parametrize("own_context_share", [0.0, 1.0])
def test_loss_and_metrics(config: DynamicsConfig, own_context_share: float) -> None:
    objective = objective_of(config)
    loss, metrics = objective(
        DynamicsBatch(random_values(config, 8, 6), known(8, 6), own_context_share), generator=seeded()
    )
    assert loss.shape == ()
    assert loss.requires_grad
    expected = {"observation": len(config.grids) > 0, "proprio": config.proprio_dim > 0, "action": True}
    expected["locate"] = expected["observation"] and expected["proprio"]
    assert set(metrics) == {name for name, is_there in expected.items() if is_there}
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert value > 0


@EVERY_CONFIG
def test_the_gradient_reaches_every_parameter(config: DynamicsConfig) -> None:
    objective = objective_of(config)
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
        self,
        context: Values,
        context_tau: torch.Tensor,
        target: Values,
        target_tau: torch.Tensor,
        *,
        context_noise: torch.Tensor | None = None,
    ) -> Values:
        return target.map(lambda x: torch.full_like(x, self.prediction))

    def forward_from_noise(
        self, frames: Values, tau: torch.Tensor, noise: torch.Tensor | None = None
    ) -> Values:
        return frames.map(lambda x: torch.full_like(x, self.prediction))


def constant_objective(config: DynamicsConfig, prediction: float, **fields: float) -> DynamicsObjective:
    dynamics = ConstantDynamics(config)
    dynamics.prediction = prediction
    return DynamicsObjective(dynamics, DynamicsObjectiveConfig(**fields))


@EVERY_CONFIG
@pytest.mark.parametrize("own_context_share", [0.0, 1.0])
def test_perfect_predictions_cost_nothing(config: DynamicsConfig, own_context_share: float) -> None:
    objective = constant_objective(config, 0.7)
    values = random_values(config, 4, 6).map(lambda x: torch.full_like(x, 0.7))
    loss, metrics = objective(DynamicsBatch(values, known(4, 6), own_context_share), generator=seeded())
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in metrics.values())


FIND = {
    "picture": {"infer_share": 0.0, "proprio_share": 0.0, "locate_share": 0.0},
    "proprioception first": {"infer_share": 0.0, "proprio_share": 1.0, "locate_share": 0.0},
    "proprioception from the picture": {"infer_share": 0.0, "proprio_share": 0.0, "locate_share": 1.0},
    "action": {"infer_share": 1.0, "proprio_share": 0.0, "locate_share": 0.0},
}
"""Shares that leave only one thing to find (but in the first frame, which has no past)."""
FAR = (3.0**2 + LEAST_ERROR**2) ** 0.5 - LEAST_ERROR


@pytest.mark.parametrize(
    ("config", "find", "expected"),
    [
        # An error of 3 has a square of 9 and costs 2.99 where it is absolute, 2.97 as a distance; of the six
        # frames, the first has no past. Locating weighs a tenth.
        ("one camera", "picture", FAR * 5 / 6),
        ("one camera", "action", 0.1 * 9 * 5 / 6),
        ("vectors alone", "picture", 10 * 2.99 * 5 / 6),
        ("vectors alone", "action", 0.1 * 9 * 5 / 6),
        # With both, proprioception is found in the first frame too, from its picture.
        ("cameras and proprioception", "picture", FAR * 5 / 6 + 2.99 / 6),
        ("cameras and proprioception", "proprioception first", 10 * 2.99 * 5 / 6 + 2.99 / 6),
        ("cameras and proprioception", "proprioception from the picture", 2.99),
        ("cameras and proprioception", "action", 0.1 * 9 * 5 / 6 + 2.99 / 6),
    ],
)
def test_the_loss_is_the_weighted_mean_error_of_what_is_to_be_found(
    config: str, find: str, expected: float
) -> None:
    objective = constant_objective(
        CONFIGS[config], 3.0, action_weight=0.1, proprio_weight=10.0, locate_weight=0.1, **FIND[find]
    )
    values = random_values(CONFIGS[config], 4, 6).map(torch.zeros_like)
    loss, metrics = objective(DynamicsBatch(values, torch.ones(4, 6, dtype=torch.bool)), generator=seeded())
    assert loss.item() == pytest.approx(expected)
    assert all(value.item() in (0.0, *map(pytest.approx, (9.0, 2.99, FAR))) for value in metrics.values())


@pytest.mark.parametrize("motion_weight", [0.0, 8.0])
def test_a_latent_that_changes_counts_more(motion_weight: float) -> None:
    """Of four latents one is wrong in the last two frames of four; in the third frame it has just changed."""
    config = dynamics_config()
    objective = constant_objective(config, 0.0, motion_weight=motion_weight, **FIND["picture"])
    values = random_values(config, 1, 4).map(torch.zeros_like)
    values.latents[:, 2:, 1] = 2.0
    loss, _ = objective(DynamicsBatch(values, torch.ones(1, 4, dtype=torch.bool)), generator=seeded())
    # Of the 16 weights one is raised; those of a frame sum to one in the mean.
    per_frame = (16 + motion_weight) / 4
    distance = (2.0**2 + LEAST_ERROR**2) ** 0.5 - LEAST_ERROR
    assert loss.item() == pytest.approx((1 + motion_weight + 1) * distance / per_frame / 4)


@pytest.mark.parametrize("find", FIND)
@torch.no_grad()
def test_what_is_to_be_found_is_not_shown(find: str) -> None:
    """From pure noise, nothing that the network says depends on the answer."""
    config = CONFIGS["cameras and proprioception"]
    values, has_action = random_values(config, 4, 5), torch.ones(4, 5, dtype=torch.bool)
    name = {"picture": "latents", "action": "action"}.get(find, "proprio")
    # The last frame is no context, so only its own target can show the answer.
    answer = getattr(values, name).clone()
    answer[:, -1] += 2.0
    other = dataclasses.replace(values, **{name: answer})

    def says(values: Values, pure_noise_share: float) -> torch.Tensor:
        objective = objective_of(config, pure_noise_share=pure_noise_share, **FIND[find])
        said: list[Values] = []
        objective.dynamics.register_forward_hook(lambda module, given, result: said.append(result))
        objective(DynamicsBatch(values, has_action, 0.0), generator=seeded())
        return getattr(said[-1], name)[:, -1]

    assert torch.equal(says(values, 1.0), says(other, 1.0))
    # Half noise does show it.
    assert not torch.equal(says(values, 0.0), says(other, 0.0))


@pytest.mark.parametrize(
    ("config", "expected", "found"),
    [("one camera", FAR, "observation"), ("vectors alone", 10 * 2.99, "proprio")],
)
def test_a_batch_that_is_not_mixed_asks_for_what_is_observed_alone(
    config: str, expected: float, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All frames but the first, in one pass without targets of their own."""
    objective = constant_objective(CONFIGS[config], 3.0, mixed_share=0.0, proprio_weight=10.0)
    monkeypatch.setattr(ConstantDynamics, "forward", None)
    values = random_values(CONFIGS[config], 4, 6).map(torch.zeros_like)
    has_action = torch.ones(4, 6, dtype=torch.bool)
    loss, metrics = objective(DynamicsBatch(values, has_action), generator=seeded())
    assert loss.item() == pytest.approx(expected * 5 / 6, rel=1e-5)
    assert {name for name, value in metrics.items() if value} == {found}
    own_loss, _ = objective(DynamicsBatch(values, has_action, 1.0, 2), generator=seeded())
    assert own_loss >= loss


def test_each_thing_to_find_trains_its_own_head() -> None:
    heads = {"picture": "latents_out", "action": "action_out"}
    for find, shares in FIND.items():
        objective = objective_of(CONFIGS["cameras and proprioception"], **shares)
        values, has_action = random_values(objective.dynamics.config, 3, 5), known(3, 5)
        objective(DynamicsBatch(values, has_action | True), generator=seeded())[0].backward()
        trained = {
            name
            for name in ("latents_out", "proprio_out", "action_out")
            if objective.dynamics.get_submodule(name).weight.grad.abs().max() > 0
        }
        # Proprioception of the first frame is found in any case.
        assert trained == {heads.get(find, "proprio_out"), "proprio_out"}


def test_unknown_actions_change_nothing() -> None:
    """They are hidden behind pure noise, and nothing is to be found there."""
    config = dynamics_config(proprio_dim=3)
    objective = objective_of(config, infer_share=0.5)
    values = random_values(config, 4, 6)
    has_action = torch.rand(4, 6, generator=seeded()) < 0.5
    other = dataclasses.replace(
        values, action=torch.where(has_action.unsqueeze(-1), values.action, torch.tensor(50.0))
    )
    for own_context_share in (0.0, 1.0):
        loss, metrics = objective(DynamicsBatch(values, has_action, own_context_share), generator=seeded(1))
        same, same_metrics = objective(
            DynamicsBatch(other, has_action, own_context_share), generator=seeded(1)
        )
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
def test_own_context_is_what_the_network_makes_of_the_frames_before(config: DynamicsConfig) -> None:
    """Found as a rollout finds it: from noise, proprioception first, then the picture with that."""
    objective = objective_of(config)
    dynamics, past = objective.dynamics, random_values(config, 2, 5)
    tau = torch.ones(2, 5, dynamics.config.num_modalities)
    noise = objective._noise_of(past, seeded(4))
    own = objective._own_context(past, tau, noise, past, torch.tensor([True, False]), seeded(3))
    for part, given in ((own.latents, past.latents), (own.proprio, past.proprio)):
        assert torch.equal(part[1], given[1])
        assert torch.equal(part[:, 0], given[:, 0])
    assert torch.equal(own.action, past.action)
    expected = past.map(lambda x: x[:, 1:])
    for name in [name for name in ("proprio", "latents") if getattr(past, name).numel()]:
        target, target_tau = dynamics.blind(expected, tau[:, 1:], noise[:, 1:])
        if name == "proprio" and config.grids:
            target_tau = target_tau.clone()
            target_tau[..., -2] = 0.0
            target = objective.add_noise(expected, target_tau, seeded(3))
        earlier = past.map(lambda x: x[:, :-1])
        found = dynamics(earlier, tau[:, :-1], target, target_tau, context_noise=noise[:, :-1])
        expected = dataclasses.replace(expected, **{name: getattr(found, name)})
        if name == "proprio" and config.grids:
            past = dataclasses.replace(past, proprio=torch.cat([past.proprio[:, :1], found.proprio], dim=1))
    torch.testing.assert_close(own.latents[0, 1:], expected.latents[0])
    torch.testing.assert_close(own.proprio[0, 1:], expected.proprio[0])


@torch.no_grad()
def test_own_context_of_several_steps_is_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two steps each frame is simulated from one simulated from a true one."""
    config = dynamics_config()
    objective, values = objective_of(config, **FIND["picture"]), random_values(config, 1, 5)
    seen: list[torch.Tensor] = []
    forward = Dynamics.forward

    def spy(self: Dynamics, context: Values, *rest: torch.Tensor, **noise: torch.Tensor) -> Values:
        seen.append(context.latents)
        return forward(self, context, *rest, **noise)

    def without_noise(_: object, given: Values, tau: torch.Tensor, __: object) -> Values:
        return dataclasses.replace(given, latents=given.latents * tau[:, :, :1, None])

    monkeypatch.setattr(Dynamics, "forward", spy)
    monkeypatch.setattr(DynamicsObjective, "add_noise", without_noise)
    for steps in (1, 2, 3):
        objective(DynamicsBatch(values, torch.ones(1, 5, dtype=torch.bool), 1.0, steps), generator=seeded())
    once, twice, thrice = (context[0] for context in seen)
    for frames, simulated in ((once, 1), (twice, 2), (thrice, 3)):
        same = [torch.equal(frame, true) for frame, true in zip(frames, values.latents[0], strict=False)]
        assert same == [True] + [False] * 3, simulated
    # Frame t is min(t, steps) steps from a true one: more steps change only later frames.
    for fewer, more, num_same in ((once, twice, 2), (twice, thrice, 3)):
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(fewer, more, strict=True)]
        assert same == [True] * num_same + [False] * (4 - num_same)


@torch.no_grad()
def test_own_context_hides_the_true_past() -> None:
    """Only the first frame and the actions are left of what was recorded."""
    config = dynamics_config(proprio_dim=3)
    objective = objective_of(config)
    past = random_values(config, 1, 5)
    other = dataclasses.replace(past, latents=past.latents.clone(), proprio=past.proprio.clone())
    other.latents[:, -1] += 1.0
    other.proprio[:, -1] += 1.0
    tau = torch.ones(1, 5, objective.dynamics.config.num_modalities)
    uses_own = torch.tensor([True])
    noise = objective._noise_of(past, seeded(1))
    first, second = (objective._own_context(x, tau, noise, x, uses_own, seeded()) for x in (past, other))
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.proprio, second.proprio)


def test_two_frames_are_enough() -> None:
    """One frame of context and one target; of its own context there is then nothing to predict."""
    config = dynamics_config()
    objective = objective_of(config)
    for own_context_share in (0.0, 1.0):
        loss, _ = objective(
            DynamicsBatch(random_values(config, 2, 2), known(2, 2), own_context_share), generator=seeded()
        )
        assert loss.isfinite()
