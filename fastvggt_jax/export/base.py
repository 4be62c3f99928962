"""What a file format is, which there are, and writing a scene in several of them.

To add one: a `Format` in a file of this folder and an entry in FORMATS. From outside the package,
`register`, or an entry point (see `Registry`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.errors import ExtraError, InputError, whole_number
from fastvggt_jax.export import mesh
from fastvggt_jax.export.lenses import as_asked
from fastvggt_jax.export.tracks import Followed, Tracks, find_tracks, followed_tracks, select, thinned
from fastvggt_jax.registry import Registry
from fastvggt_jax.scene import PointCloud, Scene, check_cloud_options
from fastvggt_jax.sources import Frame

CAMERA_MODELS = ("PINHOLE", "SIMPLE_RADIAL")  # COLMAP's, that can be written


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is written of a scene. The first four filter its points, see `Scene.point_cloud`; by default all
    are kept.

    Attributes:
      depth_original: depth in the photographs' own pixels instead of the model's.
      float16: depth/*.npz and scene.npz hold depth, points and confidences as float16: half the bytes, each
        number rounded to a two-thousandth. Where one is too large, that array stays float32, with a warning.
      track_points: points at most where points have tracks, see `fastvggt_jax.export.tracks`.
      glb_mesh: scene.glb holds surfaces instead of points, see `fastvggt_jax.export.mesh`.
      mesh_points: vertices that these have, about, at most.
      shared_camera: all photographs are of one camera, see `lenses.with_shared_camera`.
      camera_model: COLMAP's: PINHOLE, or SIMPLE_RADIAL, which has one focal length and no distortion here.
      copy_photographs: copy them into the folders that hold them, instead of linking to them.

    Raises InputError, naming the field, for a value out of its range; ExtraError for what is not installed.
    """

    conf_percentile: float | None = None
    edge_filter: float | None = None
    voxel: float | None = None
    max_points: int | None = None
    depth_original: bool = False
    float16: bool = False
    track_points: int = 100_000
    glb_mesh: bool = False
    mesh_points: int = 500_000
    shared_camera: bool = False
    camera_model: str = "PINHOLE"
    copy_photographs: bool = False

    def __post_init__(self) -> None:
        check_cloud_options(self.conf_percentile, self.edge_filter, self.voxel, self.max_points)
        for field in ("track_points", "mesh_points"):
            whole_number(field, getattr(self, field), least=1)
        for field in ("depth_original", "float16", "glb_mesh", "shared_camera", "copy_photographs"):
            if not isinstance(getattr(self, field), bool):
                self._refuse(field, "True or False")
        if self.camera_model not in CAMERA_MODELS:
            self._refuse("camera_model", " or ".join(CAMERA_MODELS))
        if self.glb_mesh:
            mesh.require()

    def _refuse(self, field: str, right: str) -> None:
        raise InputError(f"{field} must be {right}, not {getattr(self, field)!r}", argument=field)

    def cloud(self, scene: Scene) -> PointCloud:
        return scene.point_cloud(
            conf_percentile=self.conf_percentile,
            edge_filter=self.edge_filter,
            voxel=self.voxel,
            max_points=self.max_points,
        )


