"""The cross-entropy method (Rubinstein 1999; for plans: Kobilarov 2012): next, draw as the best ones lie."""

import dataclasses

import numpy as np
from jaxtyping import Float

from kinema.planners.search import Found, Score, SearchConfig, search


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean and deviation of the elites are those of the next candidates."""

    config: SearchConfig = dataclasses.field(default_factory=SearchConfig)

    def plan(self, score: Score, start: Float[np.ndarray, "H A"], rng: np.random.Generator) -> Found:
        def refit(knots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            elites = knots[np.argsort(scores)[-self.config.elites :]]
            return elites.mean(axis=0), elites.std(axis=0)

        return search(self.config, score, start, rng, refit)
