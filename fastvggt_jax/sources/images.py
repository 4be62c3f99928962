"""`load_images`: pictures from any source as the pixels that a model sees.

The pixels equal upstream's (VGGT: vggt/utils/load_fn.py; π³, mode "area": pi3/utils/basic.py) bit for bit,
with these differences, all on purpose: the EXIF orientation is applied, VGGT's alpha of every kind is
composited on white (upstream does so for RGBA only; π³ drops it), and 16-bit grey is scaled instead of
clipped.
"""

from __future__ import annotations

import dataclasses
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError
from fastvggt_jax.sources.base import DECODE_ERRORS, Frame, frames_of
from fastvggt_jax.sources.photographs import reason
from fastvggt_jax.sources.sizing import (
    AREA,
    FITS,
    MODES,
    WHITE,
    WIDTH,
    ImagePolicy,
    ImageTransform,
    area_size,
    check_sides,
    fit_area,
    stack_images,
)

Sized = tuple[np.ndarray, ImageTransform]
Fit = Callable[[Image.Image], Sized]


@dataclasses.dataclass(frozen=True)
class Images:
    """What `load_images` returns.

    pixels: u8[F, H, W, 3], RGB; give the model `pixels[None]`.
    transforms: one ImageTransform per photograph.
    names: file names, with folders before them where names alone would not differ; positions of what has no
      file.
    skipped: (file, reason) of the photographs left out by skip_bad.
    frames: one per photograph, which opens it again, None where that is no file's; () of Images made by hand.
    """

    pixels: UInt8[np.ndarray, "F H W 3"]
    transforms: tuple[ImageTransform, ...]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    frames: tuple[Frame | None, ...] = ()


def load_images(
    source: Any,
    policy: ImagePolicy = ImagePolicy(),  # noqa: B008  immutable
    *,
    mode: str | None = None,
    size: int | None = None,
    skip_bad: bool = False,
) -> Images:
    """Load photographs for a model.

    source: a folder, a file, a glob pattern ("photos/*.jpg"); an array of pixels u8[H, W, 3] or u8[F, H, W,
      3], or floating point in [0, 1]; a PIL image; or a list or any iterator of these. A folder (not its
      subfolders) and a pattern give JPEG, PNG, WebP, BMP, TIFF and HEIC (needs pillow-heif, extra `heic`) in
      natural order, 2 before 10; a list keeps its order. The first photograph is VGGT's reference frame.
    policy: a model's `image_policy`; by default VGGT-1B's. `mode` and `size` take the place of its own.
    mode: "crop", VGGT's: width `size`, height to proportion (rounded to patches), what is higher than `size`
      is cut off above and below. "pad": the longer side `size`, white around to a square. "square": as
      upstream's COLMAP demo, black around to a square. Photographs that come out in different sizes are
      padded with white to the largest. "area", π³'s: all are stretched to one size, in the proportions of the
      first and of about as many pixels as a square of `size`.
    size: pixels, a multiple of the policy's patch (but for "area"); without one, 518, what VGGT was trained
      with, and for "area" upstream's 255,000 pixels in all, a square of 505.
    skip_bad: go on without unreadable photographs, and list them in `skipped`.

    Raises MissingError (nothing there), ImageError (no images; one is unreadable), InputError (source, mode,
    size).
    """
    mode = policy.mode if mode is None else mode
    size = policy.size if size is None else size
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}", argument="mode")
    if size is not None:
        size = _whole(size)
        if mode != "area":
            check_sides(policy.patch, size=size)
        elif size < policy.patch:
            raise InputError(f"size must be at least {policy.patch}, not {size}", argument="size")
    loaded, kept, skipped, frames, again = [], [], [], [], []
    for frame, result in _sized(frames_of(source), mode, size, policy):
        frames.append((frame.path, frame.name))  # not what opens it, which may hold the picture
        if isinstance(result, ImageError):
            if not skip_bad:
                raise result
            skipped.append((_label(frame, len(frames) - 1), str(result)))
        else:
            loaded.append(result)
            kept.append(len(frames) - 1)
            again.append(None if frame.path is None else frame)
    if not frames:
        raise ImageError("no photographs were given")
    if not loaded:
        raise ImageError(f"none of the {len(frames)} photographs can be read; the first: {skipped[0][1]}")
    names = _names(frames)
    pixels, transforms = stack_images(loaded)
    found = tuple(names[position] for position in kept)
    return Images(pixels, transforms, found, tuple(skipped), tuple(again))


