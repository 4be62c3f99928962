"""Kinds of pixels as 8-bit RGB, and which of them are opaque.

Grey of more than 8 bits, and of signed numbers: black is 0 and white the largest number that the file's own
bits can hold: 65,535 of 16, 4,095 of a TIFF of 12, 4,294,967,295 of unsigned 32, about half of these of
signed ones, what a PGM says in its third number; or what `white` says. What lies beyond is black or white.
(Upstream lets Pillow clip at 255.) TIFF's "min is white" is turned round. 16-bit colour keeps its upper 8
bits, as Pillow reads it, and has no other white. Floating point has no white and is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fastvggt_jax.errors import ImageError
from fastvggt_jax.sources.sizing import WHITE, ImageTransform

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
# White of 8, 10, 12, 14, 15 and 16 bits: where no number is larger, it may be meant.
_NARROW = (255, 1023, 4095, 16383, 32767, 65535)
LARGEST_WHITE = 2**32 - 1


class Numbers(NamedTuple):
    """What only the opened file says of its pixels' numbers.

    largest: that they can be. kind: their type, where Pillow has another one of the same size. scaled: Pillow
    has scaled them, to 65,535 in grey. inverted: 0 is white. deep_colour: they are colours of 16 bits, of
    which Pillow keeps 8. pictures: how many the file holds.
    """

    largest: int = 65535
    kind: type[np.integer] | None = None
    scaled: bool = False
    inverted: bool = False
    deep_colour: bool = False
    pictures: int = 1


_NUMBERS: Any = ("fastvggt_jax", "numbers")  # in an image's info; no file's key, which is a text


def upright(image: Image.Image, *, whole_file: bool = False) -> Image.Image:
    """A copy, decoded and turned by its EXIF orientation, that knows what its file says of its numbers.

    whole_file: nobody has chosen this picture among those of its file, so `to_rgb` says if there are several.
    """
    numbers = _numbers(image, whole_file)
    turned = ImageOps.exif_transpose(image)
    if numbers is not None:
        turned.info[_NUMBERS] = numbers
    return turned


def _numbers(image: Image.Image, whole_file: bool) -> Numbers | None:
    """Of an image just opened; None of one that was made."""
    if image.format is None:
        return None
    numbers = Numbers(deep_colour=image.mode[0] != "I" and any(";16" in str(tile) for tile in _tiles(image)))
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, signed = int(np.max(tags.get(_BITS, 1))), bool(np.max(tags.get(_SAMPLE_FORMAT, 1)) == 2)
        kinds: dict[Any, type[np.integer]] = {(8, True): np.int8, (32, False): np.uint32}
        numbers = numbers._replace(
            largest=2 ** (bits - signed) - 1,
            kind=kinds.get((bits, signed)),
            inverted=tags.get(_PHOTOMETRIC) == 0,
        )
    if image.format == "PPM" and (
        said := [tile[3][1] for tile in _tiles(image) if isinstance(tile[3], tuple)]
    ):
        deep = image.mode == "RGB" and said[0] == 65535
        numbers = numbers._replace(largest=said[0], scaled=True, deep_colour=deep)
    # A photograph's MPO holds previews of the same.
    if whole_file and image.format != "MPO":
        numbers = numbers._replace(pictures=getattr(image, "n_frames", 1))
    return numbers


def _tiles(image: Image.Image) -> list[Any]:
    """(decoder, box, offset, its arguments) of what is not decoded yet."""
    return getattr(image, "tile", [])


def to_rgb(
    image: Image.Image, label: str, *, on_white: bool, white: int | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """8-bit RGB, transparency on white or, without `on_white`, ignored; and what to warn of. Raises
    ImageError, which begins with `label`.
    """
    image, said = to_8_bits(image, label, white=white)
    if on_white and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
    return image.convert("RGB"), said


def to_8_bits(
    image: Image.Image, label: str, *, white: int | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """8 bits a channel, with the transparency that it has; and what to warn of. Raises as `to_rgb`."""
    numbers = image.info.get(_NUMBERS, Numbers())
    said = []
    if numbers.pictures > 1:
        said.append(f"{label} holds {numbers.pictures} pictures, of which the first is taken")
    if image.mode == "F":
        text = "floating-point images have no fixed white; save it with 8 bits a channel"
        raise ImageError(f"{label}: {text}")
    if image.mode.startswith("I") or numbers.kind is np.int8:
        image, dark = _grey(image, numbers, label, white)
        said += [dark] if dark else []
    elif numbers.deep_colour:
        said += _too_dark(image, numbers, label)
    return image, tuple(said)


def _grey(
    image: Image.Image, numbers: Numbers, label: str, white: int | None
) -> tuple[Image.Image, str | None]:
    """8-bit grey, with the transparency that one number stands for; and what to warn of."""
    largest, kind, rescaled, inverted = numbers[:4]
    values = np.asarray(image)
    if kind is not None:
        values = values.view(kind)
    if rescaled:  # to what they were
        values = np.rint(values * (largest / 65535))
    said = None
    if white is None:
        top = int(values.max(initial=0))
        narrow = next((limit for limit in _NARROW if limit < largest and top <= limit), None)
        if top > 0 and narrow is not None:
            almost, meant = ("white", "black") if inverted else ("black", "white")
            text = f"{label} is almost {almost}: its values end at {top} of {largest}"
            said = f"{text}; if {narrow} is meant to be {meant}, say so with white={narrow}"
    scaled = np.clip(values.astype(np.float64) / (white or largest), 0, 1)
    if inverted:
        scaled = 1 - scaled
    # Whole numbers of 16 bits as before: 257 of them are one of 8.
    grey = Image.fromarray(np.floor(scaled * 255 + 1e-9).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey, said


def _too_dark(image: Image.Image, numbers: Numbers, label: str) -> list[str]:
    """What to warn of: colours of 10, 12 or 14 bits in 16, of whose upper 8 bits little is left."""
    top = int(np.asarray(image.convert("RGB")).max())
    of_8_bits = (lambda limit: round(limit / 257)) if numbers.scaled else (lambda limit: limit >> 8)
    meant = next((limit for limit in (1023, 4095, 16383) if top <= of_8_bits(limit)), None)
    if not top or meant is None:
        return []
    text = f"{label} is almost black: its 16-bit colours end near or below {meant}"
    return [f"{text}; if {meant} is meant to be white, save it with 8 bits a channel"]


def opacity(image: Image.Image) -> np.ndarray | None:
    """bool[height, width], False where an image is wholly transparent; None where it has no transparency."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # whose conversion would cut its numbers off
        return np.asarray(image) != image.info.get("transparency")
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
