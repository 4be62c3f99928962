"""overview.jpg: photographs, their depth, and the point cloud with the cameras from behind and above, in one
picture.
"""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image, ImageDraw

from fastvggt_jax.export.base import Format
from fastvggt_jax.export.depth import depth_colors, depth_on_photo, surface
from fastvggt_jax.export.glb import MEASURED, STROKES, extent, frusta
from fastvggt_jax.io.colors import colorize
from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import PointCloud, Scene

WIDTH, HEIGHT = 1280, 720  # of the view of the cloud
COLUMNS = 4  # photographs in a row, at most; evenly chosen
BACKGROUND = (24, 24, 28)
ELEVATION = np.deg2rad(28)
FOCAL = 0.9 * WIDTH
MOST_POINTS = 250_000  # that are painted
SPLAT = 3  # pixels a side that a point covers


def write_overview(scene: Scene, path: str | os.PathLike, *, cloud: PointCloud | None = None) -> None:
    """Write a JPEG; the cameras are dark for the first photograph to light for the last. Raises FileError if
    writing fails.
    """
    cloud = (scene.point_cloud() if cloud is None else cloud).at_most(MOST_POINTS)
    chosen = np.unique(np.linspace(0, len(scene.names) - 1, COLUMNS).round().astype(int))
    tile = WIDTH // COLUMNS
    height = round(tile * scene.colors.shape[1] / scene.colors.shape[2])
    colors = depth_colors(scene)
    depths = [colors(surface(depth_on_photo(scene, i), scene.depth_conf[i], scene)) for i in chosen]
    rows = [[scene.colors[i] for i in chosen], depths]
    page = Image.new("RGB", (WIDTH, len(rows) * height + HEIGHT), BACKGROUND)
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            page.paste(
                Image.fromarray(pixels).resize((tile, height), Image.Resampling.BICUBIC),
                (x * tile, y * height),
            )
    page.paste(_view(scene, cloud), (0, len(rows) * height))
    buffer = io.BytesIO()
    page.save(buffer, format="JPEG", quality=90)
    write_file(path, buffer.getbuffer())


def _view(scene: Scene, cloud: PointCloud) -> Image.Image:
    """The cloud and the cameras as seen from behind and above the cameras."""
    cameras = frusta(scene, 0.05 * extent(cloud))  # [F, 5, 3]
    view = viewpoint(scene, cloud, cameras)
    image = Image.fromarray(paint(view, cloud))
    draw = ImageDraw.Draw(image)
    for corners, color in zip(cameras, colorize(np.linspace(0.3, 1, len(cameras))), strict=True):
        uv, z = project(view, corners)
        if (z > 1e-6).all():
            for stroke in STROKES:
                draw.line(
                    [tuple(uv[corner]) for corner in stroke], fill=tuple(int(c) for c in color), width=2
                )
    return image


def paint(view: np.ndarray, cloud: PointCloud) -> np.ndarray:
    """u8[HEIGHT, WIDTH, 3]: every point a small square, near ones over far ones."""
    # With a margin for the squares that reach beyond it, and a fourth byte, so that a pixel is one number.
    canvas = np.zeros((HEIGHT + 2 * SPLAT, WIDTH + 2 * SPLAT, 4), np.uint8)
    canvas[..., :3] = BACKGROUND
    flat = canvas.reshape(-1).view(np.uint32)
    uv, z = project(view, cloud.xyz)
    u, v = np.floor(np.clip(uv, -SPLAT - 1, max(WIDTH, HEIGHT))).astype(np.int32).T
    order = np.flatnonzero((z > 1e-6) & (u > -SPLAT) & (u < WIDTH) & (v > -SPLAT) & (v < HEIGHT))
    order = order[np.argsort(-z[order])]  # what is painted last lies on top
    at = (v[order] + SPLAT) * canvas.shape[1] + u[order] + SPLAT
    colors = np.zeros((len(order), 4), np.uint8)
    colors[:, :3] = np.take(cloud.rgb, order, axis=0)
    for dy in range(SPLAT):
        for dx in range(SPLAT):
            flat[at + (dy * canvas.shape[1] + dx)] = colors.view(np.uint32)[:, 0]
    return np.ascontiguousarray(canvas[SPLAT:-SPLAT, SPLAT:-SPLAT, :3])


def viewpoint(scene: Scene, cloud: PointCloud, cameras: np.ndarray) -> np.ndarray:
    """view_from_world f64[3, 4] that has most points and all cameras in sight."""
    pose = scene.world_from_cam.astype(np.float64)
    up, ahead = -pose[:, :3, 1].mean(0), pose[:, :3, 2].mean(0)
    middle = cameras.reshape(-1, 3).mean(0)
    xyz = cloud.at_most(MEASURED).xyz
    median = np.median(xyz, axis=0) if len(xyz) else middle + ahead
    target = median.astype(np.float64)
    up = up / (np.linalg.norm(up) or 1)
    back = middle - target
    back -= (back @ up) * up
    if np.linalg.norm(back) < 1e-6 * extent(cloud):
        back = -(ahead - (ahead @ up) * up)
    back /= np.linalg.norm(back) or 1
    forward = -(np.cos(ELEVATION) * back + np.sin(ELEVATION) * up)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right) or 1
    rotation = np.stack([right, np.cross(forward, right), forward])
    # As near as all cameras and nine points of ten allow.
    seen = np.concatenate([cameras.reshape(-1, 3), _nearest(xyz, median, 0.9)])
    across, along = (seen - target) @ rotation[:2].T, (seen - target) @ forward
    middle = (across.min(0) + across.max(0)) / 2
    distance = (np.abs(across - middle) * FOCAL / (0.47 * np.array([WIDTH, HEIGHT])) - along[:, None]).max()
    eye = target + middle @ rotation[:2] - max(distance, 1e-6) * forward
    return np.concatenate([rotation, -(rotation @ eye)[:, None]], 1)


def _nearest(points: np.ndarray, to: np.ndarray, share: float) -> np.ndarray:
    """This share of the points, those that lie nearest to one."""
    if not len(points):
        return points
    distance = np.linalg.norm(points - to, axis=-1)
    return points[distance <= np.quantile(distance, share)]


def project(view_from_world: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels f64[..., 2] and depth f64[...]."""
    at = np.einsum("ij,...j->i...", view_from_world[:, :3], points)
    x, y, z = (one + offset for one, offset in zip(at, view_from_world[:, 3], strict=True))
    scale = FOCAL / np.maximum(z, 1e-9)
    return np.stack([x * scale + WIDTH / 2, y * scale + HEIGHT / 2], -1), z


OVERVIEW = Format(
    "overview",
    ("overview.jpg",),
    lambda export, folder: write_overview(export.scene, folder / "overview.jpg", cloud=export.cloud),
    of_saved=True,
    about="a picture: photographs, their depth, and the points with the cameras",
)
