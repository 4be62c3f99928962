"""`load_images`: pictures from any source as the pixels that a model sees.

The pixels equal upstream's (VGGT: vggt/utils/load_fn.py; π³, mode "area": pi3/utils/basic.py) bit for bit,
with these differences, all on purpose: the EXIF orientation is applied, VGGT's alpha of every kind is
composited on white (upstream does so for RGBA only; π³ drops it), and 16-bit grey is scaled instead of
clipped.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError, whole_number
from fastvggt_jax.sources.base import DECODE_ERRORS, Frame, frames_of
from fastvggt_jax.sources.masks import Masks
from fastvggt_jax.sources.photographs import check_pixels, reason, without_pillows_warnings
from fastvggt_jax.sources.pixels import LARGEST_WHITE, opacity, resampled, to_rgb
from fastvggt_jax.sources.sizing import (
    AREA,
    FITS,
    LARGEST,
    MODES,
    WHITE,
    WIDTH,
    ImagePolicy,
    ImageTransform,
    area_size,
    check_sides,
    fit_area,
    fit_wide,
    stack_images,
    wide_size,
)

Fit = Callable[[Image.Image], tuple[np.ndarray, ImageTransform]]


class Prepared(NamedTuple):
    """A decoded picture, 8-bit RGB; opaque: bool[height, width] or None, see `pixels.opacity`."""

    label: str
    image: Image.Image
    opaque: np.ndarray | None
    warnings: tuple[str, ...]


class Sized(NamedTuple):
    """The same as the model sees it: u8[H, W, 3], bool[H, W]."""

    pixels: np.ndarray
    transform: ImageTransform
    opaque: np.ndarray | None
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Images:
    """What `load_images` returns.

    Attributes:
      pixels: u8[F, H, W, 3], RGB; give the model `pixels[None]`.
      transforms: one ImageTransform per photograph.
      names: file names, with folders before them where names alone would not differ; positions of what has no
        file.
      skipped: (file, reason) of what was left out: photographs by skip_bad, files that were given twice, and
        what else lies in a folder.
      masks: bool[F, H, W], False where a photograph is wholly transparent or masked (padding is True); None
        if none is.
      frames: one per photograph, which opens it again, None where that is no file's; () of Images made by
        hand.
      white: the number that was white in grey photographs of more than 8 bits; None is the largest that their
        bits can hold.
    """

    pixels: UInt8[np.ndarray, "F H W 3"]
    transforms: tuple[ImageTransform, ...]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    masks: Bool[np.ndarray, "F H W"] | None = None
    frames: tuple[Frame | None, ...] = ()
    white: int | None = None

    @property
    def paths(self) -> list[Path | None]:
        """The photographs' files; [] of Images made by hand."""
        return [frame and frame.path for frame in self.frames]

    def some(self, frames: np.ndarray) -> Images:
        """Of these frames, by their numbers, in this order."""
        of = lambda values: tuple(values[i] for i in frames) if values else values
        return dataclasses.replace(
            self,
            pixels=self.pixels[frames],
            transforms=of(self.transforms),
            names=of(self.names),
            masks=None if self.masks is None else self.masks[frames],
            frames=of(self.frames),
        )

    def shown(self) -> Bool[np.ndarray, "F H W"]:
        """True where the model's pixels show the photograph: no padding, nothing transparent or masked."""
        shown = np.stack([t.valid_mask() for t in self.transforms])
        return shown if self.masks is None else shown & self.masks


