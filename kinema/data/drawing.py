"""Draw frames for people: contact sheets, videos side by side, mp4, gif and png files."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kinema.data.files import replacing
from kinema.data.video import ffmpeg_path

Colour = tuple[int, int, int]

GAP = 2
"""Pixels between two frames, before any scaling."""
BACKGROUND: Colour = (30, 32, 36)
TEXT: Colour = (225, 226, 228)
FAINT: Colour = (110, 113, 120)
TOO_DARK: Colour = (230, 90, 0)
TOO_BRIGHT: Colour = (0, 110, 230)
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
    """Draw a sheet of several videos, each a row of ``columns`` frames evenly spaced from first to last.

    ``rows`` are ``T H W C`` uint8; sizes and lengths may differ. ``indices`` shows these frames of each row
    instead. Where all rows show the same ones, their numbers stand above. Returns ``H W 3`` uint8.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row of frames")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(labels)} labels: give one label for each row")
    videos = [rgb(row) for row in rows]
    if any(len(video) == 0 for video in videos):
        raise ValueError("a row of the contact sheet has no frames")
    if indices is None:
        chosen = [np.linspace(0, len(f) - 1, min(columns, len(f))).round().astype(int) for f in videos]
    else:
        chosen = [np.asarray(indices)] * len(videos)
    cell_height = max(video.shape[1] for video in videos) * scale + GAP
    cell_width = max(video.shape[2] for video in videos) * scale + GAP
    left = max((int(FONT.getlength(label)) + 10 for label in labels), default=0) if labels else 0
    left += GAP
    width = left + cell_width * max(map(len, chosen))
    sheet = Image.new("RGB", (width, LINE_HEIGHT + cell_height * len(videos)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if all(np.array_equal(shown, chosen[0]) for shown in chosen):
        for column, index in enumerate(chosen[0]):
            draw.text((left + column * cell_width + 2, 2), str(index), fill=FAINT, font=FONT)
    for row, (video, shown) in enumerate(zip(videos, chosen, strict=True)):
        top = LINE_HEIGHT + row * cell_height
        if labels:
            draw.text((5, top + 3), labels[row], fill=TEXT, font=FONT)
        for column, index in enumerate(shown):
            sheet.paste(Image.fromarray(enlarge(video[index], scale)), (left + column * cell_width, top))
    return np.asarray(sheet)


def difference(real: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """Draw where two videos disagree: orange where the simulated one is too dark, blue where too bright.

    Both ``T H W C`` uint8 of the same shape. The real video shows through, faint and grey, so that one sees
    what is at the place. The strength is the largest difference of any colour channel, so that a wrong hue of
    the right brightness shows as well. Returns ``T H W 3`` uint8.
    """
    if real.shape != simulated.shape:
        raise ValueError(f"real frames are {real.shape} but simulated ones {simulated.shape}")
    expected = rgb(real).astype(np.int16)
    got = rgb(simulated).astype(np.int16)
    strength = np.minimum(np.abs(expected - got).max(axis=-1, keepdims=True) / 128.0, 1.0).astype(np.float32)
    is_dark = (got.sum(axis=-1, keepdims=True) < expected.sum(axis=-1, keepdims=True)).astype(np.float32)
    colour = is_dark * np.array(TOO_DARK, np.float32) + (1 - is_dark) * np.array(TOO_BRIGHT, np.float32)
    ground = 140.0 + 0.44 * expected.mean(axis=-1, keepdims=True, dtype=np.float32)
    return (strength * colour + (1 - strength) * ground).round().astype(np.uint8)


def side_by_side(real: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """``real | simulated | difference`` frame by frame: ``T H W C`` uint8 twice to ``T H 3W+2*GAP 3``."""
    last = difference(real, simulated)
    gap = np.full((len(last), last.shape[1], GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([rgb(real), gap, rgb(simulated), gap, last], axis=2)


def write_video(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], *, fps: float, scale: int = 1
) -> None:
    """Write ``H W C`` uint8 frames as an mp4 that browsers play, or as a gif, by the suffix of ``path``.

    Pixels are enlarged ``scale`` times without smoothing; an mp4 of odd size gains a row or column. A gif
    plays at 50 frames a second at most. An unfinished file never bears the name.
    """
    target = Path(path)
    enlarged = (enlarge(frame, scale) for frame in _each_rgb(frames))
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


def encode_mp4(frames: Iterable[np.ndarray], *, fps: float, scale: int = 1) -> bytes:
    """Encode ``H W C`` uint8 frames as the bytes of an mp4, without a file; otherwise as ``write_video``."""
    buffer = io.BytesIO()
    _write_mp4(buffer, (enlarge(frame, scale) for frame in _each_rgb(frames)), fps)
    return buffer.getvalue()


def encode_png(frame: np.ndarray) -> bytes:
    """Encode one frame, ``H W C`` uint8, as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb(frame[None])[0]).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(path: str | os.PathLike[str], frame: np.ndarray) -> None:
    """Write one frame, ``H W C`` uint8."""
    image = Image.fromarray(rgb(frame[None])[0])
    with replacing(path) as part:
        image.save(part, format="PNG")


def read_frame(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file of any format that Pillow reads as a frame ``H W 3`` uint8.

    Raises:
        ValueError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def rgb(frames: np.ndarray) -> np.ndarray:
    """``T H W C`` uint8 with one or three channels to three."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3):
        raise ValueError(f"expected uint8 frames, T H W C with C 1 or 3; got {frames.dtype} {frames.shape}")
    return frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1)


def _each_rgb(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield rgb(np.asarray(frame)[None])[0]


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return frame
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def _write_mp4(target: Path | io.BytesIO, frames: Iterator[np.ndarray], fps: float) -> None:
    is_file = isinstance(target, Path)
    # FFmpeg moves the index to the front by opening the file once more, which it cannot with a buffer.
    options = {"movflags": "faststart"} if is_file else {}
    with av.open(ffmpeg_path(target) if is_file else target, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "veryfast"}
        size: tuple[int, ...] | None = None
        for frame in frames:
            if size is None:
                size = frame.shape
                stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
            if frame.shape != size:
                raise ValueError(f"frames of one video differ in size: {size}, then {frame.shape}")
            # Chroma at half resolution needs even sides; players that are given odd ones refuse the file.
            even = np.pad(frame, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"))
            )
        if size is None:
            raise ValueError(f"{target.parent if is_file else 'mp4'}: no frames to write as a video")
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images, None)
    if first is None:
        raise ValueError(f"{path.parent}: no frames to write as a gif")
    # The format counts hundredths of a second, and browsers slow down what is shorter than two of them.
    duration = max(20, round(100 / fps) * 10)
    first.save(path, format="GIF", save_all=True, append_images=images, duration=duration, loop=0)
