"""Record episodes of any Gymnasium environment as a LeRobot dataset: ``kinema record``."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from kinema.data import fold
from kinema.data.checked_env import blamed, to_flag, to_number
from kinema.data.environment import Render, make_environment, make_policy, needs_frame, parse_policy
from kinema.data.layout import INFO_PATH, exists, read_json, write_json
from kinema.data.options import JsonObject, NameList
from kinema.data.spaces import (
    RENDER_KEY,
    ActionReader,
    ObservationReader,
    RecordError,
    info_value,
    resize,
    to_frame,
)
from kinema.data.workers import JobError, run_in_order
from kinema.data.writer import MAX_FPS, DatasetWriter

RECIPE_PATH = "meta/kinema_record.json"
"""Beside LeRobot's own files: what was recorded, so that the same command can continue it."""


MAX_SIDE = 16_384
"""Pixels of a frame's side that video encoders take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Options of a recording. Episode i depends on seed + i alone, never on the number of workers."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """Gymnasium id, such as Pendulum-v1. A package named like the part before a slash (PACKAGE/NAME-v0) is
    imported first; for any other module that registers environments write MODULE:ID."""
    episodes: int
    """Number of episodes that the dataset shall have, those already on disk included."""
    out: Path
    """Folder of the dataset. Where an earlier run of the same command left episodes, this one continues."""
    policy: str = "random"
    """Name of a policy (random, zero, cloned, act, imagined, or one of a kit), or MODULE:CALLABLE. The
    callable gets --policy-args (and the environment's spaces, if it has parameters action_space or
    observation_space) and returns an object with reset(rng, info) and act(observation, info); None instead
    of an action ends the episode. A number behind @ mixes in so large a share of random actions, as in
    cloned@0.3."""
    policy_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the policy."""
    env_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the environment. Kits fill in what is not given, such as frames of 64x64."""
    seed: int = 0
    """Seed of episode 0; episode i has seed + i."""
    workers: int | None = None
    """Processes that record at the same time; by default one for each core."""
    max_steps: int | None = None
    """Most steps of an episode; by default the environment's own limit, or none where the policy ends its
    episodes itself."""
    task: str | None = None
    """The instruction in words; by default the text in the observation, where there is one."""
    render: Render = "auto"
    """Record rendered frames (rgb_array) as observation.images.render: auto does it when the observation
    holds no frame and the environment can draw."""
    camera_size: int | tuple[int, int] | None = None
    """Resize frames to this side, or to this height and width; by default they stay as they are."""
    info_keys: NameList = ()
    """Entries of the environment's info to record as float32 columns info.NAME, each as it came with the
    observation of its row; the state that a kit needs is in some."""
    fps: float | None = None
    """Steps per second, at most 10,000; by default the environment's own (render_fps)."""
    codec: Literal["auto", "av1", "h264", "lossless", "image"] = "auto"
    """Format of stored frames. auto: small ones without loss, larger ones as LeRobot stores them (AV1)."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--episodes", self.episodes, 1, np.inf),
            ("--seed", self.seed, 0, 2**63),
            ("--workers", self.workers, 1, np.inf),
            ("--max-steps", self.max_steps, 1, np.inf),
            ("--fps", self.fps, 1e-3, MAX_FPS),
            *(("--camera-size", side, 1, MAX_SIDE) for side in self.frame_size or ()),
        ):
            if value is not None and not least <= value <= most:
                limit = f", at most {most}" if np.isfinite(most) else ""
                raise RecordError(f"{name} is {value}; it must be at least {least}{limit}")
        parse_policy(self.policy)

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Height and width of recorded frames; None leaves them as they are."""
        size = self.camera_size
        return (size, size) if isinstance(size, int) else size

    @property
    def num_workers(self) -> int:
        return self.workers or os.cpu_count() or 1

    def recipe(self) -> dict[str, Any]:
        """List the options that decide the content of an episode, as JSON holds them."""
        fields = dataclasses.asdict(self)
        for name in ("episodes", "out", "workers"):
            del fields[name]
        return json.loads(json.dumps(fields, sort_keys=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """An episode as a worker returns it."""

    frames: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    names: dict[str, list[str]]
    """Names of the numbers of each vector column."""
    task: str
    fps: float

    def features(self) -> dict[str, dict[str, Any]]:
        """Describe the features of a dataset of such episodes."""
        features: dict[str, dict[str, Any]] = {
            key: {"dtype": "video", "shape": list(frames.shape[1:]), "names": ["height", "width", "channels"]}
            for key, frames in self.frames.items()
        }
        for key, column in self.columns.items():
            shape = list(column.shape[1:]) or [1]
            features[key] = {"dtype": str(column.dtype), "shape": shape, "names": self.names.get(key)}
        return features


class EpisodeRecorder:
    """An environment and a policy, recording one whole episode for each number it is called with.

    Row ``t`` of an episode holds ``observation[t]`` and ``info[t]``, the action then taken, and the reward,
    flags and success that this action led to. The observation after the last action is not kept, as in
    LeRobot.
    """

    def __init__(self, config: RecordConfig):
        self.config = config
        environment = make_environment(
            config.env, config.env_args, render=config.render, frame_size=config.frame_size
        )
        self.env = environment.env
        self._is_rendered = environment.is_rendered
        self._observations = ObservationReader(self.env.observation_space)
        self._actions = ActionReader(self.env.action_space)
        self._fps = self._find_fps()
        self.policy = make_policy(config.policy, config.policy_args, self.env)
        self._limit = self._find_limit(environment.max_steps)
        self._task = ""
        if "cv2" in sys.modules:
            # OpenCV takes a thread for each core; with a worker on each core they only wait for each other.
            sys.modules["cv2"].setNumThreads(1)

    def close(self) -> None:
        self.env.close()

    def __call__(self, index: int) -> Recording:
        frames: dict[str, list[np.ndarray]] = {}
        columns: dict[str, list[Any]] = {}
        for frames_of_row, row in self.rows(index):
            for key, frame in frames_of_row.items():
                frames.setdefault(key, []).append(frame)
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
        if not columns:
            raise RecordError("the policy returned None at once: the episode would be empty")
        is_over = columns["next.terminated"][-1] or columns["next.truncated"][-1]
        columns["next.truncated"][-1] |= not is_over  # The policy ended it.
        return Recording(
            frames={key: _stack(key, values) for key, values in frames.items()},
            columns={key: _column(key, values) for key, values in columns.items()},
            names={**self._observations.names, "action": self._actions.names},
            task=self._task,
            fps=self._fps,
        )

    def rows(self, index: int) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """Yield the rows of an episode, each computed when it is asked for: frames by key, and columns."""
        seed = self.config.seed + index
        observation, info = self.env.reset(seed=seed)
        with blamed("reset() of the policy"):
            self.policy.reset(np.random.default_rng(seed), info)
        self._task = (
            self.config.task if self.config.task is not None else self._observations.task(observation)
        )
        num_rows = 0
        is_over = False
        while not is_over:
            drawn = self._draw() if needs_frame(self.policy) else {}
            with blamed(f"step {num_rows}: act() of the policy"):
                action = self.policy.act(observation, {**info, **drawn})
            if action is None:
                break
            try:
                # Converted before the step, because environments may reuse the arrays that they return.
                frames = self._at_size(self._observations.frames(observation)) | (drawn or self._draw())
                row: dict[str, Any] = self._observations.vectors(observation)
                row |= {f"info.{key}": info_value(info, key) for key in self.config.info_keys}
                row["action"] = self._actions.vector(action)
            except RecordError as error:
                raise RecordError(f"step {num_rows}: {error}") from error
            observation, reward, terminated, truncated, info = self.env.step(action)
            success = info.get("is_success", info.get("success"))
            row["next.reward"] = reward
            row["next.terminated"] = terminated
            row["next.truncated"] = truncated or num_rows + 1 == self._limit
            row["next.success"] = success is not None and to_flag(
                success, f"step {num_rows}: info of the environment has as success"
            )
            num_rows += 1
            is_over = row["next.terminated"] or row["next.truncated"]
            yield frames, row

    def _find_fps(self) -> float:
        given = self.config.fps or (self.env.metadata or {}).get("render_fps")
        if not given:
            raise RecordError(
                f"{self.config.env!r} does not say how many steps it makes per second; add --fps"
            )
        fps = to_number(given, f"{self.config.env!r} has as metadata['render_fps']")
        if not 0 < fps < np.inf:
            raise RecordError(f"{self.config.env!r} has as metadata['render_fps'] {fps}; add --fps")
        return fps

    def _find_limit(self, own_limit: int | None) -> int | None:
        if self.config.max_steps is not None:
            return self.config.max_steps
        if getattr(self.policy, "ends_episodes", False):
            return None
        if own_limit is None:
            raise RecordError(
                f"{self.config.env!r} has no limit of steps and policy {self.config.policy!r} does not say "
                "that it ends its episodes (ends_episodes = True); add --max-steps"
            )
        return own_limit

    def _draw(self) -> dict[str, np.ndarray]:
        """Draw the frame that is no part of the observation, if any."""
        if not self._is_rendered:
            return {}
        return self._at_size({RENDER_KEY: to_frame(self.env.render(), RENDER_KEY)})

    def _at_size(self, frames: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        size = self.config.frame_size
        return frames if size is None else {key: resize(frame, size) for key, frame in frames.items()}


def _stack(key: str, values: list[Any]) -> np.ndarray:
    """Stack the values of all rows. Raises RecordError where their shapes differ."""
    shapes = [np.shape(value) for value in values]
    differs = next((step for step, shape in enumerate(shapes) if shape != shapes[0]), None)
    if differs is not None:
        raise RecordError(
            f"step {differs}: {key} has shape {shapes[differs]}, but had {shapes[0]} before; every row needs "
            "the same"
        )
    return np.stack(values)


def _column(key: str, values: list[Any]) -> np.ndarray:
    column = _stack(key, values)
    # One number a row is a scalar in LeRobot; numbers are float32, flags are bool.
    column = column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
    return column.astype(np.float32) if column.dtype == np.float64 else column


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordResult:
    """Dataset that a call of ``record`` leaves."""

    root: Path
    num_episodes: int
    """Episodes in the dataset, those of earlier calls included."""
    num_frames: int
    """Rows that this call added."""


def record(config: RecordConfig) -> RecordResult:
    """Record until the dataset has ``config.episodes`` episodes.

    Ctrl-C stops at once and keeps every episode written; the same call again continues, and the dataset is
    then the one that an uninterrupted run makes. Raises RecordError for all that a user can change, and
    KeyboardInterrupt after Ctrl-C.
    """
    with contextlib.ExitStack() as stack:
        is_interrupted = stack.enter_context(_deferred_interrupt())
        # Closed after the workers have ended, because closing a dataset takes a while.
        dataset = stack.enter_context(contextlib.ExitStack())
        _check_out(config.out)
        # Held from the start: what two recordings of one folder do at once would go into it twice.
        stack.enter_context(fold.lock(config.out))
        writer = _continue(config, dataset)
        start = writer.num_episodes if writer is not None else 0
        if start >= config.episodes:
            print(f"{config.out} already has {start} episodes; nothing to record", file=sys.stderr)
            return RecordResult(root=config.out, num_episodes=start, num_frames=0)
        bar = stack.enter_context(
            tqdm(total=config.episodes, initial=start, unit="episode", desc=f"recording {config.env}")
        )
        recordings = run_in_order(
            functools.partial(EpisodeRecorder, config),
            range(start, config.episodes),
            num_workers=config.num_workers,
            is_stopped=is_interrupted,
        )
        stack.enter_context(contextlib.closing(recordings))
        num_frames, began = 0, time.monotonic()
        with _explained(config):
            for recording in recordings:
                if writer is None:
                    writer = _create(config, recording, dataset)
                writer.add(frames=recording.frames, columns=recording.columns, task=recording.task)
                num_frames += len(recording.columns["action"])
                bar.update()
                bar.set_postfix_str(f"{num_frames / (time.monotonic() - began):.0f} frames/s")
        num_episodes = writer.num_episodes if writer is not None else 0
    if num_episodes < config.episodes:
        print(f"{config.out} has {num_episodes} of {config.episodes} episodes", file=sys.stderr)
        raise KeyboardInterrupt
    return RecordResult(root=config.out, num_episodes=num_episodes, num_frames=num_frames)


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something else than a dataset. Raises RecordError."""
    if exists(out) and not out.is_dir():
        raise RecordError(f"--out: {out} is a file; choose a new folder")
    # In this order: another writer may create its dataset between the two.
    if not fold.is_vacant(out) and not exists(out / INFO_PATH):
        raise RecordError(f"--out: {out} is not a dataset and not empty; choose a new folder")


def _continue(config: RecordConfig, stack: contextlib.ExitStack) -> DatasetWriter | None:
    """Open the dataset that an earlier run of this command left, if one did."""
    if not exists(config.out / INFO_PATH):
        return None
    has_recipe = exists(config.out / RECIPE_PATH)
    if has_recipe:
        _check_same(config, read_json(config.out, RECIPE_PATH))
    fps = read_json(config.out, INFO_PATH).get("fps", 0)
    writer = stack.enter_context(DatasetWriter(config.out, fps=fps, is_locked=True))
    if not has_recipe:
        if writer.num_episodes:
            raise RecordError(
                f"--out: {config.out} holds a dataset that `kinema record` did not make; choose a new folder"
            )
        # Killed just after it had created the dataset.
        write_json(config.out / RECIPE_PATH, config.recipe())
    return writer


def _check_same(config: RecordConfig, before: dict[str, Any]) -> None:
    now = config.recipe()
    changes = [f"{key} {before.get(key)!r} (now {now[key]!r})" for key in now if before.get(key) != now[key]]
    if changes:
        raise RecordError(
            f"--out: {config.out} was recorded with {', '.join(changes)}; run the same command to continue "
            "it, or choose a new folder"
        )


def _create(config: RecordConfig, first: Recording, stack: contextlib.ExitStack) -> DatasetWriter:
    writer = stack.enter_context(
        DatasetWriter(
            config.out,
            fps=first.fps,
            features=first.features(),
            robot_type=config.env,
            codec=config.codec,
            is_locked=True,
        )
    )
    write_json(config.out / RECIPE_PATH, config.recipe())
    return writer


@contextlib.contextmanager
def _explained(config: RecordConfig) -> Iterator[None]:
    """Name the environment, episode and seed in the error of a worker."""
    try:
        yield
    except JobError as error:
        message = error.message
        if error.job is not None:
            message = f"{config.env}, episode {error.job} (seed {config.seed + error.job}): {message}"
            message += f". The episodes before it are in {config.out}" if error.job else ""
        explained = RecordError(message)
        if error.trace:
            explained.add_note(f"In the worker process:\n{error.trace}")
        raise explained from None


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; inside, only a second Ctrl-C interrupts."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set  # Python hands signals to the main thread alone.
        return

    def handle(*_: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, before)