def load_images(
    source: Any,
    policy: ImagePolicy = ImagePolicy(),  # noqa: B008  immutable
    *,
    mode: str | None = None,
    size: int | None = None,
    white: int | None = None,
    masks: str | os.PathLike | None = None,
    paint_masks: bool = False,
    skip_bad: bool = False,
) -> Images:
    """Load photographs for a model.

    Args:
      source: a folder, a file, a glob pattern ("photos/*.jpg"); a video (`sources.video.Video` chooses how
        many frames), a .txt file that lists photographs, the folder of a COLMAP model; an array of pixels
        u8[H, W, 3] or u8[F, H, W, 3], or floating point in [0, 1]; a PIL image; or a list or any iterator of
        these. A folder (not its subfolders) and a pattern give JPEG, PNG, WebP, BMP, TIFF and HEIC (needs
        pillow-heif, extra `heic`) in natural order, 2 before 10; a list keeps its order. The first photograph
        is VGGT's reference frame.
      policy: a model's `image_policy`; by default VGGT-1B's. `mode` and `size` take the place of its own.
      mode: "crop", VGGT's: width `size`, height to proportion (rounded to patches), what is higher than
        `size` is cut off above and below. "pad": the longer side `size`, white around to a square. "square":
        as upstream's COLMAP demo, black around to a square. Photographs that come out in different sizes are
        padded with white to the largest. "area", π³'s: all are stretched to one size, in the proportions of
        the first and of about as many pixels as a square of `size`. "wide", of π³'s evaluation: all to one
        size, `size` wide and in the proportions of the first.
      size: pixels, a multiple of the policy's patch (but for "area" and "wide"); without one, 518, what VGGT
        was trained with, and for "area" upstream's 255,000 pixels in all, a square of 505.
      white: the number that is white in grey images of more than 8 bits, see `sources.pixels`; by default the
        largest that their bits can hold.
      masks: a folder of masks, see `sources.masks`: what is black there makes no point and no depth, as what
        is transparent does not.
      paint_masks: it is also painted white before the model sees it.
      skip_bad: go on without unreadable photographs, and list them in `skipped`.

    Raises MissingError (nothing there), ImageError (no images; one is unreadable), InputError (source, mode,
    size).
    """
    mode, size, white = check_options(policy, mode, size, white)
    if paint_masks and masks is None:
        raise InputError("paint_masks needs masks, a folder", argument="paint_masks")
    found = None if masks is None else Masks(masks)
    prepare = partial(_prepared, on_white=mode != "area", white=white, masks=found, paint_masks=paint_masks)
    loaded, kept, skipped, again = [], [], [], []
    given: list[tuple[Path | None, str | None]] = []
    with without_pillows_warnings():
        for frame, result in _sized(_each_once(frames_of(source)), mode, size, policy, prepare):
            position = len(given)
            if frame.skip is not None:
                skipped.append((_label(frame, position), frame.skip))
                continue
            given.append((frame.path, frame.name))  # not what opens it, which may hold the picture
            if isinstance(result, Sized):
                loaded.append(result)
                kept.append(position)
                again.append(frame if frame.path is not None or frame.reopens else None)
            elif skip_bad:
                skipped.append((_label(frame, position), str(result)))
            else:
                assert result is not None
                raise result
    if not given:
        raise ImageError("no photographs were given")
    if not loaded:
        raise ImageError(f"none of the {len(given)} photographs can be read; the first: {skipped[0][1]}")
    names = _names(given)
    pixels, transforms = stack_images([(one.pixels, one.transform) for one in loaded])
    for one in loaded:
        for text in one.warnings:
            warnings.warn(text, stacklevel=2)
    return Images(
        pixels,
        transforms,
        tuple(names[position] for position in kept),
        tuple(skipped),
        _masks(loaded, transforms),
        tuple(again),
        white,
    )


def check_options(
    policy: ImagePolicy, mode: str | None, size: int | None, white: int | None
) -> tuple[str, int | None, int | None]:
    """Those of `load_images`, with the policy's where there is none. Raises InputError."""
    mode = policy.mode if mode is None else mode
    size = policy.size if size is None else size
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}", argument="mode")
    if size is not None:
        size = whole_number("size", size)
        if size > LARGEST:
            raise InputError(f"size must be at most {LARGEST} pixels, not {size}", argument="size")
        if mode not in ("area", "wide"):
            check_sides(policy.patch, size=size)
        elif size < policy.patch:
            raise InputError(f"size must be at least {policy.patch}, not {size}", argument="size")
    if white is not None:
        white = whole_number("white", white, least=1)
        if white > LARGEST_WHITE:
            raise InputError(f"white must be at most {LARGEST_WHITE}", argument="white")
    return mode, size, white


def _masks(loaded: Sequence[Sized], transforms: Sequence[ImageTransform]) -> np.ndarray | None:
    """bool[F, H, W] of the images as they were padded; None if nothing is transparent."""
    if all(one.opaque is None for one in loaded):
        return None
    masks = np.ones((len(loaded), transforms[0].model_height, transforms[0].model_width), bool)
    for mask, one, t in zip(masks, loaded, transforms, strict=True):
        if one.opaque is not None:
            left, top = round(t.offset_x - one.transform.offset_x), round(t.offset_y - one.transform.offset_y)
            height, width = one.opaque.shape
            mask[top : top + height, left : left + width] = one.opaque
    return masks


