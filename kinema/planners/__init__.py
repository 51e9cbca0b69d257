"""Search for actions: planners propose candidates, a score judges them, and that is all they know of each
other."""

from kinema.planners.controller import Controller, Plan
from kinema.planners.cross_entropy import CrossEntropy
from kinema.planners.mppi import MPPI
from kinema.planners.scores import Distance, Goal, WorldScore
from kinema.planners.search import Found, Planner, Score, SearchConfig, check_planner

PLANNERS = {"cem": CrossEntropy, "mppi": MPPI}
"""By the names that the command line takes."""

__all__ = [
    "MPPI",
    "PLANNERS",
    "Controller",
    "CrossEntropy",
    "Distance",
    "Found",
    "Goal",
    "Plan",
    "Planner",
    "Score",
    "SearchConfig",
    "WorldScore",
    "check_planner",
]
