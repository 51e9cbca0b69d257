"""Learning in imagination: a policy and a value that are trained in rollouts of a world alone.

The policy begins as the cloned one and stays near it. It follows the clipped policy gradient (PPO,
1707.06347), several steps from the same rollouts. Advantages are divided by their deviation, so that no
scale of rewards has to be known; values are distributions over symexp bins (DreamerV3, 2301.04104), returns
are lambda returns.
"""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.model.heads import PlaceFeatures, ResidualMLP, TwoHot, to_device
from kinema.model.world import WorldError
from kinema.options import at_least
from kinema.policies.cloned import (
    Clone,
    ClonedPolicy,
    Mixture,
    draw,
    load_policy,
    most_likely,
)
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World, load

IMAGINED_FILE = "imagined.safetensors"
"""Where ``kinema learn`` leaves the policy in the world's folder."""

RewardKind = Literal["recorded", "goal"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImaginedConfig:
    horizon: int = 64
    """Steps of an imagined rollout."""
    batch: int = 48
    """Rollouts of an update, all in one batch."""
    discount: float = 0.98
    """Weight of a reward one step later."""
    td_lambda: float = 0.95
    """Share of the rollout's own rewards in a return, step by step; the rest is the value."""
    passes: int = 2
    """Passes over the rollouts of an update, which cost more than learning from them."""
    minibatches: int = 6
    """Optimizer steps of each pass."""
    temperature: float = 0.25
    """Temperature of the draws: density to the power of one over this. Recordings, and so clones, hold
    mistakes that rollouts need not repeat; at 1 they are as frequent."""
    least_std: float = 0.1
    """Least deviation of the draws, in halves of the range of the actions: a policy that always acts alike
    learns nothing of other actions."""
    clip: float = 0.2
    """Relative change of an action's probability at which its gradient is cut off."""
    prior_weight: float = 0.02
    """Weight of the divergence from the cloned policy."""
    width: int = 256
    """Width of the value's residual MLP."""
    depth: int = 2
    """Blocks of the value's residual MLP."""
    num_bins: int = 129
    """Bins of the value's distribution."""

    def __post_init__(self) -> None:
        at_least(
            self, horizon=1, batch=1, passes=1, minibatches=1, width=1, depth=1, num_bins=2, prior_weight=0
        )
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward that a policy learns to maximise."""

    kind: RewardKind
    """``recorded``: recorded rewards as the heads predict them; ``goal``: predicted steps by which a goal
    came nearer."""
    goal: Float[Tensor, "1 G"] | None = None
    """The goal as ``kinema.model.goals.encode_goal`` gives it; the policy gets it too."""

    def __post_init__(self) -> None:
        if self.kind == "goal" and self.goal is None:
            raise ValueError("reward 'goal' needs a goal")

    def value_range(self, world: World, discount: float) -> tuple[float, float]:
        """Return the least and the largest possible return."""
        heads = world.require_heads().config
        if self.kind == "goal":
            return -float(heads.max_steps), float(heads.max_steps)
        low, high = heads.reward_range
        return min(low, 0.0) / (1.0 - discount), max(high, 0.0) / (1.0 - discount)


@dataclasses.dataclass(frozen=True)
class ImaginedBatch:
    """``N`` rollouts of ``H`` steps: step ``t`` leads from ``states[t + 1]`` to ``states[t + 2]``."""

    states: Float[Tensor, "S N G"]
    """State features of the frame before the start, of the start, and after each step: ``S`` is ``H + 2``."""
    actions: Float[Tensor, "H N A"]
    """Normalised, as they were drawn; executed ones are clipped to [-1, 1]."""
    likelihoods: Float[Tensor, "H N"]
    """Log density of each action for the policy that drew it."""
    rewards: Float[Tensor, "H N"]
    continues: Float[Tensor, "H N"]
    """Probability that the step did not end the episode."""
    is_trusted: Bool[Tensor, "H N"]
    """True where the step led to a trusted frame. No step is trusted after one that is not."""
    is_value_only: Tensor
    """True while only the value learns: values that were never learned would mislead the policy."""

    def to(self, device: torch.device) -> "ImaginedBatch":
        """Move all to a device."""
        return ImaginedBatch(**to_device(self, device))

    def select(self, indices: Int[Tensor, " K"]) -> "ImaginedBatch":
        """Select rollouts."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ImaginedBatch(
            **{name: part[:, indices] if part.ndim else part for name, part in parts.items()}
        )


