"""Kinds of pixels as 8-bit RGB, and which of them are opaque.

Grey of more than 8 bits: black is 0 and white the largest number of the type, 65,535 of 16 bits,
4,294,967,295 of unsigned and 2,147,483,647 of signed 32 bits, or what `white` says; what lies beyond is black
or white. (Upstream lets Pillow clip at 255.) TIFF's "min is white" is turned round. 16-bit colour keeps its
upper 8 bits, as Pillow reads it. Floating point has no white and is refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from fastvggt_jax.errors import ImageError
from fastvggt_jax.sources.sizing import WHITE, ImageTransform

_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of TIFF
_NARROW = (255, 1023, 4095, 16383)  # white of 8, 10, 12 and 14 bits


def mark_depth(image: Image.Image) -> None:
    """Keeps what only the opened file says of its numbers, before it is decoded and turned."""
    tags = getattr(image, "tag_v2", {})
    unsigned = tags.get(_SAMPLE_FORMAT, (1,)) in (1, (1,))
    bits = 16 if image.mode.startswith("I;16") or image.format == "PNG" else 32
    image.info["depth"] = (bits, unsigned, tags.get(_PHOTOMETRIC) == 0)


def to_rgb(
    image: Image.Image, label: str, *, on_white: bool, white: int | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """8-bit RGB, transparency on white or, without `on_white`, ignored; and what to warn of. Raises
    ImageError, which begins with `label`.
    """
    said: tuple[str, ...] = ()
    if image.mode == "F":
        text = "floating-point images have no fixed white; save it with 8 bits a channel"
        raise ImageError(f"{label}: {text}")
    if image.mode.startswith("I"):
        image, said = _grey(image, label, white)
    if on_white and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
    return image.convert("RGB"), said


def _grey(image: Image.Image, label: str, white: int | None) -> tuple[Image.Image, tuple[str, ...]]:
    bits, unsigned, inverted = image.info.get("depth", (16, True, False))
    values = np.asarray(image)
    if bits == 32 and unsigned:
        values = values.view(np.uint32)
    largest = 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
    said: tuple[str, ...] = ()
    if white is None:
        top = int(values.max(initial=0))
        narrow = next((limit for limit in _NARROW if limit < largest and top <= limit), None)
        if top > 0 and narrow is not None and not inverted:
            text = f"{label} is almost black: its {bits}-bit values end at {top}"
            said = (f"{text}; if {narrow} is meant to be white, say so with white={narrow}",)
    scaled = np.clip(values.astype(np.float64) / (white or largest), 0, 1)
    if inverted:
        scaled = 1 - scaled
    # Whole numbers of 16 bits as before: 257 of them are one of 8.
    return Image.fromarray(np.floor(scaled * 255 + 1e-9).astype(np.uint8)), said


def opacity(image: Image.Image) -> np.ndarray | None:
    """bool[height, width], False where an image is wholly transparent; None where it has no transparency."""
    if not image.has_transparency_data:
        return None
    return np.asarray(image.convert("RGBA").getchannel("A")) > 0


def resampled(opaque: np.ndarray, t: ImageTransform) -> np.ndarray:
    """bool[H, W] of the model's pixels: where at least half of one shows what is opaque."""
    # How much is opaque above and to the left of every corner of a pixel, then between four of them.
    total = np.zeros((opaque.shape[0] + 1, opaque.shape[1] + 1))
    np.cumsum(np.cumsum(opaque, 0), 1, out=total[1:, 1:])
    x = np.clip((np.arange(t.model_width + 1) - t.offset_x) / t.scale_x, 0, t.original_width)
    y = np.clip((np.arange(t.model_height + 1) - t.offset_y) / t.scale_y, 0, t.original_height)
    corners = _between(_between(total, y).T, x).T
    area = np.diff(np.diff(corners, axis=0), axis=1) * t.scale_x * t.scale_y
    return area >= 0.5 - 1e-6


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of values at fractional positions."""
    first = np.minimum(at.astype(np.int64), len(values) - 2)
    weight = (at - first)[:, None]
    return values[first] * (1 - weight) + values[first + 1] * weight
