"""The real side of a long comparison, step by step: recorded episodes or live environments.

All rollouts go on together, and frames are kept only where they are needed, so that a hundred thousand steps
take no more memory than a hundred.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kinema.data.lerobot import DataError, Dataset
from kinema.data.record import EpisodeRecorder, RecordConfig
from kinema.evaluation.rollout import Segment, read_rows, stack_rows
from kinema.kits import Probe, Reading, kit_of_environment
from kinema.simulation.world import World
from kinema.types import Episode, Frames


class RecordedEpisodes:
    """Segments of recorded episodes: the beginnings of all first, then later ones of the longer episodes.

    ``steps`` yields the observations of all rollouts at each time, first those to start from, then those to
    compare with. All have ``columns`` and ``is_running``; frames and state only where they are needed.
    """

    def __init__(
        self, world: World, dataset: Dataset, *, num: int, is_needed: np.ndarray, probe: Probe | None
    ) -> None:
        """Read up to ``num`` segments; ``is_needed`` (bool) has their length and says which frames to keep.

        Raises:
            DataError: no episode is long enough, or the dataset lacks what the world needs.
        """
        self.source = str(dataset.root)
        self._world, self._probe, self._is_needed = world, probe, is_needed
        advice = "drive a live environment with --env"
        rows = read_rows(world, dataset, num=num, length=len(is_needed), advice=advice)
        self._segments = [self._cut(episode, part) for episode, part in rows]
        self.num_rollouts = len(self._segments)
        self.episodes = {segment.episode for segment in self._segments}
        """Episodes that the segments are from."""

    def _cut(self, episode: Episode, rows: slice) -> Segment:
        """Take rows: all of the columns, but only the needed ones of frames and states."""
        frames = {key: frames[rows][self._is_needed] for key, frames in episode.frames.items()}
        frames = self._world.by_camera(frames) if self._world.cameras else {}
        columns = {
            key: values[rows] for key, values in episode.columns.items() if values.dtype.kind in "fiub"
        }
        columns["action"] = episode.actions[rows]  # Of no numbers where none was recorded.
        state = None
        if self._probe is not None:
            recorded = self._probe.recorded(episode)
            state = self._probe.read(frames) if recorded is None else recorded[rows][self._is_needed]
        return Segment(frames=frames, columns=columns, state=state, episode=episode.index)

    def steps(self) -> Iterator[Segment]:
        kept = np.cumsum(self._is_needed) - 1
        is_running = np.ones(self.num_rollouts, dtype=bool)
        for time, is_needed in enumerate(self._is_needed):
            shown = stack_rows(self._segments, int(kept[time])) if is_needed else Segment()
            columns = {
                key: np.stack([segment.columns[key][time] for segment in self._segments])
                for key in self._segments[0].columns
            }
            proprio = columns.get(self._world.config.proprio_key or "")
            yield dataclasses.replace(shown, proprio=proprio, columns=columns, is_running=is_running)

    def close(self) -> None:
        """Do nothing: only memory is held."""


class LiveEnvironments:
    """Environments that a policy acts in, as ``kinema record`` runs them; rollout ``i`` is episode ``i``.

    ``steps`` is as that of ``RecordedEpisodes``.
    """

    def __init__(
        self, world: World, config: RecordConfig, *, num: int, is_needed: np.ndarray, probe: Probe | None
    ) -> None:
        """Make the environments.

        Raises:
            RecordError: the environment or the policy cannot be made.
            DataError: they do not fit the world.
        """
        self.source = f"{config.env} with policy {config.policy}"
        self.num_rollouts = num
        self._world, self._probe, self._is_needed = world, probe, is_needed
        self._recorders = [EpisodeRecorder(config) for _ in range(num)]
        self._is_shown = True
        """True where the frame that follows the next step is needed."""
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

    def steps(self) -> Iterator[Segment]:
        episodes = [recorder.rows(index) for index, recorder in enumerate(self._recorders)]
        last: list[tuple[dict[str, np.ndarray], dict[str, Any]] | None] = [None] * len(episodes)
        is_running = np.ones(len(episodes), dtype=bool)
        for time, is_needed in enumerate(self._is_needed):
            # The frame of a row is that of its observation, which came with the step of the row before.
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
            shown = Segment()
            if is_needed:
                frames = {key: np.stack([row[key] for row, _ in rows]) for key in self._world.cameras}
                frames = self._world.by_camera(frames) if frames else {}
                shown = Segment(frames=frames, state=self._state(frames, columns))
            proprio = columns.get(self._world.config.proprio_key or "")
            running = is_running.copy()
            yield dataclasses.replace(shown, proprio=proprio, columns=columns, is_running=running)

    def _state(self, frames: Frames, columns: dict[str, np.ndarray]) -> Reading | None:
        if self._probe is None:
            return None
        rows = Episode(index=0, fps=self._world.fps, task=None, frames={}, columns=columns)
        recorded = self._probe.recorded(rows)
        return self._probe.read(frames) if recorded is None else recorded

    def _check(self, frames: dict[str, np.ndarray], row: dict[str, Any]) -> None:
        """Compare the first row of an environment with the needs of the world. Raises DataError."""
        world, key = self._world, self._world.config.proprio_key
        missing = [camera for camera in world.cameras if camera not in frames]
        size = len(row[key]) if key in row else 0
        problem = ""
        if missing:
            problem = (
                f"needs camera {', '.join(missing)}; the environment shows {', '.join(frames) or 'none'}"
            )
        elif key is not None and size != world.proprio_dim:
            problem = f"needs {world.proprio_dim} numbers of {key}; the environment gives {size}"
        elif row["action"].shape != (world.action_dim,):
            problem = f"takes actions of {world.action_dim} numbers; these have {row['action'].size}"
        if problem:
            raise DataError(f"world '{world.name}' {problem}", path=self.source)


Reality = RecordedEpisodes | LiveEnvironments
"""Real rollouts, all at once."""
