"""The physical floor: the error of the real simulator when its start is a little off.

No model can follow what no frame shows. So the real simulator is started again from a recorded state, its
things moved by half a pixel, and driven by the same actions; state errors are reported as multiples of its
own.
"""

from collections.abc import Sequence

import numpy as np

from kinema.data.lerobot import Dataset
from kinema.evaluation.rollout import Segment
from kinema.kits import Kit, Probe, Reading, Simulator
from kinema.types import Episode


class Floor:
    """Restarts of the real simulator: ``num_restarts`` for each rollout."""

    def __init__(
        self,
        simulator: Simulator,
        probe: Probe,
        *,
        num_rollouts: int,
        num_restarts: int,
        seed: int,
        blur: float | None = None,
    ) -> None:
        """Make the simulators.

        Args:
            simulator: the simulator of the world's kit.
            probe: reads the states from which errors are computed.
            num_rollouts: rollouts that are followed.
            num_restarts: restarts of each.
            seed: seed of the directions in which things are moved.
            blur: distance by which things are moved, in the simulator's units; by default the simulator's.

        Raises:
            RecordError: the simulator is not installed.
        """
        # Recorded episodes need no simulator installed.
        from kinema.data.environment import make_twin

        self.num_restarts = num_restarts
        self.blur = simulator.blur if blur is None else blur
        self._simulator, self._probe = simulator, probe
        self._rng = np.random.default_rng(seed)
        made = [make_twin(simulator) for _ in range(num_rollouts * num_restarts)]
        self._envs = [env for env, _ in made]
        self._twins = [twin for _, twin in made]

    def begin(self, given: Sequence[Segment], *, context: int) -> None:
        """Start, blurred, from the last of ``context`` real steps; ``given`` are these and, where that is
        one, the next."""
        keys = (*self._simulator.columns, "action")
        columns = {key: np.stack([real.columns[key] for real in given], axis=1) for key in keys}
        for index, twin in enumerate(self._twins):
            rollout = index // self.num_restarts
            states = twin.recorded_states({key: values[rollout] for key, values in columns.items()})
            twin.set_state(states[0])
        for real in given[: context - 1]:
            self._advance(real.columns["action"])
        for twin in self._twins:
            twin.perturb(self._rng, self.blur)

    def step(self, actions: np.ndarray) -> Reading:
        """Advance all by the actions of their rollouts (``R A``); return their state, rollout after rollout.

        Raises:
            ValueError: the probe reads no state from the simulator's columns.
        """
        self._advance(actions)
        rows = [twin.columns() for twin in self._twins]
        columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        columns["action"] = np.repeat(actions, self.num_restarts, axis=0)
        reading = self._probe.recorded(Episode(index=0, fps=1.0, task=None, frames={}, columns=columns))
        if reading is None:
            raise ValueError(f"the probe reads no state from the columns {', '.join(columns)}")
        return reading

    def close(self) -> None:
        """Close the simulators."""
        for env in self._envs:
            env.close()

    def _advance(self, actions: np.ndarray) -> None:
        for index, twin in enumerate(self._twins):
            twin.advance(actions[index // self.num_restarts])


def find_floor(
    kit: Kit | None,
    probe: Probe | None,
    dataset: Dataset | None,
    *,
    num_rollouts: int,
    num_restarts: int,
    seed: int,
) -> Floor | None:
    """Make the floor of a world whose simulator can be set to a state; None for most worlds, where the
    recordings (``dataset``, None when live) do not hold the state, and where the simulator is not
    installed."""
    simulator = None if kit is None else kit.simulator
    if simulator is None or probe is None or not num_restarts or not simulator.is_installed:
        return None
    if dataset is not None and not simulator.has_states(dataset.features):
        return None
    return Floor(simulator, probe, num_rollouts=num_rollouts, num_restarts=num_restarts, seed=seed)
