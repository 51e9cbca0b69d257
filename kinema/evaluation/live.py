"""Live environments and their policy as the real side of a long comparison."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kinema.data.lerobot import DataError
from kinema.data.record import EpisodeRecorder, RecordConfig
from kinema.evaluation.reality import Moment
from kinema.kits import Probe, Reading, kit_of_environment
from kinema.simulation.world import World
from kinema.types import Episode, Frames


class LiveEnvironments:
    """Environments that a policy acts in, as ``kinema record`` runs them; rollout ``i`` is episode ``i``."""

    def __init__(
        self, world: World, config: RecordConfig, *, num: int, is_needed: np.ndarray, probe: Probe | None
    ) -> None:
        """Raises RecordError where the environment or the policy cannot be made, and DataError where they do
        not fit the world."""
        self.source = f"{config.env} with policy {config.policy}"
        self.num_rollouts = num
        self._world, self._probe, self._is_needed = world, probe, is_needed
        self._recorders = [EpisodeRecorder(config) for _ in range(num)]
        self._is_shown = True
        """Whether the picture is needed that follows the step to be made."""
        kit = kit_of_environment(config.env)
        simulator = None if kit is None else kit.simulator
        for recorder in self._recorders:
            is_blind = getattr(recorder.policy, "is_blind", False)
            if is_blind and simulator is not None and simulator.env == config.env:
                simulator.wrap(recorder.env).draw_where(lambda: self._is_shown)

    def close(self) -> None:
        """Close every environment."""
        for recorder in self._recorders:
            recorder.close()

    def moments(self) -> Iterator[Moment]:
        episodes = [recorder.rows(index) for index, recorder in enumerate(self._recorders)]
        last: list[tuple[dict[str, np.ndarray], dict[str, Any]] | None] = [None] * len(episodes)
        is_running = np.ones(len(episodes), dtype=bool)
        for time, is_needed in enumerate(self._is_needed):
            # A row's picture is that of its observation, which came with the step of the row before.
            self._is_shown = bool(self._is_needed[time + 1 : time + 2].any())
            for index in np.flatnonzero(is_running):
                row = next(episodes[index], None)
                is_running[index] = row is not None
                last[index] = last[index] if row is None else row
            rows = [row for row in last if row is not None]
            if len(rows) < len(last):
                raise DataError("the policy ended an episode before its first action", path=self.source)
            if time == 0:
                self._check(*rows[0])
            columns = {key: np.stack([row[key] for _, row in rows]) for key in rows[0][1]}
            frames = reference = None
            if is_needed:
                pictures = {key: np.stack([row[key] for row, _ in rows]) for key in self._world.cameras}
                frames = self._world.by_camera(pictures) if pictures else {}
                reference = self._read(frames, columns)
            yield Moment(frames=frames, columns=columns, is_running=is_running.copy(), reference=reference)

    def _read(self, frames: Frames, columns: dict[str, np.ndarray]) -> Reading | None:
        if self._probe is None:
            return None
        rows = Episode(index=0, fps=self._world.fps, task=None, frames={}, columns=columns)
        recorded = self._probe.recorded(rows)
        return self._probe.read(frames) if recorded is None else recorded

    def _check(self, pictures: dict[str, np.ndarray], row: dict[str, Any]) -> None:
        world = self._world
        missing = [key for key in world.cameras if key not in pictures]
        if missing:
            raise DataError(
                f"world '{world.name}' needs camera {', '.join(missing)}; the environment shows "
                f"{', '.join(pictures) or 'none'}",
                path=self.source,
            )
        key = world.config.proprio_key
        size = len(row[key]) if key in row else 0
        if key is not None and size != world.proprio_dim:
            raise DataError(
                f"world '{world.name}' needs {world.proprio_dim} numbers of {key}; the environment gives "
                f"{size}",
                path=self.source,
            )
        if row["action"].shape != (world.action_dim,):
            raise DataError(
                f"actions have {row['action'].size} numbers, but world '{world.name}' takes "
                f"{world.action_dim}",
                path=self.source,
            )
