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
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")
WHITE = 255
WIDTH = 518  # pixels, by default
AREA = 255_000  # pixels of an image with mode "area", by default
Source = str | os.PathLike | Sequence[str | os.PathLike]

# What Pillow's decoders raise on files that are damaged, or are no images.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


class ImageError(ValueError):
    """A photograph that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Original pixels (after the EXIF orientation) <-> model pixels of one photograph.

    x_model = scale_x · x_original + offset_x, and the same in y, in continuous coordinates whose origin is
    the outer corner of the first pixel: the centre of pixel i lies at i + 0.5, an image of width w ends at w.
    A `K` with its principal point at (W/2, H/2) is in the middle of the image in these coordinates.
    """

    original_width: int
    original_height: int
    model_width: int
    model_height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    @property
    def valid(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom): the model pixels that show the photograph wholly, none of the padding."""
        left, right = self.offset_x, self.offset_x + self.scale_x * self.original_width
        top, bottom = self.offset_y, self.offset_y + self.scale_y * self.original_height
        eps = 1e-6  # scale · size is off by a rounding error where it means a whole number
        return (
            max(0, int(np.ceil(left - eps))),
            max(0, int(np.ceil(top - eps))),
            min(self.model_width, int(np.floor(right + eps))),
            min(self.model_height, int(np.floor(bottom + eps))),
        )

    def valid_mask(self) -> np.ndarray:
        """bool[H, W] of the model's pixels: True on the photograph, False on padding."""
        left, top, right, bottom = self.valid
        mask = np.zeros((self.model_height, self.model_width), bool)
        mask[top:bottom, left:right] = True
        return mask

    def to_model(self, xy: np.ndarray) -> np.ndarray:
        """Points [..., 2] (x, y) of the original photograph in model pixels."""
        return np.asarray(xy) * (self.scale_x, self.scale_y) + (self.offset_x, self.offset_y)

    def to_original(self, xy: np.ndarray) -> np.ndarray:
        """Points [..., 2] (x, y) of the model's image in original pixels."""
        return (np.asarray(xy) - (self.offset_x, self.offset_y)) / (self.scale_x, self.scale_y)

    def K_to_original(self, K: np.ndarray) -> np.ndarray:
        """K f64[3, 3] for the original resolution, from K [3, 3] of the model's pixels."""
        undo = np.array(
            [
                [1 / self.scale_x, 0, -self.offset_x / self.scale_x],
                [0, 1 / self.scale_y, -self.offset_y / self.scale_y],
                [0, 0, 1],
            ]
        )
        return undo @ np.asarray(K, np.float64)

    def map_to_original(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """A map f32[H, W] of the model's pixels, bilinearly resampled: f32[original_height, original_width].

        Padding never bleeds in. What the crop has cut off, the model has not seen: `fill` stands there.
        """
        if values.shape != (self.model_height, self.model_width):
            raise ValueError(
                f"the map must be [{self.model_height}, {self.model_width}], not {list(values.shape)}"
            )
        left, top, right, bottom = self.valid
        at_x = (np.arange(self.original_width) + 0.5) * self.scale_x + self.offset_x  # pixel centres
        at_y = (np.arange(self.original_height) + 0.5) * self.scale_y + self.offset_y
        x0, x1, wx = _linear_taps(at_x, left, right)
        y0, y1, wy = _linear_taps(at_y, top, bottom)
        rows = values[y0] * (1 - wy)[:, None] + values[y1] * wy[:, None]  # [h, W]
        out = rows[:, x0] * (1 - wx) + rows[:, x1] * wx  # [h, w]
        out[(at_y < 0) | (at_y > self.model_height)] = fill
        out[:, (at_x < 0) | (at_x > self.model_width)] = fill
        return out


def _linear_taps(at: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For coordinates f64[n]: the two pixels in [low, high) around each, i64[n], and the second one's weight
    f32[n].
    """
    at = np.clip(at - 0.5, low, high - 1)
    first = np.floor(at).astype(np.int64)
    return first, np.minimum(first + 1, high - 1), (at - first).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Images:
    """What `load_images` returns.

    pixels: f32[F, H, W, 3] in [0, 1], RGB; give the model `pixels[None]`.
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
    *,
    mode: str = "crop",
    size: int | None = None,
    patch_size: int = 14,
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
        fit = partial(_fit_area, target=_area_target(paths, limit, patch_size))
    else:
        fit = partial(_FITS[mode], size=size or WIDTH, patch=patch_size)
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
    pixels, transforms = _stack(loaded)
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


def _resized(
    image: Image.Image, width: int, height: int, how: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    return np.asarray(image.resize((width, height), how))  # u8[height, width, 3]


def _proportional(length: int, scale: float, patch: int) -> int:
    # round() goes half to even, as upstream's
    return max(1, round(length * scale / patch)) * patch


def _fit_crop(image: Image.Image, size: int, patch: int) -> tuple[np.ndarray, ImageTransform]:
    w, h = image.size
    height = _proportional(h, size / w, patch)
    top = max(0, (height - size) // 2)
    pixels = _resized(image, size, height)[top : top + size]
    return pixels, ImageTransform(w, h, size, min(height, size), size / w, height / h, 0.0, -float(top))


def _fit_pad(image: Image.Image, size: int, patch: int) -> tuple[np.ndarray, ImageTransform]:
    w, h = image.size
    if w >= h:
        width, height = size, _proportional(h, size / w, patch)
    else:
        width, height = _proportional(w, size / h, patch), size
    transform = ImageTransform(w, h, width, height, width / w, height / h, 0.0, 0.0)
    return _pad_white(_resized(image, width, height), transform, size, size)


def _fit_square(image: Image.Image, size: int, patch: int) -> tuple[np.ndarray, ImageTransform]:
    w, h = image.size
    side = max(w, h)
    left, top = (side - w) // 2, (side - h) // 2
    canvas = Image.new("RGB", (side, side))  # black
    canvas.paste(image, (left, top))
    scale = size / side
    return _resized(canvas, size, size), ImageTransform(
        w, h, size, size, scale, scale, left * scale, top * scale
    )


_FITS = {"crop": _fit_crop, "pad": _fit_pad, "square": _fit_square}
MODES = (*_FITS, "area")


def area_size(width: int, height: int, limit: int, patch: int) -> tuple[int, int]:
    """π³'s size (width, height) for photographs like this one: as many whole patches as `limit` pixels hold,
    about in proportion.
    """
    scale = math.sqrt(limit / (width * height))
    wanted = (width * scale) / (height * scale)  # the last digit decides where it equals a ratio of patches
    columns, rows = max(1, round(width * scale / patch)), max(1, round(height * scale / patch))
    while columns * rows * patch**2 > limit and columns * rows > 1:
        if rows == 1 or (columns > 1 and columns / rows > wanted):
            columns -= 1
        else:
            rows -= 1
    return columns * patch, rows * patch


def _area_target(paths: list[Path], limit: int, patch: int) -> tuple[int, int]:
    """The size that all photographs get: of the first that can be read. If none can, loading them will say
    so.
    """
    for path in paths:
        with contextlib.suppress(ImageError):
            return area_size(*read_rgb(path, alpha=False).size, limit, patch)
    return patch, patch


def _fit_area(image: Image.Image, target: tuple[int, int]) -> tuple[np.ndarray, ImageTransform]:
    (w, h), (width, height) = image.size, target
    transform = ImageTransform(w, h, width, height, width / w, height / h, 0.0, 0.0)
    return _resized(image, width, height, Image.Resampling.LANCZOS), transform


def _pad_white(
    pixels: np.ndarray, t: ImageTransform, width: int, height: int
) -> tuple[np.ndarray, ImageTransform]:
    """Centred on white; the smaller half of an odd rest goes before."""
    left, top = (width - t.model_width) // 2, (height - t.model_height) // 2
    out = np.full((height, width, 3), WHITE, np.uint8)
    out[top : top + t.model_height, left : left + t.model_width] = pixels
    moved = dict(offset_x=t.offset_x + left, offset_y=t.offset_y + top)
    return out, dataclasses.replace(t, model_width=width, model_height=height, **moved)


def _stack(loaded: list[tuple[np.ndarray, ImageTransform]]) -> tuple[np.ndarray, tuple[ImageTransform, ...]]:
    """f32[F, H, W, 3] in [0, 1] at the largest height and width."""
    height = max(t.model_height for _, t in loaded)
    width = max(t.model_width for _, t in loaded)
    padded = [_pad_white(pixels, t, width, height) for pixels, t in loaded]
    pixels = np.stack([pixels for pixels, _ in padded]).astype(np.float32) / np.float32(255)
    return pixels, tuple(t for _, t in padded)
