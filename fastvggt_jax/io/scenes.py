"""A scene's files: `cameras.json`, for people and other tools, and `scene.npz`, from which the whole scene
comes back.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import mmap
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvggt_jax.errors import FileError, InputError, MissingError
from fastvggt_jax.geometry.alignment import is_rotation
from fastvggt_jax.io.files import new_file, regular_file, write_file
from fastvggt_jax.io.json_files import parse_json

if TYPE_CHECKING:
    from fastvggt_jax.scene import Scene

CAMERAS, SCENE = "cameras.json", "scene.npz"
PAGE = "report.html"  # what `fastvggt report` adds to a folder
FORMAT, FORMAT_VERSION = "fastvggt_jax scene", 1
LARGEST_SIDE, LARGEST_AREA = 1 << 20, 1 << 29  # pixels of a photograph, see sources.photographs
FARTHEST_CROP = 1 << 28  # model pixels, see sources.sizing
SMALLEST_SCALE, LARGEST_SCALE = 1e-6, 1e6  # model pixels per pixel
MOST_COMPRESSED = 100  # bytes of one, in a file that another program may have compressed
CONVENTIONS = {
    "axes": "OpenCV: x right, y down, z into the scene",
    "world_from_cam": "4x4, row by row; x_world = world_from_cam @ [x_cam, 1]; its last column is the "
    "camera's centre",
    "world": "the first camera's frame, about (VGGT) or exactly (π³), or what the scene was aligned to; the "
    "unit is arbitrary unless metric_scale, metres per unit, is given; coordinates are those that it was "
    "aligned to less offset, or metres east, north and up of origin (latitude, longitude, altitude)",
    "K": "3x3 in pixels of width x height, the photograph as it is seen (EXIF orientation applied); the "
    "outer corner of the first pixel is (0, 0), its centre (0.5, 0.5); no distortion. A point is seen at the "
    "centre of the model's pixel that it is of",
    "intrinsics": "where K comes from: predicted by the model; recovered, that is fitted to the model's "
    "points in camera coordinates by least squares, reweighted to the smallest sum of distances; or guessed, "
    "where that failed; shared, the median of all photographs; adjusted, by bundle adjustment; or given",
    "files": "photograph: where it was read from; others, relative to this file: what was written of it",
    "model": "the image that the model saw: x_model = scale[0] * x + offset[0], and the same in y; "
    "valid = [left, top, right, bottom] of it is photograph, the rest padding",
}


def world(scene: Scene) -> dict[str, Any]:
    """What is known of a scene's world, JSON-able."""
    return {name: getattr(scene, name) for name in ("metric_scale", "offset", "origin")}


def write_cameras(
    scene: Scene, path: str | os.PathLike, *, files: Sequence[Mapping[str, str]] | None = None
) -> None:
    """Write K, world_from_cam, name, size and model transform of every photograph as JSON, or FileError.

    Args:
      files: for each photograph the files that were written of it, by kind, relative to the path's folder.
    """
    images = []
    paths = scene.paths or ("",) * len(scene.names)
    for i, (name, t, pose) in enumerate(
        zip(scene.names, scene.transforms, scene.world_from_cam, strict=True)
    ):
        model = {
            "width": t.model_width,
            "height": t.model_height,
            "scale": [t.scale_x, t.scale_y],
            "offset": [t.offset_x, t.offset_y],
            "valid": list(t.valid),
            "K": scene.K[i].tolist(),
        }
        images.append(
            {
                "name": name,
                "files": {**({"photograph": paths[i]} if paths[i] else {}), **(files[i] if files else {})},
                "width": t.original_width,
                "height": t.original_height,
                "K": scene.K_original(i).tolist(),
                "intrinsics": scene.intrinsics[i],
                "world_from_cam": pose.tolist(),
                "model": model,
            }
        )
    content: dict[str, Any] = {
        "format": "fastvggt_jax cameras",
        "format_version": 1,
        "conventions": CONVENTIONS,
        **world(scene),
        "images": images,
    }
    write_file(path, json.dumps(content, indent=1, allow_nan=False).encode())


ALIGNMENT = 0xD935  # what Android calls such bytes in an archive, by which numbers lie as they do in memory
DENSE = ("points", "points_conf", "depth", "depth_conf")  # a number or three of each pixel


def as_float16(x: np.ndarray) -> np.ndarray:
    """Rounded to float16, to a two-thousandth of each number; as it is, where a finite one is too large."""
    finite = np.isfinite(x)
    ends = np.max(x, initial=0, where=finite), np.min(x, initial=0, where=finite)
    return x if max(map(abs, ends)) > np.finfo(np.float16).max else x.astype(np.float16)


