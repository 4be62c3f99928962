"""nerfstudio/: transforms.json, the points to start from, and the photographs.

https://docs.nerf.studio/quickstart/data_conventions.html: cameras to world, with OpenGL axes (y up, z back).
The world is ours and so is the ply's: no applied_transform, which versions of nerfstudio read differently.
Its principal points count from the first pixel's outer corner, as ours: rays go through i + 0.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.export.base import Export, Format
from fastvggt_jax.export.depth import file_stems
from fastvggt_jax.export.photographs import place_photographs
from fastvggt_jax.export.ply import write_ply
from fastvggt_jax.geometry import GL_FROM_CV
from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import PointCloud, Scene

FOLDER, POINTS = "nerfstudio", "points.ply"


def write_nerfstudio(export: Export, folder: Path) -> None:
    """Write transforms.json, points.ply (those with tracks) and images/. Raises what `place_photographs`
    raises.
    """
    scene = place_photographs(
        export.scene, folder / "images", export.photographs, copy=export.options.copy_photographs
    )
    tracks = export.tracks
    write_ply(PointCloud(tracks.xyz.astype(np.float32), tracks.rgb, tracks.conf), folder / POINTS)
    content = json.dumps(transforms(scene), indent=1, allow_nan=False)
    write_file(folder / "transforms.json", content.encode())


def transforms(scene: Scene) -> dict[str, Any]:
    """What transforms.json says of a scene whose names are those of files in images/."""
    frames = []
    for i, (name, t, pose) in enumerate(
        zip(scene.names, scene.transforms, scene.world_from_cam.astype(np.float64), strict=True)
    ):
        K = scene.K_original(i)
        frame = {
            "file_path": f"images/{name}",
            "w": t.original_width,
            "h": t.original_height,
            "fl_x": K[0, 0],
            "fl_y": K[1, 1],
            "cx": K[0, 2],
            "cy": K[1, 2],
            "transform_matrix": (pose @ GL_FROM_CV).tolist(),
        }
        frames.append(frame)
    return {"camera_model": "OPENCV", "ply_file_path": POINTS, "frames": frames}


def of_photographs(scene: Scene) -> dict[str, list[str]]:
    return {FOLDER: [f"{FOLDER}/images/{stem}" for stem in file_stems(scene.names)]}


NERFSTUDIO = Format(
    "nerfstudio",
    (f"{FOLDER}/transforms.json", f"{FOLDER}/{POINTS}", f"{FOLDER}/images/*"),
    lambda export, folder: write_nerfstudio(export, folder / FOLDER),
    tracked=True,
    about="nerfstudio's data format: transform_matrix is world_from_cam, its camera with OpenGL axes "
    "(y up, z back); the world, and the points in it, are those of cameras.json, with OpenCV axes; principal "
    "points in pixels of the photographs, the first one's centre at (0.5, 0.5)",
    default=False,
    of_photographs=of_photographs,
)
