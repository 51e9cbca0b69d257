"""Search for actions: planners propose candidates, a score rates them, and neither knows more of the
other."""

from kinema.planners.choose import (
    PLANNER_NAMES,
    PLANNERS,
    PROPOSE,
    PlannerOptions,
    find_proposer,
    make_planner,
)
from kinema.planners.controller import Controller, Plan
from kinema.planners.cross_entropy import CrossEntropy
from kinema.planners.mppi import MPPI
from kinema.planners.propose import CheckProposals, ProposeAndCheck, Proposer
from kinema.planners.scores import Distance, Goal, WorldScore
from kinema.planners.search import Planner, Score, SearchConfig, Solution, check_planner

__all__ = [
    "MPPI",
    "PLANNERS",
    "PLANNER_NAMES",
    "PROPOSE",
    "CheckProposals",
    "Controller",
    "CrossEntropy",
    "Distance",
    "Goal",
    "Plan",
    "Planner",
    "PlannerOptions",
    "ProposeAndCheck",
    "Proposer",
    "Score",
    "SearchConfig",
    "Solution",
    "WorldScore",
    "check_planner",
    "find_proposer",
    "make_planner",
]
