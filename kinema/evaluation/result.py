"""Results of measurements: rows and series with intervals, targets and provenance, and their files."""

import dataclasses
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinema.data.drawing import write_png
from kinema.data.files import to_json, write_text
from kinema.evaluation import bootstrap, page, plot, tables
from kinema.kits import Target
from kinema.model.parts import fingerprint
from kinema.simulation.world import World

PACKAGES = ("kinema", "torch", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number."""

    key: str
    what: str
    value: float
    unit: str
    low: float | None = None
    """Lower end of the 95% interval; for speed, the slowest repeat."""
    high: float | None = None
    must: float | None = None
    aim: float | None = None
    is_higher_better: bool = False

    @classmethod
    def measure(
        cls,
        key: str,
        what: str,
        unit: str,
        statistic: bootstrap.Statistic,
        *samples: np.ndarray,
        rng: np.random.Generator,
        num_draws: int = 400,
        is_higher_better: bool = False,
        target: Target | None = None,
    ) -> "Row":
        """Compute ``statistic(*samples)`` with its bootstrap interval over the first axis of the samples."""
        low, high = bootstrap.interval(statistic, *samples, rng=rng, num=num_draws)
        row = cls(key=key, what=what, value=statistic(*samples), unit=unit, low=low, high=high)
        return dataclasses.replace(row, is_higher_better=is_higher_better).with_target(target)

    def with_target(self, target: Target | None) -> "Row":
        """Return the row with a target; without one, the row itself."""
        return self if target is None else dataclasses.replace(self, must=target.must, aim=target.aim)

    @property
    def verdict(self) -> str:
        """``aim`` or ``must`` where it is reached, ``missed`` where not, empty without a target."""
        if self.must is None or self.aim is None:
            return ""
        sign = 1.0 if self.is_higher_better else -1.0
        if sign * self.value >= sign * self.aim:
            return "aim"
        return "must" if sign * self.value >= sign * self.must else "missed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Numbers along an axis, such as the steps of a simulation, with intervals."""

    key: str
    what: str
    unit: str
    panel: str
    """Title of the panel of the plot; series of one panel share their unit."""
    at: list[int]
    value: list[float]
    low: list[float]
    high: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of one measurement."""

    name: str
    world: str
    data: str
    axis: str
    """Name of the axis of the series, such as ``step``."""
    protocol: dict[str, Any]
    """Settings, the seeds among them."""
    rows: list[Row]
    series: list[Series]
    notes: list[str]
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Provenance, as ``describe_run`` gives it."""

    def write(self, folder: Path, drawings: Mapping[str, plot.Drawing] | None = None) -> list[Path]:
        """Write ``NAME.json``, ``NAME.png`` and ``NAME.html`` into a folder and return their paths.

        Further drawings, by name, become ``NAME-KEY.png`` and part of the page. The numbers are written
        first, so that a failing plot does not lose them.
        """
        json_path, html_path = folder / f"{self.name}.json", folder / f"{self.name}.html"
        write_text(json_path, self.to_json())
        drawn = {"": self.plot, **(drawings or {})}
        plots = {folder / (f"{self.name}-{key}.png" if key else f"{self.name}.png"): key for key in drawn}
        for path, key in plots.items():
            write_png(path, drawn[key](plot.DARK))
        write_text(html_path, page.render(self, drawn))
        return [json_path, *plots, html_path]

    def to_json(self) -> str:
        """Return everything as JSON; numbers that are not finite become null."""
        content = dataclasses.asdict(self)
        for row, entry in zip(self.rows, content["rows"], strict=True):
            entry["verdict"] = row.verdict
        return to_json(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """Return the result that ``to_json`` wrote; null becomes NaN."""

        def number(value: float | None) -> float:
            return math.nan if value is None else value

        rows = [{key: value for key, value in row.items() if key != "verdict"} for row in content["rows"]]
        series = [
            {**entry, **{key: list(map(number, entry[key])) for key in ("value", "low", "high")}}
            for entry in content["series"]
        ]
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in content.items() if key in names}
        fields["rows"] = [Row(**{**row, "value": number(row["value"])}) for row in rows]
        return cls(**{**fields, "series": [Series(**entry) for entry in series]})

    def plot(self, theme: plot.Theme = plot.DARK) -> np.ndarray:
        """Draw the series with their intervals, one panel under the other: ``H W 3`` uint8."""
        return plot.draw_series(self.series, axis=self.axis, theme=theme)

    def table(self) -> str:
        """Return the rows, the series at a few positions, and the notes as text."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([*map(tables.align, tables.cells(self)), notes])

    def tell(self, paths: Sequence[Path], *, as_json: bool) -> None:
        """Print the result and, beneath a table, its files."""
        print(self.to_json() if as_json else self.table() + "\n\n" + "\n".join(map(str, paths)))


def plain(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration with paths as text, for JSON."""
    fields = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}


def describe_run(world: World) -> dict[str, Any]:
    """Return the command line, the machine, the versions and the hash of the world's weights."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    device, program = torch.device(world.device), Path(sys.argv[0]).name
    return {
        "command": shlex.join(["kinema" if program == "__main__.py" else program, *sys.argv[1:]]),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "versions": {name: installed(name) for name in PACKAGES},
        "world_hash": fingerprint(world, world.heads),
    }
