"""Planners by their names, and the policy that proposes plans in a world."""

import dataclasses
from pathlib import Path

from kinema.model.world import WorldError
from kinema.planners.cross_entropy import CrossEntropy
from kinema.planners.mppi import MPPI
from kinema.planners.propose import ProposeAndCheck, Proposer
from kinema.planners.scores import MeasureOrAuto
from kinema.planners.search import Planner, SearchConfig
from kinema.policies.acting import ActProposer
from kinema.policies.cloned import CloneProposer, find_clone
from kinema.simulation.world import World

PLANNERS = {"cem": CrossEntropy, "mppi": MPPI}
"""Planners that need no policy, by the names that the command line takes."""
PROPOSE = "propose"
PLANNER_NAMES = (*PLANNERS, PROPOSE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """Settings of the search."""
    measure: MeasureOrAuto = "auto"
    """Distance of a frame from the goal: in steps predicted by the heads, in codes of the manifold (with
    proprioception), or in latents; auto takes the first of these that the world has."""
    chunk: int = 5
    """Actions done before the next plan."""
    context: int = 4
    """Frames that a plan starts from."""
    clone: str | None = None
    """Folder of the cloned policy; by default the world's, where it has one."""


def find_proposer(world: World, folder: str | Path) -> Proposer | None:
    """Find the policy that proposes plans in a world: the network itself where it acts, else the policy that
    was cloned into ``folder``; None without one."""
    if world.can_act:
        return ActProposer()
    clone = find_clone(world, folder)
    return None if clone is None else CloneProposer(clone)


def make_planner(name: str, config: SearchConfig, proposer: Proposer | None) -> Planner | ProposeAndCheck:
    """Make one of ``PLANNER_NAMES``.

    Raises:
        WorldError: ``propose`` without a proposer.
    """
    if name != PROPOSE:
        return PLANNERS[name](config)
    if proposer is None:
        raise WorldError(
            "planner 'propose': there is no policy that could propose plans; learn one from recordings: "
            "kinema train DATA --out WORLD --clone (or --act)"
        )
    return ProposeAndCheck(config, proposer)
