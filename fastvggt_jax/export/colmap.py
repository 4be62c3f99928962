"""sparse/0: a COLMAP model, binary or text, written without pycolmap.

As COLMAP has them: cam_from_world as a quaternion, scalar first, and a translation; OpenCV axes; the centre
of the first pixel at (0.5, 0.5), as everywhere here; cameras at the photographs' own resolution. Photograph
i has the image, the frame and, unless it is shared, the camera and the rig i + 1: COLMAP counts from one.
Source: https://colmap.github.io/format.html, and what pycolmap 4.2 writes (rigs and frames).
"""

from __future__ import annotations

import dataclasses
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.export.base import Export, Format
from fastvggt_jax.export.tracks import Tracks
from fastvggt_jax.io.files import new_file
from fastvggt_jax.scene import Scene

MODELS = {"PINHOLE": 1, "SIMPLE_RADIAL": 2}  # COLMAP's numbers for them
CAMERA = 0  # COLMAP's number for a sensor that is a camera
CHUNK = 1 << 14  # points that are packed at a time, which bounds the memory
FILES = ("cameras", "images", "points3D", "rigs", "frames")
_POINT2D = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT3D = np.dtype(
    [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
)  # packed
_ELEMENT = np.dtype([("image", "<u4"), ("point2D", "<u4")])


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera of COLMAP's: the model's name, the photographs' size in pixels, and the model's parameters."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """What a COLMAP model says, with positions from 0 on instead of its numbers from 1 on.

    cameras: each used by one photograph or more. camera_of: the position of each photograph's camera.
    names: of the photographs. quat_wxyz: f64[F, 4] and translation: f64[F, 3], of cam_from_world.
    tracks: points and their observations. xy: f64[N, 2], these in the photographs' pixels. errors: f64[M].
    """

    cameras: tuple[Camera, ...]
    camera_of: tuple[int, ...]
    names: tuple[str, ...]
    quat_wxyz: np.ndarray
    translation: np.ndarray
    tracks: Tracks
    xy: np.ndarray
    errors: np.ndarray

    def observed_by(self) -> tuple[list[np.ndarray], np.ndarray]:
        """(each photograph's observations, i64[n]; each observation's place among them, i64[N])."""
        frame = self.tracks.frame
        # 16 bits are sorted by their digits, in a quarter of the time.
        short = len(self.names) <= np.iinfo(np.uint16).max
        order = np.argsort(frame.astype(np.uint16) if short else frame, kind="stable")
        counts = np.bincount(frame, minlength=len(self.names))
        of_frame = np.split(order, np.cumsum(counts)[:-1])
        place = np.empty(len(order), np.int64)
        for observations in of_frame:
            place[observations] = np.arange(len(observations))
        return of_frame, place


def colmap_model(
    scene: Scene, tracks: Tracks, *, shared_camera: bool = False, camera_model: str = "PINHOLE"
) -> Model:
    """The COLMAP model of a scene: a camera for each photograph.

    shared_camera: one for all photographs of a size and a K; `fastvggt_jax.export.lenses` makes these equal.
    camera_model: PINHOLE, or SIMPLE_RADIAL, without distortion, whose one focal length stands for two, which
    `lenses` makes equal too.
    """
    from scipy.spatial.transform import Rotation

    found: list[Camera] = []
    camera_of = []
    for frame, t in enumerate(scene.transforms):
        camera = _camera(camera_model, t.original_width, t.original_height, scene.K_original(frame))
        same = [i for i, other in enumerate(found) if shared_camera and _alike(camera, other)]
        if not same:
            same = [len(found)]
            found.append(camera)
        camera_of.append(same[0])
    pose = scene.cam_from_world.astype(np.float64)
    # In numpy: a GPU may be at work on the next scene while this one is written.
    quat = Rotation.from_matrix(pose[:, :, :3]).as_quat(canonical=True, scalar_first=True)
    xy, residuals = tracks.in_pixels(scene)
    return Model(
        cameras=tuple(found),
        camera_of=tuple(camera_of),
        names=scene.names,
        quat_wxyz=quat,
        translation=pose[:, :, 3],
        tracks=tracks,
        xy=xy,
        errors=tracks.errors(residuals),
    )


def _camera(model: str, width: int, height: int, K: np.ndarray) -> Camera:
    fx, fy, cx, cy = (float(x) for x in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    params = (fx, fy, cx, cy) if model == "PINHOLE" else ((fx + fy) / 2, cx, cy, 0.0)
    return Camera(model, width, height, params)


def _alike(camera: Camera, other: Camera) -> bool:
    """Whether they are one, as far as float32 tells."""
    sizes = (camera.width, camera.height) == (other.width, other.height)
    return sizes and bool(np.allclose(camera.params, other.params, rtol=1e-5, atol=1e-6))


# ---- binary


def write_binary(model: Model, folder: str | os.PathLike) -> None:
    """Write cameras, images, points3D, rigs and frames .bin, each whole or not at all. Raises FileError."""
    of_frame, place = model.observed_by()
    for name, parts in (
        ("cameras", _cameras_bin(model)),
        ("images", _images_bin(model, of_frame)),
        ("points3D", _points3D_bin(model, place)),
        ("rigs", _rigs_bin(model)),
        ("frames", _frames_bin(model)),
    ):
        with new_file(Path(folder) / f"{name}.bin") as file:
            for part in parts:
                file.write(part)


def _cameras_bin(model: Model) -> Iterator[bytes]:
    yield struct.pack("<Q", len(model.cameras))
    for i, camera in enumerate(model.cameras):
        yield struct.pack("<IiQQ", i + 1, MODELS[camera.model], camera.width, camera.height)
        yield struct.pack(f"<{len(camera.params)}d", *camera.params)


def _images_bin(model: Model, of_frame: list[np.ndarray]) -> Iterator[bytes]:
    yield struct.pack("<Q", len(model.names))
    for i, (name, observations) in enumerate(zip(model.names, of_frame, strict=True)):
        pose = (*model.quat_wxyz[i], *model.translation[i])
        yield struct.pack("<I7dI", i + 1, *pose, model.camera_of[i] + 1)
        yield os.fsencode(name) + b"\0" + struct.pack("<Q", len(observations))
        points = np.empty(len(observations), _POINT2D)
        points["xy"] = np.take(model.xy, observations, axis=0)
        points["point"] = model.tracks.point[observations] + 1
        yield points.tobytes()


def _points3D_bin(model: Model, place: np.ndarray) -> Iterator[bytes]:
    tracks, lengths = model.tracks, model.tracks.lengths()
    yield struct.pack("<Q", len(tracks))
    elements = np.empty(len(tracks.point), _ELEMENT)
    elements["image"], elements["point2D"] = tracks.frame + 1, place
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for first in range(0, len(tracks), CHUNK):
        points = np.arange(first, min(first + CHUNK, len(tracks)))
        heads = np.empty(len(points), _POINT3D)
        heads["id"], heads["xyz"], heads["rgb"] = points + 1, tracks.xyz[points], tracks.rgb[points]
        heads["error"], heads["length"] = model.errors[points], lengths[points]
        # Each head is followed by its track: of the bytes of both, those of the heads have these places.
        size = len(points) * _POINT3D.itemsize + int(lengths[points].sum()) * _ELEMENT.itemsize
        at = np.arange(len(points)) * _POINT3D.itemsize + (starts[points] - starts[first]) * _ELEMENT.itemsize
        is_head = np.zeros(size, bool)
        is_head[(at[:, None] + np.arange(_POINT3D.itemsize)).ravel()] = True
        out = np.empty(size, np.uint8)
        out[is_head] = heads.view(np.uint8)
        out[~is_head] = elements[starts[first] : starts[points[-1] + 1]].view(np.uint8)
        yield out.tobytes()


def _rigs_bin(model: Model) -> Iterator[bytes]:
    """A rig of one sensor for each camera."""
    yield struct.pack("<Q", len(model.cameras))
    for i in range(len(model.cameras)):
        yield struct.pack("<IIiI", i + 1, 1, CAMERA, i + 1)


def _frames_bin(model: Model) -> Iterator[bytes]:
    """A frame for each photograph, whose rig is its camera's."""
    yield struct.pack("<Q", len(model.names))
    for i, camera in enumerate(model.camera_of):
        pose = (*model.quat_wxyz[i], *model.translation[i])
        yield struct.pack("<II7dI", i + 1, camera + 1, *pose, 1)
        yield struct.pack("<iIQ", CAMERA, camera + 1, i + 1)


# ---- text


def write_text(model: Model, folder: str | os.PathLike) -> None:
    """Write the same as .txt. Names lose what would end them there: spaces and control characters become _,
    with a warning. Raises FileError.
    """
    of_frame, place = model.observed_by()
    for name, lines in (
        ("cameras", _cameras_txt(model)),
        ("images", _images_txt(model, of_frame)),
        ("points3D", _points3D_txt(model, place)),
        ("rigs", (f"{i + 1} 1 CAMERA {i + 1}" for i in range(len(model.cameras)))),
        ("frames", _frames_txt(model)),
    ):
        with new_file(Path(folder) / f"{name}.txt") as file:
            file.write(f"# COLMAP's {name}, by fastvggt_jax; fields: colmap.github.io/format.html\n".encode())
            for line in lines:
                file.write(os.fsencode(line + "\n"))


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _cameras_txt(model: Model) -> Iterator[str]:
    for i, c in enumerate(model.cameras):
        yield f"{i + 1} {c.model} {c.width} {c.height} {_numbers(c.params)}"


def _images_txt(model: Model, of_frame: list[np.ndarray]) -> Iterator[str]:
    names = ["".join("_" if c.isspace() or not c.isprintable() else c for c in name) for name in model.names]
    changed = [old for old, new in zip(model.names, names, strict=True) if old != new]
    if changed:
        text = "names in COLMAP's text hold no spaces, nor what cannot be printed: _ stands for them"
        warnings.warn(f"{text}, as in {changed[0]!r}", stacklevel=4)
    for i, (name, observations) in enumerate(zip(names, of_frame, strict=True)):
        pose = _numbers((*model.quat_wxyz[i], *model.translation[i]))
        yield f"{i + 1} {pose} {model.camera_of[i] + 1} {name}"
        of = zip(model.xy[observations].tolist(), model.tracks.point[observations].tolist(), strict=True)
        yield " ".join(f"{x!r} {y!r} {point + 1}" for (x, y), point in of)


def _points3D_txt(model: Model, place: np.ndarray) -> Iterator[str]:
    tracks = model.tracks
    starts = np.concatenate([[0], np.cumsum(tracks.lengths())])
    for i in range(len(tracks)):
        track = slice(starts[i], starts[i + 1])
        elements = zip(tracks.frame[track].tolist(), place[track].tolist(), strict=True)
        rgb = " ".join(map(str, tracks.rgb[i].tolist()))
        seen = " ".join(f"{frame + 1} {at}" for frame, at in elements)
        yield f"{i + 1} {_numbers(tracks.xyz[i])} {rgb} {float(model.errors[i])!r} {seen}"


def _frames_txt(model: Model) -> Iterator[str]:
    for i, camera in enumerate(model.camera_of):
        pose = _numbers((*model.quat_wxyz[i], *model.translation[i]))
        yield f"{i + 1} {camera + 1} {pose} 1 CAMERA {camera + 1} {i + 1}"


# ---- formats


def write_colmap(
    scene: Scene, tracks: Tracks, folder: str | os.PathLike, *, text: bool = False, **how: Any
) -> None:
    """Write a scene and its tracks as a COLMAP model; `how` as `colmap_model` takes it. Raises FileError."""
    (write_text if text else write_binary)(colmap_model(scene, tracks, **how), folder)


def _write(export: Export, folder: Path, text: bool) -> None:
    how = dict(shared_camera=export.options.shared_camera, camera_model=export.options.camera_model)
    write_colmap(export.scene, export.tracks, folder / "sparse" / "0", text=text, **how)


ABOUT = (
    "a COLMAP model: cam_from_world, OpenCV axes; pixels of the photographs as they are seen, the first "
    "one's centre at (0.5, 0.5); the world and the unit of cameras.json"
)
COLMAP = Format(
    "colmap",
    tuple(f"sparse/0/{name}.bin" for name in FILES),
    lambda export, folder: _write(export, folder, text=False),
    tracked=True,
    of_saved=True,
    about=ABOUT,
)
COLMAP_TEXT = Format(
    "colmap-text",
    tuple(f"sparse/0/{name}.txt" for name in FILES),
    lambda export, folder: _write(export, folder, text=True),
    tracked=True,
    of_saved=True,
    about=ABOUT,
    default=False,
)
