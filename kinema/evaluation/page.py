"""One self-contained HTML file of what was measured: it needs nothing from anywhere, and follows the reader's
colour scheme."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kinema.data.files import write_text
from kinema.data.view import write_png
from kinema.evaluation.plot import DARK, LIGHT, Theme
from kinema.evaluation.table import Cells, to_json

Drawing = Callable[[Theme], np.ndarray]
"""Draws a picture ``H W 3`` uint8 in the colours of a theme."""

STYLE = """\
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --faint: #62666d; --line: #d8dade;
  --good: #00795a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #1e2024; --text: #e1e2e4; --faint: #9a9da4;
  --line: #3a3d43; --good: #35c79b; --bad: #ff8a80; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.faint, caption { color: var(--faint); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: pre-wrap; min-width: 16rem; }
.aim, .must { color: var(--good); } .missed { color: var(--bad); }
img { max-width: 100%; height: auto; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Browsers then fetch nothing, whatever stands in the page."""


def write_files(
    folder: Path,
    name: str,
    content: str,
    *,
    title: str,
    subtitle: str,
    tables: Sequence[Cells],
    drawings: Mapping[str, Drawing],
    notes: Sequence[str],
    protocol: Mapping[str, Any],
) -> list[Path]:
    """Write ``NAME.json`` with ``content``, a PNG for each drawing (``NAME.png`` for the one without a key,
    else ``NAME-KEY.png``), and ``NAME.html`` with all of it; each beside and then renamed."""
    paths = [folder / f"{name}.json"]
    write_text(paths[0], content)
    for key, draw in drawings.items():
        paths.append(folder / (f"{name}-{key}.png" if key else f"{name}.png"))
        write_png(paths[-1], draw(DARK))
    paths.append(folder / f"{name}.html")
    page = render(
        title=title, subtitle=subtitle, tables=tables, drawings=drawings, notes=notes, protocol=protocol
    )
    write_text(paths[-1], page)
    return paths


def render(
    *,
    title: str,
    subtitle: str,
    tables: Sequence[Cells],
    drawings: Mapping[str, Drawing],
    notes: Sequence[str],
    protocol: Mapping[str, Any],
) -> str:
    """The page as text. The first row of a table is its head."""
    pictures = "\n".join(
        _picture(draw, key or "curves with their intervals") for key, draw in drawings.items()
    )
    settings = json.dumps(to_json(dict(protocol)), indent=1, ensure_ascii=False)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="faint">{escape(subtitle)}</p>
{"".join(_table(table) for table in tables)}
<h2>Plots</h2>
{pictures}
<h2>Notes</h2>
<ul>{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>
<h2>Protocol</h2>
<details><summary>every setting, kinema {escape(version("kinema"))}</summary>
<pre>{escape(settings)}</pre></details>
</body>
</html>
"""


def _table(cells: Cells) -> str:
    head, *rows = cells
    verdicts = {"aim", "must", "missed"}

    def row(texts: Sequence[str]) -> str:
        shown = [
            f'<td class="{text}">{text}</td>' if text in verdicts else f"<td>{escape(text)}</td>"
            for text in texts
        ]
        return f"<tr>{''.join(shown)}</tr>\n"

    titles = "".join(f"<th scope='col'>{escape(text)}</th>" for text in head)
    body = "".join(row(texts) for texts in rows)
    table = f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>\n'


def _picture(draw: Drawing, what: str) -> str:
    light, dark = (_data_uri(draw(theme)) for theme in (LIGHT, DARK))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(what)}"></picture>'
    )


def _data_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