class once(cached_property):  # noqa: N801  as cached_property itself
    """One that is computed once by whichever thread asks first, for which the others wait, as it was with
    Python's own up to 3.11.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        with contextlib.nullcontext() if instance is None else self._lock(instance):
            return super().__get__(instance, owner)

    def _lock(self, instance: Any) -> Any:
        return instance.__dict__.setdefault(f"_{self.attrname}_lock", threading.RLock())


@dataclasses.dataclass(eq=False)
class Export:
    """A scene that is being written; what several formats want of it is made once.

    Attributes:
      photographs: one Frame per photograph, which opens it, or None; by default the files that the scene
        names.
      followed: what tracks are made of; None makes them of the scene's depth.
      measured: the tracks themselves, where bundle adjustment has made them.
      said: what another process says that has written some of it, see `fastvggt_jax.export.apart`.
      cores: of the processor, that it may use; by default all.
    """

    scene: Scene
    options: ExportOptions = ExportOptions()  # noqa: RUF009  immutable
    photographs: Sequence[Frame | None] = ()
    followed: Followed | None = None
    measured: Tracks | None = None
    said: dict[str, Any] = dataclasses.field(default_factory=dict)
    cores: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)

    @classmethod
    def of(
        cls,
        scene: Scene,
        options: ExportOptions,
        photographs: Sequence[Frame | None] = (),
        followed: Followed | None = None,
        measured: Tracks | None = None,
    ) -> Export:
        """With the cameras that the options ask for, which then are the same in all formats. InputError where
        a K that was given forbids it.
        """
        scene = as_asked(scene, shared_camera=options.shared_camera, camera_model=options.camera_model)
        if set(scene.intrinsics) == {"shared"}:  # before this scene was saved
            options = dataclasses.replace(options, shared_camera=True)
        return cls(scene, options, photographs, followed, measured)

    @once
    def cloud(self) -> PointCloud:
        return self.options.cloud(self.scene)

    @once
    def points(self) -> int:
        """How many the cloud has. Once all is written, some format or another process mostly has made it."""
        o = self.options
        if "points" in self.said:
            return self.said["points"]
        if "cloud" in self.__dict__ or o.voxel is not None:
            return len(self.cloud)
        count = len(self.scene.point_indices(conf_percentile=o.conf_percentile, edge_filter=o.edge_filter))
        return count if o.max_points is None else min(count, o.max_points)

    @once
    def tracks(self) -> Tracks:
        o = self.options
        filters = dict(conf_percentile=o.conf_percentile, edge_filter=o.edge_filter)
        if self.measured is not None:
            taken = self.scene.point_indices(conf_percentile=o.conf_percentile, edge_filter=o.edge_filter)
            tracks = select(self.measured, np.isin(self.measured.pixel, taken)[self.measured.point])
            tracks = thinned(tracks, o.track_points, o.voxel)
        elif self.followed is None:
            tracks = find_tracks(self.scene, o.track_points, **filters, voxel=o.voxel, threads=self.threads)
        else:
            tracks = followed_tracks(self.scene, self.followed, o.track_points, **filters)
            tracks = thinned(tracks, o.track_points, o.voxel)
        if not len(tracks):
            text = "no point is seen by two photographs or more: the files with tracks hold cameras alone"
            warnings.warn(text, stacklevel=2)
        return tracks

    @property
    def threads(self) -> int:
        """Of one format, beside which others are written: more wait for Python's lock, and take longer."""
        return min(4, max(1, self.cores // 2))

    def tracks_report(self) -> dict[str, float] | None:
        """How many points have tracks, and of how many photographs on average; None if nobody wanted any."""
        if "tracks" in self.said:
            return self.said["tracks"]
        if "tracks" not in self.__dict__:
            return None
        count, observations = len(self.tracks), len(self.tracks.point)
        return {"points": count, "mean_length": round(observations / count, 2) if count else 0.0}


@dataclasses.dataclass(frozen=True)
class Format:
    """How a scene is written.

    Attributes:
      name: by which it is asked for.
      files: patterns of what it writes, relative to the folder.
      write: (export, folder) -> None; through `fastvggt_jax.io.files`, so that every file is whole or absent.
        Others read the export's arrays meanwhile: they are not written to, and may be read-only.
      module, extra: the package that it needs beside the core, if any, and the extra that brings it.
      about: what is in the files and in which convention, for scene.json.
      default: whether it is written where nobody says what is.
      of_photographs: (scene) -> for each kind of file that there is of every photograph, their paths,
        relative to the folder, in the order of the photographs; one of a picture may lack its ending.
      pixel_bytes: it writes at least so many for every pixel of the model's images.
      tracked: it holds points with tracks.
      describes: it names the files of other formats, and is written after them.
      of_saved: it is made of the scene, as it is saved, and the options alone.
    """

    name: str
    files: tuple[str, ...]
    write: Callable[[Export, Path], object]
    module: str | None = None
    extra: str | None = None
    about: str = ""
    default: bool = True
    of_photographs: Callable[[Scene], Mapping[str, Sequence[str]]] | None = None
    pixel_bytes: int = 0
    tracked: bool = False
    describes: bool = False
    of_saved: bool = False

    @property
    def available(self) -> bool:
        return self.module is None or importlib.util.find_spec(self.module) is not None

    def require(self) -> None:
        """Raises ExtraError if what it needs is not installed."""
        if not self.available:
            text = f"the format {self.name} needs {self.module}: pip install 'fastvggt_jax[{self.extra}]'"
            raise ExtraError(text, argument="formats")


# (export, folder, formats) -> those that are left to write, and what waits for the others.
Begin = Callable[[Export, Path, list[Format]], tuple[list[Format], Callable[[], None]]]

FORMATS: Registry[Format] = Registry(
    "format",
    {
        "cameras": "fastvggt_jax.export.cameras:CAMERAS",
        "depth": "fastvggt_jax.export.depth:DEPTH",
        "ply": "fastvggt_jax.export.ply:PLY",
        "overview": "fastvggt_jax.export.overview:OVERVIEW",
        "glb": "fastvggt_jax.export.glb:GLB",
        "scene": "fastvggt_jax.export.cameras:SCENE",
        "colmap": "fastvggt_jax.export.colmap:COLMAP",
        "colmap-text": "fastvggt_jax.export.colmap:COLMAP_TEXT",
        "nerfstudio": "fastvggt_jax.export.nerfstudio:NERFSTUDIO",
        "splat": "fastvggt_jax.export.splat:SPLAT",
        "conventions": "fastvggt_jax.export.conventions:CONVENTIONS",
    },
)


def register(format: Format) -> None:
    """Adds a format of your own. InputError for a name that is taken."""
    FORMATS.register(format.name, format)


def registered(format: Format) -> contextlib.AbstractContextManager[None]:
    """Adds a format for the time of the block."""
    return FORMATS.registered(format.name, format)


def find(name: str) -> Format:
    """The format of that name. Raises InputError for an unknown one."""
    return FORMATS.find(name, argument="formats")


def all_formats() -> list[Format]:
    return [find(name) for name in FORMATS.names()]


def default_formats() -> tuple[str, ...]:
    """Those that are written unless others are asked for, as far as what they need is installed."""
    return tuple(format.name for format in all_formats() if format.available and format.default)


def missing_formats() -> list[Format]:
    """Those that need what is not installed."""
    return [format for format in all_formats() if not format.available]


def check_formats(formats: Iterable[str], options: ExportOptions | None = None) -> list[Format]:
    """The formats of these names, or of this one.

    Raises InputError for an unknown one, or for an option that is about none of them; ExtraError for one that
    needs an extra.
    """
    names = (formats,) if isinstance(formats, str) else formats
    found = [find(name) for name in dict.fromkeys(names)]
    for format in found:
        format.require()
    chosen = {format.name for format in found}
    for option, about in ABOUT.items():
        if options is not None and getattr(options, option) and not chosen & set(about):
            find(about[0]).require()  # then it is not among the defaults
            files = " and ".join(find(name).files[0] for name in about)
            text = f"{option} is about {files}, which is not written: add {' or '.join(about)} to the formats"
            raise InputError(text, argument=option)
    return found


# The formats that options are about.
ABOUT = {
    "glb_mesh": ("glb",),
    "depth_original": ("depth",),
    "float16": ("depth", "scene"),
    "copy_photographs": ("splat", "nerfstudio"),
}


def always_written(formats: Iterable[str]) -> tuple[str, ...]:
    """With the formats by which a folder is known for one of ours, and says what is in it."""
    return ("cameras", *formats, "conventions")


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
    options = options or ExportOptions()
    found = check_formats(formats, options)
    return write_formats(Export.of(scene, options), Path(folder), found)


def write_formats(
    export: Export, folder: Path, formats: Iterable[Format], begin: Begin | None = None
) -> list[str]:
    """Writes them; returns the first parts of their files' paths, in order. Raises FileError.

    begin: begins to write some of them elsewhere, see `fastvggt_jax.export.apart`.
    """
    names: dict[str, None] = {}
    formats = list(formats)
    here = [format for format in formats if not format.describes]
    with contextlib.ExitStack() as ends:
        if begin is not None:
            here, wait = begin(export, folder, here)
            ends.callback(wait)
        pool = ThreadPoolExecutor(min(8, export.cores))  # numpy mostly computes outside the GIL
        ends.callback(pool.shutdown, cancel_futures=True)
        # In this thread's context, by which `batch` knows whose warnings these are.
        writing = [
            pool.submit(contextvars.copy_context().run, format.write, export, folder) for format in here
        ]
        for one in writing:
            one.result()
    for format in formats:
        if format.describes:
            format.write(export, folder)
    for format in formats:
        names |= dict.fromkeys(Path(pattern).parts[0] for pattern in format.files)
    return list(names)
