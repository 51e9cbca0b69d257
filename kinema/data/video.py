"""Video files: encode an episode, join episodes without encoding again, read frames by time.

A video file of a dataset holds many episodes one after the other; each was encoded on its own, so that it
starts with a key frame and its packets can be moved to another file as they are.
"""

import contextlib
import dataclasses
import io
import os
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from kinema.data.layout import DataError

LOSSLESS_SIDE = 128
"""Longest side in pixels up to which ``auto`` keeps pictures exactly: chroma at half resolution blurs an
object of 4 pixels into its surroundings."""

AV1_SIDE = 64
"""Shortest side in pixels that ``auto`` gives to SVT-AV1, which never returns for 16 x 480."""

LFS_START, LFS_BYTES = b"version https://git-lfs", 1024
"""How a pointer of Git LFS begins, and more bytes than it has."""

SMALL_PICTURE = 256 * 256
"""Pixels up to which threads within one picture cost more than they save."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """How frames are encoded: the encoder, its pixel format, its options."""

    encoder: str
    pix_fmt: str
    options: dict[str, str]
    name: str
    """What a decoder calls it."""
    decoded_pix_fmt: str
    """What a decoder calls the pixel format."""


CODECS = {
    # No B-frames anywhere: frames are stored in the order of their times, so that files join by an offset.
    "lossless": Codec(
        encoder="libx264rgb",
        pix_fmt="rgb24",
        options={"crf": "0", "preset": "veryfast", "g": "30", "bf": "0"},
        name="h264",
        decoded_pix_fmt="gbrp",
    ),
    "h264": Codec(
        encoder="libx264",
        pix_fmt="yuv420p",
        options={"crf": "18", "preset": "veryfast", "g": "2", "bf": "0"},
        name="h264",
        decoded_pix_fmt="yuv420p",
    ),
    "av1": Codec(
        encoder="libsvtav1",
        pix_fmt="yuv420p",
        options={"crf": "30", "preset": "10", "g": "2"},
        name="av1",
        decoded_pix_fmt="yuv420p",
    ),
}


def ffmpeg_path(path: str | os.PathLike[str]) -> str:
    """The path as FFmpeg opens it, so that a colon, as in ``10:22/a.mp4``, does not read as a protocol.

    Every path that is given to ``av.open`` goes through here.
    """
    return f"file:{os.fspath(path)}"


def choose_codec(codec: str, height: int, width: int) -> str:
    """Name of the codec that ``auto`` stands for at this picture size."""
    if codec != "auto":
        return codec
    is_small = max(height, width) <= LOSSLESS_SIDE or min(height, width) < AV1_SIDE
    return "lossless" if is_small else "av1"


def frame_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def encode(frames: np.ndarray, *, fps: float, codec: str) -> bytes:
    """Encode ``T H W 3`` uint8 as an MP4 file in memory; ``codec`` is a key of ``CODECS``."""
    settings = CODECS[codec]
    height, width = frames.shape[1:3]
    if codec == "h264" and (height % 2 or width % 2):
        raise ValueError(
            f"codec h264 needs even sizes, got {height} x {width}; choose codec lossless, av1 or image"
        )
    if codec == "av1":
        # The encoder prints a page for each file otherwise; it reads only this variable.
        os.environ.setdefault("SVT_LOG", "1")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(settings.encoder, rate=frame_rate(fps), options=settings.options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, settings.pix_fmt
        if height * width <= SMALL_PICTURE:
            stream.codec_context.thread_count = 1
        with _same_scheduling():
            stream.codec_context.open()
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@contextlib.contextmanager
def _same_scheduling() -> Iterator[None]:
    """Threads that are started in here, and this one, are scheduled as this one was before.

    Where root runs it, SVT-AV1 gives its threads and the one that opens it the highest real-time priority.
    Two such processes on two cores stop everything else for as long as they work, and what a process starts
    later inherits it.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # Only Linux has this way to reach threads of others, and only there it is needed.
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    others = set(os.listdir(tasks)) - {str(threading.get_native_id())}
    try:
        yield
    finally:
        for task in set(os.listdir(tasks)) - others:
            with contextlib.suppress(ProcessLookupError):  # It has ended meanwhile.
                os.sched_setscheduler(int(task), policy, parameters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file's header says."""

    height: int
    width: int
    codec: str
    pix_fmt: str
    fps: float
    num_frames: int
    start: float
    """Time of the first frame in seconds."""
    has_audio: bool
    time_base: Fraction
    extradata: bytes

    def can_follow(self, other: "VideoInfo") -> bool:
        """Whether packets of this file may stand after those of the other one in one stream."""
        either = dataclasses.replace(self, num_frames=other.num_frames, fps=other.fps, start=other.start)
        return either == other

    def as_feature(self, fps: float) -> dict[str, object]:
        """The ``info`` of a video feature in ``info.json``."""
        return {
            "video.height": self.height,
            "video.width": self.width,
            "video.codec": self.codec,
            "video.pix_fmt": self.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": int(fps) if float(fps).is_integer() else fps,
            "video.channels": 3,
            "has_audio": self.has_audio,
        }


def probe(path: Path) -> VideoInfo:
    """Read a video file's header. Raises DataError when there is no video in it."""
    try:
        with av.open(ffmpeg_path(path)) as container:
            if not container.streams.video:
                raise DataError("holds no video stream", path=path)
            stream = container.streams.video[0]
            context = stream.codec_context
            return VideoInfo(
                height=context.height,
                width=context.width,
                codec=context.codec.canonical_name,
                pix_fmt=str(context.pix_fmt),
                fps=float(stream.average_rate or 0.0),
                num_frames=stream.frames,
                start=float((stream.start_time or 0) * (stream.time_base or 0)),
                has_audio=bool(container.streams.audio),
                time_base=stream.time_base or Fraction(0),
                extradata=context.extradata or b"",
            )
    except (FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    """The reason why a file cannot be opened as a video."""
    message = f"cannot be read as a video ({error})"
    if isinstance(error, FileNotFoundError):
        message = "is missing; download or copy the dataset again"
    elif path.is_file() and path.stat().st_size < LFS_BYTES and path.read_bytes().startswith(LFS_START):
        message = "is a pointer of Git LFS and not the video; download it with git lfs pull"
    return DataError(message, path=path)


def concatenate(
    sources: Sequence[Path], target: BinaryIO, *, end_of_first: Fraction | None = None
) -> tuple[list[Fraction], int]:
    """Join video files packet by packet into an MP4 file, without encoding again.

    ``end_of_first``: leave out what the first source holds from this time (seconds) on. Returns the time in
    seconds where each source starts, and the number of frames of all together.
    """
    starts: list[Fraction] = []
    end, num_frames = Fraction(0), 0
    with av.open(target, "w", format="mp4") as output:
        joined = None
        for number, source in enumerate(sources):
            with av.open(ffmpeg_path(source)) as container:
                stream = container.streams.video[0]
                time_base = Fraction(stream.time_base or Fraction(1, 1000))
                if joined is None:
                    # Opaque: copied as it is, since there may be a decoder of this name only, no encoder.
                    joined = output.add_stream_from_template(stream, opaque=True)
                    joined.time_base = time_base
                # Everything below counts in ticks of the time base; fractions for each packet are slow.
                shift = ticks = round(end / time_base)
                limit = None if number or end_of_first is None else end_of_first / time_base
                for packet in container.demux(stream):
                    if (
                        packet.pts is None
                        or packet.dts is None
                        or (limit is not None and packet.pts >= limit)
                    ):
                        continue
                    packet.pts += shift
                    packet.dts += shift
                    ticks = max(ticks, packet.pts + (packet.duration or 0))
                    packet.stream = joined
                    output.mux(packet)
                    num_frames += 1
                starts.append(shift * time_base)
                end = ticks * time_base
    return starts, num_frames


class VideoReader:
    """Frames of one video file by time; reading on from where the last call stopped needs no seek."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._container = av.open(ffmpeg_path(path))
            if not self._container.streams.video:
                raise DataError("holds no video stream", path=path)
        except (FFmpegError, OSError) as error:
            raise _unreadable(path, error) from error
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context.height * context.width <= SMALL_PICTURE:
            context.thread_count = 1
        else:
            context.thread_type = "AUTO"
        self.height, self.width = context.height, context.width
        self.num_frames = self._stream.frames
        self.start = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        """Time of the first frame in seconds."""
        # One for all frames: what a frame makes for itself costs more than decoding a small picture.
        self._reformatter = VideoReformatter()
        self._decoded: Iterator[av.VideoFrame] = iter(())
        self._before: av.VideoFrame | None = None
        self._ahead: av.VideoFrame | None = None

    def close(self) -> None:
        self._container.close()

    def read(self, times: np.ndarray, *, tolerance: float) -> tuple[np.ndarray, float]:
        """The frames nearest to ``times`` (seconds, ascending) as ``T H W 3`` uint8, and the largest distance
        in seconds between a time asked for and a frame's.

        Raises DataError when a frame cannot be decoded or none lies within ``tolerance`` seconds.
        """
        pictures = np.empty((len(times), self.height, self.width, 3), np.uint8)
        worst = 0.0
        try:
            for row, time in enumerate(times):
                self._advance(float(time))
                near = [frame for frame in (self._before, self._ahead) if frame is not None]
                frame = min(near, key=lambda frame: abs(_time(frame) - time), default=None)
                if frame is None or abs(_time(frame) - time) > tolerance:
                    held = f"the nearest is at {_time(frame):.4f} s" if frame else "there are none"
                    raise DataError(f"no frame at {time:.4f} s (row {row}): {held}", path=self.path)
                if frame.is_corrupt:
                    raise DataError(f"the frame at {time:.4f} s (row {row}) is damaged", path=self.path)
                worst = max(worst, abs(_time(frame) - time))
                pictures[row] = self._rgb(frame)
        except (FFmpegError, OSError, DataError) as error:
            # The next call seeks, so that one bad place does not hide what comes after it.
            self._before = self._ahead = None
            if isinstance(error, DataError):
                raise
            raise DataError(f"cannot be decoded ({error})", path=self.path) from error
        return pictures, worst

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """``H W 3`` uint8."""
        if frame.format.name == "gbrp":
            # Its planes are the colours; PyAV only puts them in order.
            return frame.to_ndarray()
        return self._reformatter.reformat(frame, format="rgb24").to_ndarray()

    def _advance(self, time: float) -> None:
        """Decode until the frame ahead is at ``time`` or later; the one before it may still be the nearer."""
        last = self._before if self._before is not None else self._ahead
        if last is None or time < _time(last) - 1e-6 or time > _time(last) + 10.0:
            time_base = Fraction(self._stream.time_base or Fraction(1, 1000))
            self._container.seek(max(0, int(time / time_base) - 1), stream=self._stream, backward=True)
            self._decoded = iter(self._container.decode(self._stream))
            self._before, self._ahead = None, next(self._decoded, None)
        while self._ahead is not None and _time(self._ahead) < time - 1e-6:
            self._before, self._ahead = self._ahead, next(self._decoded, None)


def _time(frame: av.VideoFrame) -> float:
    if frame.pts is None or frame.time_base is None:
        raise DataError("a frame carries no time; encode the video again")
    return float(frame.pts * frame.time_base)
