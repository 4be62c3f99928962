"""Photographs in, model pixels out, and for every photograph the transform back to its own pixels.

The pixels equal upstream's (VGGT: vggt/utils/load_fn.py; π³, mode "area": pi3/utils/basic.py) bit for bit,
with these differences, all on purpose: the EXIF orientation is applied (upstream ignores it and feeds such
photographs sideways), VGGT's alpha of every kind is composited on white (upstream does so for RGBA only; π³
drops it), 16-bit grey is scaled instead of clipped, and a strip so thin that its height would round to no
patch at all gets one row of patches. A folder is read in natural order (upstream's is that of characters),
which decides what is first.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastvggt_jax.errors import ImageError
from fastvggt_jax.sources.sizing import (
    AREA,
    FITS,
    MODES,
    WHITE,
    WIDTH,
    ImagePolicy,
    ImageTransform,
    area_size,
    fit_area,
    stack_images,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")
Source = str | os.PathLike | Sequence[str | os.PathLike]

# What Pillow's decoders raise on files that are damaged, or are no images.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


@dataclasses.dataclass(frozen=True)
class Images:
    """What `load_images` returns.

    pixels: u8[F, H, W, 3], RGB; give the model `pixels[None]`.
    transforms: one ImageTransform a photograph.
    names: file names; with folders before them where names alone would not differ.
    skipped: (file, reason) of the photographs left out by skip_bad.
    """

    pixels: np.ndarray
    transforms: tuple[ImageTransform, ...]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def load_images(
    source: Source,
    policy: ImagePolicy = ImagePolicy(),
    *,
    mode: str | None = None,
    size: int | None = None,
    skip_bad: bool = False,
) -> Images:
    """Load photographs for the model.

    source: a folder, a file, a glob pattern ("photos/*.jpg"), or a list of these. A folder (not its
      subfolders) and a pattern give JPEG, PNG, WebP, BMP, TIFF and HEIC (needs pillow-heif, extra `heic`) in
      natural order, 2 before 10; a list keeps its order. The first photograph is VGGT's reference frame.
    mode: a model's own is its `image_mode`. "crop", VGGT's: width `size`, height to proportion (rounded to
      patches), what is higher than `size` is cut off above and below. "pad": the longer side `size`, white
      around to a square. "square": as upstream's COLMAP demo, black around to a square. Photographs that come
      out in different sizes are padded with white to the largest. "area", π³'s: all are stretched to one
      size, in the proportions of the first and of about as many pixels as a square of `size`.
    size: pixels, a multiple of patch_size (but for "area"); by default 518, what VGGT was trained with, and
      for "area" upstream's 255,000 pixels in all, a square of 505.
    skip_bad: go on without unreadable photographs, and list them in `skipped`.

    Raises FileNotFoundError (nothing there), ImageError (no images; one is unreadable), ValueError (mode,
    size).
    """
    mode, patch_size = mode or policy.mode, policy.patch
    size = policy.size if size is None else size
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if size is not None and mode == "area" and size < patch_size:
        raise ValueError(f"size must be at least {patch_size}, not {size}")
    if size is not None and mode != "area" and (size < patch_size or size % patch_size):
        nearest = max(patch_size, round(size / patch_size) * patch_size)
        raise ValueError(
            f"size must be a positive multiple of {patch_size}, not {size}; the nearest is {nearest}"
        )
    paths = find_images(source)
    if mode == "area":
        limit = AREA if size is None else size**2
        fit = partial(fit_area, target=_area_target(paths, limit, patch_size))
    else:
        fit = partial(FITS[mode], size=size or WIDTH, patch=patch_size)
    loaded, names, skipped = [], [], []
    # Pillow decodes and resizes outside the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda path: _load_or_error(path, fit, alpha=mode != "area"), paths)
        for path, name, result in zip(paths, _names(paths), results, strict=True):
            if not isinstance(result, ImageError):
                loaded.append(result)
                names.append(name)
            elif skip_bad:
                skipped.append((str(path), str(result)))
            else:
                pool.shutdown(cancel_futures=True)
                raise result
    if not loaded:
        raise ImageError(f"none of the {len(paths)} photographs can be read; the first: {skipped[0][1]}")
    pixels, transforms = stack_images(loaded)
    return Images(pixels, transforms, tuple(names), tuple(skipped))


def find_images(source: Source) -> list[Path]:
    """The files that `source` (see load_images) stands for, in the order in which they are loaded."""
    if not isinstance(source, str | os.PathLike):
        paths = [path for one in source for path in find_images(one)]
        if not paths:
            raise ImageError("no photographs were given")
        return paths
    source = os.path.expanduser(source)
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found, where = path.iterdir(), f"the folder {path}"
    elif glob.has_magic(source):
        found, where = map(Path, glob.glob(source, recursive=True)), f"the pattern {source}"
    else:
        raise FileNotFoundError(
            f"{path} does not exist; give a folder, image files or a pattern like 'photos/*.jpg'"
        )
    # Names that start with a dot are droppings of file managers, not photographs.
    images = [p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not images:
        raise ImageError(f"{where} holds no images (looked for {' '.join(SUFFIXES)})")
    return sorted(images, key=_natural)


def _natural(path: Path) -> tuple:
    """Sort key: runs of digits by value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], str(path)


def _names(paths: list[Path]) -> list[str]:
    names = [path.name for path in paths]
    if len(set(names)) < len(set(paths)):  # the same name in two folders
        full = [os.path.abspath(path) for path in paths]
        names = [Path(os.path.relpath(path, os.path.commonpath(full))).as_posix() for path in full]
    return names


def _load_or_error(path: Path, fit: Callable, alpha: bool):
    try:
        return fit(read_rgb(path, alpha=alpha))
    except ImageError as error:
        return error


def read_rgb(path: str | os.PathLike, *, alpha: bool = True) -> Image.Image:
    """The photograph upright (EXIF orientation applied) as 8-bit RGB, transparency on white or, without
    `alpha`, ignored.

    Raises ImageError naming the file if it is damaged, no image, or of a kind without a defined 8-bit form.
    """
    path = Path(path)
    if path.suffix.lower() in (".heic", ".heif"):
        if importlib.util.find_spec("pillow_heif") is None:
            raise ImageError(
                f"{path} is HEIC, which needs the extra 'heic': pip install 'fastvggt_jax[heic]'"
            )
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            return _to_rgb(image, alpha)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels; make it smaller"
        ) from error
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path} is damaged or not an image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # Pillow's "cannot identify" repeats the path.
    return (
        "unknown file format" if isinstance(error, Image.UnidentifiedImageError) else str(error).rstrip(".")
    )


def _to_rgb(image: Image.Image, alpha: bool) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating-point images have no fixed white; save it with 8 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip at 255 instead of scaling
        values = np.asarray(image)
        image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if alpha and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
    return image.convert("RGB")


def _area_target(paths: list[Path], limit: int, patch: int) -> tuple[int, int]:
    """The size that all photographs get: of the first that can be read. If none can, loading them will say
    so.
    """
    for path in paths:
        with contextlib.suppress(ImageError):
            return area_size(*read_rgb(path, alpha=False).size, limit, patch)
    return patch, patch
