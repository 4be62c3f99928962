"""Frames of a video, by PyAV (extra `video`): mp4, mov, webm and what else FFmpeg reads.

Time is cut into equal intervals, by the frames' own times, so that a variable frame rate changes nothing; of
each the sharpest frame is taken, and dropped again where it shows the same as the one before.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import threading
import warnings
from collections.abc import Iterator
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvggt_jax.errors import ExtraError, ImageError, InputError, MissingError, whole_number
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.sources.base import Frame
from fastvggt_jax.sources.photographs import VIDEOS, matches, natural

FPS, MAX_FRAMES = 2.0, 300  # where nothing is said
# No playlists, which would make FFmpeg open other files, and nothing from elsewhere.
OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": "file"}
SMALL = 256  # pixels of the longer side on which frames are compared
CUT_SHORT, CUT_SHORT_SECONDS = 0.05, 1.0  # what is missing at a video's end, by its own word, to be said
MICROSECONDS = 1_000_000  # of a second: in these FFmpeg counts a file's length
PASSED = 8  # frames that are kept on the way to a later one
SAME = 1.0  # of 255: the mean difference below which two frames show the same


@dataclasses.dataclass(frozen=True)
class Video:
    """Frames of a video file, or of those of a pattern ("*.mp4"), for `load_images`.

    Attributes:
      fps: frames per second, at most.
      max_frames: in all, at most; a longer video gets fewer per second.

    Raises InputError for a number out of its range.
    """

    path: str | os.PathLike
    fps: float = FPS
    max_frames: int = MAX_FRAMES

    def __post_init__(self) -> None:
        if not isinstance(self.fps, Real) or not 0 < self.fps < math.inf:
            text = f"fps must be above 0 frames per second, not {self.fps}"
            raise InputError(text, argument="fps")
        whole_number("max_frames", self.max_frames, least=1)


def is_video(source: Any) -> bool:
    """Whether it is a Video, or a path that is one by its name."""
    if isinstance(source, Video):
        return True
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in VIDEOS


class Videos:
    def recognises(self, source: Any) -> bool:
        return is_video(source)

    def frames(self, source: Any) -> Iterator[Frame]:
        video = source if isinstance(source, Video) else Video(source)
        for path in _files(os.path.expanduser(video.path)):
            for number, shot in enumerate(_chosen(path, video)):
                yield Frame(shot, name=f"{path.stem}_{number:05}", reopens=True)


SOURCE = Videos()


def _files(name: str | os.PathLike) -> list[Path]:
    if glob.has_magic(str(name)) and not os.path.lexists(name):
        found = sorted(matches(str(name)), key=natural)
        if not found:
            raise MissingError(f"the pattern {name} holds no videos", argument="source")
        return [regular_file(path, "source") for path in found]
    return [regular_file(name, "source")]


def expected_frames(video: Video) -> int:
    """How many frames will be taken of it, at most, by what its files say of their length; a file that does
    not say is taken for a long one. Raises as `frames`.
    """
    count = 0
    for path in _files(os.path.expanduser(video.path)):
        with _opened(path) as (container, stream):
            said = float(_said_length(container, stream))
        wanted = round(said * video.fps) if said else video.max_frames
        count += min(max(1, wanted), video.max_frames)
    return count


class Shot:
    """A frame, which is decoded already; opened once more, it is decoded again."""

    def __init__(self, again: Again, number: int, image: Image.Image) -> None:
        """number: of the frame, in the order of decoding."""
        self.again, self.number = again, number
        self.image: Image.Image | None = image
        again.chosen.add(number)

    def __call__(self) -> Image.Image:
        image, self.image = self.image, None
        return self.again(self.number) if image is None else image


class Again:
    """Opens chosen frames of a video again. The file is decoded from its start on, once for all that are
    asked for in about their order: where one seeks, some containers give other frames than before.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.chosen = path, set[int]()
        self._lock = threading.Lock()
        self._kept: dict[int, Image.Image] = {}  # chosen ones that were passed on the way to a later one
        self._start()

    def _start(self) -> None:
        self._coming, self._next = self._all(), 0
        self._kept.clear()

    def _all(self) -> Iterator[tuple[Any, Any]]:
        with _opened(self.path) as (container, stream):
            stream.thread_type = "AUTO"
            for frame in _decoded(container, stream, self.path):
                yield frame, stream

    def __call__(self, number: int) -> Image.Image:
        with self._lock:  # of threads that ask at the same time one decodes
            if number in self._kept:
                return self._kept.pop(number)
            if number < self._next:
                self._start()
            for frame, stream in self._coming:
                here, self._next = self._next, self._next + 1
                if here == number:
                    return _upright(frame, stream)
                if here in self.chosen:
                    self._kept[here] = _upright(frame, stream)
                    while len(self._kept) > PASSED:
                        del self._kept[next(iter(self._kept))]
            self._start()
        raise ImageError(f"{self.path} has no frame any more where there was one")


