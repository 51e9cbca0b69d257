"""The runner of all protocols.

A measurement is a configuration, made of the option blocks below, and a function that takes a ``Run`` and
adds rows, series and notes to it::

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SharpnessConfig(WorldOptions, RecordingOptions, ResultOptions):
        steps: int = 50
        \"""Steps to simulate.\"""

    def sharpness(config: SharpnessConfig) -> int:
        return run_protocol("sharpness", config, measure_sharpness)

    def measure_sharpness(run: Run) -> None:
        segments = run.segments(num=32, length=run.config.context + run.config.steps)
        ...
        run.row("sharpness", "sharpness of frames", "share", bootstrap.mean, values_BS)

``run_protocol`` loads the world and the recordings, prints, and writes JSON, plots and a page. Values that
take long are kept in ``run.journal``: the same command then goes on where it stopped.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tyro

from kinema.data.lerobot import Dataset
from kinema.evaluation import bootstrap
from kinema.evaluation.plot import Drawing
from kinema.evaluation.result import Result, Row, Series, describe_run, plain
from kinema.evaluation.rollout import (
    FRAME,
    PROPRIO,
    Segment,
    load_segments,
    measure_errors,
    note_on_training,
    observe,
    open_recordings,
    simulate,
    stack_rows,
)
from kinema.kits import Quantity, Target, find_kit
from kinema.model.parts import fingerprint
from kinema.simulation.world import World, load


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldOptions:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id."""
    seed: int = 0
    """First of the seeds, from which all randomness comes."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    data: str | None = None
    """Recorded episodes (a LeRobot folder or Hub id); by default those that the world brings along."""
    context: int = 4
    """Real frames that a simulation starts from."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultOptions:
    out: Path = Path("evaluation")
    """Folder for the numbers (JSON), the plots (PNG) and the page (HTML), named after the measurement."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""


class Journal:
    """Values of a long measurement by their keys, in a file of one line of JSON each."""

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        """Open or continue a journal; ``identity`` says what is measured, in values that JSON has.

        Raises:
            ValueError: the file is of another measurement; it is left as it is.
        """
        self._path = path
        self._values: dict[str, Any] = {}
        head = json.dumps({"of": identity}, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.is_file() else ""
        # After a sudden end the last line may be incomplete.
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        if lines and lines[0] != head:
            raise ValueError(
                f"{path}: it holds unfinished values of another measurement (world, data or settings "
                "differ); choose another --out, or delete the file"
            )
        for line in lines[1:]:
            entry = json.loads(line)
            self._values[entry["key"]] = entry["found"]
        self._file = path.open("a")
        self._file.truncate(len(whole.encode()))
        if not lines:
            self._write(head)

    def find(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return the value of a key, measured and written where the journal lacks it."""
        if key not in self._values:
            line = json.dumps({"key": key, "found": measure()})
            self._write(line)
            # Read back, so that a run that goes on gets the same as one that was not stopped.
            self._values[key] = json.loads(line)["found"]
        return self._values[key]

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def close(self, *, is_finished: bool = False) -> None:
        """Close the file, and delete it where all its values are in a result."""
        self._file.close()
        if is_finished:
            self._path.unlink()