def write_scene(scene: Scene, path: str | os.PathLike, *, float16: bool = False) -> None:
    """Write all of a scene as a numpy archive: its arrays by their names, the rest as JSON, or FileError.

    float16: of depth, points and their confidences, see `as_float16`; what stays as it is is warned of.
    """
    values = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    arrays: dict[str, Any] = {name: x for name, x in values.items() if isinstance(x, np.ndarray)}
    rest = {name: x for name, x in values.items() if name not in arrays}
    if float16:
        arrays |= {name: as_float16(arrays[name]) for name in DENSE}
        warn_of_float32([name for name in DENSE if arrays[name].dtype != np.float16], path)
    rest["transforms"] = [dataclasses.asdict(t) for t in scene.transforms]
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "fields": rest}
    with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:  # as numpy's `savez`
        for name, x in {"header": np.array(json.dumps(header)), **arrays}.items():
            part = zipfile.ZipInfo(f"{name}.npy")
            before = file.tell() + 30 + len(part.filename) + 20 + 4  # with what zipfile says of large files
            part.extra = struct.pack("<HH", ALIGNMENT, -before % 64) + bytes(-before % 64)
            with archive.open(part, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)


def warn_of_float32(names: Sequence[str], where: str | os.PathLike) -> None:
    """Of what could not be float16, if there is any."""
    if names:
        text = f"{', '.join(names[:3])}{' and more' * (len(names) > 3)} in {where} stay float32"
        warnings.warn(f"{text}: numbers in it are beyond float16's largest, 65504", stacklevel=3)


def piece_folder(number: int) -> str:
    """Where in a result the files of a scene's piece are, of those that do not hang together."""
    return f"piece-{number + 1}"


def pieces_in(folder: str | os.PathLike) -> list[Path]:
    """The folders of the pieces that a result is in, in their order; none of a whole one."""
    found = (Path(folder) / piece_folder(number) for number in itertools.count())
    return list(itertools.takewhile(os.path.isdir, found))


