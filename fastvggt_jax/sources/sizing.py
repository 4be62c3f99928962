"""How a photograph becomes the pixels that a model sees, and the transform back to its own.

The pixels equal upstream's (VGGT: vggt/utils/load_fn.py; π³, mode "area": pi3/utils/basic.py) bit for bit.
One difference is on purpose: a strip so thin that its height would round to no patch at all gets one row of
patches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError

WHITE = 255
WIDTH = 518  # pixels, by default
LARGEST = 8192  # pixels of a size, at most
AREA = 255_000  # pixels of an image with mode "area", by default


class ImagePolicy(NamedTuple):
    """How a model wants its photographs.

    Attributes:
      mode: one of MODES, see `load_images`.
      size: pixels, see `load_images`; None is the mode's own.
      patch: pixels of a patch's side, of which an image's height and width are multiples.
    """

    mode: str = "crop"
    size: int | None = None
    patch: int = 14


def check_sides(patch: int, **sides: int) -> None:
    """Raises InputError, naming the argument, unless every side is a positive multiple of `patch` pixels."""
    for name, side in sides.items():
        if side < patch or side % patch:
            nearest = max(patch, round(side / patch) * patch)
            text = f"{name} must be a positive multiple of the model's patches of {patch} pixels, not {side}"
            raise InputError(f"{text}; the nearest is {nearest}", argument=name)


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
        """(left, top, right, bottom): the model pixels that show the photograph, none of the padding."""
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

    def to_model(self, xy: ArrayLike) -> np.ndarray:
        """Points [..., 2] (x, y) of the original photograph in model pixels."""
        return np.asarray(xy) * (self.scale_x, self.scale_y) + (self.offset_x, self.offset_y)

    def to_original(self, xy: ArrayLike) -> np.ndarray:
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
            raise InputError(
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


def _resized(
    image: Image.Image, width: int, height: int, how: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    return np.asarray(image.resize((width, height), how))  # u8[height, width, 3]


_MOST = 2**28  # pixels of an image on its way


def _proportional(length: int, scale: float, patch: int) -> int:
    # round() goes half to even, as upstream's
    return max(1, round(length * scale / patch)) * patch


def _fit_crop(image: Image.Image, size: int, patch: int) -> tuple[np.ndarray, ImageTransform]:
    w, h = image.size
    height = _proportional(h, size / w, patch)
    if size * height > _MOST:
        raise ImageError(f"{w}x{h} pixels are too high to be cut to width {size}; cut it yourself, or pad it")
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
    if side**2 > _MOST:
        raise ImageError(f"{w}x{h} pixels are too large to be put on a square; take another mode")
    left, top = (side - w) // 2, (side - h) // 2
    canvas = Image.new("RGB", (side, side))  # black
    canvas.paste(image, (left, top))
    scale = size / side
    return _resized(canvas, size, size), ImageTransform(
        w, h, size, size, scale, scale, left * scale, top * scale
    )


FITS = {"crop": _fit_crop, "pad": _fit_pad, "square": _fit_square}
MODES = (*FITS, "area", "wide")


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


def fit_area(image: Image.Image, target: tuple[int, int]) -> tuple[np.ndarray, ImageTransform]:
    (w, h), (width, height) = image.size, target
    transform = ImageTransform(w, h, width, height, width / w, height / h, 0.0, 0.0)
    return _resized(image, width, height, Image.Resampling.LANCZOS), transform


class Wide(NamedTuple):
    """(width, height) that photographs are brought to in two steps."""

    first: tuple[int, int]
    then: tuple[int, int]


def wide_size(width: int, height: int, size: int, patch: int) -> Wide:
    """π³'s evaluation: `size` pixels wide, the height in proportion in whole patches, then a width of whole
    patches too (its branch `evaluation`, utils/interfaces.py).
    """
    tall = max(1, round(height * size / width / patch)) * patch
    return Wide((size, tall), (max(1, size // patch) * patch, tall))


def fit_wide(image: Image.Image, target: Wide) -> tuple[np.ndarray, ImageTransform]:
    """Lanczos, then bilinear; the second step is rounded to 8 bits, which upstream's is not."""
    (w, h), (width, height) = image.size, target.then
    pixels = _resized(image, *target.first, Image.Resampling.LANCZOS)
    if target.first != target.then:
        pixels = _resized(Image.fromarray(pixels), width, height, Image.Resampling.BILINEAR)
    return pixels, ImageTransform(w, h, width, height, width / w, height / h, 0.0, 0.0)


def _pad_white(
    pixels: np.ndarray, t: ImageTransform, width: int, height: int
) -> tuple[np.ndarray, ImageTransform]:
    """Centred on white; the smaller half of an odd rest goes before."""
    left, top = (width - t.model_width) // 2, (height - t.model_height) // 2
    out = np.full((height, width, 3), WHITE, np.uint8)
    out[top : top + t.model_height, left : left + t.model_width] = pixels
    x, y = t.offset_x + left, t.offset_y + top
    return out, dataclasses.replace(t, model_width=width, model_height=height, offset_x=x, offset_y=y)


def stack_images(
    loaded: list[tuple[np.ndarray, ImageTransform]],
) -> tuple[np.ndarray, tuple[ImageTransform, ...]]:
    """u8[F, H, W, 3] at the largest height and width."""
    height = max(t.model_height for _, t in loaded)
    width = max(t.model_width for _, t in loaded)
    padded = [_pad_white(pixels, t, width, height) for pixels, t in loaded]
    pixels = np.stack([pixels for pixels, _ in padded])
    return pixels, tuple(t for _, t in padded)
