"""Points that a track head follows: which are asked for, what it says of them, and that over the frames."""

from __future__ import annotations

import colorsys
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fastvggt_jax.errors import InputError
from fastvggt_jax.export.depth import file_stems
from fastvggt_jax.io.files import write_file
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.sources import Images

MOST = 4096  # points in all
MOST_GRID = 64
TRAIL = 8  # frames that a point's way is drawn of
VISIBLE = 0.5  # probability from which a point is drawn full
SIDE = 720  # pixels of a picture's longer side, at least, where the model's are fewer
RATE = 8  # frames per second
CONVENTION = (
    "x, y in pixels of the photograph as it is seen, the outer corner of the first pixel at (0, 0); visible: "
    "the probability that the point is seen, sure: that the place is right"
)


class Points(NamedTuple):
    """Q points to follow. frame: i64[Q]. xy: f64[Q, 2] in the model's pixels, the first one's centre at (0.5,
    0.5).
    """

    frame: np.ndarray
    xy: np.ndarray

    def batched(self) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """As a model takes them: (frames, f32[1, K·n, 2], as many of each, some twice, with the first pixel's
        centre at (0, 0), and where each of the Q points is among them).
        """
        frames, of = np.unique(self.frame, return_inverse=True)
        members = [np.flatnonzero(of == k) for k in range(len(frames))]
        each = max(map(len, members))
        order = np.concatenate([np.resize(one, each) for one in members])
        where = np.zeros(len(self.frame), np.int64)
        for place in range(len(order) - 1, -1, -1):
            where[order[place]] = place
        return tuple(frames.tolist()), (self.xy[order] - 0.5).astype(np.float32)[None], where


def parse_points(text: str, images: Images) -> Points:
    """From "grid:N", N x N points over the first photograph, or a JSON file: a list of {"frame": number or
    name, "x": ..., "y": ...} in the photographs' own pixels. Raises InputError, MissingError, FileError.
    """
    if text.startswith("grid") or not text:
        match = re.fullmatch(r"grid:([1-9]\d{0,3})", text)
        if match is None or int(match[1]) > MOST_GRID:
            raise InputError(
                f"queries must be a file, or grid:N, N from 1 to {MOST_GRID}, not {text!r}",
                argument="queries",
            )
        left, top, right, bottom = images.transforms[0].valid
        at = (np.arange(int(match[1])) + 0.5) / int(match[1])
        x, y = np.meshgrid(left + at * (right - left), top + at * (bottom - top))
        return Points(np.zeros(x.size, np.int64), np.stack([x.reshape(-1), y.reshape(-1)], -1))
    content = read_json(text, "queries")
    if not isinstance(content, list) or not 0 < len(content) <= MOST:
        what = f'a list of 1 to {MOST} points, {{"frame": 0, "x": 10.5, "y": 20.5}}'
        raise InputError(f"queries {text} must hold {what}", argument="queries")
    frames, places = [], []
    for number, one in enumerate(content):
        frame = one.get("frame") if isinstance(one, dict) else None
        if isinstance(frame, str) and frame in images.names:
            frame = images.names.index(frame)
        xy: list[Any] = [one.get(name) for name in "xy"] if isinstance(one, dict) else []
        if type(frame) is not int or not 0 <= frame < len(images.names):
            there = f"a number from 0 to {len(images.names) - 1}, or a name such as {images.names[0]}"
            raise InputError(
                f"queries {text}: the frame of point {number} must be {there}", argument="queries"
            )
        t = images.transforms[frame]
        fine = all(type(v) in (int, float) for v in xy)
        at = t.to_model(xy) if fine else np.full(2, np.nan)
        if not ((at >= 0) & (at < (t.model_width, t.model_height))).all():  # False for NaN
            sees = (
                f"within what the model sees of {images.names[frame]}, {t.original_width}x{t.original_height}"
            )
            raise InputError(f"queries {text}: x and y of point {number} must lie {sees}", argument="queries")
        frames.append(frame)
        places.append(at)
    return Points(np.array(frames), np.array(places))


class Followed(NamedTuple):
    """xy: f64[F, Q, 2] in the model's pixels, centres at 0.5; visible, sure: f64[F, Q], probabilities."""

    xy: np.ndarray
    visible: np.ndarray
    sure: np.ndarray


def write_tracks(
    images: Images, points: Points, followed: Followed, folder: str | os.PathLike, *, about: dict[str, Any]
) -> list[str]:
    """Write tracks.json, frames/NAME.jpg and, with PyAV (extra `video`), tracks.mp4; returns what was
    written. Raises FileError.
    """
    folder = Path(folder)
    per_frame = []
    for name, t, xy, visible, sure in zip(images.names, images.transforms, *followed, strict=True):
        own = t.to_original(xy)
        rows = np.concatenate([own, visible[:, None], sure[:, None]], -1)
        per_frame.append({"name": name, "tracks": np.round(rows, 4).tolist()})
    content = {
        "format": "fastvggt_jax tracks",
        "format_version": 1,
        **about,
        "columns": ["x", "y", "visible", "sure"],
        "convention": CONVENTION,
        "query_frames": points.frame.tolist(),
        "photographs": per_frame,
    }
    write_file(folder / "tracks.json", json.dumps(content, allow_nan=False).encode())
    pictures = [drawn(images.pixels[i], points, followed, i) for i in range(len(images.names))]
    for stem, picture in zip(file_stems(images.names), pictures, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=90)
        write_file(folder / "frames" / f"{stem}.jpg", buffer.getvalue())
    video = as_video(pictures)
    if video is not None:
        write_file(folder / "tracks.mp4", video)
    return ["tracks.json", "frames"] + ["tracks.mp4"] * (video is not None)


def drawn(pixels: np.ndarray, points: Points, followed: Followed, frame: int) -> Image.Image:
    """A frame u8[H, W, 3] with the points and their way on it: full where they are seen, else hollow."""
    height, width = pixels.shape[:2]
    scale = max(1, -(-SIDE // max(height, width)))
    image = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    draw, radius = ImageDraw.Draw(image), 0.006 * max(image.size)
    for q in range(len(points.frame)):
        hue = colorsys.hsv_to_rgb(q / len(points.frame), 0.85, 1.0)
        color = tuple(round(255 * c) for c in hue)
        way = followed.xy[max(0, frame - TRAIL) : frame + 1, q] * scale
        if len(way) > 1:
            draw.line([tuple(at) for at in way], fill=color, width=max(1, round(radius / 3)))
        seen = followed.visible[frame, q] >= VISIBLE
        draw.circle(tuple(way[-1]), radius, fill=color if seen else None, outline=color, width=2)
    return image


def as_video(pictures: Sequence[Image.Image]) -> bytes | None:
    """An MP4 of H.264 that browsers play; None without PyAV."""
    try:
        import av
    except ImportError:
        return None
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=RATE)
        stream.width, stream.height = (side - side % 2 for side in pictures[0].size)
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_image(picture.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
