"""`load_images`: pictures from any source as the pixels that a model sees.

The pixels equal upstream's (VGGT: vggt/utils/load_fn.py; π³, mode "area": pi3/utils/basic.py) bit for bit,
with these differences, all on purpose: the EXIF orientation is applied, VGGT's alpha of every kind is
composited on white (upstream does so for RGBA only; π³ drops it), and 16-bit grey is scaled instead of
clipped.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError
from fastvggt_jax.sources.base import Frame, frames_of
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

Fit = Callable[[Image.Image], tuple[np.ndarray, ImageTransform]]


@dataclasses.dataclass(frozen=True)
class Images:
    """What `load_images` returns.

    pixels: u8[F, H, W, 3], RGB; give the model `pixels[None]`.
    transforms: one ImageTransform per photograph.
    names: file names, with folders before them where names alone would not differ; positions of what has no
      file.
    skipped: (file, reason) of the photographs left out by skip_bad.
    frames: one per photograph, which opens it again; () of Images made by hand.
    """

    pixels: np.ndarray
    transforms: tuple[ImageTransform, ...]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    frames: tuple[Frame, ...] = ()


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
    mode = mode or policy.mode
    size = policy.size if size is None else size
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}", argument="mode")
    if mode == "area" and size is not None and size < policy.patch:
        raise InputError(f"size must be at least {policy.patch}, not {size}", argument="size")
    if mode != "area" and size is not None:
        check_sides(policy.patch, size=size)
    frames = frames_of(source)
    if not frames:
        raise ImageError("no photographs were given")
    names, alpha = _names(frames), mode != "area"
    if mode == "area":
        limit = AREA if size is None else size**2
        fit: Fit = partial(fit_area, target=_area_target(frames, names, limit, policy.patch))
    else:
        fit = partial(FITS[mode], size=size or WIDTH, patch=policy.patch)
    loaded, kept, skipped, used = [], [], [], []
    # Pillow decodes and resizes outside the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda frame, name: _load_or_error(frame, name, fit, alpha), frames, names)
        for frame, name, result in zip(frames, names, results, strict=True):
            if not isinstance(result, ImageError):
                loaded.append(result)
                kept.append(name)
                used.append(frame)
            elif skip_bad:
                skipped.append((_label(frame, name), str(result)))
            else:
                pool.shutdown(cancel_futures=True)
                raise result
    if not loaded:
        raise ImageError(f"none of the {len(frames)} photographs can be read; the first: {skipped[0][1]}")
    pixels, transforms = stack_images(loaded)
    return Images(pixels, transforms, tuple(kept), tuple(skipped), tuple(used))


def _load_or_error(
    frame: Frame, name: str, fit: Fit, alpha: bool
) -> tuple[np.ndarray, ImageTransform] | ImageError:
    try:
        return fit(_open_rgb(frame, name, alpha))
    except ImageError as error:
        return error


def _open_rgb(frame: Frame, name: str, alpha: bool) -> Image.Image:
    """8-bit RGB, transparency on white or, without `alpha`, ignored. ImageError names the photograph."""
    image = frame.open()
    if image.mode == "F":
        text = "floating-point images have no fixed white; save it with 8 bits a channel"
        raise ImageError(f"{_label(frame, name)}: {text}")
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip at 255 instead of scaling
        values = np.asarray(image)
        image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if alpha and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
    return image.convert("RGB")


def _area_target(frames: Sequence[Frame], names: Sequence[str], limit: int, patch: int) -> tuple[int, int]:
    """The size that all photographs get: of the first that can be read. If none can, loading them will say
    so.
    """
    for frame, name in zip(frames, names, strict=True):
        try:
            return area_size(*_open_rgb(frame, name, alpha=False).size, limit, patch)
        except ImageError:
            continue
    return patch, patch


def _label(frame: Frame, name: str) -> str:
    return str(frame.path) if frame.path is not None else name


def _names(frames: Sequence[Frame]) -> list[str]:
    """Of files with their folders where the same name is in two of them; of others what they say, or their
    position.
    """
    paths = [frame.path for frame in frames if frame.path is not None]
    named = {path: path.name for path in paths}
    if len(set(named.values())) < len(named):
        full = {path: os.path.abspath(path) for path in paths}
        top = os.path.commonpath(list(full.values()))
        named = {path: Path(os.path.relpath(full[path], top)).as_posix() for path in paths}
    return [
        named[frame.path] if frame.path is not None else frame.name or f"{position:04}"
        for position, frame in enumerate(frames)
    ]