def _chosen(path: Path, video: Video) -> Iterator[Shot]:
    start, length = _times(path)
    count = min(max(1, round(float(length) * video.fps)), video.max_frames)
    best: tuple[float, int, Any] | None = None
    interval, last, found, again = 0, None, 0, Again(path)
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for number, frame in enumerate(_decoded(container, stream, path)):
            if frame.pts is None:
                continue
            time = frame.pts * stream.time_base - start
            here = min(int(time / length * count), count - 1) if length else 0
            if best is not None and here > interval:
                shot, last = _unless_same(again, *best[1:], stream, last)
                if shot is not None:
                    found += 1
                    yield shot
                best = None
            interval = max(interval, here)
            sharpness = _sharpness(_grey(frame))
            if best is None or sharpness > best[0]:
                best = sharpness, number, frame
        if best is not None:
            shot, last = _unless_same(again, *best[1:], stream, last)
            if shot is not None:
                found += 1
                yield shot
    if not found:
        raise ImageError(f"{path} holds no frames")


def _unless_same(
    again: Again, number: int, frame: Any, stream: Any, last: np.ndarray | None
) -> tuple[Shot | None, np.ndarray]:
    small = _grey(frame)
    if last is not None and np.abs(small - last).mean() < SAME:
        return None, last
    return Shot(again, number, _upright(frame, stream)), small


def _times(path: Path) -> tuple[Fraction, Fraction]:
    """Seconds of the first frame, and from there to the end of the last one; nothing is decoded. Warns of a
    file that ends before it says it does.
    """
    times: list[Fraction] = []
    end = Fraction(0)
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.pts is not None:
                times.append(packet.pts * stream.time_base)
                end = max(end, times[-1] + (packet.duration or 0) * stream.time_base)
        said = _said_length(container, stream)
    if not times:
        raise ImageError(f"{path} holds no frames")
    # FFmpeg is silent about a file that was cut off after its index, as those made for the web have it.
    if said - (end - min(times)) > max(CUT_SHORT_SECONDS, CUT_SHORT * said):
        found, whole = (f"{float(seconds):.1f}" for seconds in (end - min(times), said))
        text = (
            f"{path} ends after {found} of the {whole} seconds that it says it has, as if it were cut short"
        )
        warnings.warn(f"{text}: what is there is taken; copy it again if more is wanted", stacklevel=4)
    first, last = min(times), max(times)
    if len(times) == 1:
        return first, Fraction(0)
    return first, last - first + (last - first) / (len(times) - 1)


def _said_length(container: Any, stream: Any) -> Fraction:
    """Seconds that the file says its pictures take; 0 where it does not."""
    if stream.duration is not None:
        return stream.duration * stream.time_base
    return Fraction(container.duration or 0, MICROSECONDS)


class _opened:
    """(container, its video stream); what FFmpeg says of a damaged file is an ImageError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        try:
            import av
        except ImportError as error:
            text = f"{self.path} is a video, which needs PyAV: pip install 'fastvggt_jax[video]'"
            raise ExtraError(text, argument="source") from error
        try:
            self.container = av.open(str(self.path), options=dict(OPTIONS))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _damaged(self.path, error) from error
        if not self.container.streams.video:
            kinds = " and ".join(sorted({stream.type for stream in self.container.streams}))
            self.container.close()
            raise ImageError(f"{self.path} holds no pictures, only {kinds or 'nothing'}")
        return self.container, self.container.streams.video[0]

    def __exit__(self, *_: object) -> None:
        self.container.close()


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    import av

    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path} is a damaged video, or none ({getattr(error, 'strerror', None) or error})")


def _upright(frame: Any, stream: Any) -> Image.Image:
    """As it is to be seen: with square pixels, by the longer side of those that the file has, and by the
    rotation that it says (counterclockwise).
    """
    image = frame.to_image()
    aspect = float(stream.sample_aspect_ratio or 1)
    if abs(aspect - 1) > 1e-3:
        width, height = image.width * max(1, aspect), image.height * max(1, 1 / aspect)
        image = image.resize((round(width), round(height)), Image.Resampling.BICUBIC)
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def _grey(frame: Any) -> np.ndarray:
    """f32[h, w], small."""
    scale = min(1.0, SMALL / max(frame.width, frame.height))
    width, height = (max(2, round(side * scale)) for side in (frame.width, frame.height))
    return frame.reformat(width, height, "gray").to_ndarray().astype(np.float32)


def _sharpness(grey: np.ndarray) -> float:
    """The variance of the Laplacian."""
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.var(around - 4 * inner)) if inner.size else 0.0
