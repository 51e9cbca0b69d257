"""Tables of results: as text for the terminal, and as Markdown for the documentation.

``python -m kinema.evaluation.tables DOC.md ...`` renews each table between two marks from files of results::

    <!-- table ../results/horizon-*.json valid/10000 floor/block/100 -->
    <!-- /table -->

The path is relative to the document; keys choose rows, by default all. Several files, one for each seed, give
their mean and their range. A result (``.json``) in place of a document is printed as Markdown.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.data.files import write_text

if TYPE_CHECKING:
    from kinema.evaluation.result import Result, Row

Cells = Sequence[Sequence[str]]
"""A table as text, row by row; the first row is the head."""
HEAD = ["", "value", "interval", "must", "aim", ""]
MAX_COLUMNS = 7
MARKED = re.compile(r"(<!-- table (\S+)([^>]*?) *-->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def cells(result: "Result") -> list[Cells]:
    """Return a table of the rows and, for each panel of the plot, one of its series at a few positions."""
    tables: list[Cells] = [[HEAD, *map(_row_cells, result.rows)]] if result.rows else []
    for panel in dict.fromkeys(series.panel for series in result.series):
        of_panel = [series for series in result.series if series.panel == panel]
        unit = unit_text(of_panel[0].unit)
        shown = _shown(sorted({at for series in of_panel for at in series.at}))
        lines = [[f"{panel}, {unit}" if unit else panel, *(f"{at:,}" for at in shown)]]
        for series in of_panel:
            values = dict(zip(series.at, series.value, strict=True))
            lines.append([f"  {series.what}", *(text(values.get(at), series.unit) for at in shown)])
        tables.append(lines)
    return tables


def align(lines: Cells) -> str:
    """Return cells as text in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for first, *others in lines:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        texts.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(texts)


def markdown(lines: Cells) -> str:
    """Return cells as a Markdown table; columns without any text are left out."""
    head, *rows = lines
    kept = [0, *(i for i in range(1, len(head)) if any(row[i] for row in rows))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(row[i].strip().replace("|", "\\|") for i in kept) + " |"

    return "\n".join([line(head), "|---|" + "---:|" * (len(kept) - 1), *map(line, rows)])


def text(value: float | None, unit: str) -> str:
    """Return a number in its unit, shares in percent; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "share":
        return f"{100 * value:.2f}"
    size = abs(value)
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 10 else f"{value:,.1f}"


def unit_text(unit: str) -> str:
    """Return a unit as it is shown."""
    return "%" if unit == "share" else unit


def render(document: Path) -> str:
    """Return a Markdown document with each marked table made anew.

    Raises:
        ValueError: a mark names no file of results, a file that is none, or a key that its rows lack.
    """
    return MARKED.sub(
        lambda found: f"{found[1]}{_table(document, found[2], found[3].split())}\n{found[5]}",
        document.read_text(encoding="utf-8"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Renew or check the tables of documents; return 1 where ``--check`` met an old one, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m kinema.evaluation.tables", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail where a table is old")
    arguments = parser.parse_args(argv)
    has_old = False
    try:
        for path in arguments.files:
            if path.suffix == ".json":
                print("\n\n".join(map(markdown, cells(read(path)))))
            elif (renewed := render(path)) != path.read_text(encoding="utf-8"):
                if not arguments.check:
                    write_text(path, renewed)
                    continue
                has_old = True
                advice = f"run python -m kinema.evaluation.tables {path}"
                print(f"{path}: a table is old; {advice}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(has_old)


def read(path: Path) -> "Result":
    """Read a result from its JSON file. Raises ValueError."""
    from kinema.evaluation.result import Result

    try:
        return Result.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is no result of kinema evaluate ({error!r})") from error


def _table(document: Path, pattern: str, keys: Sequence[str]) -> str:
    results = [read(path) for path in sorted(document.parent.glob(pattern))]
    if not results:
        raise ValueError(f"{document}: no file {pattern} beside it")
    lines = [HEAD]
    for key in keys or [row.key for row in results[0].rows]:
        rows = [row for result in results for row in result.rows if row.key == key]
        if len(rows) < len(results):
            raise ValueError(f"{document}: {pattern} has no row {key}")
        lines.append(_row_cells(_mean(rows)))
    return markdown(lines)


def _mean(rows: "Sequence[Row]") -> "Row":
    """Return the mean of one row of several results, with the range of its values for an interval."""
    if len(rows) == 1:
        return rows[0]
    values = [row.value for row in rows]
    return dataclasses.replace(rows[0], value=sum(values) / len(values), low=min(values), high=max(values))


def _row_cells(row: "Row") -> list[str]:
    span = "" if row.low is None else f"{text(row.low, row.unit)} to {text(row.high, row.unit)}"
    targets = ["" if number is None else text(number, row.unit) for number in (row.must, row.aim)]
    value = f"{text(row.value, row.unit)} {unit_text(row.unit)}".rstrip()
    return [row.what, value, span, *targets, row.verdict]


def _shown(at: list[int]) -> list[int]:
    """Return the powers of ten where there are many positions, and the first and the last."""
    if len(at) <= MAX_COLUMNS:
        return at
    chosen = [each for each in at if math.log10(max(each, 1)).is_integer()]
    return sorted({*chosen[-(MAX_COLUMNS - 2) :], at[0], at[-1]})


if __name__ == "__main__":
    sys.exit(main())
