"""Decoded episodes for training: frames in memory-mapped files beside the run, vectors in memory.

Decoding happens once, before training. The one shift of the action, from "taken at ``t``" to "led to ``t``",
happens here and nowhere else.
"""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from tqdm import tqdm

from kinema.data.files import write_json
from kinema.data.frames import as_rgb, resize
from kinema.data.layout import picture_shape
from kinema.data.lerobot import DataError, Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentsConfig:
    cameras: tuple[str, ...] | None = None
    """Feature keys of the cameras to learn, in order; all of the dataset's by default."""
    proprio: str | None = None
    """Feature key of the proprioception to learn; none by default."""
    height: int = 64
    """Pictures are brought to this height in pixels."""
    width: int = 64
    """Pictures are brought to this width in pixels."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """Height and width of the frames of each camera, where they are not all ``height`` and ``width``."""
    episodes: tuple[int, int] | None = None
    """First and one past the last episode to use; all by default."""
    left_out: tuple[int, ...] = ()
    """Positions of episodes in that range that are not used."""

    def sizes_of(self, cameras: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Height and width by camera. Raises ValueError where ``sizes`` is of another number of cameras."""
        if self.sizes is None:
            return dict.fromkeys(cameras, (self.height, self.width))
        if len(self.sizes) != len(cameras):
            raise ValueError(f"sizes={self.sizes}: one for each of {', '.join(cameras)} is needed")
        return dict(zip(cameras, self.sizes, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two moments of one episode each."""

    pictures: torch.Tensor
    """``uint8`` ``B 2 H W 3``."""
    rows: np.ndarray
    """``B 2``."""
    cameras: np.ndarray
    """``B``: index of the camera that the pictures are of."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
    """For each row, or each episode, what was recorded. All else is noise to a network and no target."""

    action: np.ndarray
    """``N`` bool: the action that led to the frame."""
    proprio: np.ndarray
    """``N`` bool."""
    cameras: np.ndarray
    """``N C`` bool."""
    action_numbers: np.ndarray
    """``N A`` bool: numbers of the action that this robot has, as recorded."""
    proprio_numbers: np.ndarray
    """``N P`` bool: the same of proprioception."""

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Masks":
        """The same function of each part."""
        return Masks(**{name: function(part) for name, part in vars(self).items()})


class Segments:
    """All rows of the chosen episodes, one after the other, and the segments that can be cut from them."""

    def __init__(
        self,
        *,
        frames: dict[str, np.ndarray],
        actions: np.ndarray,
        proprio: np.ndarray | None,
        lengths: np.ndarray,
        native_sizes: dict[str, tuple[int, int]],
        episodes: np.ndarray | None = None,
        tasks: Sequence[str | None] | None = None,
        recorded: Masks | None = None,
    ):
        """``recorded``: by episode, what was recorded; everything by default."""
        self.frames = frames
        self.actions = actions
        self.proprio = proprio
        self.lengths = lengths
        self.native_sizes = native_sizes
        """Height and width of each camera as recorded."""
        self.episodes = np.arange(len(lengths)) if episodes is None else episodes
        """Positions of the episodes in the dataset."""
        self.tasks = [None] * len(lengths) if tasks is None else list(tasks)
        """By episode: the instruction in words, where there is one."""
        self.recorded = recorded or self._everything()
        """By episode: what was recorded."""
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self._episode_of_row = np.repeat(np.arange(len(lengths)), lengths)
        self.has_action = self.recorded.action[self._episode_of_row]
        """By row: True where the action that led to its frame is recorded; not so where an episode begins."""
        self.has_action[self.starts] = False
        self.prev_action = np.roll(actions, 1, axis=0)
        """By row: the action that led to its frame; zeros where none is known."""
        self.prev_action[self.starts] = 0.0
        self._sums: tuple[np.ndarray, int, np.ndarray] | None = None
        """What rows are drawn by: weights, the length of the segments, and running sums."""

    @property
    def num_rows(self) -> int:
        return len(self.actions)

    def _everything(self) -> Masks:
        """By episode: everything is recorded that there is in one of them. Where there are no actions, so is
        the action of no numbers, which says all that there is to say."""
        num = len(self.lengths)
        proprio_dim = 0 if self.proprio is None else self.proprio.shape[1]
        return Masks(
            action=np.ones(num, bool),
            proprio=np.full(num, proprio_dim > 0),
            cameras=np.ones((num, len(self.native_sizes)), bool),
            action_numbers=np.ones((num, self.actions.shape[1]), bool),
            proprio_numbers=np.ones((num, proprio_dim), bool),
        )

    def masks(self, rows: np.ndarray) -> Masks:
        """For rows of any shape, what was recorded of each."""
        of_row = self.recorded.map(lambda part: part[self._episode_of_row[rows]])
        return dataclasses.replace(of_row, action=self.has_action[rows])

    def followed_by(self, other: "Segments") -> "Segments":
        """The episodes of both, without their pictures: for what learns from encoded ones."""
        return Segments(
            frames={},
            actions=np.concatenate([self.actions, other.actions]),
            proprio=None
            if self.proprio is None or other.proprio is None
            else np.concatenate([self.proprio, other.proprio]),
            lengths=np.concatenate([self.lengths, other.lengths]),
            native_sizes=self.native_sizes,
            episodes=np.concatenate([self.episodes, other.episodes]),
            tasks=[*self.tasks, *other.tasks],
            recorded=Masks(
                **{
                    name: np.concatenate([part, vars(other.recorded)[name]])
                    for name, part in vars(self.recorded).items()
                }
            ),
        )

    def draw_rows(
        self,
        rng: np.random.Generator,
        batch: int,
        length: int,
        *,
        weights: np.ndarray | None = None,
        weighted_share: float = 0.0,
    ) -> np.ndarray:
        """Rows ``batch length`` of segments drawn uniformly over all that the episodes hold, except for
        ``weighted_share`` of them: those hold, anywhere in them, a row drawn by ``weights`` (one for each
        row).

        Raises:
            DataError: no episode has ``length`` steps.
        """
        room = np.maximum(self.lengths - length + 1, 0)
        if not room.any():
            raise DataError(
                f"segments of {length} steps: the longest episode has {self.lengths.max()}; "
                "record longer episodes or choose a recipe with shorter segments"
            )
        ends = np.cumsum(room)
        draws = rng.integers(0, ends[-1], batch)
        episodes = np.searchsorted(ends, draws, side="right")
        offsets = draws - (ends[episodes] - room[episodes])
        if weights is not None and weighted_share:
            sums = self._running_sums(weights, length)
            drawn = np.searchsorted(sums, rng.random(batch) * sums[-1], side="right")
            is_weighted = (rng.random(batch) < weighted_share) & (sums[-1] > 0)
            of_row = self._episode_of_row[np.minimum(drawn, self.num_rows - 1)]
            first = drawn - self.starts[of_row] - rng.integers(0, length, batch)
            episodes = np.where(is_weighted, of_row, episodes)
            offsets = np.where(is_weighted, np.clip(first, 0, room[of_row] - 1), offsets)
        return (self.starts[episodes] + offsets)[:, None] + np.arange(length)

    def _running_sums(self, weights: np.ndarray, length: int) -> np.ndarray:
        """Running sums of the weights of rows, 0 for rows of shorter episodes. The last are kept, in one
        assignment, since several threads draw."""
        kept = self._sums
        if kept is None or kept[0] is not weights or kept[1] != length:
            is_long = (self.lengths >= length)[self._episode_of_row]
            kept = self._sums = weights, length, np.cumsum(weights * is_long)
        return kept[2]

    def draw_goals(
        self, rng: np.random.Generator, batch: int, max_steps: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, rows of the same episodes that came later, and how many steps later (``batch`` each): from 0
        to ``max_steps``, small numbers as often as large ones (evenly spread in ``log1p``), where the episode
        goes on for so long."""
        rows = rng.integers(0, self.num_rows, batch)
        goals, steps = self.draw_goals_of(rng, rows, max_steps)
        return rows, goals, steps

    def draw_goals_of(
        self, rng: np.random.Generator, rows: np.ndarray, max_steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """For rows, of any shape, later ones of the same episodes and how many steps later: see
        ``draw_goals``."""
        most = np.minimum(max_steps, self.last_rows(rows) - rows)
        steps = np.expm1(rng.random(rows.shape) * np.log1p(most + 1)).astype(np.int64)
        steps = np.minimum(steps, most)
        return rows + steps, steps

    def first_rows(self, rows: np.ndarray) -> np.ndarray:
        """The first rows of the episodes that rows are of."""
        return self.starts[self._episode_of_row[rows]]

    def last_rows(self, rows: np.ndarray) -> np.ndarray:
        """The last rows of the episodes that rows are of."""
        return self.first_rows(rows) + self.lengths[self._episode_of_row[rows]] - 1

    @property
    def cameras_by_size(self) -> list[list[int]]:
        """Indices of the cameras, those of frames of one size together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, frames in enumerate(self.frames.values()):
            groups.setdefault(frames.shape[1:], []).append(index)
        return list(groups.values())

    def draw_pairs(
        self, rng: np.random.Generator, batch: int, *, cameras: Sequence[int] | None = None
    ) -> Pairs:
        """Draw frames of two times of one episode, of cameras drawn at random that have frames of one size.

        ``cameras``: indices of those to draw from.
        """
        keys, groups = list(self.frames), self.cameras_by_size
        if cameras is None:
            weights = np.cumsum([len(group) for group in groups])
            chosen = 0 if len(groups) == 1 else np.searchsorted(weights, rng.integers(weights[-1]), "right")
            cameras = groups[int(chosen)]
        first = rng.integers(0, self.num_rows, batch)
        episodes = self._episode_of_row[first]
        second = self.starts[episodes] + (rng.random(batch) * self.lengths[episodes]).astype(np.int64)
        drawn = np.asarray(cameras)[rng.integers(0, len(cameras), batch)]
        pairs = [self.frames[keys[c]][[a, b]] for a, b, c in zip(first, second, drawn, strict=True)]
        rows = np.stack([first, second], axis=1)
        return Pairs(pictures=torch.from_numpy(np.stack(pairs)), rows=rows, cameras=drawn)


def load_segments(
    dataset: Dataset, config: SegmentsConfig, cache: Path, *, progress: bool = True
) -> Segments:
    """Decode the chosen episodes.

    Args:
        dataset: what to read.
        config: which cameras, size and episodes.
        cache: folder for the decoded frames. What is there of the same dataset and configuration is used
            again, also where decoding was stopped.
        progress: whether to show a progress bar.

    Raises:
        DataError: no episodes, or a key that the dataset does not have, named together with those it has.
    """
    cameras = dataset.cameras if config.cameras is None else config.cameras
    _require_keys(dataset, [*cameras, *([config.proprio] if config.proprio else [])])
    first, stop = config.episodes if config.episodes is not None else (0, dataset.num_episodes)
    if not 0 <= first < stop <= dataset.num_episodes:
        raise DataError(f"{dataset.root}: episodes {first}:{stop} asked, but it holds {dataset.num_episodes}")
    if not cameras and not config.proprio:
        raise DataError(
            f"{dataset.root}: neither a camera nor proprioception to learn; name one of each at least"
        )
    chosen = np.setdiff1d(np.arange(first, stop), config.left_out)
    if not len(chosen):
        raise DataError(f"{dataset.root}: all of the episodes {first}:{stop} are left out")
    lengths = dataset.lengths()[chosen].astype(np.int64)
    sizes = config.sizes_of(cameras)
    store = _FrameStore(dataset, config, sizes, int(lengths.sum()), cache)
    actions, proprio, tasks = [], [], []
    bar = tqdm(chosen.tolist(), desc="decoding episodes", unit="episode", disable=not progress)
    with store:
        for number, index in enumerate(bar):
            episode = dataset.episode(index, cameras=())
            columns = episode.columns
            tasks.append(episode.task)
            actions.append(_finite(dataset, index, "action", _actions(episode.actions)))
            if config.proprio:
                values = _vectors(columns[config.proprio])
                proprio.append(_finite(dataset, index, config.proprio, values))
            if number >= store.num_episodes:
                # One camera after the other: only one has its frames, as recorded, in memory.
                for key in cameras:
                    store.add(key, resize(as_rgb(dataset.pictures(index, key), key), *sizes[key]))
                store.end_episode(is_last=number == len(chosen) - 1)
    return Segments(
        frames=store.open(),
        actions=np.concatenate(actions),
        proprio=np.concatenate(proprio) if proprio else None,
        lengths=lengths,
        native_sizes={key: picture_shape(dataset.features[key])[:2] for key in cameras},
        episodes=chosen,
        tasks=tasks,
    )


class _FrameStore:
    """Frames in a file for each camera, written episode by episode; ``store.json`` says how many there are,
    so that decoding resumes where it was stopped."""

    MARK_SECONDS = 30.0

    def __init__(
        self,
        dataset: Dataset,
        config: SegmentsConfig,
        sizes: Mapping[str, tuple[int, int]],
        num_rows: int,
        cache: Path,
    ):
        identity = {"dataset": str(dataset.root.resolve()), "frames": dataset.num_frames}
        self._identity = identity | json.loads(json.dumps(dataclasses.asdict(config)))
        self._shapes = {key: (num_rows, *size, 3) for key, size in sizes.items()}
        self._cache, self._mark = cache, cache / "store.json"
        self._paths = {key: cache / f"{key}.npy" for key in sizes}
        self._files: dict[str, BinaryIO] = {}
        self.num_episodes = self._num_rows = 0
        mark = json.loads(self._mark.read_text()) if self._mark.is_file() else {}
        if mark.get("identity") == self._identity and all(self._holds(mark["rows"])):
            self.num_episodes, self._num_rows = mark["episodes"], mark["rows"]
        self._marked_at, self._num_added = time.monotonic(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, camera: str, frames: np.ndarray) -> None:
        """Append the frames of an episode. Raises DataError where they cannot be written."""
        try:
            if not self._files:
                self._begin()
            self._files[camera].write(np.ascontiguousarray(frames).data)
        except OSError as error:
            raise self._error(error) from error
        self._num_added = len(frames)

    def end_episode(self, *, is_last: bool) -> None:
        """Count the episode of which all cameras were added."""
        self.num_episodes, self._num_rows = self.num_episodes + 1, self._num_rows + self._num_added
        if not self._files or not (is_last or time.monotonic() - self._marked_at > self.MARK_SECONDS):
            return
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._error(error) from error
        content = {"identity": self._identity, "episodes": self.num_episodes, "rows": self._num_rows}
        write_json(self._mark, content)
        self._marked_at = time.monotonic()

    def open(self) -> dict[str, np.ndarray]:
        """The frames of each camera, memory mapped; what a caller writes into them stays in memory."""
        return {key: np.load(path, mmap_mode="c") for key, path in self._paths.items()}

    def _holds(self, num_rows: int) -> Iterator[bool]:
        """For each file: True where it has so many frames at least."""
        for key, path in self._paths.items():
            num_bytes = num_rows * math.prod(self._shapes[key][1:])
            yield path.is_file() and path.stat().st_size > num_bytes

    def _begin(self) -> None:
        """Open the files behind the frames that are marked as written."""
        if not self.num_episodes:
            shutil.rmtree(self._cache, ignore_errors=True)
            self._cache.mkdir(parents=True)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False}
        for key, path in self._paths.items():
            file = self._files[key] = path.open("r+b" if self.num_episodes else "w+b")
            np.lib.format.write_array_header_1_0(file, header | {"shape": self._shapes[key]})
            file.seek(self._num_rows * math.prod(self._shapes[key][1:]), os.SEEK_CUR)
            file.truncate()

    def _error(self, error: OSError) -> DataError:
        return DataError(
            f"the decoded frames cannot be written ({error.strerror}); make room on the disk, then run the "
            "same command again",
            path=self._cache,
        )


def _require_keys(dataset: Dataset, keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in dataset.features]
    if missing:
        raise DataError(
            f"{dataset.root}: no feature {', '.join(missing)}; it has {', '.join(sorted(dataset.features))}"
        )


def _vectors(column: np.ndarray) -> np.ndarray:
    return np.asarray(column, dtype=np.float32).reshape(len(column), -1)


def _actions(column: np.ndarray) -> np.ndarray:
    """Actions ``T A``. A last one that is not finite leads to no frame: it repeats the one before it."""
    actions = _vectors(column)
    if len(actions) > 1 and not np.isfinite(actions[-1]).all():
        actions = np.concatenate([actions[:-1], actions[-2:-1]])
    return actions


def _finite(dataset: Dataset, index: int, key: str, values: np.ndarray) -> np.ndarray:
    """The same values. Raises DataError where one is NaN or infinite."""
    if not np.isfinite(values).all():
        row, dimension = np.argwhere(~np.isfinite(values))[0].tolist()
        raise DataError(
            f"dimension {dimension} is {values[row, dimension]} in row {row}; correct it, or delete the "
            "episode",
            path=dataset.table.data_paths[index],
            episode=int(dataset.table.ids[index]),
            key=key,
        )
    return values
