"""Photographs on the disk: a folder, a file or a pattern.

A folder is read in natural order (upstream's is that of characters), which decides what is first. The EXIF
orientation is applied: upstream ignores it and feeds such photographs sideways.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from fastvggt_jax.errors import ImageError, MissingError
from fastvggt_jax.sources.base import DECODE_ERRORS, Frame

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")


class Photographs:
    """Files, given by a path, a folder's path or a pattern."""

    def recognises(self, source: Any) -> bool:
        return isinstance(source, str | os.PathLike)

    def frames(self, source: str | os.PathLike) -> Iterator[Frame]:
        for path in find_images(source):
            yield Frame(partial(open_photograph, path), path)


PHOTOGRAPHS = Photographs()


def find_images(source: str | os.PathLike) -> list[Path]:
    """The files that a path or a pattern stands for, in the order in which they are loaded.

    Raises MissingError, or ImageError for a folder or a pattern without images.
    """
    text = os.path.expanduser(source)
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        found, where = list(path.iterdir()), f"the folder {path}"
    elif glob.has_magic(str(text)):
        found, where = [Path(name) for name in glob.glob(str(text), recursive=True)], f"the pattern {text}"
    else:
        hint = "give a folder, image files or a pattern like 'photos/*.jpg'"
        raise MissingError(f"{path} does not exist; {hint}", argument="source")
    # Names that start with a dot are droppings of file managers, not photographs.
    images = [p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not images:
        raise ImageError(f"{where} holds no images (looked for {' '.join(SUFFIXES)})")
    return sorted(images, key=_natural)


def _natural(path: Path) -> tuple:
    """Sort key: runs of digits by value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], str(path)


def open_photograph(path: Path) -> Image.Image:
    """The photograph upright (EXIF orientation applied), decoded.

    Raises ImageError naming the file if it is damaged or no image.
    """
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
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ImageError(f"{path} has more than {limit} megapixels; make it smaller") from error
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"{path} is damaged or not an image ({reason(error)})") from error


def reason(error: Exception) -> str:
    """What a decoder's error says, as a clause."""
    if isinstance(error, Image.UnidentifiedImageError):  # whose text repeats the path
        return "unknown file format"
    return str(error).rstrip(".") or type(error).__name__
