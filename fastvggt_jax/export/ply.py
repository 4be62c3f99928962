"""points.ply: a point cloud with colours and confidences."""

from __future__ import annotations

import os

import numpy as np

from fastvggt_jax.export.base import Format
from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import PointCloud

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "<f4")])  # packed, 19 bytes


def write_ply(cloud: PointCloud, path: str | os.PathLike) -> None:
    """Write a binary little-endian PLY: float x y z (OpenCV axes), uchar red green blue, float confidence.

    Raises FileError if writing fails.
    """
    vertices = np.empty(len(cloud), _VERTEX)
    vertices["xyz"], vertices["rgb"], vertices["confidence"] = cloud.xyz, cloud.rgb, cloud.conf
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
    write_file(path, header.encode("ascii"), vertices.tobytes())


PLY = Format(
    "ply",
    ("points.ply",),
    lambda export, folder: write_ply(export.cloud, folder / "points.ply"),
    about="points in the world of cameras.json, OpenCV axes (x right, y down, z into the first photograph)",
)
