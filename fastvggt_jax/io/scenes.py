"""A scene's files: `cameras.json`, for people and other tools, and `scene.npz`, from which the whole scene
comes back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvggt_jax.errors import FileError, InputError, MissingError
from fastvggt_jax.io.files import new_file, write_file

if TYPE_CHECKING:
    from fastvggt_jax.scene import Scene

CAMERAS, SCENE = "cameras.json", "scene.npz"
FORMAT, FORMAT_VERSION = "fastvggt_jax scene", 1
CONVENTIONS = {
    "axes": "OpenCV: x right, y down, z into the scene",
    "world_from_cam": "4x4, row by row; x_world = world_from_cam @ [x_cam, 1]; its last column is the "
    "camera's centre",
    "world": "the first camera's frame, about (VGGT) or exactly (π³); the unit is arbitrary unless "
    "metric_scale, metres per unit, is given",
    "K": "3x3 in pixels of width x height, the photograph as it is seen (EXIF orientation applied); the "
    "outer corner of the first pixel is (0, 0), its centre (0.5, 0.5); no distortion. A point is seen at the "
    "centre of the model's pixel that it is of",
    "intrinsics": "where K comes from: predicted by the model; recovered, that is fitted to the model's "
    "points in camera coordinates by least squares, reweighted to the smallest sum of distances; or guessed, "
    "where that failed",
    "model": "the image that the model saw: x_model = scale[0] * x + offset[0], and the same in y; "
    "valid = [left, top, right, bottom] of it is photograph, the rest padding",
}


def write_cameras(scene: Scene, path: str | os.PathLike) -> None:
    """Write K, world_from_cam, name, size and model transform of every photograph as JSON, or FileError."""
    images = []
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
        "metric_scale": scene.metric_scale,
        "images": images,
    }
    write_file(path, json.dumps(content, indent=1, allow_nan=False).encode())


def write_scene(scene: Scene, path: str | os.PathLike) -> None:
    """Write all of a scene as a numpy archive: its arrays by their names, the rest as JSON, or FileError."""
    values = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    arrays: dict[str, Any] = {name: x for name, x in values.items() if isinstance(x, np.ndarray)}
    rest = {name: x for name, x in values.items() if name not in arrays}
    rest["transforms"] = [dataclasses.asdict(t) for t in scene.transforms]
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "fields": rest}
    with new_file(path) as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def read_scene(path: str | os.PathLike) -> dict[str, Any]:
    """The fields of the scene that `write_scene` has written; transforms as dicts.

    Raises MissingError, FileError, or InputError if the file is damaged, of another kind or of a newer
    version.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such file; it is written by reconstruct, or by Scene.save")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop("header")))
        kind, version, fields = header["format"], header["format_version"], header["fields"]
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}", cause=error) from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged, or no scene of fastvggt_jax: write it again") from error
    if kind != FORMAT:
        raise InputError(f"{path} is no scene of fastvggt_jax")
    if version > FORMAT_VERSION:
        text = f"has format version {version}, this fastvggt_jax reads up to {FORMAT_VERSION}"
        raise InputError(f"{path} {text}: upgrade fastvggt_jax")
    return arrays | fields
