"""Plots by Matplotlib, which is imported at the first one: series with intervals, agreement, curves beneath a
video."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from kinema.data.drawing import BACKGROUND, FONT, LINE_HEIGHT, TEXT, enlarge, rgb

if TYPE_CHECKING:
    from kinema.evaluation.result import Series

LOG_RATIO = 30.0
"""An axis that spans more than this is logarithmic."""
SHARPNESS = 1.5
"""Pixels of the file for each pixel of the page, for sharp screens."""
WIDTH, PANEL_HEIGHT, SQUARE = 960, 240, 560
"""Sizes of a plot in pixels of the page."""


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a plot."""

    background: str
    text: str
    faint: str
    grid: str
    lines: tuple[str, ...]


DARK = Theme(
    "#1e2024",
    "#e1e2e4",
    "#9a9da4",
    "#3a3d43",
    ("#56b4e9", "#f0aa1e", "#00be87", "#cc79a7", "#f0e442", "#d55e00", "#a0a0a0"),
)
"""Okabe and Ito's colours, which colour-blind readers distinguish."""
LIGHT = Theme(
    "#ffffff",
    "#1c1e21",
    "#62666d",
    "#dee0e4",
    ("#0072b2", "#c47800", "#008661", "#b2528c", "#8c8000", "#be5000", "#646464"),
)
"""The same hues, darker, for white paper."""

Drawing = Callable[[Theme], np.ndarray]
"""Draws a plot ``H W 3`` uint8 in the colours of a theme."""


def draw_series(series: "Sequence[Series]", *, axis: str, theme: Theme = DARK) -> np.ndarray:
    """Draw the panels of series under each other over one axis: ``H W 3`` uint8."""
    panels = {
        title: [one for one in series if one.panel == title]
        for title in dict.fromkeys(s.panel for s in series)
    }
    figure = _figure(WIDTH, PANEL_HEIGHT * max(1, len(panels)), theme)
    if not panels:
        return _pixels(figure)
    every = np.array([at for one in series for at in one.at], dtype=float)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for each, (title, shown) in zip(axes, panels.items(), strict=True):
        unit, factor = ("%", 100.0) if shown[0].unit == "share" else (shown[0].unit, 1.0)
        _style(each, theme, title=f"{title}, {unit}" if unit else title)
        values = []
        for one, colour in zip(shown, _cycle(theme.lines), strict=False):
            value, low, high = (factor * np.array(v, dtype=float) for v in (one.value, one.low, one.high))
            each.fill_between(one.at, low, high, color=colour, alpha=0.2, linewidth=0)
            known = np.isfinite(value)
            each.plot(np.array(one.at)[known], value[known], color=colour, marker=".", label=one.what)
            values += [value, low, high]
        if not _scale(each.set_xscale, every):
            each.xaxis.get_major_locator().set_params(integer=True)
        _scale(each.set_yscale, np.concatenate(values))
        each.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=7, frameon=False, fontsize=6.5,
            labelcolor="linecolor", handlelength=1.0, borderaxespad=0.2,
        )  # fmt: skip
    axes[-1].set_xlabel(axis, color=theme.faint, loc="right", fontsize=7)
    return _pixels(figure)


def draw_agreement(
    names: Sequence[str],
    means: Mapping[str, np.ndarray],
    spans: Mapping[str, np.ndarray],
    *,
    title: str,
    theme: Theme = DARK,
) -> np.ndarray:
    """Draw ``real`` against ``simulated`` means of ``N`` policies with intervals ``N 2``: ``H W 3`` uint8.
    The diagonal shows where both agree."""
    figure = _figure(SQUARE, SQUARE, theme)
    axes = figure.subplots()
    _style(axes, theme, title=title)
    every = np.concatenate([*means.values(), *(span.ravel() for span in spans.values())])
    margin = 0.05 * (every.max() - every.min()) or 0.5
    limits = float(every.min() - margin), float(every.max() + margin)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.plot(limits, limits, color=theme.faint, linewidth=0.8)
    errors = [np.abs(spans[key].T - means[key]) for key in ("simulated", "real")]
    for index, (name, colour) in enumerate(zip(names, _cycle(theme.lines), strict=False)):
        at = means["real"][index], means["simulated"][index]
        bars = [error[:, index : index + 1] for error in errors]
        axes.errorbar(*at, *bars, color=colour, marker="o", markersize=5, linewidth=1)
        axes.annotate(name, at, (4, 5), textcoords="offset points", color=colour, fontsize=7)
    axes.set_xlabel("real return", color=theme.faint, fontsize=8)
    axes.set_ylabel("simulated return", color=theme.faint, fontsize=8)
    return _pixels(figure)


