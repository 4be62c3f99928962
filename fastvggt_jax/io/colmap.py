"""COLMAP models as they are read: the cameras of photographs, text or binary.

https://colmap.github.io/format.html. Its pixels are ours: the outer corner of the first one is (0, 0).
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fastvggt_jax.errors import FileError, InputError, MissingError

# name: (number in binary files, parameters before those of the distortion, parameters)
MODELS = {
    "SIMPLE_PINHOLE": (0, 3, 3),
    "PINHOLE": (1, 4, 4),
    "SIMPLE_RADIAL": (2, 3, 4),
    "RADIAL": (3, 3, 5),
    "OPENCV": (4, 4, 8),
    "FULL_OPENCV": (6, 4, 12),
}
FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0")


class Photograph(NamedTuple):
    """name: its path below the folder of images. size: (width, height). K: f64[3, 3]. cam_from_world: f64[3,
    4]. distorted: whether its lens has distortion, which K leaves out.
    """

    name: str
    size: tuple[int, int]
    K: np.ndarray
    cam_from_world: np.ndarray
    distorted: bool


def find_model(folder: str | os.PathLike) -> Path | None:
    """The folder of cameras and images, .bin or .txt, that is this one or lies in it where COLMAP puts it."""
    for inside in FOLDERS:
        path = Path(folder) / inside
        for ending in (".bin", ".txt"):
            if all(os.path.isfile(path / f"{name}{ending}") for name in ("cameras", "images")):
                return path
    return None


def read_model(folder: str | os.PathLike, argument: str | None = None) -> list[Photograph]:
    """The photographs of a model, in the order of their names.

    Raises MissingError if the folder holds none, InputError if it is damaged or has cameras of another kind,
    FileError, all of this argument.
    """
    path = find_model(folder)
    if path is None:
        text = f"{folder} holds no COLMAP model: cameras and images, .bin or .txt"
        raise MissingError(text, argument=argument)
    binary = (path / "cameras.bin").is_file() and (path / "images.bin").is_file()
    try:
        if binary:
            cameras, images = _cameras_binary(path), _images_binary(path)
        else:
            cameras, images = _cameras_text(path), _images_text(path)
        found = [
            Photograph(name, *cameras[camera][:2], pose_of(quaternion, translation), cameras[camera][2])
            for name, camera, quaternion, translation in images
        ]
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror}"
        raise FileError(text, cause=error, argument=argument) from error
    except InputError as error:
        raise InputError(error.text, argument=argument) from error
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, MemoryError) as error:
        text = f"{path} is damaged, or no COLMAP model ({error})"
        raise InputError(text, argument=argument) from error
    if not found:
        raise InputError(f"the COLMAP model {path} has no images", argument=argument)
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    if twice:
        raise InputError(f"the COLMAP model {path} names {twice[0]} twice", argument=argument)
    return sorted(found, key=lambda one: one.name)


Camera = tuple[tuple[int, int], np.ndarray, bool]
Image = tuple[str, int, np.ndarray, np.ndarray]


def _camera(path: Path, model: str, width: int, height: int, parameters: np.ndarray) -> Camera:
    if model not in MODELS:
        raise InputError(f"{path} has a camera of the model {model}; what is read: {', '.join(MODELS)}")
    _, pinhole, count = MODELS[model]
    if len(parameters) != count or not np.isfinite(parameters).all() or min(width, height) < 1:
        raise ValueError(f"a {model} has {count} finite parameters")
    fx, fy = parameters[0], parameters[pinhole - 3]
    cx, cy = parameters[pinhole - 2 : pinhole]
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return (width, height), K, bool(parameters[pinhole:].any())


def pose_of(quaternion: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """f64[3, 4] of a quaternion (w, x, y, z) and a translation."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose = np.concatenate([rotation, translation[:, None]], 1)
    if not np.isfinite(pose).all():
        raise ValueError("a pose is not finite")
    return pose


def _add(cameras: dict[int, Camera], number: int, camera: Camera) -> None:
    if number in cameras:
        raise ValueError(f"camera {number} is there twice")
    cameras[number] = camera


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if not line.startswith("#")]


def _cameras_text(path: Path) -> dict[int, Camera]:
    cameras: dict[int, Camera] = {}
    for line in filter(str.strip, _lines(path / "cameras.txt")):
        number, model, width, height, *parameters = line.split()
        camera = _camera(path, model, int(width), int(height), np.array(parameters, float))
        _add(cameras, int(number), camera)
    return cameras


def _images_text(path: Path) -> list[Image]:
    images = []
    for line in _lines(path / "images.txt")[::2]:  # every other one lists points, and may be empty
        if line.strip():
            fields = line.split(maxsplit=9)
            pose = np.array(fields[1:8], float)
            images.append((fields[9], int(fields[8]), pose[:4], pose[4:]))
    return images


def _read(file: BinaryIO, form: str) -> tuple:
    size = struct.calcsize("<" + form)
    return struct.unpack("<" + form, file.read(size))


def _cameras_binary(path: Path) -> dict[int, Camera]:
    names = {number: name for name, (number, _, _) in MODELS.items()}
    cameras: dict[int, Camera] = {}
    with open(path / "cameras.bin", "rb") as file:
        for _ in range(_read(file, "Q")[0]):
            number, model, width, height = _read(file, "iiQQ")
            name = names.get(model, f"number {model}")
            count = MODELS[name][2] if name in MODELS else 0
            parameters = np.array(_read(file, f"{count}d"))
            _add(cameras, number, _camera(path, name, width, height, parameters))
    return cameras


def _images_binary(path: Path) -> list[Image]:
    images = []
    with open(path / "images.bin", "rb") as file:
        end = os.fstat(file.fileno()).st_size
        for _ in range(_read(file, "Q")[0]):
            _, *pose, camera = _read(file, "i7di")
            name = bytearray()
            while (byte := file.read(1)) != b"\0":
                if not byte:
                    raise ValueError("a name has no end")
                name += byte
            (points,) = _read(file, "Q")
            if points * 24 > end - file.tell():
                raise ValueError("points are missing")
            file.seek(points * 24, os.SEEK_CUR)
            images.append((name.decode(), camera, np.array(pose[:4]), np.array(pose[4:])))
    return images
