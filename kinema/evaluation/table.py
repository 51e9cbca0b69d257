"""What was measured, as a table for people and as JSON for programs."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Cells = Sequence[Sequence[str]]
"""A table as text, row by row."""
CURVE_STEPS = (1, 10, 25, 50, 100, 200, 500, 1000, 2000)
"""Steps of a curve that the table shows, and its last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the report."""

    key: str
    what: str
    value: float
    unit: str
    low: float | None = None
    """The 95% interval, from ``low`` to ``high``; for speed, the slowest and the fastest repeat."""
    high: float | None = None
    must: float | None = None
    aim: float | None = None
    is_higher_better: bool = False

    @property
    def verdict(self) -> str:
        """``aim`` or ``must`` where it is reached, ``missed`` where not, empty where nothing is asked."""
        if self.must is None or self.aim is None:
            return ""
        sign = 1.0 if self.is_higher_better else -1.0
        if sign * self.value >= sign * self.aim:
            return "aim"
        return "must" if sign * self.value >= sign * self.must else "missed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A number over the steps of a simulation."""

    what: str
    unit: str
    steps: list[int]
    median: list[float]
    p90: list[float]
    panel: str
    """Title of the panel of the plot that shows it; curves of one panel share their unit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured."""

    world: str
    data: str
    protocol: dict[str, Any]
    rows: list[Row]
    curves: list[Curve]
    notes: list[str]

    def to_json(self) -> str:
        """The report as JSON; numbers that are not finite become null."""
        content = dataclasses.asdict(self)
        for row, entry in zip(self.rows, content["rows"], strict=True):
            entry["verdict"] = row.verdict
        return json.dumps(to_json(content), indent=2, ensure_ascii=False) + "\n"

    def table(self) -> str:
        """The rows in lines of text, then the errors over the steps, then the notes."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([*map(align, self.tables()), notes])

    def tables(self) -> list[Cells]:
        """The rows, and the errors over the steps; the first row of each is its head."""
        lines = [["", "value", "interval", "must", "aim", ""]]
        for row in self.rows:
            value = f"{_text(row.value, row.unit)} {_suffix(row.unit)}"
            span = "" if row.low is None else f"{_text(row.low, row.unit)} to {_text(row.high, row.unit)}"
            asked = ["" if number is None else _text(number, row.unit) for number in (row.must, row.aim)]
            lines.append([row.what, value, span, *asked, row.verdict])
        tables: list[Cells] = [lines]
        if self.curves:
            shown = [step for step in self.curves[0].steps if step in CURVE_STEPS]
            shown = sorted({*shown, self.curves[0].steps[-1]})
            lines = [["median (90th percentile) at step", *(f"{step:,}" for step in shown)]]
            for curve in self.curves:
                cells = [_curve_cell(curve, curve.steps.index(step)) for step in shown]
                lines.append([f"{curve.what}, {curve.unit}", *cells])
            tables.append(lines)
        return tables


def psnr(difference: float) -> float:
    """Decibels, of a root mean square difference in levels."""
    return 20.0 * math.log10(255.0 / max(difference, 1e-3))


def to_json(value: Any) -> Any:
    """The same content with null for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _text(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "share":
        return f"{100 * value:.3f}".rstrip("0").rstrip(".")
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _suffix(unit: str) -> str:
    return "%" if unit == "share" else unit


def _curve_cell(curve: Curve, index: int) -> str:
    return f"{_text(curve.median[index], curve.unit)} ({_text(curve.p90[index], curve.unit)})"


def align(lines: Cells) -> str:
    """Cells in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        texts.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(texts)


@runtime_checkable
class Told(Protocol):
    """What can be told as a table or as JSON."""

    def to_json(self) -> str: ...

    def table(self) -> str: ...


def tell(measured: Told, paths: Sequence[Path], *, as_json: bool) -> None:
    """Print what was measured, and, beneath a table, the files that it was written to."""
    print(measured.to_json() if as_json else measured.table() + "\n\n" + "\n".join(map(str, paths)))