def read_scene(path: str | os.PathLike, *, mapped: bool = False) -> dict[str, Any]:
    """The fields of the scene that `write_scene` has written; transforms as dicts.

    mapped: its arrays are `mapped_arrays`, unless another program has compressed them.
    Raises MissingError, FileError, or InputError if the file is damaged, of another kind or of a newer
    version.
    """
    path = Path(path)
    if not os.path.exists(path):
        text = f"{path}: no such file; it is written by reconstruct, or by Scene.save"
        if pieces := pieces_in(path.parent):
            text = f"{path.parent} holds a scene in {len(pieces)} pieces: name one, such as {pieces[0]}"
        raise MissingError(text)
    path = regular_file(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            parts = archive.zip.infolist()
            if sum(part.file_size for part in parts) > MOST_COMPRESSED * path.stat().st_size:
                raise ValueError("a little file claims to be a large one")
            mapped = mapped and all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            arrays = mapped_arrays(path) if mapped else {name: archive[name] for name in archive.files}
            halves = [name for name in DENSE if name in arrays and arrays[name].dtype == np.float16]
            arrays |= {name: arrays[name].astype(np.float32) for name in halves}
        header = parse_json(str(arrays.pop("header")))
        kind, version, fields = header["format"], header["format_version"], arrays | header["fields"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version is {version!r}")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", cause=error) from error
    except Exception as error:  # numpy, zipfile and what unpacks fail in any way on what is damaged
        raise InputError(f"{path} is damaged, or no scene of fastvggt_jax: write it again") from error
    if kind != FORMAT:
        raise InputError(f"{path} is no scene of fastvggt_jax")
    if version > FORMAT_VERSION:
        text = f"has format version {version}, this fastvggt_jax reads up to {FORMAT_VERSION}"
        raise InputError(f"{path} {text}: upgrade fastvggt_jax")
    try:
        _check(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        text = f"{path} is damaged, its parts do not fit together ({what}): write it again"
        raise InputError(text) from error
    return fields


def mapped_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays that `write_scene` has written, by their names, as they lie in the file. They take none of
    the process' memory, and are read as they are looked at, even if the file is renamed or removed meanwhile;
    it shall not change.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        try:
            whole: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:  # not every file system maps files
            whole = file.read()
        for part in archive.infolist():
            file.seek(part.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # name and extra fields
            np.lib.format.read_magic(file)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            flat = np.frombuffer(whole, dtype, math.prod(shape), file.tell())
            arrays[part.filename.removesuffix(".npy")] = flat.reshape(shape, order="F" if by_columns else "C")
    return arrays


def _check(fields: dict[str, Any]) -> None:
    """Raises ValueError, or whatever comes of what has another type, unless these are a whole scene's."""
    frames, height, width = fields["valid"].shape
    if not (frames and height and width):
        raise ValueError(f"valid is bool{[frames, height, width]}")
    image = (frames, height, width)
    shapes = {"valid": image, "colors": (*image, 3), "points": (*image, 3), "points_conf": image}
    shapes |= {"depth": image, "depth_conf": image, "K": (frames, 3, 3), "cam_from_world": (frames, 3, 4)}
    for name, shape in shapes.items():
        array, kind = fields[name], {"valid": np.bool_, "colors": np.uint8}.get(name, np.floating)
        if not np.issubdtype(array.dtype, kind) or array.shape != shape:
            wanted = f"{kind.__name__}{list(shape)}"
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)} instead of {wanted}")
    for name, kind in {"names": str, "intrinsics": str, "transforms": dict}.items():
        entries = fields[name]
        if not isinstance(entries, list) or [type(entry) for entry in entries] != [kind] * frames:
            raise ValueError(f"{name} are not one {kind.__name__} for each of {frames} photographs")
    paths = fields.get("paths", [])  # absent in files of before
    if not isinstance(paths, list) or [type(path) for path in paths] not in ([], [str] * frames):
        raise ValueError(f"paths are not one str for each of {frames} photographs")
    K, pose = fields["K"], fields["cam_from_world"]
    below = np.isclose(K[:, (1, 2, 2, 2), (0, 0, 1, 2)], (0, 0, 0, 1)).all(-1)
    for name, fine in (
        ("K", np.isfinite(K).all((1, 2)) & (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0) & below),
        ("cam_from_world", np.isfinite(pose).all((1, 2)) & is_rotation(pose[:, :, :3])),
    ):
        if not fine.all():
            raise ValueError(f"the {name} of photograph {int(np.argmin(fine))} is none")
    known = all_finite(fields["points"]) & np.isfinite(fields["points_conf"])
    if (fields["valid"] & ~known).any():
        raise ValueError("points that are not finite are called valid")
    for transform in fields["transforms"]:
        sides = ("original_width", "original_height", "model_width", "model_height")
        if not all(type(transform[side]) is int and 0 < transform[side] <= LARGEST_SIDE for side in sides):
            raise ValueError(f"a transform is {transform!r:.300}")
        if transform["original_width"] * transform["original_height"] > LARGEST_AREA:
            raise ValueError(f"a transform is {transform!r:.300}")
        for axis, original, model in (("x", *sides[::2]), ("y", *sides[1::2])):
            scale, offset = transform[f"scale_{axis}"], transform[f"offset_{axis}"]
            if not (_is_finite(scale) and SMALLEST_SCALE <= scale <= LARGEST_SCALE):
                raise ValueError(f"a transform is {transform!r:.300}")
            # It shows some of the photograph.
            seen = _is_finite(offset) and offset < transform[model]
            if not (seen and offset >= -FARTHEST_CROP and offset + scale * transform[original] > 0):
                raise ValueError(f"a transform is {transform!r:.300}")
        if (transform["model_height"], transform["model_width"]) != (height, width):
            raise ValueError(f"a transform is not of images of {width}x{height} pixels")
    floor, scale = fields["conf_floor"], fields["metric_scale"]
    white = fields.get("white")  # absent in files of before
    if white is not None and (type(white) is not int or not 0 < white < 2**32):
        raise ValueError(f"white is {white!r}")
    for name, whole in (("offset", False), ("origin", True)):  # absent in files of before
        place = fields.get(name)
        if place is None and (whole or name not in fields):
            continue
        if not isinstance(place, list) or len(place) != 3 or not all(map(_is_finite, place)):
            raise ValueError(f"{name} is {place!r:.300}")
    if not (_is_finite(floor) or floor in (-np.inf, np.inf)):
        raise ValueError(f"conf_floor is {floor!r:.30}")
    if scale is not None and not (_is_finite(scale) and scale > 0):
        raise ValueError(f"metric_scale is {scale!r:.30}")


def all_finite(points: np.ndarray) -> np.ndarray:
    """bool[...] of f32[..., 3]; in a fifth of the time of `np.isfinite(points).all(-1)`."""
    finite = np.isfinite(points.reshape(-1))
    return (finite[0::3] & finite[1::3] & finite[2::3]).reshape(points.shape[:-1])


def _is_finite(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) <= sys.float_info.max  # False for NaN
