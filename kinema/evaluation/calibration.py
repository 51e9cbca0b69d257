"""``kinema evaluate calibration``: measure whether the forks of a world are as different as they are wrong.

Words and formulas are those of weather forecasting, for an ensemble of ``M`` members ``x`` and what happened,
``y``:

- *Spread over error*: the root of the mean variance of the members (of the sample, times ``(M + 1) / M``)
  over the root mean square error of their mean; 1 is right (Fortin et al. 2014, "Why should ensemble spread
  match the RMSE of the ensemble mean?", J. Hydrometeorology 15). Less is overconfident.
- *Rank histogram*: how many members lie below ``y``; each rank is as likely (Hamill 2001, Mon. Weather Rev.
  129). Ties are broken at random. Its *reliability index* sums the distances from the flat one (Delle Monache
  et al. 2006, J. Geophys. Res. 111): 0 is flat, 2 the most.
- *CRPS*: ``mean |x - y| - mean |x - x'| / 2`` over pairs of different members, the fair one (Ferro 2014,
  Q. J. R. Meteorol. Soc. 140), beside the absolute error of the last observation repeated, which is its CRPS.
- *Coverage*: the share of ``y`` between the outer members, with 19 of them a 90% interval.

Numbers on which all members and ``y`` agree (pixels that rest) say nothing of ranks and are left out of
these.
"""

import dataclasses

import numpy as np

from kinema.evaluation.forecast import FRAME, UNITS, Forecast, Truth, forecast, read_truth
from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.options import at_least

MARKS = (1, 10, 50)
"""Steps at which forks are compared with what happened."""
AGREEMENT = {FRAME: 8.0}
"""Members and truth agree on a pixel where they differ by no more levels. It is their range that is asked, in
which the truth counts like a member, so that the ranks of a calibrated ensemble stay flat."""
MAX_NUMBERS = 4096
"""Numbers of an observation, drawn at random where there are more, of which ranks and CRPS are computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationConfig(WorldOptions, RecordingOptions, ResultOptions):
    steps: int = MARKS[-1]
    """Most steps to simulate."""
    rollouts: int = 32
    """Segments of episodes to start from."""
    num_forks: int = 19
    """Futures of each segment; the range of 19 is a 90% interval."""
    batch: int = 64
    """Sessions simulated together."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, rollouts=1, seed=0, context=1, batch=1, num_forks=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """How ``N`` ensembles of ``M`` members fit what happened; each is a mean over the ensemble's numbers."""

    variance: np.ndarray
    """``N``: of the sample of members, times ``(M + 1) / M``."""
    squared_error: np.ndarray
    """``N``: of the mean of members."""
    crps: np.ndarray
    """``N``."""
    ranks: np.ndarray
    """``N M+1``: numbers that have each rank, of those that are not agreed on."""


def score(
    members_NMD: np.ndarray, truth_ND: np.ndarray, rng: np.random.Generator, *, agreement: float = 0.0
) -> Scores:
    """Score ensembles of ``D`` numbers each; ``rng`` breaks ties of ranks.

    Numbers whose members and truth all lie within ``agreement`` have no rank.
    """
    members, truth = members_NMD.astype(np.float32), truth_ND.astype(np.float32)[:, None]
    num = members.shape[1]
    mean = members.mean(axis=1, keepdims=True)
    # Sorting replaces a loop over pairs: sorted member i is the larger one in i pairs, the smaller one in all
    # its others.
    weights = (2.0 * np.arange(num) - num + 1.0)[:, None]
    pairs = (weights * np.sort(members, axis=1)).sum(axis=1) / (0.5 * num * (num - 1))
    crps = np.abs(members - truth).mean(axis=1) - 0.5 * pairs
    below, ties = (members < truth).sum(axis=1), (members == truth).sum(axis=1)
    rank = below + (rng.random(below.shape) * (ties + 1)).astype(int)
    every = np.concatenate([members, truth], axis=1)
    is_open = every.max(axis=1) - every.min(axis=1) > agreement
    ranks = np.stack([((rank == place) & is_open).sum(axis=1) for place in range(num + 1)], axis=1)
    return Scores(
        variance=(num + 1) / num * members.var(axis=1, ddof=1).mean(axis=1, dtype=np.float64),
        squared_error=((mean - truth) ** 2).mean(axis=(1, 2), dtype=np.float64),
        crps=crps.mean(axis=1, dtype=np.float64),
        ranks=ranks,
    )


def spread_over_error(variance: np.ndarray, squared_error: np.ndarray) -> float:
    """Return the ratio of roots of means; NaN without any error."""
    below = float(np.mean(squared_error))
    return float(np.sqrt(np.mean(variance) / below)) if below > 0 else float("nan")


def reliability_index(ranks: np.ndarray) -> float:
    """Return the sum of the distances of rank histogram ``N M+1`` from the flat one, as shares of all."""
    counts = ranks.sum(axis=0)
    if not counts.sum():
        return float("nan")
    return float(np.abs(counts / counts.sum() - 1.0 / len(counts)).sum())


