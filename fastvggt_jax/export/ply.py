"""points.ply: a point cloud with colours and confidences."""

from __future__ import annotations

import os

import numpy as np

from fastvggt_jax.export.base import Format
from fastvggt_jax.io.files import new_file
from fastvggt_jax.scene import PointCloud

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "<f4")])  # packed, 19 bytes
CHUNK = 1 << 20  # points that are packed at a time, which bounds the memory


def write_ply(cloud: PointCloud, path: str | os.PathLike) -> None:
    """Write a binary little-endian PLY: float x y z (OpenCV axes), uchar red green blue, float confidence.

    Raises FileError if writing fails.
    """
    header = "\n".join(
        [
            "ply",
            "format binary_little_endian 1.0",
            "comment fastvggt_jax; OpenCV axes: x right, y down, z into the scene of the first camera",
            f"element vertex {len(cloud)}",
            *(f"property float {axis}" for axis in "xyz"),
            *(f"property uchar {color}" for color in ("red", "green", "blue")),
            "property float confidence",
            "end_header\n",
        ]
    )
    with new_file(path) as file:
        file.write(header.encode("ascii"))
        for first in range(0, len(cloud), CHUNK):
            some = slice(first, first + CHUNK)
            vertices = np.empty(len(cloud.conf[some]), _VERTEX)
            vertices["xyz"], vertices["rgb"] = cloud.xyz[some], cloud.rgb[some]
            vertices["confidence"] = cloud.conf[some]
            file.write(vertices.data)


PLY = Format(
    "ply",
    ("points.ply",),
    lambda export, folder: write_ply(export.cloud, folder / "points.ply"),
    of_saved=True,
    about="points in the world of cameras.json, OpenCV axes (x right, y down, z into the first photograph)",
)
