"""Model-predictive path integral control (1509.01149), with the elites of TD-MPC2 (2310.16828): draw the next
candidates around the mean of the best, weighted by their scores."""

import dataclasses

import numpy as np
from jaxtyping import Float

from kinema.planners.search import Score, SearchConfig, Solution, search


@dataclasses.dataclass(frozen=True)
class MPPI:
    """Elites weigh ``exp(advantage / temperature)``, their scores brought to [0, 1] before."""

    config: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    temperature: float = 0.3

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature={self.temperature}: it must be above 0")

    def plan(self, score: Score, start: Float[np.ndarray, "H A"], rng: np.random.Generator) -> Solution:
        def refit(knots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = np.argsort(scores)[-self.config.elites :]
            elites, values = knots[chosen], scores[chosen]
            span = max(float(values[-1] - values[0]), 1e-9)
            weights = np.exp((values - values[-1]) / span / self.temperature)
            weights = (weights / weights.sum())[:, None, None]
            mean = (weights * elites).sum(axis=0)
            return mean, np.sqrt((weights * (elites - mean) ** 2).sum(axis=0))

        return search(self.config, score, start, rng, refit)