def coverage(ranks: np.ndarray) -> float:
    """Return the share of numbers that lie between the lowest and the highest member."""
    return float(ranks[:, 1:-1].sum() / ranks.sum()) if ranks.sum() else float("nan")


def calibration(config: CalibrationConfig) -> int:
    """Measure, write and print; return 0. Raises ValueError, as ``run_protocol`` does."""
    return run_protocol("calibration", config, measure_calibration, axis="members below what happened")


def measure_calibration(run: Run) -> None:
    """Add spread over error, CRPS, coverage and rank histograms at ``MARKS``."""
    config: CalibrationConfig = run.config
    steps = tuple(sorted({*(mark for mark in MARKS if mark < config.steps), config.steps}))
    segments = run.segments(num=config.rollouts, length=config.context + config.steps)
    run.protocol["rollouts"] = len(segments)
    actions = run.recorded_actions(segments, config.steps)
    truth = read_truth(run.world, segments, context=config.context, steps=steps)
    scored: dict[tuple[str, int], list[Scores]] = {}
    still: dict[tuple[str, int], list[np.ndarray]] = {}
    for each in forecast(
        run.world,
        segments,
        actions,
        steps,
        num_forks=config.num_forks,
        context=config.context,
        seed=config.seed,
        batch=config.batch,
        label=f"{config.num_forks} forks",
        num_denoising_steps=config.num_denoising_steps,
    ):
        for modality in each.values:
            members, happened, given = _numbers(each, truth, modality, run.rng)
            scores = score(members, happened, run.rng, agreement=AGREEMENT.get(modality, 0.0))
            scored.setdefault((modality, each.step), []).append(scores)
            still.setdefault((modality, each.step), []).append(np.abs(given - happened).mean(axis=1))
    for modality in truth.target:
        for step in steps:
            parts = scored[modality, step]
            joined = {
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(Scores)
            }
            _add(run, modality, step, Scores(**joined), np.concatenate(still[modality, step]))
    run.notes += [
        f"{len(segments)} segments of {len({segment.episode for segment in segments})} episodes, "
        f"{config.num_forks} forks of each, {config.context} frames given. Intervals are 95%, over segments.",
        "Forks are compared with what the codec makes of the real frame, and with the normalised state. "
        "Spread over error below 1 is overconfident: what happened lies outside of the forks too often.",
        "Ranks and coverage are those of numbers on which forks and truth do not all agree.",
    ]


def _numbers(
    each: Forecast, truth: Truth, modality: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flatten one modality: members ``b M D``, what happened ``b D`` and the last given ``b D``."""
    target = truth.at(modality, each.segments, each.step)
    columns = []
    for key, part in each.values[modality].items():
        happened, given = target[key], truth.given[modality][key][each.segments]
        columns.append(
            (
                part.reshape(*part.shape[:2], -1),
                happened.reshape(len(happened), -1),
                given.reshape(len(given), -1),
            )
        )
    members, happened, given = (
        np.concatenate([column[index] for column in columns], axis=-1).astype(np.float32)
        for index in range(3)
    )
    if members.shape[-1] > MAX_NUMBERS:
        chosen = rng.choice(members.shape[-1], MAX_NUMBERS, replace=False)
        members, happened, given = (part[..., chosen] for part in (members, happened, given))
    return members, happened, given


def _add(run: Run, modality: str, step: int, scores: Scores, still: np.ndarray) -> None:
    key, at, unit = f"{modality}/{step}", f"{modality}, step {step}", UNITS[modality]
    pair = scores.variance, scores.squared_error
    run.row(f"spread/{key}", f"{at}: spread over error", "x", spread_over_error, *pair)
    run.row(f"rank/{key}", "  reliability index of ranks, 0 is flat", "", reliability_index, scores.ranks)
    num_ranks = scores.ranks.shape[1]
    what = f"  coverage of the {(num_ranks - 2) / num_ranks:.0%} interval"
    run.row(f"coverage/{key}", what, "share", coverage, scores.ranks)
    run.row(f"crps/{key}", "  CRPS", unit, lambda values: float(np.mean(values)), scores.crps)
    run.row(f"crps/{key}/still", "  of the last one repeated", unit, lambda v: float(np.mean(v)), still)
    if scores.ranks.sum():
        _add_histogram(run, modality, step, scores.ranks)


def _add_histogram(run: Run, modality: str, step: int, ranks: np.ndarray) -> None:
    def share(of_rank: np.ndarray, of_all: np.ndarray) -> float:
        return float(of_rank.sum() / of_all.sum()) if of_all.sum() else float("nan")

    places = list(range(ranks.shape[1]))
    samples = list(ranks.T), [ranks.sum(axis=1)] * len(places)
    panel = f"{modality}: rank histogram"
    run.curve(f"ranks/{modality}/{step}", f"step {step}", "share", panel, places, share, *samples)