class Value(nn.Module):
    """Predicts the return from a frame and the one before it, as logits of bins."""

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
        """Make a copy of the policy, as it is now, the prior."""
        super().__init__()
        self.config, self.reward = config, reward
        self.policy = policy
        value_range = reward.value_range(world, config.discount)
        self.value, self._worst = Value(config, world, value_range), value_range[0]
        # In a tuple, so that it is no part of the module: it is neither trained nor saved.
        self._prior = (copy.deepcopy(policy).requires_grad_(False),)

    def distribution(self, policy: Clone, before: Tensor, now: Tensor) -> Mixture:
        """Return the distribution of the next action, at the temperature, for state features ``N G``."""
        goal = now if self.reward.goal is None else self.reward.goal.to(now.device).expand(len(now), -1)
        has_goal = torch.full((len(now),), self.reward.goal is not None, device=now.device)
        first = first_action(policy(before, now, goal, has_goal), policy.action_dim)
        return sharpened(first, self.config.temperature, self.config.least_std)

    def forward(
        self, batch: ImaginedBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        logits = self.value(batch.states[:-1], batch.states[1:])
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
        # Steps after the end of an episode count by the probability of reaching them, and those after the
        # loss of trust not at all.
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
        before, now = batch.states[:-2].flatten(0, 1), batch.states[1:-1].flatten(0, 1)
        current = self.distribution(self.policy, before, now)
        with torch.no_grad():
            prior = self.distribution(self._prior[0], before, now)
        advantage = advantage - _mean(advantage, weight)
        advantage = advantage / _mean(advantage.square(), weight).sqrt().clamp_min(1e-6)
        ratio = (current.log_prob(batch.actions.flatten(0, 1)) - batch.likelihoods.flatten()).exp()
        clipped = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
        loss = -_mean(torch.minimum(ratio * advantage, clipped * advantage), weight)
        divergence = _mean(divergence_bound(current, prior), weight)
        metrics = {"divergence": divergence, "clipped": _mean((ratio != clipped).float(), weight)}
        return loss + config.prior_weight * divergence, metrics


def _mean(values: Float[Tensor, " N"], weight: Float[Tensor, " N"]) -> Tensor:
    """Return the weighted mean; 0 where all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


def first_action(chunk: Mixture, action_dim: int) -> Mixture:
    """Return the distribution of the first action of a chunk: the numbers of a mode are independent of each
    other, so the others are left out."""
    modes = chunk.component_distribution
    normal = torch.distributions.Normal(modes.mean[..., :action_dim], modes.stddev[..., :action_dim])
    return Mixture(chunk.mixture_distribution, torch.distributions.Independent(normal, 1))


def sharpened(mixture: Mixture, temperature: float, least_std: float) -> Mixture:
    """Return the distribution to the power of one over ``temperature``, as if its modes did not overlap and
    were equally wide; each is at least ``least_std`` wide."""
    modes = mixture.component_distribution
    stds = (modes.stddev * math.sqrt(temperature)).clamp_min(least_std)
    colder = torch.distributions.Normal(modes.mean, stds)
    weights = torch.distributions.Categorical(logits=mixture.mixture_distribution.logits / temperature)
    return Mixture(weights, torch.distributions.Independent(colder, 1))


def divergence_bound(mixture: Mixture, prior: Mixture) -> Float[Tensor, " N"]:
    """Return an upper bound of the Kullback-Leibler divergence of mixtures whose modes belong together:
    that of the weights, and the mean one of the modes (chain rule; Hershey and Olsen 2007, section 7). It
    is 0 where they are the same."""
    weights, others = mixture.mixture_distribution, prior.mixture_distribution
    kl_divergence = torch.distributions.kl_divergence
    of_modes = kl_divergence(mixture.component_distribution, prior.component_distribution)
    return kl_divergence(weights, others) + (weights.probs * of_modes).sum(-1)


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
    """Return ``R[t] = r[t] + discount * c[t] * ((1 - lambda) * v[t + 1] + lambda * R[t + 1])`` (Sutton and
    Barto, section 12.1), with ``v[H]`` after the last step. The return of a step that is not trusted is
    ``worst``, so that the policy avoids states that the world was not trained on (2005.05951, section
    4)."""
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
    """Let the policy act in sessions of a world, which move on, without decoding frames.

    Args:
        objective: the policy and its reward.
        sessions: sessions to act in.
        num_steps: steps of the rollouts.
        rng: source of the actions' randomness.
        min_trust: steps count as not trusted once trust falls under this.
        is_greedy: take the likeliest actions; else draw them.
        is_value_only: passed on.

    Raises:
        WorldError: ``min_trust`` in a world that does not compute trust.
    """
    world = sessions.world
    check_trust(world, min_trust)
    before = world.place(*sessions.frame_before)
    states = [before, world.place(sessions.latents, sessions.normalized_proprio)]
    actions, likelihoods, rewards, continues, trusted = [], [], [], [], []
    is_trusted = torch.ones(len(sessions), dtype=torch.bool)
    with torch.inference_mode():
        for _ in range(num_steps):
            mixture = objective.distribution(objective.policy, *states[-2:])
            action = most_likely(mixture) if is_greedy else draw(mixture, rng)
            executed = world.action_normalizer.restore(action.clamp(-1.0, 1.0))
            step = sessions.step(executed.cpu().numpy(), decode=False)
            states.append(world.place(sessions.latents, sessions.normalized_proprio))
            reward = torch.from_numpy(np.asarray(step.reward, dtype=np.float32))
            if objective.reward.kind == "goal" and objective.reward.goal is not None:
                heads, goal = world.require_heads(), objective.reward.goal.expand(len(sessions), -1)
                reward = (heads.distance(states[-2], goal) - heads.distance(states[-1], goal)).cpu()
            if min_trust is not None:
                is_trusted = is_trusted & torch.from_numpy(step.trust >= min_trust)
            actions.append(action)
            likelihoods.append(mixture.log_prob(action))
            rewards.append(reward)
            continues.append(torch.from_numpy(1.0 - np.asarray(step.termination, dtype=np.float32)))
            trusted.append(is_trusted)
    # Cloned outside inference mode, so that autograd may save them.
    parts = (states, actions, likelihoods, rewards, continues, trusted)
    stacked = (torch.stack(part).clone() for part in parts)
    return ImaginedBatch(*stacked, is_value_only=torch.tensor(is_value_only))


def check_trust(world: World, min_trust: float | None) -> None:
    """Raise WorldError where ``min_trust`` is given and the world does not compute trust."""
    if min_trust is not None and not world.has_trust:
        raise WorldError(f"min_trust={min_trust}: world '{world.name}' does not compute trust")


class ImaginedPolicy(ClonedPolicy):
    """A policy that was learned in imagination, wherever a cloned one acts: it observes after each action,
    as it did when it learned."""

    @property
    def actions_per_look(self) -> int:
        """Executed actions of a chunk."""
        return 1


def load_imagined(world: World, folder: str | Path) -> Clone:
    """Load the policy that ``kinema learn`` wrote into a world's folder. Raises as ``load_policy``."""
    advice = "there is no policy that was learned in imagination; learn one: kinema learn"
    return load_policy(world, Path(folder) / IMAGINED_FILE, f"{advice} {folder} --data DATA")


def make(
    observation_space: Any, *, world: str, goal: str | None = None, noise: float = 0.0
) -> ImaginedPolicy:
    """Make the policy from the arguments of ``kinema record --policy imagined --policy-args``, which are
    those of ``cloned``. A policy that was learned for a goal needs that goal."""
    from kinema.data.drawing import read_frame

    loaded = load(world)
    frame = None if goal is None else read_frame(goal)
    return ImaginedPolicy(
        loaded, load_imagined(loaded, world), observation_space=observation_space, goal=frame, noise=noise
    )
