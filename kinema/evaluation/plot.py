"""Curves with their intervals, drawn as one picture: panel under panel, all over the same axis."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kinema.data.view import BACKGROUND, FAINT, FONT, TEXT, Colour


class Theme(NamedTuple):
    """Colours of a plot."""

    background: Colour
    text: Colour
    faint: Colour
    grid: Colour
    lines: tuple[Colour, ...]


COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (240, 170, 30),
    (0, 190, 135),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (160, 160, 160),
)
"""Okabe and Ito's, told apart by colour-blind eyes."""
DARK = Theme(BACKGROUND, TEXT, FAINT, (52, 55, 60), COLOURS)
LIGHT = Theme(
    (255, 255, 255),
    (28, 30, 33),
    (110, 113, 120),
    (222, 224, 228),
    (
        (0, 114, 178),
        (196, 120, 0),
        (0, 134, 97),
        (178, 82, 140),
        (140, 128, 0),
        (190, 80, 0),
        (100, 100, 100),
    ),
)
"""The same hues, darker, to be read on white."""
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 30
SMOOTH = 3
"""Pillow draws lines without smoothing: they are drawn this many times larger and reduced."""
LOG_RATIO = 30.0
"""An axis that spans more than this is logarithmic."""


class Line(NamedTuple):
    """One curve: its name, places, values and interval; NaN where there is none."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Panel(NamedTuple):
    title: str
    unit: str
    lines: list[Line]


def paint(
    panels: list[Panel], *, axis: str, width: int = 960, height: int = 230, theme: Theme = DARK
) -> np.ndarray:
    """All panels under each other, ``H W 3`` uint8; ``axis`` names what they run over."""
    places = np.concatenate([line.x for panel in panels for line in panel.lines] or [np.ones(1)])
    across = _Scale.over(places, LEFT, width - RIGHT, from_zero=False)
    if not panels:
        return np.full((height, width, 3), theme.background, np.uint8)
    return np.concatenate([_panel(panel, across, axis, width, height, theme) for panel in panels])


class _Scale(NamedTuple):
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    @classmethod
    def over(cls, values: np.ndarray, start: float, end: float, *, from_zero: bool) -> "_Scale":
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(0.0, 1.0, start, end, False)
        low, high = float(values.min()), float(values.max())
        above = values[values > 0]
        # What spans decades is read on a logarithmic scale; what falls below a millionth of the largest is
        # drawn at the edge.
        is_log = len(above) > 0 and low >= 0 and high > LOG_RATIO * float(np.quantile(above, 0.1))
        if is_log:
            return cls(max(float(above.min()), 1e-4 * high), high, start, end, True)
        if from_zero and low >= 0 and low < 0.6 * high:
            low = 0.0
        if high == low:
            low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
        return cls(low, high, start, end, False)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self.is_log:
            share = np.log(np.maximum(values, self.low) / self.low) / np.log(self.high / self.low)
        else:
            share = (values - self.low) / (self.high - self.low)
        return np.asarray(self.start + share * (self.end - self.start))

    def ticks(self) -> list[float]:
        if self.is_log:
            powers = range(int(np.ceil(np.log10(self.low) - 1e-9)), int(np.floor(np.log10(self.high))) + 1)
            ticks = [10.0**power for power in powers]
            if len(ticks) < 3:
                ticks += [m * 10.0**p for m in (2, 5) for p in range(min(powers, default=0) - 1, 7)]
            return sorted(tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001)
        step = (self.high - self.low) / 4
        power = 10.0 ** np.floor(np.log10(step))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= 0.999 * step)
        first = np.ceil(self.low / step - 1e-9)
        return [float(step * tick) + 0.0 for tick in np.arange(first, np.floor(self.high / step + 1e-9) + 1)]


def _panel(panel: Panel, across: _Scale, axis: str, width: int, height: int, theme: Theme) -> np.ndarray:
    values = np.concatenate([np.concatenate([line.y, line.low, line.high]) for line in panel.lines])
    up = _Scale.over(values, height - BOTTOM, TOP, from_zero=True)
    large = Image.new("RGB", (width * SMOOTH, height * SMOOTH), theme.background)
    draw = ImageDraw.Draw(large, "RGBA")
    for tick in up.ticks():
        y = float(up(np.array(tick))) * SMOOTH
        draw.line([(LEFT * SMOOTH, y), ((width - RIGHT) * SMOOTH, y)], fill=theme.grid, width=SMOOTH)
    for index, line in enumerate(panel.lines):
        colour = theme.lines[index % len(theme.lines)]
        x = across(line.x) * SMOOTH
        y, low, high = (up(part) * SMOOTH for part in (line.y, line.low, line.high))
        has_band = np.isfinite(low) & np.isfinite(high)
        if has_band.sum() > 1:
            outline = [*zip(x[has_band], low[has_band], strict=True)]
            outline += [*zip(x[has_band][::-1], high[has_band][::-1], strict=True)]
            draw.polygon(outline, fill=(*colour, 45))
        known = np.isfinite(y)
        points = [(float(a), float(b)) for a, b in zip(x[known], y[known], strict=True)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2 * SMOOTH, joint="curve")
        for a, b in points:
            draw.ellipse(
                [a - 2.5 * SMOOTH, b - 2.5 * SMOOTH, a + 2.5 * SMOOTH, b + 2.5 * SMOOTH], fill=colour
            )
    image = large.resize((width, height), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    draw.text(
        (8, 6), f"{panel.title}, {panel.unit}" if panel.unit else panel.title, fill=theme.text, font=FONT
    )
    x = float(LEFT)
    for index, line in enumerate(panel.lines):
        draw.text((x, 24), line.name, fill=theme.lines[index % len(theme.lines)], font=FONT)
        x += FONT.getlength(line.name) + 18
    for tick in up.ticks():
        draw.text(
            (LEFT - 6, float(up(np.array(tick)))), f"{tick:g}", fill=theme.faint, font=FONT, anchor="rm"
        )
    for tick in across.ticks():
        place = float(across(np.array(tick)))
        draw.text((place, height - BOTTOM + 5), f"{tick:,g}", fill=theme.faint, font=FONT, anchor="ma")
    draw.text((width - RIGHT, height - 13), axis, fill=theme.faint, font=FONT, anchor="ra")
    return np.asarray(image)


class Point(NamedTuple):
    """One thing measured in two ways, with intervals."""

    name: str
    x: float
    y: float
    x_span: tuple[float, float]
    y_span: tuple[float, float]


def scatter(
    points: list[Point], *, x: str, y: str, title: str, size: int = 560, theme: Theme = DARK
) -> np.ndarray:
    """Points with their intervals and names on axes of one scale, and the line where both agree: ``H W 3``
    uint8."""
    values = np.array([v for p in points for v in (p.x, p.y, *p.x_span, *p.y_span)])
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    across = _Scale(low - margin, high + margin, LEFT, size - RIGHT, False)
    up = _Scale(low - margin, high + margin, size - BOTTOM, TOP, False)

    def place(a: float, b: float) -> tuple[float, float]:
        return float(across(np.array(a))) * SMOOTH, float(up(np.array(b))) * SMOOTH

    large = Image.new("RGB", (size * SMOOTH, size * SMOOTH), theme.background)
    draw = ImageDraw.Draw(large)
    for tick in across.ticks():
        draw.line([place(tick, across.low), place(tick, across.high)], fill=theme.grid, width=SMOOTH)
        draw.line([place(across.low, tick), place(across.high, tick)], fill=theme.grid, width=SMOOTH)
    draw.line([place(across.low, up.low), place(across.high, up.high)], fill=theme.faint, width=SMOOTH)
    for index, point in enumerate(points):
        colour = theme.lines[index % len(theme.lines)]
        draw.line(
            [place(point.x_span[0], point.y), place(point.x_span[1], point.y)], fill=colour, width=SMOOTH
        )
        draw.line(
            [place(point.x, point.y_span[0]), place(point.x, point.y_span[1])], fill=colour, width=SMOOTH
        )
        a, b = place(point.x, point.y)
        draw.ellipse([a - 4 * SMOOTH, b - 4 * SMOOTH, a + 4 * SMOOTH, b + 4 * SMOOTH], fill=colour)
    image = large.resize((size, size), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for index, point in enumerate(points):
        a, b = (number / SMOOTH for number in place(point.x, point.y))
        draw.text((a + 6, b - 14), point.name, fill=theme.lines[index % len(theme.lines)], font=FONT)
    draw.text((8, 6), title, fill=theme.text, font=FONT)
    draw.text((8, 24), y, fill=theme.faint, font=FONT)
    draw.text((size - RIGHT, size - 13), x, fill=theme.faint, font=FONT, anchor="ra")
    for tick in across.ticks():
        draw.text(
            (float(across(np.array(tick))), size - BOTTOM + 5),
            f"{tick:g}",
            fill=theme.faint,
            font=FONT,
            anchor="ma",
        )
        draw.text(
            (LEFT - 6, float(up(np.array(tick)))), f"{tick:g}", fill=theme.faint, font=FONT, anchor="rm"
        )
    return np.asarray(image)
