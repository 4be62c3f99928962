"""Pictures that are in memory: numpy and jax arrays, and Pillow's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from fastvggt_jax.errors import InputError
from fastvggt_jax.sources.base import DECODE_ERRORS, Frame
from fastvggt_jax.sources.pixels import upright as upright_copy

FORMS = "[H, W], [H, W, 3] or [H, W, 4], or [F, H, W, 3] or [F, H, W, 4]"


class Arrays:
    """Arrays of 8-bit or floating-point pixels, one picture or [F, ...] of them, and PIL images."""

    def recognises(self, source: Any) -> bool:
        if isinstance(source, Image.Image):
            return True
        return (
            not isinstance(source, list | tuple) and hasattr(source, "__array__") and hasattr(source, "ndim")
        )

    def frames(self, source: Any) -> Iterator[Frame]:
        if isinstance(source, Image.Image):
            yield Frame(_copied(source))
            return
        pixels = np.asarray(source)
        _check_shape(pixels)
        for one in pixels if pixels.ndim == 4 else pixels[None]:
            yield Frame(partial(Image.fromarray, _bytes(one)))


ARRAYS = Arrays()


def _copied(image: Image.Image) -> Callable[[], Image.Image]:
    """Opens a copy: the image is decoded here, since no two threads may do that, and its owner may change
    or close it. If it cannot be, opening says so.
    """
    try:
        upright = upright_copy(image)
    except DECODE_ERRORS as error:
        return partial(_fail, error)
    return lambda: upright


def _fail(error: Exception) -> Image.Image:
    raise error


def _check_shape(pixels: np.ndarray) -> None:
    color = pixels.ndim in (3, 4) and pixels.shape[-1] in (3, 4)
    if not (color or pixels.ndim == 2) or 0 in pixels.shape:
        hint = ""
        if pixels.ndim in (3, 4) and pixels.shape[-3] == 3:
            hint = "; these look channels-first, transpose them"
        raise InputError(
            f"an array of pixels must be {FORMS}, not {list(pixels.shape)}{hint}", argument="source"
        )
    if pixels.dtype != np.uint8 and not jnp.issubdtype(pixels.dtype, np.floating):
        text = f"an array of pixels must be uint8, or floating point in [0, 1], not {pixels.dtype}"
        raise InputError(text, argument="source")


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """A copy of one picture's pixels, u8. Raises InputError."""
    if pixels.dtype == np.uint8:
        return pixels.copy()
    pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        text = "floating-point pixels must be finite, and these hold NaN or infinity"
        raise InputError(f"{text}: put numbers in [0, 1] in their place", argument="source")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        text = f"floating-point pixels must lie in [0, 1], not from {pixels.min():g} to {pixels.max():g}"
        raise InputError(f"{text}; of 8-bit values, divide by 255", argument="source")
    return np.rint(pixels * 255).astype(np.uint8)
