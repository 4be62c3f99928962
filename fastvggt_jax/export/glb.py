"""scene.glb: the point cloud and the cameras' frusta, for web and desktop viewers. Needs trimesh (extra
`glb`).
"""

from __future__ import annotations

import os

import numpy as np

from fastvggt_jax.export.base import Format
from fastvggt_jax.io.colors import colorize
from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import PointCloud, Scene

# glTF is y up and looks along -z (OpenGL); our world is OpenCV's: half a turn about x.
GL_FROM_CV = np.diag([1.0, -1.0, -1.0])

# The frustum as two strokes of a pen: vertex 0 is the camera's centre, 1 to 4 are the image's corners in
# turn.
STROKES = ([0, 1, 2, 0, 3, 4, 0], [2, 3], [4, 1])


def write_glb(scene: Scene, path: str | os.PathLike, *, cloud: PointCloud | None = None) -> None:
    """Write a binary glTF with the nodes "points" (`cloud`, by default all valid points) and "cameras"
    (lines, dark for the first photograph to light for the last), turned from OpenCV's to OpenGL's axes: (x,
    y, z) -> (x, -y, -z).

    Raises ExtraError without trimesh, FileError if writing fails.
    """
    GLB.require()
    import trimesh
    from trimesh.path import Path3D
    from trimesh.path.entities import Line

    cloud = scene.point_cloud() if cloud is None else cloud
    result = trimesh.Scene()
    if len(cloud):
        opaque = np.full((len(cloud), 1), 255, np.uint8)
        points = trimesh.PointCloud(cloud.xyz @ GL_FROM_CV, colors=np.concatenate([cloud.rgb, opaque], -1))
        result.add_geometry(points, geom_name="points", node_name="points")
    vertices = frusta(scene, 0.05 * extent(cloud)) @ GL_FROM_CV  # [F, 5, 3]
    colors = colorize(np.linspace(0, 1, len(vertices)))
    lines = [Line([5 * i + v for v in stroke]) for i in range(len(vertices)) for stroke in STROKES]
    opaque_colors = np.array([(*color, 255) for color in colors for _ in STROKES], np.uint8)
    cameras = Path3D(lines, vertices.reshape(-1, 3), colors=opaque_colors, process=False)
    result.add_geometry(cameras, geom_name="cameras", node_name="cameras")
    write_file(path, result.export(file_type="glb"))


def frusta(scene: Scene, depth: float) -> np.ndarray:
    """f64[F, 5, 3] in the world: each camera's centre, and its photograph's four corners at this depth."""
    corners = []
    for t, K in zip(scene.transforms, scene.K.astype(np.float64), strict=True):
        left, top, right, bottom = t.valid
        pixels = np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]])
        corners.append(np.concatenate([np.zeros((1, 3)), depth * pixels @ np.linalg.inv(K).T]))
    pose = scene.world_from_cam.astype(np.float64)
    return np.einsum("fij,fvj->fvi", pose[:, :3, :3], np.stack(corners)) + pose[:, None, :3, 3]


def extent(cloud: PointCloud) -> float:
    """The diagonal of the box that holds the cloud but for 5 % on every side; 1 for no or one point."""
    low, high = np.percentile(cloud.xyz, [5, 95], axis=0) if len(cloud) else (0.0, 0.0)
    return float(np.linalg.norm(high - low)) or 1.0


GLB = Format(
    "glb",
    ("scene.glb",),
    lambda export, folder: write_glb(export.scene, folder / "scene.glb", cloud=export.cloud),
    about="points and cameras, OpenGL axes as glTF has them: y up, (x, y, z) is (x, -y, -z) of cameras.json",
    module="trimesh",
    extra="glb",
)
