"""Sessions that join and part: any of them step together, in the time of far fewer network calls.

A ``SimulationBatch`` keeps its sessions for life. A server cannot: clients come, go, fork, rewind and are
slow at different times. Here every session keeps its own past, and whoever is ready makes one step in
company.
"""

from collections.abc import Sequence
from typing import Any

import torch

from kinema.model.cache import Cache
from kinema.model.world import WorldError
from kinema.simulation.session import Simulation, SimulationBatch
from kinema.simulation.step import Step


def step_together(sessions: Sequence[Simulation], actions: Any, *, decode: bool = True) -> list[Step]:
    """Advance each session by its action, as each would alone, whatever their ages.

    Args:
        sessions: different ones of one world that make frames in equally many network calls.
        actions: ``B A``, one for each session, in the units of the dataset.
        decode: whether to make pictures; without, ``frame`` is None and the step costs less.

    Raises:
        WorldError: the sessions cannot step together, or the actions have another shape or are not finite;
            the sessions are unchanged.
    """
    if not sessions:
        return []
    batches = [session._batch for session in sessions]
    if len({id(batch) for batch in batches}) < len(batches):
        raise WorldError("a session stands twice among those that are to step together")
    if len({id(batch.world) for batch in batches}) > 1:
        raise WorldError("sessions of different worlds cannot step together")
    if len({batch.num_denoising_steps for batch in batches}) > 1:
        raise WorldError("sessions that differ in num_denoising_steps cannot step together")
    if len(batches) == 1:
        # Alone there is nothing to gather.
        array = batches[0].world.check_actions(actions, (1, batches[0].world.action_dim), "actions")
        return [batches[0].step(array, decode=decode).of_session(0)]
    step = _Company(batches).step(actions, decode=decode)
    return [step.of_session(index) for index in range(len(batches))]


class _Company(SimulationBatch):
    """Sessions side by side for one step; what they come to remember of it goes to each of them."""

    def __init__(self, sessions: Sequence[SimulationBatch]):
        # Not the constructor of a batch, which would make room for pasts of its own.
        self.world, self._networks = sessions[0].world, sessions[0]._networks
        self._compiled = sessions[0]._compiled
        self.num_denoising_steps = sessions[0].num_denoising_steps
        self.num_steps = 0
        twins = [session._twin for session in sessions if session._twin is not None]
        if 0 < len(twins) < len(sessions):
            raise WorldError("sessions with trust and sessions without it cannot step together")
        self._twin = _Company(twins) if twins else None
        self._sessions = sessions
        self._seeds = [session._seeds[0] for session in sessions]
        self._generator = torch.Generator()
        self._cache = Cache.gather([session._cache for session in sessions])
        self._doubt = torch.cat([session._doubt for session in sessions])
        self._outside = torch.cat([session._outside for session in sessions])

    def _ages(self) -> list[int]:
        return [session.num_steps for session in self._sessions]

    def _remember(self) -> None:
        self._cache.scatter([session._cache for session in self._sessions])
        for index, session in enumerate(self._sessions):
            session._doubt = self._doubt[index : index + 1]
            session._outside = self._outside[index : index + 1]
            session.num_steps += 1
            session._remember()