def error_video(
    frames: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    unit: str = "",
    scale: int = 4,
    titles: Sequence[str] = ("real", "simulated", "difference (orange: too dark, blue: too bright)"),
    first_step: int = 1,
    height: int = 120,
) -> Iterator[np.ndarray]:
    """Yield frames ``H W 3`` uint8 of a video: ``frames`` enlarged, beneath them curves with a marker.

    Args:
        frames: ``T H W C`` uint8, as ``drawing.side_by_side`` gives them.
        curves: ``T`` numbers by name; NaN leaves a gap.
        unit: unit of all curves.
        scale: enlargement of the frames.
        titles: names of the panels from left to right.
        first_step: step of the first frame.
        height: pixels of the curves.
    """
    frames = rgb(frames)
    for name, values in curves.items():
        if values.shape != (len(frames),):
            raise ValueError(f"curve {name!r} has shape {values.shape}, but there are {len(frames)} frames")
    width = frames.shape[2] * scale
    header = _title_bar(titles, width)
    plotted = _Curves(curves, unit, width, height, first_step) if curves else None
    for index, frame in enumerate(frames):
        below = [] if plotted is None else [plotted.draw(index)]
        yield np.concatenate([header, enlarge(frame, scale), *below], axis=0)


class _Curves:
    """Curves over steps, drawn once bright and once dim: a frame shows its past bright."""

    def __init__(
        self, curves: Mapping[str, np.ndarray], unit: str, width: int, height: int, first_step: int
    ) -> None:
        self._curves = {name: np.asarray(values, dtype=float) for name, values in curves.items()}
        self._unit = unit
        figure = _figure(width, height, DARK, dpi=100, layout="none")
        axes = figure.add_axes((45 / width, 20 / height, 1 - 60 / width, 1 - 40 / height))
        _style(axes, DARK, size=7)
        self._steps = first_step + np.arange(len(next(iter(self._curves.values()))))
        for values, colour in zip(self._curves.values(), _cycle(DARK.lines), strict=False):
            axes.plot(self._steps, values, color=colour, linewidth=1.2)
        axes.set_xlim(self._steps[0], max(self._steps[-1], self._steps[0] + 1))
        axes.set_ylim(bottom=0.0)
        self._bright = _pixels(figure)
        for line in axes.lines:
            line.set_alpha(0.35)
        self._dim = _pixels(figure)
        self._to_pixels, self._height = axes.transData, height
        shown = axes.get_position()
        self._ends = height - shown.y1 * height, height - shown.y0 * height
        values = [(name, value) for name, each in self._curves.items() for value in (*each, 0.0)]
        self._room = max(FONT.getlength(self._label(*pair)) for pair in values)

    def draw(self, index: int) -> np.ndarray:
        """Return the curves with the marker at frame ``index``: ``H W 3`` uint8."""
        marker = self._to_pixels.transform((self._steps[index], 0.0))[0]
        past = round(marker) + 1
        image = Image.fromarray(np.concatenate([self._bright[:, :past], self._dim[:, past:]], axis=1))
        draw = ImageDraw.Draw(image)
        draw.line([(marker, self._ends[0]), (marker, self._ends[1])], fill=DARK.faint)
        draw.text((45, 3), f"step {self._steps[index]}", fill=TEXT, font=FONT)
        left = 115.0
        for colour, (name, values) in zip(_cycle(DARK.lines), self._curves.items(), strict=False):
            value = float(values[index])
            draw.text((left, 3), self._label(name, value), fill=colour, font=FONT)
            left += self._room + 22
            if np.isfinite(value):
                y = self._height - self._to_pixels.transform((0.0, value))[1]
                draw.ellipse([marker - 3, y - 3, marker + 3, y + 3], fill=colour)
        return np.asarray(image)

    def _label(self, name: str, value: float) -> str:
        return f"{name} {value:.2f} {self._unit}".rstrip() if np.isfinite(value) else f"{name} -"


def _figure(
    width: int, height: int, theme: Theme, *, dpi: float = 100 * SHARPNESS, layout: Any = "constrained"
) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=dpi, facecolor=theme.background, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def _style(axes: Any, theme: Theme, *, title: str = "", size: float = 7.5) -> None:
    axes.set_facecolor(theme.background)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.faint, labelsize=size, length=0)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, color=theme.text, loc="left", fontsize=8.5, pad=16)


def _scale(set_scale: Callable[..., None], values: np.ndarray) -> bool:
    """Make an axis logarithmic for numbers that span decades; returns whether it did."""
    values = values[np.isfinite(values)]
    above = values[values > 0]
    is_log = len(above) > 0 and values.min() >= 0 and values.max() > LOG_RATIO * np.quantile(above, 0.1)
    if is_log:
        set_scale("log", nonpositive="mask")
    return bool(is_log)


def _cycle(colours: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colours


def _title_bar(titles: Sequence[str], width: int) -> np.ndarray:
    image = Image.new("RGB", (width, LINE_HEIGHT + 2), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for index, title in enumerate(titles):
        draw.text((index * width / len(titles) + 4, 2), title, fill=TEXT, font=FONT)
    return np.asarray(image)
