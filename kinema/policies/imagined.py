"""Learning in imagination: a policy and a value that are trained in rollouts of a world alone.

The policy begins as the cloned one and stays near it. It follows the clipped policy gradient (PPO,
1707.06347), several steps from the same rollouts. Advantages are divided by their deviation, so that no
scale of rewards has to be known; values are distributions over symexp bins (DreamerV3, 2301.04104), returns
are lambda returns.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.model.heads import PlaceFeatures, ResidualMLP, TwoHot, to_device
from kinema.model.parts import load_part
from kinema.model.world import WorldError
from kinema.policies.cloned import Clone, CloneConfig, ClonedPolicy, draw, most_likely, new_clone
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World, load

IMAGINED_FILE = "imagined.safetensors"
"""Where ``kinema learn`` leaves the policy in the world's folder."""

RewardKind = Literal["recorded", "goal"]
Mixture = torch.distributions.MixtureSameFamily


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImaginedConfig:
    horizon: int = 64
    """Steps of an imagined rollout."""
    batch: int = 48
    """Rollouts of an update, all in one batch."""
    discount: float = 0.98
    """Worth of a reward one step later."""
    td_lambda: float = 0.95
    """Share of the rollout's own rewards in a return, step by step; the rest is the value."""
    passes: int = 2
    """How often an update learns from all of its rollouts, which cost more than learning from them."""
    minibatches: int = 6
    """Optimizer steps of each pass."""
    temperature: float = 0.25
    """Of the draws: density to the power of one over this. Recordings, and so clones, hold mistakes that
    rollouts need not repeat; at 1 they are as frequent."""
    least_std: float = 0.1
    """Deviation of the draws at least, in halves of the range of the actions: who always does the same learns
    nothing of what else could be done."""
    clip: float = 0.2
    """By how much of what it was an action's probability may change before an update loses interest in it."""
    prior_weight: float = 0.02
    """Weight of the divergence from the cloned policy."""
    width: int = 256
    """Width of the value's residual MLP."""
    depth: int = 2
    """Its blocks."""
    num_bins: int = 129
    """Bins of the value's distribution."""

    def __post_init__(self) -> None:
        counts = ("horizon", "batch", "passes", "minibatches", "width", "depth")
        for name, least in (*((name, 1) for name in counts), ("num_bins", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        if self.minibatches > self.batch:
            raise ValueError(f"minibatches={self.minibatches}: there are only batch={self.batch} rollouts")
        for name in ("temperature", "least_std", "clip"):
            if getattr(self, name) <= 0.0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be above 0")
        for name in ("discount", "td_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)}: it is a share, from 0 to 1")
        if self.discount == 1.0:
            raise ValueError("discount=1.0: rewards without end would have no sum; it must be below 1")
        if self.prior_weight < 0.0:
            raise ValueError(f"prior_weight={self.prior_weight}: it must be 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """What is wanted."""

    kind: RewardKind
    """``recorded``: what the heads foretell of the recorded rewards; ``goal``: steps by which the heads say
    that a goal came nearer."""
    goal: Float[Tensor, "1 G"] | None = None
    """The goal as ``kinema.model.goals.encode_goal`` gives it; the policy is told of it too."""

    def __post_init__(self) -> None:
        if self.kind == "goal" and self.goal is None:
            raise ValueError("reward 'goal' needs a goal")

    def value_range(self, world: World, discount: float) -> tuple[float, float]:
        """The least and the largest return that there can be."""
        heads = world.require_heads().config
        if self.kind == "goal":
            return -float(heads.max_steps), float(heads.max_steps)
        low, high = heads.reward_range
        return min(low, 0.0) / (1.0 - discount), max(high, 0.0) / (1.0 - discount)


@dataclasses.dataclass(frozen=True)
class ImaginedBatch:
    """Rollouts of ``H`` steps: step ``t`` leads from ``places[t + 1]`` to ``places[t + 2]``."""

    places: Float[Tensor, "S N G"]
    """The frame before the start, the start, and what each step led to: ``S`` is ``H + 2``."""
    actions: Float[Tensor, "H N A"]
    """Normalised, as they were drawn; what was done is clipped to [-1, 1]."""
    likelihoods: Float[Tensor, "H N"]
    """Log density of each action for the policy that drew it."""
    rewards: Float[Tensor, "H N"]
    continues: Float[Tensor, "H N"]
    """Probability that the step did not end the episode."""
    is_trusted: Bool[Tensor, "H N"]
    """Whether the step led to a frame that may be trusted. None is trusted after one that is not."""
    is_value_only: Tensor
    """Whether the policy is to stay as it is, while values that were never learned would mislead it."""

    def to(self, device: torch.device) -> "ImaginedBatch":
        """The same on another device."""
        return ImaginedBatch(**to_device(self, device))

    def select(self, indices: Int[Tensor, " K"]) -> "ImaginedBatch":
        """Some of the rollouts."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ImaginedBatch(
            **{name: part[:, indices] if part.ndim else part for name, part in parts.items()}
        )


class Value(nn.Module):
    """Expected return from a frame and the one before it, as logits of bins."""

    def __init__(self, config: ImaginedConfig, world: World, value_range: tuple[float, float]):
        super().__init__()
        self.features = PlaceFeatures(world.place_sizes)
        self.bins = TwoHot(*value_range, config.num_bins)
        num_inputs = self.features.size + sum(world.place_sizes)
        self.network = ResidualMLP(num_inputs, config.num_bins, config.width, config.depth)

    def forward(self, before: Float[Tensor, "*b G"], now: Float[Tensor, "*b G"]) -> Float[Tensor, "*b K"]:
        shape = now.shape[:-1]
        before, now = before.reshape(-1, before.shape[-1]), now.reshape(-1, now.shape[-1])
        return self.network(torch.cat([self.features(now), now - before], dim=-1)).unflatten(0, shape)


class ImaginedObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: PPO's clipped objective and the value's cross entropy."""

    def __init__(self, policy: Clone, world: World, config: ImaginedConfig, reward: Reward):
        """The policy learns; a copy of it, as it is now, is the prior."""
        super().__init__()
        self.config, self.reward = config, reward
        self.policy = policy
        value_range = reward.value_range(world, config.discount)
        self.value, self._worst = Value(config, world, value_range), value_range[0]
        # In a tuple, so that it is no part of the module: it is neither trained nor saved.
        self._prior = (copy.deepcopy(policy).requires_grad_(False),)

    def distribution(self, policy: Clone, before: Tensor, now: Tensor) -> Mixture:
        """Of the next action, at the temperature, for frames ``N G``."""
        goal = now if self.reward.goal is None else self.reward.goal.to(now.device).expand(len(now), -1)
        has_goal = torch.full((len(now),), self.reward.goal is not None, device=now.device)
        found = first_action(policy(before, now, goal, has_goal), policy.action_dim)
        return sharpened(found, self.config.temperature, self.config.least_std)

    def forward(
        self, batch: ImaginedBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        logits = self.value(batch.places[:-1], batch.places[1:])
        values = self.value.bins.decode(logits.flatten(0, 1)).unflatten(0, logits.shape[:2]).detach()
        returns = lambda_returns(
            batch.rewards,
            values,
            batch.continues,
            batch.is_trusted,
            discount=config.discount,
            td_lambda=config.td_lambda,
            worst=self._worst,
        )
        # Steps behind the end of an episode matter as little as they are likely to be reached, and those
        # behind the loss of trust not at all.
        goes_on = (batch.continues * batch.is_trusted)[:-1]
        weight = torch.cat([torch.ones_like(batch.continues[:1]), goes_on]).cumprod(0).flatten()
        targets = returns.flatten()
        value_loss = _mean(self.value.bins.loss(logits[:-1].flatten(0, 1), targets), weight)

        loss = value_loss
        metrics = {
            "reward": _mean(batch.rewards.flatten(), weight),
            "return": _mean(targets, weight),
            "value_error": _mean((targets - values[:-1].flatten()).abs(), weight),
            "trusted": batch.is_trusted.float().mean(),
        }
        if not batch.is_value_only:
            policy_loss, of_policy = self._policy_loss(batch, (returns - values[:-1]).flatten(), weight)
            loss, metrics = loss + policy_loss, metrics | of_policy
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _policy_loss(
        self, batch: ImaginedBatch, advantage: Float[Tensor, " HN"], weight: Float[Tensor, " HN"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        before, now = batch.places[:-2].flatten(0, 1), batch.places[1:-1].flatten(0, 1)
        found = self.distribution(self.policy, before, now)
        with torch.no_grad():
            prior = self.distribution(self._prior[0], before, now)
        advantage = advantage - _mean(advantage, weight)
        advantage = advantage / _mean(advantage.square(), weight).sqrt().clamp_min(1e-6)
        ratio = (found.log_prob(batch.actions.flatten(0, 1)) - batch.likelihoods.flatten()).exp()
        clipped = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
        loss = -_mean(torch.minimum(ratio * advantage, clipped * advantage), weight)
        divergence = _mean(divergence_bound(found, prior), weight)
        metrics = {"divergence": divergence, "clipped": _mean((ratio != clipped).float(), weight)}
        return loss + config.prior_weight * divergence, metrics


def _mean(values: Float[Tensor, " N"], weight: Float[Tensor, " N"]) -> Tensor:
    """Weighted mean; 0 where nothing weighs."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


def first_action(found: Mixture, action_dim: int) -> Mixture:
    """The distribution of the first action of a chunk: numbers of a mode are independent of each other, so
    the others are left out."""
    parts = found.component_distribution
    normal = torch.distributions.Normal(parts.mean[..., :action_dim], parts.stddev[..., :action_dim])
    return Mixture(found.mixture_distribution, torch.distributions.Independent(normal, 1))


def sharpened(found: Mixture, temperature: float, least_std: float) -> Mixture:
    """The distribution to the power of one over ``temperature``, as if its modes did not overlap and were
    equally wide, which they are by ``least_std`` at least."""
    modes = found.component_distribution
    stds = (modes.stddev * math.sqrt(temperature)).clamp_min(least_std)
    colder = torch.distributions.Normal(modes.mean, stds)
    weights = torch.distributions.Categorical(logits=found.mixture_distribution.logits / temperature)
    return Mixture(weights, torch.distributions.Independent(colder, 1))


def divergence_bound(found: Mixture, prior: Mixture) -> Float[Tensor, " N"]:
    """An upper bound of the Kullback-Leibler divergence of mixtures whose modes belong together: that of the
    weights, and the mean one of the modes (chain rule; Hershey and Olsen 2007, section 7). It is 0 where they
    are the same."""
    weights, others = found.mixture_distribution, prior.mixture_distribution
    of_modes = torch.distributions.kl_divergence(found.component_distribution, prior.component_distribution)
    of_weights = torch.distributions.kl_divergence(weights, others)
    return of_weights + (weights.probs * of_modes).sum(-1)


def lambda_returns(
    rewards: Float[Tensor, "H N"],
    values: Float[Tensor, "H+1 N"],
    continues: Float[Tensor, "H N"],
    is_trusted: Bool[Tensor, "H N"],
    *,
    discount: float,
    td_lambda: float,
    worst: float,
) -> Float[Tensor, "H N"]:
    """``R[t] = r[t] + discount * c[t] * ((1 - lambda) * v[t + 1] + lambda * R[t + 1])`` (Sutton and Barto,
    section 12.1), ``v[H]`` behind the last step. A step that cannot be trusted is not looked at: its return
    is the worst that there is, so that it is not worth while to go where the world knows nothing (2005.05951,
    section 4)."""
    later, returns = values[-1], []
    for t in reversed(range(len(rewards))):
        ahead = torch.lerp(values[t + 1], later, td_lambda)
        later = torch.where(is_trusted[t], rewards[t] + discount * continues[t] * ahead, worst)
        returns.append(later)
    return torch.stack(returns[::-1])


def imagine(
    objective: ImaginedObjective,
    sessions: SimulationBatch,
    *,
    num_steps: int,
    rng: np.random.Generator,
    min_trust: float | None = None,
    is_greedy: bool = False,
    is_value_only: bool = False,
) -> ImaginedBatch:
    """Let the policy act in sessions of a world, in latents; they move on.

    Args:
        objective: the policy, and what it is for.
        sessions: where it begins.
        num_steps: of the rollouts.
        rng: of the actions.
        min_trust: steps count as not trusted from where trust falls under this.
        is_greedy: take the likeliest actions; else draw them.
        is_value_only: passed on.

    Raises:
        WorldError: ``min_trust``, and the world does not tell trust.
    """
    world = sessions.world
    check_trust(world, min_trust)
    before = world.place(*sessions.frame_before)
    places = [before, world.place(sessions.latents, sessions.normalized_proprio)]
    actions, likelihoods, rewards, continues, trusted = [], [], [], [], []
    is_trusted = torch.ones(len(sessions), dtype=torch.bool)
    with torch.inference_mode():
        for _ in range(num_steps):
            found = objective.distribution(objective.policy, *places[-2:])
            action = most_likely(found) if is_greedy else draw(found, rng)
            done = world.action_normalizer.restore(action.clamp(-1.0, 1.0))
            step = sessions.step(done.cpu().numpy(), decode=False)
            places.append(world.place(sessions.latents, sessions.normalized_proprio))
            reward = torch.from_numpy(np.asarray(step.reward, dtype=np.float32))
            if objective.reward.kind == "goal" and objective.reward.goal is not None:
                heads, goal = world.require_heads(), objective.reward.goal.expand(len(sessions), -1)
                reward = (heads.distance(places[-2], goal) - heads.distance(places[-1], goal)).cpu()
            if min_trust is not None:
                is_trusted = is_trusted & torch.from_numpy(step.trust >= min_trust)
            actions.append(action)
            likelihoods.append(found.log_prob(action))
            rewards.append(reward)
            continues.append(torch.from_numpy(1.0 - np.asarray(step.termination, dtype=np.float32)))
            trusted.append(is_trusted)
    # Cloned outside inference mode, so that autograd may save them.
    return ImaginedBatch(
        torch.stack(places).clone(),
        torch.stack(actions).clone(),
        torch.stack(likelihoods).clone(),
        torch.stack(rewards).clone(),
        torch.stack(continues).clone(),
        torch.stack(trusted).clone(),
        torch.tensor(is_value_only),
    )


def check_trust(world: World, min_trust: float | None) -> None:
    """Raises WorldError where trust is asked for that a world does not tell."""
    if min_trust is not None and world.manifold is None:
        raise WorldError(f"min_trust={min_trust}: world '{world.name}' does not tell trust")


class ImaginedPolicy(ClonedPolicy):
    """A policy that was learned in imagination, wherever a cloned one acts: it looks again after each
    action, as it did when it learned."""

    @property
    def actions_per_look(self) -> int:
        """Actions of a chunk that are done."""
        return 1


def load_imagined(world: World, folder: str | Path) -> Clone:
    """The policy that ``kinema learn`` left in a world's folder.

    Raises:
        WorldError: there is none; it says how to get it.
        PartError: the file is corrupt or belongs to another world.
    """
    path = Path(folder) / IMAGINED_FILE
    if not path.is_file():
        raise WorldError(
            f"{path}: there is no policy that was learned in imagination; learn one: kinema learn {folder} "
            "--data DATA"
        )
    return load_part(path, CloneConfig, lambda config: new_clone(world, config)).to(world.device)


def make(
    observation_space: Any, *, world: str, goal: str | None = None, noise: float = 0.0
) -> ImaginedPolicy:
    """The policy from plain arguments, as ``kinema record --policy imagined --policy-args`` has them: those
    of ``cloned``. A policy that was learned for a goal wants that goal."""
    from kinema.data.drawing import read_frame

    loaded = load(world)
    picture: np.ndarray | Mapping[str, np.ndarray] | None = None if goal is None else read_frame(goal)
    return ImaginedPolicy(
        loaded, load_imagined(loaded, world), observation_space=observation_space, goal=picture, noise=noise
    )
