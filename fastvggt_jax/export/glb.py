"""scene.glb: the point cloud, or the photographs' surfaces, and the cameras' frusta, for web and desktop
viewers. Needs trimesh (extra `glb`).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvggt_jax.export.base import Export, Format
from fastvggt_jax.export.mesh import Surface, surfaces
from fastvggt_jax.geometry import GL_FROM_CV
from fastvggt_jax.io.colors import colorize
from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import PointCloud, Scene

TURN = np.diagonal(GL_FROM_CV)[:3].astype(np.float32)  # glTF's axes are OpenGL's, our world's are OpenCV's

# The frustum as two strokes of a pen: vertex 0 is the camera's centre, 1 to 4 are the image's corners in
# turn.
STROKES = ([0, 1, 2, 0, 3, 4, 0], [2, 3], [4, 1])
MOST_POINTS = 2_000_000  # as many as a browser shows without effort; points.ply holds the others
MEASURED = 100_000  # points that tell how large a cloud is
JPEG_QUALITY = 90  # of what surfaces are painted with


def write_glb(
    scene: Scene,
    path: str | os.PathLike,
    *,
    cloud: PointCloud | None = None,
    meshes: Iterable[Surface] | None = None,
) -> None:
    """Write a binary glTF with the nodes "points" (of `cloud`, by default all valid points, MOST_POINTS that
    are evenly spread over the pixels) and "cameras" (lines, dark for the first photograph to light for the
    last), turned from OpenCV's to OpenGL's axes: (x, y, z) -> (x, -y, -z).

    Args:
      meshes: one per photograph, which take the points' place as the nodes "mesh 0", "mesh 1" and so on, each
        painted with what the model saw; of one without triangles there is none.

    Raises ExtraError without trimesh, FileError if writing fails.
    """
    GLB.require()
    import trimesh
    from trimesh.path import Path3D
    from trimesh.path.entities import Line

    cloud = (scene.point_cloud() if cloud is None else cloud).at_most(MOST_POINTS)
    result = trimesh.Scene()
    if meshes is not None:
        _add_meshes(result, scene, meshes)
    elif len(cloud):
        points = trimesh.PointCloud(cloud.xyz[:1], colors=[[0, 0, 0, 255]])  # which `_fill` replaces
        result.add_geometry(points, geom_name="points", node_name="points")
    vertices = frusta(scene, 0.05 * extent(cloud)) * TURN  # [F, 5, 3]
    colors = colorize(np.linspace(0, 1, len(vertices)))
    lines = [Line([5 * i + v for v in stroke]) for i in range(len(vertices)) for stroke in STROKES]
    opaque_colors = np.array([(*color, 255) for color in colors for _ in STROKES], np.uint8)
    cameras = Path3D(lines, vertices.reshape(-1, 3), colors=opaque_colors, process=False)
    result.add_geometry(cameras, geom_name="cameras", node_name="cameras")
    fill = partial(_fill, cloud) if meshes is None and len(cloud) else None
    write_file(path, result.export(file_type="glb", buffer_postprocessor=fill))


def _fill(cloud: PointCloud, buffers: dict[Any, bytes], tree: dict[str, Any]) -> None:
    """Puts the cloud where trimesh has the node "points", of whose numbers it would make lists, which would
    take most of the time.
    """
    (mesh,) = (mesh for mesh in tree["meshes"] if mesh["name"] == "points")
    of, keys = list(tree["accessors"].values()), list(buffers)
    opaque = np.full((len(cloud), 4), 255, np.uint8)
    opaque[:, :3] = cloud.rgb
    for name, values in (("POSITION", cloud.xyz * TURN), ("COLOR_0", opaque)):
        accessor = of[mesh["primitives"][0]["attributes"][name]]
        buffers[keys[accessor["bufferView"]]] = values.tobytes()
        accessor["count"] = len(values)
        for what, reduce in (("min", np.min), ("max", np.max)):
            if what in accessor:
                accessor[what] = [reduce(column).item() for column in values.T]


def _add_meshes(result: Any, scene: Scene, meshes: Iterable[Surface]) -> None:
    """Warns if there is none."""
    from trimesh import Trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    height, width = scene.depth.shape[1:]
    for i, (mesh, colors) in enumerate(zip(meshes, scene.colors, strict=True)):
        if not len(mesh.faces):
            continue
        # It has its light in it already; both of its sides are to be seen.
        paint = PBRMaterial(
            baseColorTexture=_as_jpeg(colors), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
        )
        uv = mesh.pixel / (width, height) * (1, -1) + (0, 1)  # trimesh counts v from below
        visual = TextureVisuals(uv=uv, material=paint)
        surface = Trimesh(mesh.xyz * TURN, mesh.faces, visual=visual, process=False)
        result.add_geometry(surface, geom_name=f"mesh {i}", node_name=f"mesh {i}")
    if not result.geometry:
        text = "no surface is left for scene.glb: lower conf_percentile or raise edge_filter"
        warnings.warn(text, stacklevel=4)


def _as_jpeg(colors: np.ndarray) -> Image.Image:
    """A picture of u8[H, W, 3] that trimesh writes as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(colors).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return Image.open(file)


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
    some = cloud.at_most(MEASURED).xyz
    low, high = np.percentile(some, [5, 95], axis=0) if len(some) else (0.0, 0.0)
    return float(np.linalg.norm(high - low)) or 1.0


def _write(export: Export, folder: Path) -> None:
    o, meshes = export.options, None
    if o.glb_mesh:
        filters = dict(conf_percentile=o.conf_percentile, edge_filter=o.edge_filter)
        meshes = surfaces(export.scene, o.mesh_points, **filters)
    write_glb(export.scene, folder / "scene.glb", cloud=export.cloud, meshes=meshes)


GLB = Format(
    "glb",
    ("scene.glb",),
    _write,
    of_saved=True,
    about=f"points (of more than {MOST_POINTS:,} so many), or a surface per photograph, and cameras; OpenGL "
    "axes as glTF has them: y up, (x, y, z) is (x, -y, -z) of cameras.json",
    module="trimesh",
    extra="glb",
)
