"""``kinema view``: show an episode, or its simulation by a world, in the Rerun viewer.

Everything stands on two timelines: ``row``, the row of the episode, and ``time`` in seconds.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from kinema.data import drawing
from kinema.data.files import replacing
from kinema.data.lerobot import Dataset
from kinema.evaluation.protocol import RecordingOptions
from kinema.evaluation.rollout import open_recordings
from kinema.evaluation.simulate import Comparison, SimulateConfig, compare_episode
from kinema.model.world import CONFIG_FILE
from kinema.options import at_least
from kinema.simulation.world import BUNDLED_WORLDS, World, load
from kinema.types import Episode

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that number the rows and say nothing of the robot."""
APPLICATION = "kinema"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig(RecordingOptions):
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET|WORLD")]
    """The source: a dataset (LeRobot folder or Hub id) or a world (a bundled one, folder or Hub id)."""
    episode: int = 0
    """Index of the episode."""
    simulate: bool = False
    """Simulate the episode with the world, beside what was recorded."""
    steps: int = 200
    """Steps to simulate, at most as many as were recorded."""
    seed: int = 0
    """Seed of the simulation's noise."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path | None = None
    """File to write, such as episode.rrd; by default the viewer opens."""

    def __post_init__(self) -> None:
        at_least(self, episode=0)
        if self.out is not None and self.out.suffix != ".rrd":
            raise ValueError(f"out is {self.out}: Rerun's files end in .rrd")


def show(config: ViewConfig) -> int:
    """Write the file, or open the viewer; return 0.

    Raises:
        ImportError: Rerun is not installed.
        ValueError: the world or the data cannot be read, or do not fit each other or the settings.
    """
    import rerun  # noqa: F401  # Before minutes of work that would be lost.

    world, dataset = _open(config)
    if config.episode >= dataset.num_episodes:
        raise ValueError(
            f"{dataset.root}: no episode {config.episode}; there are {dataset.num_episodes}, counted from 0"
        )
    comparison = None
    if world is not None:
        names = ("episode", "steps", "context", "seed", "num_denoising_steps")
        settings = {name: getattr(config, name) for name in names}
        comparison = compare_episode(world, dataset, SimulateConfig(world=config.source, **settings))
    name = f"{dataset.root.name} episode {config.episode}"
    with _recording(name, dataset.fps, _layout(dataset, world), config.out) as log:
        log_episode(log, dataset, dataset.episode(config.episode))
        if world is not None and comparison is not None:
            log_comparison(log, dataset, world, comparison, first=config.context)
    if config.out is not None:
        print(f"{config.out}\nopen it with: rerun {config.out}")
    return 0


class Log:
    """A recording of Rerun, written row by row."""

    def __init__(self, stream: Any, fps: float):
        self.stream, self._fps = stream, fps

    def at(self, row: int) -> None:
        """Set the row of the episode for the entries that follow."""
        self.stream.set_time("row", sequence=row)
        self.stream.set_time("time", duration=row / self._fps)

    def frame(self, path: list[str], frame: np.ndarray) -> None:
        """Log a frame ``H W C`` uint8, without loss."""
        import rerun

        contents = drawing.encode_png(frame)
        self.stream.log(path, rerun.EncodedImage(contents=contents, media_type="image/png"))

    def number(self, path: list[str], value: Any) -> None:
        """Log a number; one that is not finite leaves a gap."""
        import rerun

        if np.isfinite(value):
            self.stream.log(path, rerun.Scalars(float(value)))


def log_episode(log: Log, dataset: Dataset, episode: Episode) -> None:
    """Log the recording: frames by camera, and every column of numbers by its names."""
    import rerun

    if episode.task is not None:
        log.stream.log(["task"], rerun.TextDocument(episode.task), static=True)
    columns = {
        key: np.asarray(values).reshape(len(episode), -1)
        for key, values in episode.columns.items()
        if key not in BOOKKEEPING and np.asarray(values).dtype.kind in "biuf"
    }
    names = {key: _names(dataset, key, values.shape[1]) for key, values in columns.items()}
    for row in tqdm(range(len(episode)), desc="logging", unit=" rows"):
        log.at(row)
        for camera, frames in episode.frames.items():
            log.frame(["real", camera], frames[row])
        for key, values in columns.items():
            for name, value in zip(names[key], values[row], strict=True):
                log.number([key, "real", name], value)


def log_comparison(log: Log, dataset: Dataset, world: World, comparison: Comparison, *, first: int) -> None:
    """Log the simulation from row ``first`` on: frames and their difference from the real ones by camera,
    proprioception, trust, errors."""
    simulated, key = comparison.simulated, world.config.proprio_key
    names = [] if key is None else _names(dataset, key, world.proprio_dim)
    # At the size that the world shows; the recording may be larger.
    real = comparison.real[first:].frames
    differences = {
        camera: drawing.difference(real[camera], each) for camera, each in simulated.frames.items()
    }
    for step in tqdm(range(len(simulated)), desc="logging", unit=" steps"):
        log.at(first + step)
        for camera, frames in simulated.frames.items():
            log.frame(["simulated", camera], frames[step])
            log.frame(["difference", camera], differences[camera][step])
        if key is not None and simulated.proprio is not None:
            for name, value in zip(names, simulated.proprio[step], strict=True):
                log.number([key, "simulated", name], value)
        if simulated.trust is not None:
            log.number(["trust"], simulated.trust[step])
        for quantity in comparison.quantities:
            path = ["error", f"{quantity.label} ({quantity.unit})"]
            log.number([*path, "simulated"], comparison.errors[quantity.key][step])
            log.number([*path, "last frame repeated"], comparison.still[quantity.key][step])


def _open(config: ViewConfig) -> tuple[World | None, Dataset]:
    """Open the world, where the episode is to be simulated, and the recordings. Raises ValueError."""
    folder = Path(config.source)
    if not folder.is_dir() and (BUNDLED_WORLDS / config.source).is_dir():
        folder = BUNDLED_WORLDS / config.source
    if not config.simulate:
        is_world = (folder / CONFIG_FILE).is_file() or config.data is not None
        return None, open_recordings(config.source, config.data) if is_world else Dataset.open(config.source)
    if (folder / "meta" / "info.json").is_file():
        raise ValueError(
            f"{folder} is a dataset, and --simulate needs a world: kinema view WORLD --data {folder} "
            "--simulate"
        )
    return load(config.source, device=config.device), open_recordings(config.source, config.data)


def _names(dataset: Dataset, key: str, size: int) -> list[str]:
    """Return the names of a column's numbers, else their indices."""
    names = dataset.features.get(key, {}).get("names")
    if isinstance(names, Mapping):
        names = next((value for value in names.values() if isinstance(value, list)), None)
    if not isinstance(names, list) or len(names) != size or len(set(map(str, names))) != size:
        return [str(index) for index in range(size)]
    return [str(name) for name in names]


