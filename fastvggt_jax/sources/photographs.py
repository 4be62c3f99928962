"""Photographs on the disk: a folder, a file or a pattern.

A folder is read in natural order (upstream's is that of characters), which decides what is first. What a file
holds decides what it is, not its name, out of a closed list of formats. The EXIF orientation is applied:
upstream ignores it and feeds such photographs sideways.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from fastvggt_jax.errors import Error, FileError, ImageError, MissingError
from fastvggt_jax.sources.base import Frame
from fastvggt_jax.sources.pixels import upright

# Pillow's names of what is read, each of which its own decoder reads: no other program is ever started.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")  # which are read from elsewhere, by name
HEIF = "HEIF"  # by pillow-heif
# Of a folder these are taken, by name; what is named itself may have any.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif"),
)
ORIENTATION = 0x0112  # EXIF's tag
MAX_PIXELS = 2**29  # of one photograph: 1.6 GB as they are decoded
HUGE = 2**26  # pixels, of which only one photograph is decoded at a time
_one_huge = threading.Lock()
_opening = threading.Lock()


class Photographs:
    """Files, given by a path, a folder's path or a pattern."""

    def recognises(self, source: Any) -> bool:
        return isinstance(source, str | os.PathLike)

    def frames(self, source: str | os.PathLike) -> Iterator[Frame]:
        images, others = find_images(source)
        for path in images:
            yield Frame(partial(open_photograph, path), path)
        for path, reason in others:
            yield Frame(partial(open_photograph, path), path, skip=reason)


PHOTOGRAPHS = Photographs()


def find_images(source: str | os.PathLike) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files that a path or a pattern stands for, in the order in which they are loaded; and of a folder
    the other files, each with why it is left out.

    Links to folders are not followed by `**`. Raises MissingError, or ImageError for what is no file and for
    a folder or a pattern without images.
    """
    text = os.path.expanduser(source)
    path = Path(text)
    if os.path.isdir(path):  # which is no error of a name that is too long
        return _in_folder(path)
    if os.path.isfile(path):
        return [path], []
    if glob.has_magic(str(text)):
        images, others, _ = _sorted_out(matches(str(text)))
        if not images:
            raise ImageError(f"the pattern {text} holds no images (looked for {' '.join(SUFFIXES)})")
        return images, others
    if os.path.exists(path):
        raise ImageError(f"{path} is no file, but a pipe or a device; copy the photograph to a file")
    if os.path.islink(path):
        raise MissingError(
            f"{path} is a link to {os.readlink(path)}, which does not exist", argument="source"
        )
    hint = "give a folder, image files or a pattern like 'photos/*.jpg'"
    raise MissingError(f"{path} does not exist; {hint}", argument="source")


def matches(pattern: str) -> list[Path]:
    """What lies where a pattern says."""
    if "**" not in Path(pattern).parts:
        return [Path(name) for name in glob.glob(pattern)]
    # pathlib's `**` does not follow links to folders, of which there may be circles.
    whole = Path(pattern)
    return (
        list(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
        if whole.anchor
        else list(Path().glob(pattern))
    )


def _sorted_out(paths: Iterable[Path]) -> tuple[list[Path], list[tuple[Path, str]], list[Path]]:
    """Images, other files with why they are left out, and folders; in order."""
    images, others, inside = [], [], []
    for path in sorted(paths, key=natural):
        if _hidden(path):
            continue
        if path.is_dir():
            inside.append(path)
        elif path.is_symlink() and not path.exists():
            others.append((path, f"{path} is a link to {os.readlink(path)}, which does not exist"))
        elif path.suffix.lower() not in SUFFIXES:
            others.append((path, f"{path} is no photograph by its name"))
        elif not stat.S_ISREG(path.stat().st_mode):
            others.append((path, f"{path} is no file, but a pipe or a device"))
        else:
            images.append(path)
    return images, others, inside


def _in_folder(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    try:
        images, others, inside = _sorted_out(folder.iterdir())
    except OSError as error:
        text = f"the folder {folder} cannot be read: {error.strerror}"
        raise FileError(text, cause=error, argument="source") from error
    if images:
        return images, others
    text = f"the folder {folder} holds no images (looked for {' '.join(SUFFIXES)})"
    full = [path.name for path in inside if _holds_images(path)]
    if full:
        text += f", but its folders {', '.join(full[:3])}{', ...' * (len(full) > 3)} do: give one of these"
        text += f", or '{folder}/*/*' for all"
    videos = [path.name for path, _ in others if path.suffix.lower() in VIDEOS]
    if videos:
        text += f"; of its videos, such as {videos[0]}, give the path"
    raise ImageError(text)


def _holds_images(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # of others' folders, whose names alone can be seen
        return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    return False


def _hidden(path: Path) -> bool:
    """Names that start with a dot are droppings of file managers, not photographs."""
    return path.name.startswith(".")


def natural(path: Path) -> tuple:
    """Sort key: runs of digits by value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], str(path)


