"""``kinema evaluate policy``: measure whether a world ranks policies as the real environment does.

Every policy runs in the real environment, and in the world from the same first observations. It is given the
same observations in both, composed as the environment composes them, so any policy of the environment can be
graded.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from tqdm import tqdm

from kinema.data.environment import Policy, make_policy, parse_policy
from kinema.data.options import JsonObject
from kinema.data.spaces import RENDER_KEY, ActionReader
from kinema.evaluation import bootstrap
from kinema.evaluation.correlation import agreement, split_halves
from kinema.evaluation.plot import draw_agreement
from kinema.evaluation.protocol import ResultOptions, Run, WorldOptions, run_protocol
from kinema.kits import Target
from kinema.options import at_least
from kinema.simulation.real_env import Arena, seen_after
from kinema.simulation.world import World
from kinema.types import Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(WorldOptions, ResultOptions):
    policies: tuple[str, ...]
    """Policies as `kinema record --policy` takes them (random, zero, cloned, MODULE:CALLABLE), at least 4; a
    number behind @ mixes in that share of random actions, as in cloned@0.3. The world needs heads."""
    env: str
    """The real environment: a Gymnasium id (PACKAGE/NAME-v0), or MODULE:ID."""
    policy_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of policies by their name, such as {"cloned": {"world": "worlds/mine"}}."""
    env_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the environment."""
    episodes: int = 10
    """Episodes of each policy, each from a start of its own, the same for all."""
    steps: int = 50
    """Steps of an episode, fewer where it ends."""

    def __post_init__(self) -> None:
        at_least(self, episodes=1, steps=1, seed=0)
        if len(self.policies) < 4:
            raise ValueError(f"policies: {len(self.policies)}; at least 4 are needed to say how they rank")
        if len(set(self.policies)) < len(self.policies):
            raise ValueError(f"policies: {', '.join(self.policies)}; each may be named once")
        unknown = sorted(set(self.policy_args) - {parse_policy(text)[0] for text in self.policies})
        if unknown:
            raise ValueError(f"policy_args has {', '.join(unknown)}, which is none of the policies")


def policy(config: PolicyConfig) -> int:
    """Measure, write and print; return 0. Raises ValueError, as ``run_protocol`` does."""
    return run_protocol("policy", config, measure_policies, axis="policy")


def measure_policies(run: Run) -> None:
    """Run every policy for real and in the world, or take returns from the journal, and compare them."""
    world, config = run.world, run.config
    world.require_heads()
    run.source = config.env
    with contextlib.closing(Arena(world, config.env, config.env_args)) as arena:
        policies = {
            text: make_policy(text, config.policy_args.get(parse_policy(text)[0], {}), arena.env)
            for text in config.policies
        }
        check_simulated(arena, policies, config.seed)

        def returns(where: str, episodes: Callable[[Policy], np.ndarray]) -> np.ndarray:
            return np.array(
                [
                    run.journal.find(f"{where} {text}", lambda one=one: episodes(one).tolist())
                    for text, one in tqdm(policies.items(), desc=where, unit=" policies")
                ]
            )

        real = returns("real", lambda one: run_real(arena, one, config))
        simulated = returns("simulated", lambda one: run_simulated(world, arena, one, config))
    add_agreement(run, real, simulated)


def check_simulated(arena: Arena, policies: Mapping[str, Policy], seed: int) -> None:
    """Let each policy act once on what a world shows, before hours of real episodes.

    Raises:
        ValueError: a policy needs more than that.
    """
    seen, _ = arena.reset(seed)
    for text, one in policies.items():
        try:
            one.reset(np.random.default_rng(seed), {})
            one.act(arena.observation(seen), _drawn(seen))
        except ValueError as error:
            raise ValueError(
                f"--policies {text}: it cannot act in a world, which shows frames and proprioception alone "
                f"({error}); leave it out"
            ) from error


def run_real(arena: Arena, one: Policy, config: PolicyConfig) -> np.ndarray:
    """Return the returns of the episodes of a policy in the real environment."""
    returns = np.zeros(config.episodes)
    for index in range(config.episodes):
        seed = config.seed + index
        observation, info = arena.env.reset(seed=seed)
        one.reset(np.random.default_rng(seed), info)
        for _ in range(config.steps):
            action = one.act(observation, arena.info_for(one, info))
            if action is None:
                break
            observation, reward, terminated, truncated, info = arena.env.step(action)
            returns[index] += float(reward)
            if terminated or truncated:
                break
    return returns


def run_simulated(world: World, arena: Arena, one: Policy, config: PolicyConfig) -> np.ndarray:
    """Return the returns of the same episodes in the world, begun at the real first observations."""
    actions_of = ActionReader(arena.env.action_space)
    returns = np.zeros(config.episodes)
    for index in range(config.episodes):
        seed = config.seed + index
        seen, _ = arena.reset(seed)
        session = world.start(
            {key: frame[None] for key, frame in seen.frames.items()} or None,
            proprio=None if seen.proprio is None else seen.proprio[None],
            generator=torch.Generator().manual_seed(seed),
        )
        one.reset(np.random.default_rng(seed), {})
        for _ in range(config.steps):
            action = one.act(arena.observation(seen), _drawn(seen))
            if action is None:
                break
            step = session.step(actions_of.vector(action))
            returns[index] += step.reward
            if step.termination > 0.5:
                break
            seen = seen_after(world, step)
    return returns


def _drawn(seen: Seen) -> dict[str, np.ndarray]:
    """Return the frame that environments put into ``info``, as far as the world has it."""
    return {key: frame for key, frame in seen.frames.items() if key == RENDER_KEY}


def add_agreement(run: Run, real: np.ndarray, simulated: np.ndarray) -> None:
    """Add how well simulated returns (``policies episodes``) rank policies, with a scatter plot."""
    names, config = list(run.config.policies), run.config
    means = {"real": real.mean(axis=1), "simulated": simulated.mean(axis=1)}
    agreed = agreement(means["simulated"], means["real"], seed=config.seed)
    violation = "mean maximum rank violation"
    what = "Pearson r, simulated against real returns (Fisher interval)"
    target = Target(must=0.90, aim=0.97)
    run.number("pearson", what, "", *agreed.pearson, is_higher_better=True, target=target)
    run.number("spearman", "Spearman rho", "", agreed.spearman, is_higher_better=True)
    target = Target(must=0.05, aim=0.02)
    run.number("mmrv", f"{violation}, of the range of real returns", "", agreed.mmrv, target=target)
    what = f"Pearson r without {names[agreed.leverage]}, which matters most (interval: without any one)"
    run.number("dropped", what, "", *agreed.dropped)
    run.number("chance", "Pearson r that 95% of random pairings stay under", "", agreed.chance)
    if config.episodes >= 2:
        r, violated = split_halves(real, seed=config.seed)
        where = "one half of the real episodes against the other"
        run.number("pearson/real", f"Pearson r, {where}", "", r)
        run.number("mmrv/real", f"{violation}, {where}", "", violated)
    order = np.argsort(means["real"])
    listed = ", ".join(f"{names[i]} {means['real'][i]:.2f} ({means['simulated'][i]:.2f})" for i in order)
    run.notes += [
        f"{len(names)} policies, {config.episodes} episodes each of {config.steps} steps at most, the same "
        "starts in both. A return is the sum of rewards; the world's rewards and ends are its heads'.",
        "MMRV: of each policy the largest real difference (returns brought to [0, 1]) to one that the world "
        "ranks wrongly against it, then the mean; equal in one and not in the other counts as wrong.",
        f"From the lowest real return to the highest, simulated in brackets: {listed}.",
    ]
    pairs = {"real": real, "simulated": simulated}
    run.protocol["returns"] = {
        name: {key: values[index].tolist() for key, values in pairs.items()}
        for index, name in enumerate(names)
    }
    spans = {}
    for key, values in pairs.items():
        what = f"{key} (policies in the order of their real return)"
        at = range(1, len(names) + 1)
        curve = run.curve(key, what, "", "return", at, bootstrap.mean, [values[index] for index in order])
        spans[key] = np.array([curve.low, curve.high]).T[np.argsort(order)]
    title = f"r {agreed.pearson[0]:.2f}, rho {agreed.spearman:.2f}, MMRV {agreed.mmrv:.3f}"
    run.drawings["scatter"] = lambda theme: draw_agreement(names, means, spans, title=title, theme=theme)
