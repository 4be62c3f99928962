"""What a file format is, which there are, and writing a scene in several of them.

To add one: a `Format` in a file of this folder and an entry in FORMATS. From outside the package, `register`
does the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path

from fastvggt_jax.errors import ExtraError, InputError
from fastvggt_jax.scene import PointCloud, Scene, check_cloud_options


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is written of a scene. The first four filter its points, see `Scene.point_cloud`; by default all
    are kept.

    depth_original: depth in the photographs' own pixels instead of the model's.
    Raises InputError, naming the field, for a value out of its range.
    """

    conf_percentile: float | None = None
    edge_filter: float | None = None
    voxel: float | None = None
    max_points: int | None = None
    depth_original: bool = False

    def __post_init__(self) -> None:
        check_cloud_options(self.conf_percentile, self.edge_filter, self.voxel, self.max_points)

    def cloud(self, scene: Scene) -> PointCloud:
        return scene.point_cloud(
            conf_percentile=self.conf_percentile,
            edge_filter=self.edge_filter,
            voxel=self.voxel,
            max_points=self.max_points,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """A scene that is being written; its filtered cloud is made once for all formats that want it."""

    scene: Scene
    options: ExportOptions = ExportOptions()  # noqa: RUF009  immutable

    @cached_property
    def cloud(self) -> PointCloud:
        return self.options.cloud(self.scene)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a scene is written.

    Attributes:
      name: by which it is asked for.
      files: patterns of what it writes, relative to the folder.
      write: (export, folder) -> None; through `fastvggt_jax.io.files`, so that every file is whole or absent.
      module, extra: the package that it needs beside the core, if any, and the extra that brings it.
    """

    name: str
    files: tuple[str, ...]
    write: Callable[[Export, Path], object]
    module: str | None = None
    extra: str | None = None

    @property
    def available(self) -> bool:
        return self.module is None or importlib.util.find_spec(self.module) is not None

    def require(self) -> None:
        """Raises ExtraError if what it needs is not installed."""
        if not self.available:
            text = f"the format {self.name} needs {self.module}: pip install 'fastvggt_jax[{self.extra}]'"
            raise ExtraError(text, argument="formats")


FORMATS: dict[str, Format | str] = {
    "cameras": "fastvggt_jax.export.cameras:CAMERAS",
    "depth": "fastvggt_jax.export.depth:DEPTH",
    "ply": "fastvggt_jax.export.ply:PLY",
    "overview": "fastvggt_jax.export.overview:OVERVIEW",
    "glb": "fastvggt_jax.export.glb:GLB",
    "scene": "fastvggt_jax.export.cameras:SCENE",
}


def register(format: Format) -> None:
    """Adds a format of your own."""
    FORMATS[format.name] = format


@contextlib.contextmanager
def registered(format: Format) -> Iterator[None]:
    """Adds a format for the time of the block; one that has the same name is back after it."""
    before = dict(FORMATS)
    register(format)
    try:
        yield
    finally:
        FORMATS.clear()
        FORMATS.update(before)


def find(name: str) -> Format:
    """The format of that name. Raises InputError for an unknown one."""
    if name not in FORMATS:
        text = f"there is no format {name!r}; there are {', '.join(FORMATS)}"
        raise InputError(text, argument="formats")
    entry = FORMATS[name]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        return getattr(import_module(module), attribute)
    return entry


def all_formats() -> list[Format]:
    return [find(name) for name in FORMATS]


def default_formats() -> tuple[str, ...]:
    """All for which everything is installed."""
    return tuple(format.name for format in all_formats() if format.available)


def missing_formats() -> list[Format]:
    """Those that need what is not installed."""
    return [format for format in all_formats() if not format.available]


def check_formats(formats: Iterable[str]) -> list[Format]:
    """The formats of these names, or of this one.

    Raises InputError for an unknown one, ExtraError for one that needs an extra.
    """
    names = (formats,) if isinstance(formats, str) else formats
    found = [find(name) for name in dict.fromkeys(names)]
    for format in found:
        format.require()
    return found


def write(
    scene: Scene,
    folder: str | os.PathLike,
    formats: Iterable[str] = ("cameras", "depth", "ply"),
    options: ExportOptions | None = None,
) -> list[str]:
    """Writes a scene in several formats; returns the names of what stands in the folder for them.

    All that can be wrong with the formats is said before anything is written. Raises as `check_formats`, and
    FileError.
    """
    return write_formats(Export(scene, options or ExportOptions()), Path(folder), check_formats(formats))


def write_formats(export: Export, folder: Path, formats: Iterable[Format]) -> list[str]:
    """Writes them; returns the first parts of their files' paths, in order."""
    names: dict[str, None] = {}
    for format in formats:
        format.write(export, folder)
        names |= dict.fromkeys(Path(pattern).parts[0] for pattern in format.files)
    return list(names)
