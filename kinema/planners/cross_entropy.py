"""The cross-entropy method (Rubinstein 1999; for plans: Kobilarov 2012): draw the next candidates as the best
of the last are distributed."""

import dataclasses

import numpy as np
from jaxtyping import Float

from kinema.planners.search import Score, SearchConfig, Solution, search


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean and deviation of the elites are those of the next candidates."""

    config: SearchConfig = dataclasses.field(default_factory=SearchConfig)

    def plan(self, score: Score, start: Float[np.ndarray, "H A"], rng: np.random.Generator) -> Solution:
        def refit(knots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            elites = knots[np.argsort(scores)[-self.config.elites :]]
            return elites.mean(axis=0), elites.std(axis=0)

        return search(self.config, score, start, rng, refit)
