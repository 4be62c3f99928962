"""COLMAP's binary model, read after its documentation and not by our own writer's structures."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

PARAMETERS = {1: 4, 2: 4}  # of PINHOLE and SIMPLE_RADIAL


class Image(NamedTuple):
    name: bytes
    quat_wxyz: tuple
    translation: tuple
    camera: int
    xy: np.ndarray  # f64[n, 2]
    points: list

    def cam_from_world(self) -> np.ndarray:
        w, x, y, z = self.quat_wxyz
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        return np.concatenate([rotation, np.array(self.translation)[:, None]], 1)


class Point(NamedTuple):
    xyz: np.ndarray
    rgb: tuple
    error: float
    track: list  # of (image, point2D)


class Model(NamedTuple):
    cameras: dict  # id -> (model, width, height, params)
    images: dict  # id -> Image
    points: dict  # id -> Point
    rigs: dict  # id -> camera
    frames: dict  # id -> (rig, pose, camera, image)


class _Bytes:
    def __init__(self, path: Path) -> None:
        self.data, self.at = path.read_bytes(), 0

    def take(self, form: str) -> tuple:
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return found

    def name(self) -> bytes:
        end = self.data.index(b"\0", self.at)
        found, self.at = self.data[self.at : end], end + 1
        return found


def read_colmap(folder: Path) -> Model:
    model = Model({}, {}, {}, {}, {})
    file = _Bytes(folder / "cameras.bin")
    for _ in range(*file.take("Q")):
        number, kind, width, height = file.take("IiQQ")
        model.cameras[number] = (kind, width, height, file.take(f"{PARAMETERS[kind]}d"))
    _ended(file)
    file = _Bytes(folder / "images.bin")
    for _ in range(*file.take("Q")):
        number, *pose, camera = file.take("I7dI")
        name, (count,) = file.name(), file.take("Q")
        points = [file.take("ddq") for _ in range(count)]
        xy = np.array([point[:2] for point in points]).reshape(-1, 2)
        model.images[number] = Image(name, pose[:4], pose[4:], camera, xy, [point[2] for point in points])
    _ended(file)
    file = _Bytes(folder / "points3D.bin")
    for _ in range(*file.take("Q")):
        number, x, y, z, r, g, b, error, length = file.take("Q3d3BdQ")
        track = [file.take("II") for _ in range(length)]
        model.points[number] = Point(np.array([x, y, z]), (r, g, b), error, track)
    _ended(file)
    file = _Bytes(folder / "rigs.bin")
    for _ in range(*file.take("Q")):
        number, sensors, kind, camera = file.take("IIiI")
        assert sensors == 1 and kind == 0
        model.rigs[number] = camera
    _ended(file)
    file = _Bytes(folder / "frames.bin")
    for _ in range(*file.take("Q")):
        number, rig, *pose, count = file.take("II7dI")
        kind, camera, image = file.take("iIQ")
        assert count == 1 and kind == 0
        model.frames[number] = (rig, pose, camera, image)
    _ended(file)
    return model


def _ended(file: _Bytes) -> None:
    assert file.at == len(file.data)