def _each_once(frames: Iterable[Frame]) -> Iterator[Frame]:
    """A file that comes again, by whatever path, is passed over."""
    seen: dict[tuple[int, int], Path] = {}
    for frame in frames:
        if frame.path is not None and frame.skip is None:
            try:
                state = frame.path.stat()
            except OSError:
                yield frame  # opening it says why
                continue
            first = seen.setdefault((state.st_dev, state.st_ino), frame.path)
            if first is not frame.path:
                yield frame._replace(skip=f"{frame.path} is the same file as {first}")
                continue
        yield frame


def _sized(
    frames: Iterator[Frame],
    mode: str,
    size: int | None,
    policy: ImagePolicy,
    prepare: Callable[[Frame, int], Prepared | ImageError | None],
) -> Iterator[tuple[Frame, Sized | ImageError | None]]:
    """Every frame as the model wants it, or why that cannot be, or None of one that is passed over; a few are
    decoded at a time.
    """
    numbered = enumerate(frames)
    waiting: list[tuple[Frame, Prepared | ImageError | None]] = []
    if mode in ("area", "wide"):
        shape = (policy.patch, policy.patch)  # where none can be read
        # The size that all get is that of the first that can be read.
        for position, frame in numbered:
            one = prepare(frame, position)
            waiting.append((frame, one))
            if isinstance(one, Prepared):
                shape = one.image.size
                break
        fit: Fit
        if mode == "area":
            limit = AREA if size is None else size**2
            fit = partial(fit_area, target=area_size(*shape, limit, policy.patch))
        else:
            fit = partial(fit_wide, target=wide_size(*shape, size or WIDTH, policy.patch))
    else:
        fit = partial(FITS[mode], size=WIDTH if size is None else size, patch=policy.patch)

    def fitted(one: Prepared | ImageError | None) -> Sized | ImageError | None:
        if not isinstance(one, Prepared):
            return one
        try:
            pixels, t = fit(one.image)
            opaque = None if one.opaque is None else resampled(one.opaque, t)
            return Sized(pixels, t, opaque, one.warnings)
        except ImageError as error:
            return ImageError(f"{one.label}: {error}")

    for frame, one in waiting:
        yield frame, fitted(one)
    workers = min(8, os.cpu_count() or 1)
    pending: deque[tuple[Frame, Future[Sized | ImageError | None]]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes and resizes outside the GIL
        try:
            for position, frame in numbered:
                pending.append((frame, pool.submit(lambda f, p: fitted(prepare(f, p)), frame, position)))
                if len(pending) > workers:
                    frame, future = pending.popleft()
                    yield frame, future.result()
            while pending:
                frame, future = pending.popleft()
                yield frame, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _prepared(
    frame: Frame,
    position: int,
    *,
    on_white: bool,
    white: int | None,
    masks: Masks | None,
    paint_masks: bool,
) -> Prepared | ImageError | None:
    """The picture as 8-bit RGB, or an error that names it; None if it is passed over."""
    if frame.skip is not None:
        return None
    label = _label(frame, position)
    try:
        image = frame.open()
        check_pixels(label, image)
        rgb, said = to_rgb(image, label, on_white=on_white, white=white)
        opaque = opacity(image)
    except ImageError as error:
        return error
    except DECODE_ERRORS as error:
        return ImageError(f"{label} is damaged or not an image ({reason(error)})")
    if masks is not None:
        mask = masks.of(frame.path, label, image.size)
        opaque = mask if opaque is None else opaque & mask
        if paint_masks:
            rgb = Image.fromarray(np.where(mask[..., None], np.asarray(rgb), np.uint8(WHITE)))
    return Prepared(label, rgb, opaque, said)


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
    names = [
        named[path] if path is not None else name or f"{position:04}"
        for position, (path, name) in enumerate(frames)
    ]
    taken: set[str] = set()
    for position, name in enumerate(names):  # two videos of one name, for which a number stands
        one, number = name, 1
        while one in taken:
            number += 1
            one = f"{name}-{number}"
        taken.add(one)
        names[position] = one
    return names
