"""Photographs in a folder of their own, upright, in a format that every trainer reads."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from fastvggt_jax.errors import FileError, ImageError, MissingError
from fastvggt_jax.export.depth import file_stems
from fastvggt_jax.io.files import new_file, reason, temporary_sibling, write_file
from fastvggt_jax.scene import Scene
from fastvggt_jax.sources import Frame, ImageTransform
from fastvggt_jax.sources.photographs import ORIENTATION, open_photograph, opened, without_pillows_warnings
from fastvggt_jax.sources.pixels import to_8_bits

ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}  # what trainers read; Pillow's names
MODES = ("L", "RGB", "RGBA")
QUALITY = 95  # of a photograph that has to be written anew
LONGEST_JPEG = 65_500  # pixels of a side, by its library


def place_photographs(
    scene: Scene, folder: str | os.PathLike, frames: Sequence[Frame | None] = (), *, copy: bool = False
) -> Scene:
    """Put every photograph into a folder; returns the scene of what lies there, with its names and sizes.

    A JPEG or PNG that is upright is linked to, or with `copy` copied; another is turned and written as JPEG,
    one with transparency as PNG. `frames` open the photographs; without them the files of `scene.paths` do.
    A photograph that has neither is stood in for by what the model saw of it, with a warning: its camera in
    the returned scene is that of these pixels.

    Raises MissingError for a file that is no longer there, ImageError for one that cannot be read or is of
    another size than the photograph was, FileError.
    """
    folder = Path(folder)
    files = scene.paths or ("",) * len(scene.names)
    opened: Sequence[Frame | None] = frames or [_frame_of(Path(path)) if path else None for path in files]
    stems = file_stems(scene.names)
    jobs = zip(range(len(stems)), stems, opened, scene.transforms, strict=True)
    # Pillow works outside the GIL.
    with without_pillows_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        placed = list(pool.map(lambda job: _place(scene, folder, *job, copy=copy), jobs))
    stand_ins = [name for name, frame in zip(scene.names, opened, strict=True) if frame is None]
    if stand_ins:
        text = (
            f"{len(stand_ins)} photographs have no file, as {stand_ins[0]!r}: {folder.parent.name} holds them"
        )
        warnings.warn(f"{text} as the model saw them", stacklevel=3)
    names, transforms = zip(*placed, strict=True)
    return dataclasses.replace(scene, names=names, transforms=transforms)


def find_photographs(scene: Scene, folder: str | os.PathLike) -> tuple[Frame, ...]:
    """A scene's photographs, by name, in the folder where they are now. Raises MissingError."""
    return tuple(_frame_of(_find(Path(folder), name)) for name in scene.names)


def _find(folder: Path, name: str) -> Path:
    inside = PurePosixPath(name.replace("\\", "/"))
    # Also as it was written anew, see `_with_ending`.
    stem = file_stems((name,))[0]
    others = [_with_ending(one, ending) for one in (stem, inside.name) for ending in (".jpg", ".png")]
    for path in (folder / inside, folder / inside.name, *(folder / other for other in others)):
        if os.path.isfile(path):  # which is no error of a name that is too long
            return path
    raise MissingError(f"photos {folder} holds no {name}", argument="photos")


def _frame_of(path: Path) -> Frame:
    return Frame(partial(open_photograph, path), path)


def _place(
    scene: Scene, folder: Path, i: int, stem: str, frame: Frame | None, t: ImageTransform, *, copy: bool
) -> tuple[str, ImageTransform]:
    if frame is None:
        left, top, right, bottom = t.valid
        if left >= right or top >= bottom:
            raise ImageError(f"{scene.names[i]} has no file, and the model has seen no whole pixel of it")
        name = _with_ending(stem, ".png")
        _write(Image.fromarray(scene.colors[i, top:bottom, left:right]), folder / name)
        width, height = right - left, bottom - top
        seen = ImageTransform(width, height, t.model_width, t.model_height, 1.0, 1.0, left, top)
        return name, seen
    if frame.path is not None and not os.path.isfile(frame.path):
        text = f"{frame.path} is no longer there: give photos, the folder that holds the photographs now"
        raise MissingError(text, argument="photos")
    ending = (
        None if frame.path is None else _ending_as_it_is(frame.path, (t.original_width, t.original_height))
    )
    if ending is not None and frame.path is not None:
        name = _with_ending(stem, ending)
        _bring(frame.path, folder / name, copy)
        return name, t
    image = frame.open()
    if image.size != (t.original_width, t.original_height):
        now, then = ("{}x{}".format(*size) for size in (image.size, (t.original_width, t.original_height)))
        raise ImageError(f"{frame.path or scene.names[i]} has {now} pixels, but had {then}")
    # As the loader does, which has said what there is to say of them.
    image, _ = to_8_bits(image, str(frame.path or scene.names[i]), white=scene.white)
    ending = ".png" if image.has_transparency_data or max(image.size) > LONGEST_JPEG else ".jpg"
    name = _with_ending(stem, ending)
    _write(image.convert("RGBA" if image.has_transparency_data else "RGB"), folder / name)
    return name, t


def _with_ending(name: str, ending: str) -> str:
    """The name, if it says already what the file is."""
    same = (".jpg", ".jpeg") if ending == ".jpg" else (ending,)
    return name if name.lower().endswith(same) else name + ending


def _ending_as_it_is(path: Path, size: tuple[int, int]) -> str | None:
    """The ending of a file that can be used as it is, of this size; None if it has to be written anew."""
    try:
        with opened(path) as image:
            upright = image.getexif().get(ORIENTATION, 1) == 1
            usable = upright and image.mode in MODES and image.size == size
            return ENDINGS.get(image.format or "") if usable else None
    except ImageError:  # opening it whole says it again
        return None


def _bring(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        with contextlib.suppress(OSError, NotImplementedError):  # a file system without links: copied
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_sibling(target)
            temporary.symlink_to(os.path.abspath(source))
            os.replace(temporary, target)
            return
    try:
        with open(source, "rb") as opened, new_file(target) as file:
            shutil.copyfileobj(opened, file, 1 << 20)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{source} cannot be read: {reason(error)}", cause=error) from error


def _write(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    how = (
        dict(format="JPEG", quality=QUALITY, subsampling=0)
        if path.suffix.lower() in (".jpg", ".jpeg")
        else dict(format="PNG")
    )
    image.save(buffer, **how)
    write_file(path, buffer.getbuffer())
