"""What a source of pictures is, and which there are.

To add one: a `Source` in a file of this folder and an entry in SOURCES. From outside the package,
`register`, or an entry point (see `Registry`).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from fastvggt_jax.errors import InputError
from fastvggt_jax.registry import Registry

# What Pillow's decoders raise on files that are damaged, are closed, or are no images.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, AssertionError, struct.error)


class Frame(NamedTuple):
    """A picture that is decoded when it is wanted.

    Attributes:
      open: gives it upright, in any mode of Pillow, and may be called in any thread. Raises ImageError if it
        cannot be used, or what Pillow raises of damaged files (DECODE_ERRORS).
      path: its file, where it has one. name: what to call it, by default after its file or its position.
      skip: why it is passed over without being opened, where it only is to be listed.
      reopens: it has no file of its own, but `open` finds it again later.
    """

    open: Callable[[], Image.Image]
    path: Path | None = None
    name: str | None = None
    skip: str | None = None
    reopens: bool = False


class Source(Protocol):
    def recognises(self, source: Any) -> bool:
        """Whether `frames` takes this."""

    def frames(self, source: Any) -> Iterable[Frame]:
        """The pictures, in the order in which they are loaded. Raises errors.Error.

        They are asked for one by one, as they are decoded: what can change meanwhile is copied before the
        next one is asked for.
        """


# In the order in which they are asked.
SOURCES: Registry[Source] = Registry(
    "source",
    {
        "arrays": "fastvggt_jax.sources.arrays:ARRAYS",
        "video": "fastvggt_jax.sources.video:SOURCE",
        "text list": "fastvggt_jax.sources.lists:TEXT_LIST",
        "COLMAP folder": "fastvggt_jax.sources.lists:COLMAP_FOLDER",
        "photographs": "fastvggt_jax.sources.photographs:PHOTOGRAPHS",
    },
    newest_first=True,
)


def register(name: str, source: Source) -> None:
    """Adds a source of your own; it is asked first. InputError for a name that is taken."""
    SOURCES.register(name, source)


def registered(name: str, source: Source) -> contextlib.AbstractContextManager[None]:
    """Adds a source for the time of the block."""
    return SOURCES.registered(name, source)


def frames_of(source: Any) -> Iterator[Frame]:
    """The pictures that `source` stands for, see `load_images`; an iterator is read no further than it is
    asked; a Frame stands for itself. InputError for what no source knows.
    """
    if isinstance(source, Frame):
        return iter((source,))
    for known in map(SOURCES.find, SOURCES.names()):
        if known.recognises(source):
            return iter(known.frames(source))
    # A set has no first picture.
    no_list = isinstance(source, bytes | bytearray | memoryview | Mapping | Set)
    if isinstance(source, Iterable) and not no_list:
        return (frame for one in source for frame in frames_of(one))
    text = "source must be photographs (a folder, files, a pattern, a video), arrays or PIL images"
    text += ", or a list of these"
    raise InputError(f"{text}, not {type(source).__name__}", argument="source")
