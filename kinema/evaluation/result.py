"""What ``kinema evaluate`` measured: as JSON, as a short table, as a plot and as a page."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.page import Drawing, write_files
from kinema.evaluation.plot import DARK, Line, Panel, Theme, paint
from kinema.evaluation.table import Cells, Row, align, to_json

MAX_COLUMNS = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A number at several places of an axis, such as the steps of a simulation, with 95% intervals."""

    key: str
    what: str
    unit: str
    panel: str
    """Title of the panel of the plot that shows it; series of one panel share their unit."""
    at: list[int]
    value: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def measure(
        cls,
        key: str,
        what: str,
        unit: str,
        panel: str,
        at: Sequence[int],
        statistic: Callable[..., float],
        *samples: Sequence[np.ndarray],
        rng: np.random.Generator,
    ) -> "Series":
        """``statistic`` of what was measured at each place, with its bootstrap interval over the first axis
        of every sample."""
        value, low, high = [], [], []
        for here in zip(*samples, strict=True):
            value.append(statistic(*here))
            span = bootstrap.interval(statistic, *here, rng=rng)
            low.append(span[0])
            high.append(span[1])
        return cls(key=key, what=what, unit=unit, panel=panel, at=list(at), value=value, low=low, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One protocol's outcome."""

    name: str
    world: str
    data: str
    axis: str
    """What the series run over, such as ``step``."""
    protocol: dict[str, Any]
    rows: list[Row]
    series: list[Series]
    notes: list[str]

    def write(self, folder: Path, drawings: Mapping[str, Drawing] | None = None) -> list[Path]:
        """Write ``NAME.json``, ``NAME.png`` and ``NAME.html``, which shows all of it, into a folder, each
        beside and then renamed. Further drawings, by name, become ``NAME-KEY.png`` and part of the page."""
        return write_files(
            folder,
            self.name,
            self.to_json(),
            title=f"kinema evaluate {self.name}: world {self.world}",
            subtitle=f"beside {self.data}; intervals are 95%",
            tables=self.tables(),
            drawings={"": self.plot, **(drawings or {})},
            notes=self.notes,
            protocol=self.protocol,
        )

    def to_json(self) -> str:
        """Everything; numbers that are not finite become null."""
        content = dataclasses.asdict(self)
        for row, entry in zip(self.rows, content["rows"], strict=True):
            entry["verdict"] = row.verdict
        return json.dumps(to_json(content), indent=1, ensure_ascii=False) + "\n"

    def plot(self, theme: Theme = DARK) -> np.ndarray:
        """The series with their intervals, one panel under the other: ``H W 3`` uint8."""
        panels: dict[str, Panel] = {}
        for series in self.series:
            panel = panels.setdefault(series.panel, Panel(series.panel, _unit(series.unit), []))
            factor = 100.0 if series.unit == "share" else 1.0
            value, low, high = (
                factor * np.array(values, dtype=float) for values in (series.value, series.low, series.high)
            )
            panel.lines.append(Line(series.what, np.array(series.at, dtype=float), value, low, high))
        return paint(list(panels.values()), axis=self.axis, theme=theme)

    def table(self) -> str:
        """The rows, the series at a few places, and the notes, as text."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([*map(align, self.tables()), notes])

    def tables(self) -> list[Cells]:
        """The rows, and the series at a few places; the first row of each is its head."""
        tables: list[Cells] = []
        if self.rows:
            lines = [["", "value", "interval", "must", "aim", ""]]
            for row in self.rows:
                span = "" if row.low is None else f"{_text(row.low, row.unit)} to {_text(row.high, row.unit)}"
                asked = ["" if number is None else _text(number, row.unit) for number in (row.must, row.aim)]
                value = f"{_text(row.value, row.unit)} {_unit(row.unit)}".rstrip()
                lines.append([row.what, value, span, *asked, row.verdict])
            tables.append(lines)
        for panel in dict.fromkeys(series.panel for series in self.series):
            of_panel = [series for series in self.series if series.panel == panel]
            shown = _shown(sorted({place for series in of_panel for place in series.at}))
            unit = _unit(of_panel[0].unit)
            title = f"{panel}, {unit}" if unit else panel
            lines = [[title, *(f"{place:,}" for place in shown)]]
            for series in of_panel:
                values = dict(zip(series.at, series.value, strict=True))
                cells = [_text(values.get(place), series.unit) for place in shown]
                lines.append([f"  {series.what}", *cells])
            tables.append(lines)
        return tables


def plain(config: Any) -> dict[str, Any]:
    """The fields of a configuration, as JSON can hold them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }


def _shown(places: list[int]) -> list[int]:
    """The powers of ten where there are many places, and the first and the last."""
    if len(places) <= MAX_COLUMNS:
        return places
    chosen = [place for place in places if math.log10(max(place, 1)).is_integer()]
    return sorted({*chosen[-(MAX_COLUMNS - 2) :], places[0], places[-1]})


def _unit(unit: str) -> str:
    return "%" if unit == "share" else unit


def _text(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "share":
        return f"{100 * value:.2f}"
    size = abs(value)
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 10 else f"{value:,.1f}"
