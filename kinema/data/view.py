"""Pictures for people: contact sheets, side-by-side films with the error beneath, mp4, gif and png files."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kinema.data.files import replacing
from kinema.data.video import ffmpeg_path

Colour = tuple[int, int, int]

GAP = 2
"""Pixels between two pictures, before any scaling."""
BACKGROUND: Colour = (30, 32, 36)
TEXT: Colour = (225, 226, 228)
FAINT: Colour = (110, 113, 120)
TOO_DARK: Colour = (230, 90, 0)
TOO_BRIGHT: Colour = (0, 110, 230)
CURVES: tuple[Colour, ...] = ((86, 180, 233), (240, 170, 30), (0, 190, 135), (204, 121, 167))
"""Blue, orange, green, pink: told apart by colour-blind eyes too (Okabe and Ito)."""
FONT = ImageFont.load_default(size=11)
LINE_HEIGHT = 16


def contact_sheet(
    rows: Sequence[np.ndarray],
    *,
    columns: int = 12,
    scale: int = 2,
    labels: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
) -> np.ndarray:
    """One picture of several films, each a row of ``columns`` frames evenly spaced from first to last.

    ``rows`` are ``T H W C`` uint8; sizes and lengths may differ. ``indices`` shows these frames of each row
    instead. Where all rows show the same ones, their numbers stand above. Returns ``H W 3`` uint8.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row of frames")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(labels)} labels: give one label for each row")
    films = [_rgb(row) for row in rows]
    if any(len(film) == 0 for film in films):
        raise ValueError("a row of the contact sheet has no frames")
    if indices is None:
        chosen = [np.linspace(0, len(f) - 1, min(columns, len(f))).round().astype(int) for f in films]
    else:
        chosen = [np.asarray(indices)] * len(films)
    cell_height = max(film.shape[1] for film in films) * scale + GAP
    cell_width = max(film.shape[2] for film in films) * scale + GAP
    left = max((int(FONT.getlength(label)) + 10 for label in labels), default=0) if labels else 0
    left += GAP
    width = left + cell_width * max(map(len, chosen))
    sheet = Image.new("RGB", (width, LINE_HEIGHT + cell_height * len(films)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if all(np.array_equal(shown, chosen[0]) for shown in chosen):
        for column, index in enumerate(chosen[0]):
            draw.text((left + column * cell_width + 2, 2), str(index), fill=FAINT, font=FONT)
    for row, (film, shown) in enumerate(zip(films, chosen, strict=True)):
        top = LINE_HEIGHT + row * cell_height
        if labels:
            draw.text((5, top + 3), labels[row], fill=TEXT, font=FONT)
        for column, index in enumerate(shown):
            sheet.paste(Image.fromarray(_enlarge(film[index], scale)), (left + column * cell_width, top))
    return np.asarray(sheet)


def difference(real: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """Where two films disagree: orange where the simulated one is too dark, blue where it is too bright.

    Both ``T H W C`` uint8 of the same shape. The real film shows through, faint and grey, so that one sees
    what is at the place. The strength is the largest difference of any colour channel, so that a wrong hue of
    the right brightness shows as well. Returns ``T H W 3`` uint8.
    """
    if real.shape != simulated.shape:
        raise ValueError(f"real frames are {real.shape} but simulated ones {simulated.shape}")
    expected = _rgb(real).astype(np.int16)
    got = _rgb(simulated).astype(np.int16)
    strength = np.minimum(np.abs(expected - got).max(axis=-1, keepdims=True) / 128.0, 1.0).astype(np.float32)
    is_dark = (got.sum(axis=-1, keepdims=True) < expected.sum(axis=-1, keepdims=True)).astype(np.float32)
    colour = is_dark * np.array(TOO_DARK, np.float32) + (1 - is_dark) * np.array(TOO_BRIGHT, np.float32)
    ground = 140.0 + 0.44 * expected.mean(axis=-1, keepdims=True, dtype=np.float32)
    return (strength * colour + (1 - strength) * ground).round().astype(np.uint8)


def side_by_side(real: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """``real | simulated | difference`` frame by frame: ``T H W C`` uint8 twice to ``T H 3W+2*GAP 3``."""
    last = difference(real, simulated)
    gap = np.full((len(last), last.shape[1], GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([_rgb(real), gap, _rgb(simulated), gap, last], axis=2)


def error_curve(
    pictures: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    unit: str = "",
    scale: int = 4,
    titles: Sequence[str] = ("real", "simulated", "difference (orange: too dark, blue: too bright)"),
    first_step: int = 1,
    height: int = 120,
) -> Iterator[np.ndarray]:
    """Frames of a film that shows ``pictures`` enlarged and beneath them the curves, with a moving marker.

    ``pictures`` are ``T H W C`` uint8 as from :func:`side_by_side`, their panels named by ``titles``; each
    curve holds ``T`` numbers in ``unit``, NaN where there is none. ``first_step`` is the step of the first
    picture. Yields ``H W 3`` uint8 one by one, since a long enlarged film does not fit into memory.
    """
    films = _rgb(pictures)
    for name, values in curves.items():
        if values.shape != (len(films),):
            raise ValueError(f"curve {name!r} has shape {values.shape}, but there are {len(films)} pictures")
    width = films.shape[2] * scale
    header = _title_bar(titles, width)
    plot = _Plot(curves, unit=unit, width=width, height=height, first_step=first_step) if curves else None
    for index, film in enumerate(films):
        parts = [header, _enlarge(film, scale)]
        if plot is not None:
            parts.append(plot.draw(index))
        yield np.concatenate(parts, axis=0)


def write_video(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], *, fps: float, scale: int = 1
) -> None:
    """Write ``H W C`` uint8 frames as an mp4 that browsers play, or as a gif, by the suffix of ``path``.

    Pixels are enlarged ``scale`` times without smoothing; an mp4 of odd size gains a row or column. A gif
    plays at 50 frames a second at most. An unfinished file never bears the name.
    """
    target = Path(path)
    enlarged = (_enlarge(frame, scale) for frame in _each_rgb(frames))
    if target.suffix == ".mp4":
        with replacing(target) as part:
            _write_mp4(part, enlarged, fps)
    elif target.suffix == ".gif":
        with replacing(target) as part:
            _write_gif(part, enlarged, fps)
    else:
        raise ValueError(
            f"{target}: a video is written as .mp4 or .gif, not as {target.suffix or 'no suffix'}"
        )


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write one picture, ``H W C`` uint8."""
    image = Image.fromarray(_rgb(picture[None])[0])
    with replacing(path) as part:
        image.save(part, format="PNG")


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """One picture, ``H W 3`` uint8, of any format that Pillow knows.

    Raises:
        ValueError: the file is missing or no picture.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error


class _Plot:
    """Curves over steps: drawn once in bright and once in dim colours; a frame shows bright what is past."""

    LEFT, RIGHT, TOP, BOTTOM = 40, 16, 20, 18
    SMOOTH = 3
    """Pillow draws lines without smoothing: they are drawn this many times larger and reduced."""

    def __init__(
        self, curves: Mapping[str, np.ndarray], *, unit: str, width: int, height: int, first_step: int
    ) -> None:
        self.curves = {name: values.astype(np.float64) for name, values in curves.items()}
        self.unit = unit
        self.first_step = first_step
        self.size = (width, height)
        self.num_steps = len(next(iter(self.curves.values())))
        values = np.concatenate(list(self.curves.values()))
        values = values[np.isfinite(values)]
        self.tick = _nice_step(float(values.max()) / 3 if len(values) else 1.0)
        top = float(values.max()) if len(values) else 1.0
        self.high = self.tick * max(1, int(np.ceil(top / self.tick - 1e-9)))
        self.bright = self._paint(1.0)
        self.dim = self._paint(0.35)

    def draw(self, index: int) -> np.ndarray:
        """The plot with its marker at picture ``index``, ``H W 3`` uint8."""
        marker = self._x(index)
        picture = self.dim.copy()
        picture[:, : round(marker) + 1] = self.bright[:, : round(marker) + 1]
        image = Image.fromarray(picture)
        draw = ImageDraw.Draw(image)
        draw.line([(marker, self.TOP), (marker, self.size[1] - self.BOTTOM)], fill=FAINT)
        text = f"step {index + self.first_step}"
        draw.text((self.LEFT, 3), text, fill=TEXT, font=FONT)
        x = self.LEFT + 70.0
        for colour, (name, values) in zip(_cycle(CURVES), self.curves.items(), strict=False):
            value = float(values[index])
            text = f"{name} {value:.2f} {self.unit}" if np.isfinite(value) else f"{name} -"
            draw.text((x, 3), text.rstrip(), fill=colour, font=FONT)
            # The room of the widest text, so that nothing jumps from frame to frame.
            x += FONT.getlength(f"{name} {self.high:.2f} {self.unit}") + 22
            if np.isfinite(value):
                y = self._y(value)
                draw.ellipse([marker - 3, y - 3, marker + 3, y + 3], fill=colour)
        return np.asarray(image)

    def _x(self, index: float) -> float:
        room = self.size[0] - self.LEFT - self.RIGHT
        return self.LEFT + room * index / max(1, self.num_steps - 1)

    def _y(self, value: float) -> float:
        room = self.size[1] - self.TOP - self.BOTTOM
        return self.size[1] - self.BOTTOM - room * value / self.high

    def _paint(self, strength: float) -> np.ndarray:
        large = Image.new("RGB", (self.size[0] * self.SMOOTH, self.size[1] * self.SMOOTH), BACKGROUND)
        draw = ImageDraw.Draw(large)
        heights = np.arange(0.0, self.high + 0.5 * self.tick, self.tick)
        for height in heights:
            y = self._y(height) * self.SMOOTH
            draw.line(
                [(self._x(0) * self.SMOOTH, y), (self._x(self.num_steps - 1) * self.SMOOTH, y)],
                fill=(52, 55, 60),
            )
        for colour, values in zip(_cycle(CURVES), self.curves.values(), strict=False):
            faded = tuple(round(b + strength * (c - b)) for b, c in zip(BACKGROUND, colour, strict=True))
            points = [(self._x(i) * self.SMOOTH, self._y(v) * self.SMOOTH) for i, v in enumerate(values)]
            for piece in _finite_pieces(values):
                draw.line(points[piece], fill=faded, width=self.SMOOTH + 1)
        image = large.resize(self.size, Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(image)
        for height in heights:
            draw.text((self.LEFT - 5, self._y(height)), f"{height:g}", fill=FAINT, font=FONT, anchor="rm")
        step = int(max(1, _nice_step(self.num_steps / 8)))
        for tick in range(-(-self.first_step // step) * step, self.first_step + self.num_steps, step):
            x = self._x(tick - self.first_step)
            draw.text((x, self.size[1] - self.BOTTOM + 3), str(tick), fill=FAINT, font=FONT, anchor="ma")
        return np.asarray(image)


def _nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (and 0.5, 0.2, ...) that is at least ``least``."""
    if not least > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(least))
    return next(float(power * m) for m in (1, 2, 5, 10) if power * m >= least * (1 - 1e-9))


def _finite_pieces(values: np.ndarray) -> Iterator[slice]:
    """The stretches of two and more neighbouring values that are numbers."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.isfinite(values).astype(int), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start > 1:
            yield slice(int(start), int(end))


def _cycle(colours: Sequence[Colour]) -> Iterator[Colour]:
    while True:
        yield from colours


def _title_bar(titles: Sequence[str], width: int) -> np.ndarray:
    image = Image.new("RGB", (width, LINE_HEIGHT + 2), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for index, title in enumerate(titles):
        draw.text((index * width / len(titles) + 4, 2), title, fill=TEXT, font=FONT)
    return np.asarray(image)


def _rgb(frames: np.ndarray) -> np.ndarray:
    """``T H W C`` uint8 with one or three channels to three."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3):
        raise ValueError(f"expected uint8 frames, T H W C with C 1 or 3; got {frames.dtype} {frames.shape}")
    return frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1)


def _each_rgb(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield _rgb(np.asarray(frame)[None])[0]


def _enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return picture
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _write_mp4(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    with av.open(ffmpeg_path(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "veryfast"}
        size: tuple[int, ...] | None = None
        for picture in frames:
            if size is None:
                size = picture.shape
                stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
            if picture.shape != size:
                raise ValueError(f"frames of one video differ in size: {size}, then {picture.shape}")
            # Chroma at half resolution needs even sides; players that are given odd ones refuse the file.
            even = np.pad(picture, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"))
            )
        if size is None:
            raise ValueError(f"{path.parent}: no frames to write as a video")
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images, None)
    if first is None:
        raise ValueError(f"{path.parent}: no frames to write as a gif")
    # The format counts hundredths of a second, and browsers slow down what is shorter than two of them.
    duration = max(20, round(100 / fps) * 10)
    first.save(path, format="GIF", save_all=True, append_images=images, duration=duration, loop=0)
