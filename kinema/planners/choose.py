"""Planners by their names, and the policy that proposes plans in a world."""

from pathlib import Path

from kinema.model.world import WorldError
from kinema.planners.cross_entropy import CrossEntropy
from kinema.planners.mppi import MPPI
from kinema.planners.propose import ProposeAndCheck, Proposer
from kinema.planners.search import Planner, SearchConfig
from kinema.policies.acting import ActProposer
from kinema.policies.cloned import CloneProposer, find_clone
from kinema.simulation.world import World

PLANNERS = {"cem": CrossEntropy, "mppi": MPPI}
"""Those that need no policy, by the names that the command line takes."""
PROPOSE = "propose"
PLANNER_NAMES = (*PLANNERS, PROPOSE)


def find_proposer(world: World, folder: str | Path) -> Proposer | None:
    """Who proposes plans in a world: the network itself where it acts, else the policy that was cloned for it
    into ``folder``; None where there is none."""
    if world.can_act:
        return ActProposer()
    clone = find_clone(world, folder)
    return None if clone is None else CloneProposer(clone)


def make_planner(name: str, config: SearchConfig, proposer: Proposer | None) -> Planner | ProposeAndCheck:
    """One of ``PLANNER_NAMES``.

    Raises:
        WorldError: ``propose``, and nobody does; it says how to get a policy that does.
    """
    if name != PROPOSE:
        return PLANNERS[name](config)
    if proposer is None:
        raise WorldError(
            "planner 'propose': there is no policy that could propose plans; learn one from recordings: "
            "kinema train DATA --out WORLD --clone (or --act)"
        )
    return ProposeAndCheck(config, proposer)