def _layout(dataset: Dataset, world: World | None) -> Any:
    """Lay frames out above, one row for each camera, and plots beneath."""
    import rerun
    from rerun import blueprint

    kinds = ("real",) if world is None else ("real", "simulated", "difference")
    frames = [
        blueprint.Spatial2DView(origin=rerun.new_entity_path([kind, camera]), name=f"{kind} {camera}")
        for camera in (dataset.cameras if world is None else world.cameras)
        for kind in kinds
    ]
    groups = [key for key in dataset.features if key not in (*BOOKKEEPING, *dataset.cameras)]
    groups += [] if world is None else ["error", "trust"]
    plots = [blueprint.TimeSeriesView(origin=rerun.new_entity_path([key]), name=key) for key in groups]
    parts: list[Any] = [blueprint.Grid(*frames, grid_columns=len(kinds))] if frames else []
    return blueprint.Blueprint(blueprint.Vertical(*parts, blueprint.Grid(*plots)))


@contextlib.contextmanager
def _recording(name: str, fps: float, layout: Any, out: Path | None) -> Iterator[Log]:
    """Open a recording that goes to a file, written beside and then renamed, or else to the viewer."""
    import rerun

    with contextlib.ExitStack() as stack:
        stream = rerun.RecordingStream(APPLICATION)
        stack.callback(stream.disconnect)
        if out is None:
            stream.spawn(default_blueprint=layout)
        else:
            stream.save(stack.enter_context(replacing(out)), default_blueprint=layout)
        stream.send_recording_name(name)
        yield Log(stream, fps)
        stream.flush()
        stream.disconnect()