def open_photograph(path: Path) -> Image.Image:
    """The photograph upright (EXIF orientation applied), decoded. Raises ImageError as `opened`."""
    with opened(path) as image:
        return upright(image, whole_file=True)


def open_as_stored(path: Path) -> Image.Image:
    """The photograph as its pixels lie in the file, whatever orientation its EXIF names: as COLMAP and most
    data sets count them. Raises ImageError as `opened`.
    """
    with opened(path) as image:
        image.load()
        stored = image.copy()
        stored.info.pop("exif", None)
        return stored


def turned_unseen(path: Path) -> bool:
    """Whether a file's EXIF orientation turns or mirrors its photograph into one of the same size, so that a
    size does not tell how its pixels were counted. False for what is no photograph.
    """
    try:
        with opened(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            square = image.width == image.height
    except Error:
        return False
    return 2 <= orientation <= (8 if square else 4)


@contextlib.contextmanager
def without_pillows_warnings() -> Iterator[None]:
    """For the one thread in whose charge photographs are opened: warnings' filters belong to all threads, and
    two that set and restore them by turns leave those of the other. Pillow's are of odd metadata.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image of one of FORMATS, not decoded yet, whose turn it is if it is huge.

    Raises ImageError naming the file if it is damaged or no image, also for what fails within the block.
    """
    try:
        if not os.path.isfile(path):
            raise ImageError(f"{path} is no longer there, or no file")
        with open(path, "rb") as file, _identified(path, file) as image, _turn_of(image):
            yield image
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it") from error
    except Error:
        raise
    except MemoryError as error:
        raise ImageError(f"{path} takes more memory than there is; make it smaller") from error
    except Exception as error:  # a decoder fails in any way on what is damaged
        raise ImageError(f"{path} is damaged or not an image ({reason(error)})") from error


def _turn_of(image: Image.Image) -> contextlib.AbstractContextManager[Any]:
    return _one_huge if image.width * image.height > HUGE else contextlib.nullcontext()


def check_pixels(label: object, image: Image.Image) -> None:
    """Raises ImageError, which begins with the label, for an image that is too large."""
    if image.width * image.height > MAX_PIXELS:
        text = f"{label} has {image.width}x{image.height} pixels"
        raise ImageError(f"{text}, which is more than {MAX_PIXELS / 1e6:.0f} megapixels; make it smaller")


def _identified(path: Path, file: BinaryIO) -> Image.Image:
    start = file.read(64)
    file.seek(0)
    formats = _formats()
    if _is_heif(start):
        if not _heif_is_there():
            text = f"{path} is HEIC, which needs the extra 'heic': pip install 'fastvggt_jax[heic]'"
            raise ImageError(text)
        formats = (HEIF,)
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is below
        try:
            image = Image.open(file, formats=formats)
        except Image.UnidentifiedImageError as error:
            raise ImageError(f"{path} is damaged or not an image ({_kind(start)})") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    check_pixels(path, image)
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_heif(start: bytes) -> bool:
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
    return start[4:8] == b"ftyp" and start[8:12] in brands and b"avif" not in start


@cache
def _heif_is_there() -> bool:
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def _kind(start: bytes) -> str:
    """What a file is that is no image of the list, as far as its first bytes tell."""
    if (
        start[4:8] == b"ftyp"
        or start[:4] == b"\x1aE\xdf\xa3"
        or (start[:4] == b"RIFF" and start[8:11] == b"AVI")
    ):
        return "it looks like a video: name it with an ending of one, such as .mp4"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF of a kind that is not read, or a damaged one"
    if start[:2] in (b"%!", b"%P"):
        return "PostScript and PDF are not read"
    return "unknown file format, or one that is not read" if start else "it is empty"


def reason(error: Exception) -> str:
    """What a decoder's error says, as a clause."""
    if isinstance(error, Image.UnidentifiedImageError):  # whose text repeats the path
        return "unknown file format"
    return str(error).rstrip(".") or type(error).__name__
