"""Photographs that are named elsewhere: a text file with a path in every line, or a COLMAP model."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvggt_jax.errors import Error, ImageError, MissingError
from fastvggt_jax.io.colmap import find_model, read_model
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.sources.base import Frame, frames_of
from fastvggt_jax.sources.photographs import PHOTOGRAPHS


class TextList:
    """A .txt file: a photograph, a folder, a pattern or a video in every line, relative to it; lines that
    begin with # say nothing.
    """

    def recognises(self, source: Any) -> bool:
        return is_list(source)

    def frames(self, source: str | os.PathLike) -> Iterator[Frame]:
        for path in listed(source):
            yield from frames_of(path)


def is_list(source: Any) -> bool:
    """Whether it is a text file by its name."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".txt"


def listed(source: str | os.PathLike) -> list[Path]:
    """What a text file names, in its order. Raises MissingError, or ImageError for one that names nothing."""
    path = Path(os.path.expanduser(source))
    try:
        # Some editors begin a file with a mark.
        text = regular_file(path, "source").read_text(encoding="utf-8-sig")
        lines = [line.strip() for line in text.splitlines()]
    except Error:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{path} cannot be read as a list of photographs ({error})") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ImageError(f"the list {path} names no photographs")
    for name in names:
        if is_list(name):
            raise ImageError(f"the list {path} names another list, {name}: name its photographs")
    # The folder's own name is no pattern.
    folder = Path(glob.escape(str(path.parent)))
    return [
        (folder if glob.has_magic(name) and not os.path.lexists(path.parent / name) else path.parent)
        / os.path.expanduser(name)
        for name in names
    ]


class ColmapFolder:
    """A folder that holds a COLMAP model: the photographs that it names, in images/ or in the folder, in the
    order of their names. Its cameras are for comparison, and for `--intrinsics` and `--align-to`.
    """

    def recognises(self, source: Any) -> bool:
        return isinstance(source, str | os.PathLike) and find_model(os.path.expanduser(source)) is not None

    def frames(self, source: str | os.PathLike) -> Iterator[Frame]:
        folder = Path(os.path.expanduser(source))
        names = [one.name for one in read_model(folder, "source")]
        places = (folder / "images", folder, folder.parent / "images", folder.parent.parent / "images")
        place = next((place for place in places if os.path.isfile(place / names[0])), None)
        if place is None:
            text = (
                f"the COLMAP folder {folder} has no photographs: {names[0]} is neither in it nor in images/"
            )
            raise MissingError(text, argument="source")
        for name in names:
            # Whatever its name says, it is a photograph, not again a list or a model.
            if not os.path.isfile(place / name):
                text = f"the COLMAP folder {folder} names {name}, which is no file in {place}"
                raise MissingError(text, argument="source")
            yield from PHOTOGRAPHS.frames(place / name)


TEXT_LIST, COLMAP_FOLDER = TextList(), ColmapFolder()