def _whole(size: Any) -> int:
    try:
        return operator.index(size)
    except TypeError:
        raise InputError(f"size must be a whole number of pixels, not {size!r}", argument="size") from None


def _sized(
    frames: Iterator[Frame], mode: str, size: int | None, policy: ImagePolicy
) -> Iterator[tuple[Frame, Sized | ImageError]]:
    """Every frame as the model wants it, or why that cannot be; a few are decoded at a time."""
    numbered, alpha = enumerate(frames), mode != "area"
    waiting: list[tuple[Frame, Image.Image | ImageError]] = []
    if mode == "area":
        target = (policy.patch, policy.patch)  # where none can be read
        # The size that all get is that of the first that can be read.
        for position, frame in numbered:
            image = _open_rgb(frame, position, alpha)
            waiting.append((frame, image))
            if not isinstance(image, ImageError):
                target = area_size(*image.size, AREA if size is None else size**2, policy.patch)
                break
        fit: Fit = partial(fit_area, target=target)
    else:
        fit = partial(FITS[mode], size=WIDTH if size is None else size, patch=policy.patch)

    def load(position: int, frame: Frame) -> Sized | ImageError:
        image = _open_rgb(frame, position, alpha)
        return image if isinstance(image, ImageError) else fit(image)

    for frame, image in waiting:
        yield frame, image if isinstance(image, ImageError) else fit(image)
    workers = min(8, os.cpu_count() or 1)
    pending: deque[tuple[Frame, Future[Sized | ImageError]]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes and resizes outside the GIL
        try:
            for position, frame in numbered:
                pending.append((frame, pool.submit(load, position, frame)))
                if len(pending) > workers:
                    frame, future = pending.popleft()
                    yield frame, future.result()
            while pending:
                frame, future = pending.popleft()
                yield frame, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _open_rgb(frame: Frame, position: int, alpha: bool) -> Image.Image | ImageError:
    """8-bit RGB, transparency on white or, without `alpha`, ignored; or an error that names it."""
    label = _label(frame, position)
    try:
        image = frame.open()
        if image.mode == "F":
            text = "floating-point images have no fixed white; save it with 8 bits a channel"
            return ImageError(f"{label}: {text}")
        if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip at 255 instead of scaling
            values = np.asarray(image)
            image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
        if alpha and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
        return image.convert("RGB")
    except ImageError as error:
        return error
    except DECODE_ERRORS as error:
        return ImageError(f"{label} is damaged or not an image ({reason(error)})")


def _label(frame: Frame, position: int) -> str:
    return str(frame.path) if frame.path is not None else frame.name or f"photograph {position:04}"


def _names(frames: Sequence[tuple[Path | None, str | None]]) -> list[str]:
    """Of (path, name): of files with their folders where the same name is in two of them; of others what
    they say, or their position.
    """
    paths = [path for path, _ in frames if path is not None]
    named = {path: path.name for path in paths}
    if len(set(named.values())) < len(named):
        full = {path: os.path.abspath(path) for path in paths}
        top = os.path.commonpath(list(full.values()))
        named = {path: Path(os.path.relpath(full[path], top)).as_posix() for path in paths}
    return [
        named[path] if path is not None else name or f"{position:04}"
        for position, (path, name) in enumerate(frames)
    ]
