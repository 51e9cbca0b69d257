"""Agreement of two rankings: the returns of policies, simulated and real."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

NUM_PERMUTATIONS = 2000
NUM_SPLITS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Simulated against real numbers of ``N`` policies."""

    pearson: tuple[float, float, float]
    """Pearson r, and its 95% interval by Fisher's transformation."""
    spearman: float
    mmrv: float
    """Mean maximum rank violation."""
    dropped: tuple[float, float, float]
    """Pearson r without the policy that changes it most; the least and the largest without any one."""
    leverage: int
    """Index of the policy that changes Pearson r most."""
    chance: float
    """Pearson r that 95% of random pairings stay under."""


def agreement(
    simulated: Float[np.ndarray, " N"],
    real: Float[np.ndarray, " N"],
    *,
    seed: int = 0,
    num_permutations: int = NUM_PERMUTATIONS,
) -> Agreement:
    """Compute all measures of agreement.

    Raises:
        ValueError: fewer than four policies, for which there is no interval.
    """
    num = len(real)
    if num < 4:
        raise ValueError(f"{num} policies: at least 4 are needed to say how well a world ranks them")
    r = pearson(simulated, real)
    low, high = float("nan"), float("nan")
    if np.ptp(simulated) > 0 and np.ptp(real) > 0:
        low, high = stats.pearsonr(simulated, real).confidence_interval(0.95)
    others = [np.arange(num) != left_out for left_out in range(num)]
    dropped = np.array([pearson(simulated[keep], real[keep]) for keep in others])
    leverage = int(np.abs(dropped - r).argmax())
    rng = np.random.default_rng(seed)
    by_chance = [pearson(rng.permutation(simulated), real) for _ in range(num_permutations)]
    return Agreement(
        pearson=(r, float(low), float(high)),
        spearman=pearson(stats.rankdata(simulated), stats.rankdata(real)),
        mmrv=mmrv(simulated, real),
        dropped=(float(dropped[leverage]), float(dropped.min()), float(dropped.max())),
        leverage=leverage,
        chance=float(np.quantile(by_chance, 0.95)),
    )


def pearson(one: Float[np.ndarray, " N"], other: Float[np.ndarray, " N"]) -> float:
    """Return the correlation; 0 where one of the two never changes."""
    first, second = one - one.mean(), other - other.mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 1e-12 else 0.0


def mmrv(simulated: Float[np.ndarray, " N"], real: Float[np.ndarray, " N"]) -> float:
    """Return the mean maximum rank violation, as in SIMPLER (2405.05941, section 4.2): of each policy, the
    largest real difference to one that it is ranked wrongly against, and the mean of these.

    Real returns are brought to [0, 1] first, so that 0.05 is a twentieth of the range between the worst and
    the best policy. Two that are equal in one and not in the other are ranked wrongly.
    """
    span = np.ptp(real)
    if span <= 0:
        return 0.0
    difference = (real[:, None] - real[None, :]) / span
    is_wrong = np.sign(simulated[:, None] - simulated[None, :]) != np.sign(difference)
    return float((np.abs(difference) * is_wrong).max(axis=1).mean())


def split_halves(returns: Float[np.ndarray, "N E"], *, seed: int = 0) -> tuple[float, float]:
    """Return Pearson r and MMRV of mean returns in one half of the episodes with those in the other, medians
    over random halves: the agreement of an environment with itself, with half of the episodes.

    Raises:
        ValueError: fewer than two episodes.
    """
    num_policies, num_episodes = returns.shape
    if num_episodes < 2:
        raise ValueError(f"{num_episodes} episode of {num_policies} policies: it has no halves")
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(num_episodes)
        one, other = (half.mean(axis=1) for half in np.array_split(returns[:, order], 2, axis=1))
        pairs.append((pearson(one, other), mmrv(one, other)))
    r, violation = np.median(pairs, axis=0)
    return float(r), float(violation)
