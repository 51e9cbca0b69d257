"""Learning in imagination: the parts against what they are defined to be, and the command in miniature."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinema import cli
from kinema.model.goals import encode_goal
from kinema.model.parts import save_part
from kinema.model.world import WorldError
from kinema.policies.cloned import CLONE_FILE, Clone, CloneConfig, new_clone
from kinema.policies.imagined import (
    IMAGINED_FILE,
    ImaginedBatch,
    ImaginedConfig,
    ImaginedObjective,
    ImaginedPolicy,
    Reward,
    divergence_bound,
    first_action,
    imagine,
    lambda_returns,
    load_imagined,
    sharpened,
)
from kinema.simulation.world import World, load
from kinema.train import loop as loop_module
from kinema.train.learn import LearnConfig, learn
from kinema.types import CheckpointError, Seen

from ..worlds import (
    CAMERA,
    random_actions,
    random_frames,
    random_heads,
    random_world,
    randomize,
    write_exact_world,
)

SMALL = ImaginedConfig(horizon=4, batch=6, minibatches=2, width=16, depth=1, num_bins=9)


def clone_of(world: World, seed: int = 0) -> Clone:
    clone = new_clone(world, CloneConfig(width=16, depth=1, chunk=3, num_modes=3))
    randomize(clone, seed)
    return clone


@pytest.fixture(scope="module")
def world() -> World:
    return random_heads(random_world(proprio_dim=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagine") / "data"
    return write_exact_world(root, lengths=(14, 12), has_proprio=True)


# Returns.


def test_returns_are_the_mean_of_those_of_all_lengths() -> None:
    """Known answer: the lambda return is the average of n-step returns (Sutton and Barto, equation 12.2)."""
    rng = np.random.default_rng(0)
    rewards, continues = rng.normal(size=(5, 1)), rng.uniform(0.5, 1.0, (5, 1))
    values = rng.normal(size=(6, 1))
    discount, td_lambda = 0.9, 0.7

    def after(num: int) -> float:
        total, weight = 0.0, 1.0
        for t in range(num):
            total += weight * rewards[t, 0]
            weight *= discount * continues[t, 0]
        return total + weight * values[num, 0]

    expected = sum(
        (1 - td_lambda) * td_lambda ** (n - 1) * after(n) for n in range(1, 5)
    ) + td_lambda**4 * after(5)
    found = lambda_returns(
        *(torch.from_numpy(x) for x in (rewards, values, continues)),
        torch.ones(5, 1, dtype=torch.bool),
        discount=discount,
        td_lambda=td_lambda,
        worst=-100.0,
    )
    assert found[0, 0].item() == pytest.approx(expected)


def test_to_lose_trust_is_the_worst_there_is() -> None:
    rewards, values, continues = torch.ones(4, 2), torch.arange(10.0).view(5, 2), torch.ones(4, 2)
    trusted = torch.tensor([[True, True], [True, True], [False, True], [False, True]])

    def returns(rewards: torch.Tensor) -> torch.Tensor:
        return lambda_returns(rewards, values, continues, trusted, discount=0.9, td_lambda=0.8, worst=-5.0)

    found, changed = returns(rewards), rewards.clone()
    changed[2:, 0] = 1e6
    torch.testing.assert_close(returns(changed), found, rtol=0, atol=0)
    assert found[2, 0] == -5.0
    assert found[1, 0].item() == pytest.approx(1.0 + 0.9 * (0.2 * values[2, 0].item() + 0.8 * -5.0))
    assert found[1, 1].item() == pytest.approx(
        1.0 + 0.9 * (0.2 * values[2, 1].item() + 0.8 * found[2, 1].item())
    )
    assert (found[:3, 0] < found[:3, 1]).all()


# Distributions.


def test_the_first_action_is_that_of_the_chunk(world: World) -> None:
    clone, places = clone_of(world), torch.randn(3, sum(world.place_sizes))
    with torch.no_grad():
        whole = clone(places, places + 1, places, torch.zeros(3, dtype=torch.bool))
    first = first_action(whole, world.action_dim)
    torch.manual_seed(0)
    drawn = whole.sample(torch.Size([40_000]))[..., :2]
    torch.testing.assert_close(drawn.mean(0), first.mean, rtol=0.03, atol=0.03)
    torch.testing.assert_close(drawn.var(0), first.variance, rtol=0.06, atol=0.03)


def test_the_divergence_is_bounded(world: World) -> None:
    places = torch.randn(4, sum(world.place_sizes))
    with torch.no_grad():
        found, prior = (
            first_action(clone_of(world, seed)(places, places, places, torch.ones(4, dtype=torch.bool)), 2)
            for seed in (0, 1)
        )
    torch.testing.assert_close(divergence_bound(found, found), torch.zeros(4))
    torch.manual_seed(0)
    drawn = found.sample(torch.Size([4000]))
    exact = (found.log_prob(drawn) - prior.log_prob(drawn)).mean(0)
    assert (divergence_bound(found, prior) > exact - 0.05).all()
    assert (exact > 0.05).all()


def test_sharpened_is_a_power_of_the_density() -> None:
    """Known answer: for modes far apart and equally wide, up to a constant."""
    means = torch.tensor([[[-5.0, 0.0], [5.0, 1.0]]])
    normal = torch.distributions.Normal(means, torch.tensor([0.3, 0.5]).expand_as(means))
    modes = torch.distributions.Independent(normal, 1)
    weights = torch.distributions.Categorical(logits=torch.tensor([[0.0, 1.0]]))
    found = torch.distributions.MixtureSameFamily(weights, modes)
    places = (means + 0.2 * torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))).flatten(
        0, 2
    )
    difference = sharpened(found, 0.25, 1e-3).log_prob(places) - found.log_prob(places) / 0.25
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-3)
    torch.testing.assert_close(sharpened(found, 1.0, 1e-3).log_prob(places), found.log_prob(places))
    assert (sharpened(found, 0.25, 0.7).component_distribution.stddev == 0.7).all()


# Rollouts.


def objective_of(world: World, reward: Reward | None = None) -> ImaginedObjective:
    torch.manual_seed(0)
    objective = ImaginedObjective(clone_of(world), world, SMALL, reward or Reward(kind="recorded"))
    randomize(objective.value)
    return objective


def test_a_rollout_is_what_the_sessions_do(world: World) -> None:
    session = world.start(random_frames(3), random_actions(2), proprio=np.zeros((3, 2)))
    sessions = session._batch.select([0, 0], [5, 6])
    batch = imagine(objective_of(world), sessions, num_steps=3, rng=np.random.default_rng(0))
    assert batch.states.shape == (5, 2, sum(world.place_sizes))
    again = session._batch.select([0, 0], [5, 6])
    for t in range(3):
        done = world.action_normalizer.restore(batch.actions[t].clamp(-1, 1)).numpy()
        step = again.step(done, decode=False)
        torch.testing.assert_close(batch.states[t + 2], world.place(again.latents, again.normalized_proprio))
        np.testing.assert_allclose(batch.rewards[t], step.reward, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.continues[t], 1 - step.termination, rtol=1e-4, atol=1e-5)
    assert batch.is_trusted.all()
    assert session.num_steps == 0


def test_trust_cuts_a_rollout_short(world: World) -> None:
    sessions = world.start(random_frames(3), random_actions(2), proprio=np.zeros((3, 2))).fork(8)
    same = sessions.fork(1)
    free = imagine(objective_of(world), sessions, num_steps=6, rng=np.random.default_rng(0))
    steps = [
        same.step(world.action_normalizer.restore(action.clamp(-1, 1)).numpy(), decode=False)
        for action in free.actions
    ]
    trust = np.stack([step.trust for step in steps])
    threshold = float(np.median(trust))
    sessions = world.start(random_frames(3), random_actions(2), proprio=np.zeros((3, 2))).fork(8)
    cut = imagine(
        objective_of(world), sessions, num_steps=6, rng=np.random.default_rng(0), min_trust=threshold
    )
    assert 0.2 < cut.is_trusted.float().mean() < 0.8
    assert (cut.is_trusted[1:] <= cut.is_trusted[:-1]).all()
    objective = objective_of(world)
    # What is behind the loss of trust changes neither the loss nor what is learned.
    spoiled = dataclasses.replace(cut, rewards=torch.where(cut.is_trusted, cut.rewards, 1e3))
    losses = []
    for batch in (cut, spoiled):
        objective.zero_grad()
        loss, _ = objective(batch)
        loss.backward()
        losses.append((loss, objective.policy.network.last.bias.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1])
    # To lose it is worth less than what comes of it.
    trusting = dataclasses.replace(cut, is_trusted=torch.ones_like(cut.is_trusted))
    assert objective(trusting)[1]["return"] > objective(cut)[1]["return"]


def test_a_goal_comes_nearer_by_its_reward(world: World) -> None:
    goal = encode_goal(world, random_frames(seed=4)).clone()
    objective = objective_of(world, Reward(kind="goal", goal=goal))
    session = world.start(random_frames(3), random_actions(2), proprio=np.zeros((3, 2)))
    batch = imagine(objective, session._batch.select([0], [1]), num_steps=3, rng=np.random.default_rng(0))
    with torch.inference_mode():
        first, last = (world.require_heads().distance(batch.states[t], goal) for t in (1, -1))
    torch.testing.assert_close(batch.rewards.sum(0), first - last, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="reward 'goal' needs a goal"):
        Reward(kind="goal")


def known_batch(objective: ImaginedObjective, num: int, generator: torch.Generator) -> ImaginedBatch:
    """One step from anywhere; good is to do the first number of the action above 0.2."""
    size = sum(objective.policy.features.sizes)
    places = 0.1 * torch.randn(3, num, size, generator=generator)
    with torch.no_grad():
        found = objective.distribution(objective.policy, places[0], places[1])
        torch.manual_seed(int(torch.randint(10**6, (1,), generator=generator)))
        actions = found.sample()[None]
        likelihoods = found.log_prob(actions[0])[None]
    ones = torch.ones(1, num)
    reward = (actions[..., 0] > 0.2).float()
    return ImaginedBatch(places, actions, likelihoods, reward, 0 * ones, ones.bool(), torch.tensor(False))


def test_the_policy_does_what_is_rewarded_but_stays_near_the_prior(world: World) -> None:
    shares, divergences = {}, {}
    for weight in (0.01, 10.0):
        config = dataclasses.replace(SMALL, prior_weight=weight)
        objective = ImaginedObjective(clone_of(world), world, config, Reward(kind="recorded"))
        optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        rewards = []
        for _ in range(120):
            batch = known_batch(objective, 128, generator)
            loss, metrics = objective(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rewards.append(float(batch.rewards.mean()))
            divergences[weight] = float(metrics["divergence"])
        shares[weight] = np.mean(rewards[:3]), np.mean(rewards[-10:])
    assert shares[0.01][1] > 0.9
    assert shares[0.01][1] > shares[0.01][0] + 0.2
    assert shares[10.0][1] < shares[0.01][1] - 0.1
    assert divergences[10.0] < 0.2 * divergences[0.01]


def test_only_the_value_learns_at_first(world: World) -> None:
    objective = objective_of(world)
    batch = known_batch(objective, 8, torch.Generator().manual_seed(0))
    loss, _ = objective(dataclasses.replace(batch, is_value_only=torch.tensor(True)))
    loss.backward()
    assert all(p.grad is None for p in objective.policy.parameters())
    assert objective.value.network.last.weight.grad.abs().sum() > 0


# The command.


def config_of(world: Path, data: Path, **fields: Any) -> LearnConfig:
    small = {"updates": 3, "starts": 4, "episodes": 3, "steps": 3, "evaluate_every": 2, "learning": SMALL}
    return LearnConfig(world=str(world), data=str(data), precision="float32", **{**small, **fields})


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    world.save(tmp_path / "world")
    clone = clone_of(world)
    save_part(tmp_path / "world" / CLONE_FILE, clone.config, clone)
    return tmp_path / "world"


def test_stopped_after_every_update_it_is_the_same_run(folder: Path, data: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"min_trust": 0.2, "compare": True}
    assert learn(config_of(folder, data, out=tmp_path / "one", **fields)) == 0
    calls = 0
    while learn(config_of(folder, data, out=tmp_path / "other", max_minutes=1e-9, **fields)) == 130:
        calls += 1
    assert calls == 2 + 2
    names = [IMAGINED_FILE, "imagination/imagine-curve.json", "imagination/imagine-free-curve.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    curve = json.loads((tmp_path / "one" / names[1]).read_text())
    assert list(curve) == ["0", "2", "3"]
    assert all(len(point["imagined"]) == 3 for point in curve.values())
    result = json.loads((tmp_path / "one" / "imagination" / "imagine.json").read_text())
    assert {series["key"] for series in result["series"]} == {"imagine/imagined", "imagine-free/imagined"}
    with pytest.raises(CheckpointError, match="it holds another run"):
        learn(config_of(folder, data, out=tmp_path / "one", seed=1, **fields))


GOLDENS: list[tuple[float, float]] = [(2.1208, 2.1477), (2.075, 2.556), (2.0662, 3.5771)]
"""Loss and gradient norm of the last minibatch of the first updates, in single precision."""


def test_first_updates(folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    assert learn(config_of(folder, data, out=tmp_path / "out", device="cpu")) == 0
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    got = [
        (float(f"{line['loss']:.5g}"), float(f"{line['gradient_norm']:.5g}"))
        for line in lines
        if "loss" in line
    ]
    assert len(got) == len(GOLDENS), f"got {got}"
    np.testing.assert_allclose(got, GOLDENS, rtol=0.02, err_msg=f"got {got}")


def test_the_policy_acts_by_its_name(folder: Path, data: Path, world: World) -> None:
    assert learn(config_of(folder, data)) == 0
    loaded = load(folder)
    policy = ImaginedPolicy(loaded, load_imagined(loaded, folder))
    policy.begin(np.random.default_rng(0))
    seen = Seen(frames={CAMERA: random_frames()}, proprio=np.zeros(2, np.float32))
    first = policy.choose(seen)
    other = policy.choose(Seen(frames={CAMERA: random_frames(seed=1)}, proprio=np.ones(2, np.float32)))
    # It looks again after each action: the second is not what it had in mind at the first look.
    again = ImaginedPolicy(loaded, load_imagined(loaded, folder))
    again.begin(np.random.default_rng(0))
    np.testing.assert_array_equal(first, again.choose(seen))
    assert np.abs(other - again.choose(seen)).max() > 1e-4


def test_mistakes_are_explained(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorldError, match=r"no policy that was learned in imagination; .* kinema learn"):
        load_imagined(load(folder), folder)
    with pytest.raises(ValueError, match="--reward goal: give a frame"):
        config_of(folder, data, reward="goal")
    with pytest.raises(ValueError, match="--compare: it compares with and without --min-trust"):
        config_of(folder, data, compare=True)
    with pytest.raises(ValueError, match="horizon is 0"):
        ImaginedConfig(horizon=0)
    with pytest.raises(ValueError, match="discount=1"):
        ImaginedConfig(discount=1.0)
    with pytest.raises(ValueError, match="minibatches=6: there are only batch=4"):
        ImaginedConfig(batch=4)
    words = ["learn", "pusht", "--data", str(data)]
    assert cli.main(words) == 2
    assert "name one for the policy with --out" in capsys.readouterr().err
    assert cli.main(["imagine", *words[1:]]) == 2
    assert "`kinema imagine` is now `kinema learn`" in capsys.readouterr().err
    random_world(proprio_dim=2).save(tmp_path / "bare")
    assert cli.main(["learn", str(tmp_path / "bare"), "--data", str(data)]) == 2
    assert "has no heads" in capsys.readouterr().err
    random_heads(random_world(proprio_dim=2)).save(tmp_path / "bare")
    assert cli.main(["learn", str(tmp_path / "bare"), "--data", str(data)]) == 2
    assert "there is no cloned policy" in capsys.readouterr().err
