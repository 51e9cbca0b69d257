"""A self-contained HTML page of a result: no request to anywhere, in the colour scheme of the reader."""

import base64
import io
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kinema.data.files import to_json
from kinema.evaluation import tables
from kinema.evaluation.plot import DARK, LIGHT, SHARPNESS, Drawing

if TYPE_CHECKING:
    from kinema.evaluation.result import Result

TEMPLATE = Path(__file__).with_name("page.html")


def render(result: "Result", drawings: Mapping[str, Drawing]) -> str:
    """Return the page as text, with each drawing for light and for dark readers."""
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    return template.render(
        result=result,
        tables=tables.cells(result),
        verdicts=("aim", "must", "missed"),
        plots=[_plot(name, draw) for name, draw in drawings.items()],
        protocol=to_json(result.protocol),
        run=to_json(result.run),
        version=version("kinema"),
    )


def _plot(name: str, draw: Drawing) -> dict[str, object]:
    light, dark = draw(LIGHT), draw(DARK)
    width = round(light.shape[1] / SHARPNESS)
    return {"name": name or "curves", "width": width, "light": _uri(light), "dark": _uri(dark)}


def _uri(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