class Run:
    """One measurement: its world and recordings, and all that it has to say."""

    def __init__(
        self, name: str, world: World, config: Any, *, dataset: Dataset | None = None, axis: str = "step"
    ):
        self.name, self.world, self.config, self.axis = name, world, config, axis
        self._dataset = dataset
        self.source = "" if dataset is None else str(dataset.root)
        """Name of the reality that the world is compared with."""
        self.kit = find_kit(world.name, () if dataset is None else dataset.features)
        self.probe = None if self.kit is None else self.kit.find_probe(world.cameras)
        self.compared: set[int] = set()
        """Episodes of the recordings that the world was compared with."""
        self.protocol: dict[str, Any] = plain(config)
        """Settings, for the result."""
        self.drawings: dict[str, Drawing] = {}
        """Further plots by name."""
        self.clear()

    @property
    def dataset(self) -> Dataset:
        """The recordings."""
        assert self._dataset is not None
        return self._dataset

    @functools.cached_property
    def journal(self) -> Journal:
        """The journal of this measurement, in the folder of its result."""
        # Where and how a result is written does not tell measurements apart.
        identity = plain(self.config) | {"out": "", "json": False}
        identity["world"] = fingerprint(self.world, self.world.heads)
        return Journal(self.config.out / f"{self.name}-journal.jsonl", identity)

    def clear(self) -> None:
        """Forget all rows, series and notes, and begin again with the same random numbers."""
        self.rows: list[Row] = []
        self.series: list[Series] = []
        self.notes: list[str] = []
        self.rng = np.random.default_rng(self.config.seed)

    def segments(self, *, num: int, length: int) -> list[Segment]:
        """Read up to ``num`` segments of ``length`` rows, the beginnings of all episodes first.

        Raises:
            DataError: no episode is long enough, or the recordings do not fit the world.
        """
        segments = load_segments(self.world, self.dataset, num=num, length=length, probe=self.probe)
        self.compared |= {segment.episode for segment in segments}
        return segments

    def recorded_actions(self, segments: Sequence[Segment], steps: int) -> np.ndarray:
        """Stack the actions ``B S A`` that follow the context of each segment."""
        first = self.config.context - 1
        return np.stack([segment.actions[first : first + steps] for segment in segments])

    def simulation(self, seeds: int) -> dict[str, Any]:
        """Return the options of ``rollout.simulate`` that the configuration decides, for ``seeds`` seeds."""
        return {
            "context": self.config.context,
            "seeds": range(self.config.seed, self.config.seed + seeds),
            "num_denoising_steps": self.config.num_denoising_steps,
        }

    def compare(
        self, segments: Sequence[Segment], actions: np.ndarray, *, seeds: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Simulate under ``actions`` (``B S A``) and return the errors ``B seeds S`` by quantity."""
        shape = len(segments), seeds, actions.shape[1]
        measured: dict[str, np.ndarray] = {}
        options |= self.simulation(seeds)
        for owners, seed, index, step in simulate(self.world, segments, actions, **options):
            real = stack_rows([segments[owner] for owner in owners], self.config.context + index)
            shown = observe(self.world, step, self.probe)
            for key, values in measure_errors(self.world, shown, real, self.probe).items():
                measured.setdefault(key, np.full(shape, np.nan))[owners, seed, index] = values
        return measured

    def repeat_last(self, segments: Sequence[Segment]) -> dict[str, np.ndarray]:
        """Return the errors ``B 1 S`` by quantity of repeating the last observation of the context."""
        measured: dict[str, list[np.ndarray]] = {}
        context = self.config.context
        for segment in segments:
            still = segment[np.full(len(segment) - context, context - 1)]
            for key, values in measure_errors(self.world, still, segment[context:], self.probe).items():
                measured.setdefault(key, []).append(values)
        return {key: np.stack(values)[:, None] for key, values in measured.items()}

    def quantities(self, errors: Mapping[str, Any]) -> list[Quantity]:
        """List the quantities that were measured: those of the probe, then frame and proprioception."""
        known = (*(self.probe.quantities if self.probe is not None else ()), FRAME, PROPRIO)
        return [quantity for quantity in known if quantity.key in errors]

    def number(
        self,
        key: str,
        what: str,
        unit: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        *,
        is_higher_better: bool = False,
        target: Target | str | None = None,
    ) -> Row:
        """Add a number with its interval; its target, by default that which the kit sets for the key, may be
        given itself or by the key of another row."""
        row = Row(key=key, what=what, value=value, unit=unit, low=low, high=high)
        return self.add(dataclasses.replace(row, is_higher_better=is_higher_better), target)

    def add(self, row: Row, target: Target | str | None = None) -> Row:
        """Add a row with its target, as ``number`` does."""
        if not isinstance(target, Target):
            target = None if self.kit is None else self.kit.targets.get(target or row.key)
        self.rows.append(row.with_target(target))
        return self.rows[-1]

    def row(
        self,
        key: str,
        what: str,
        unit: str,
        statistic: bootstrap.Statistic,
        *samples: np.ndarray,
        is_higher_better: bool | None = None,
        target: Target | str | None = None,
        num_draws: int = 400,
    ) -> Row:
        """Add ``statistic(*samples)`` with its bootstrap interval over the first axis of the samples; shares
        are better the higher they are."""
        better = unit == "share" if is_higher_better is None else is_higher_better
        options = {"rng": self.rng, "num_draws": num_draws, "is_higher_better": better}
        return self.add(Row.measure(key, what, unit, statistic, *samples, **options), target)

    def line(
        self, key: str, what: str, unit: str, panel: str, at: Sequence[int], spans: Sequence[Sequence[float]]
    ) -> Series:
        """Add a series of values with their low and high ends (``N 3``) to a panel of the plot."""
        value, low, high = (list(map(float, part)) for part in zip(*spans, strict=True))
        ends = {"low": low, "high": high}
        series = Series(key=key, what=what, unit=unit, panel=panel, at=list(at), value=value, **ends)
        self.series.append(series)
        return series

    def curve(
        self,
        key: str,
        what: str,
        unit: str,
        panel: str,
        at: Sequence[int],
        statistic: bootstrap.Statistic,
        *samples: Sequence[np.ndarray],
    ) -> Series:
        """Add a series of ``statistic`` at each of ``at``, with intervals, to a panel of the plot."""
        samples_at = list(zip(*samples, strict=True))
        spans = [bootstrap.interval(statistic, *each, rng=self.rng) for each in samples_at]
        values = [statistic(*each) for each in samples_at]
        triples = [(value, *span) for value, span in zip(values, spans, strict=True)]
        return self.line(key, what, unit, panel, at, triples)

    def write(self) -> list[Path]:
        """Write the result so far and return the paths of its files."""
        return self.result().write(self.config.out, self.drawings)

    def result(self) -> Result:
        """Return the result so far."""
        notes = []
        if self.compared:
            notes = note_on_training(self.config.world, self.dataset, self.compared)
        return Result(
            name=self.name,
            world=self.world.name,
            data=self.source,
            axis=self.axis,
            protocol=self.protocol,
            run=describe_run(self.world),
            rows=self.rows,
            series=self.series,
            notes=[*self.notes, *notes],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if "journal" in vars(self):
            self.journal.close(is_finished=kind is None)


def run_protocol(name: str, config: Any, measure: Callable[[Run], None], *, axis: str = "step") -> int:
    """Measure, write and print; return 0.

    Raises:
        ValueError: the world, the recordings or the settings do not exist or do not fit each other.
    """
    world = load(config.world, device=config.device)
    dataset = open_recordings(config.world, config.data) if hasattr(config, "data") else None
    with Run(name, world, config, dataset=dataset, axis=axis) as run:
        measure(run)
        paths = run.write()
    run.result().tell(paths, as_json=config.json)
    return 0
