"""``kinema evaluate policy``: does a world rank policies as the real environment does?

Every policy runs in the real environment, and in the world from the same first observations. It is given the
same observations in both, made up as the environment makes them, so any policy of the environment can be
graded.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from tqdm import tqdm

from kinema.data.environment import Policy, make_policy, parse_policy
from kinema.data.options import JsonObject
from kinema.data.spaces import RENDER_KEY, ActionReader
from kinema.evaluation import bootstrap
from kinema.evaluation.correlation import agreement, of_halves
from kinema.evaluation.plot import Drawing, Theme, draw_agreement
from kinema.evaluation.protocol import Run
from kinema.evaluation.result import Result, Row, Series, describe_run, plain
from kinema.simulation.real_env import Arena, seen_after
from kinema.simulation.world import World, load
from kinema.types import Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id; it needs heads."""
    policies: tuple[str, ...]
    """Policies as `kinema record --policy` takes them (random, zero, cloned, MODULE:CALLABLE), at least 4 in
    all; a number behind @ mixes in so large a share of random actions, as in cloned@0.3."""
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
    seed: int = 0
    """Seed of the first episode; each further episode adds one."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("evaluation")
    """Folder for policy.json, policy.png, policy-scatter.png and policy.html. Returns found so far are in it
    too until all are: after Ctrl-C the same command goes on with the next policy."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""

    def __post_init__(self) -> None:
        for name, least in {"episodes": 1, "steps": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if len(self.policies) < 4:
            raise ValueError(f"policies: {len(self.policies)}; at least 4 are needed to say how they rank")
        if len(set(self.policies)) < len(self.policies):
            raise ValueError(f"policies: {', '.join(self.policies)}; each may be named once")
        unknown = sorted(set(self.policy_args) - {parse_policy(text)[0] for text in self.policies})
        if unknown:
            raise ValueError(f"policy_args has {', '.join(unknown)}, which is none of the policies")


def policy(config: PolicyConfig) -> int:
    """Measure, write and print; 0 when done.

    Raises:
        ValueError: the world, the environment or a policy cannot be made, or they do not fit each other.
    """
    world = load(config.world, device=config.device)
    world.require_heads()
    with (
        contextlib.closing(Arena(world, config.env, config.env_args)) as arena,
        Run("policy", world, config) as current,
    ):
        policies = dict(zip(config.policies, make_policies(arena, config), strict=True))
        check_simulated(arena, policies, config.seed)

        def returns(where: str, run: Callable[[Policy], np.ndarray]) -> np.ndarray:
            bar = tqdm(policies.items(), desc=where, unit=" policies")
            return np.array(
                [
                    current.journal.find(f"{where} {text}", lambda one=one: run(one).tolist())
                    for text, one in bar
                ]
            )

        real = returns("real", lambda one: run_real(arena, one, config))
        simulated = returns("simulated", lambda one: run_simulated(world, arena, one, config))
        result, draw = judge(world, config, real, simulated)
        paths = result.write(config.out, {"scatter": draw})
    result.tell(paths, as_json=config.json)
    return 0


def make_policies(arena: Arena, config: PolicyConfig) -> list[Policy]:
    """The policies, in their order."""
    return [
        make_policy(text, config.policy_args.get(parse_policy(text)[0], {}), arena.env)
        for text in config.policies
    ]


def check_simulated(arena: Arena, policies: Mapping[str, Policy], seed: int) -> None:
    """Whether policies can act on what a world shows, which is known before hours of real episodes.

    Raises:
        ValueError: one of them cannot.
    """
    seen, _ = arena.reset(seed)
    for text, one in policies.items():
        try:
            one.reset(np.random.default_rng(seed), {})
            one.act(arena.observation(seen), _drawn(seen))
        except ValueError as error:
            raise ValueError(
                f"--policies {text}: it cannot act in a world, which shows pictures and proprioception alone "
                f"({error}); leave it out"
            ) from error


def run_real(arena: Arena, one: Policy, config: PolicyConfig) -> np.ndarray:
    """Returns of the episodes of a policy in the real environment."""
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
    """Returns of the same episodes in the world, begun at the real first observations."""
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
    """What of a world's frame environments tell in ``info``."""
    return {key: frame for key, frame in seen.frames.items() if key == RENDER_KEY}


def judge(
    world: World, config: PolicyConfig, real: np.ndarray, simulated: np.ndarray
) -> tuple[Result, Drawing]:
    """The numbers, and what draws the scatter plot; returns are ``policies episodes``."""
    names, rng = list(config.policies), np.random.default_rng(config.seed)
    means = simulated.mean(axis=1), real.mean(axis=1)
    found = agreement(*means, seed=config.seed)
    rows = [
        Row(
            key="pearson",
            what="Pearson r, simulated against real returns (Fisher interval)",
            value=found.pearson,
            unit="",
            low=found.pearson_low,
            high=found.pearson_high,
            must=0.90,
            aim=0.97,
            is_higher_better=True,
        ),
        Row(key="spearman", what="Spearman rho", value=found.spearman, unit="", is_higher_better=True),
        Row(
            key="mmrv",
            what="mean maximum rank violation, of the range of real returns",
            value=found.mmrv,
            unit="",
            must=0.05,
            aim=0.02,
        ),
        Row(
            key="dropped",
            what=f"Pearson r without {names[found.leverage]}, which matters most (interval: without any one)",
            value=found.dropped,
            unit="",
            low=found.dropped_low,
            high=found.dropped_high,
        ),
        Row(
            key="chance", what="Pearson r that 95% of random pairings stay under", value=found.chance, unit=""
        ),
    ]
    if config.episodes >= 2:
        r, violation = of_halves(real, seed=config.seed)
        where = "one half of the real episodes against the other"
        rows += [
            Row(key="pearson/real", what=f"Pearson r, {where}", value=r, unit=""),
            Row(key="mmrv/real", what=f"mean maximum rank violation, {where}", value=violation, unit=""),
        ]
    order = np.argsort(means[1])
    notes = [
        f"{len(names)} policies, {config.episodes} episodes each of {config.steps} steps at most, the same "
        "starts in both. A return is the sum of rewards; the world's rewards and ends are its heads'.",
        "MMRV: of each policy the largest real difference (returns brought to [0, 1]) to one that the world "
        "ranks wrongly against it, then the mean; equal in one and not in the other counts as wrong.",
        "From the lowest real return to the highest, simulated in brackets: "
        + ", ".join(f"{names[i]} {means[1][i]:.2f} ({means[0][i]:.2f})" for i in order)
        + ".",
    ]
    returns = {
        name: {"real": there.tolist(), "simulated": here.tolist()}
        for name, there, here in zip(names, real, simulated, strict=True)
    }
    series = [
        Series.measure(
            key,
            f"{key} (policies in the order of their real return)",
            "",
            "return",
            list(range(1, len(names) + 1)),
            lambda values: float(values.mean()),
            [returns[index] for index in order],
            rng=rng,
        )
        for key, returns in (("real", real), ("simulated", simulated))
    ]
    result = Result(
        name="policy",
        world=world.name,
        data=config.env,
        axis="policy",
        protocol={**plain(config), "returns": returns},
        run=describe_run(world),
        rows=rows,
        series=series,
        notes=notes,
    )
    spans = [
        np.array([bootstrap.interval(lambda v: float(v.mean()), values, rng=rng) for values in returns])
        for returns in (simulated, real)
    ]
    title = f"r {found.pearson:.2f}, rho {found.spearman:.2f}, MMRV {found.mmrv:.3f}"

    def draw(theme: Theme) -> np.ndarray:
        return draw_agreement(
            names,
            means[1],
            means[0],
            spans[1],
            spans[0],
            x_label="real return",
            y_label="simulated return",
            title=title,
            theme=theme,
        )

    return result, draw
