"""Results as points and cameras that are drawn: thinned, ranked by confidence, two side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from fastvggt_jax.export.depth import depth_colors, depth_on_photo, surface
from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.io.colors import DepthColors
from fastvggt_jax.scene import Scene, spread
from fastvggt_jax.seeing.result import Result, brought_to, cameras_of

MOST = 2_000_000  # points of a result that a viewer holds, evenly chosen
APART = 1.2  # of two results, in widths of the first


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A result as it is drawn, M points in an order of which every beginning is an even choice of all.

    xyz: f32[M, 3] in the viewer's world, which is OpenCV's. rgb: u8[M, 3]. frame: i32[M].
    rank: f32[M], the share of the unmasked points that are less sure; 0 of what is no surface.
    masked: bool[M], where a mask, or the sky, takes the point away.
    world_from_cam: f64[F, 4, 4]. fov: f64[F], of the model's image, vertical, in radians.
    """

    scene: Scene
    xyz: np.ndarray
    rgb: np.ndarray
    frame: np.ndarray
    rank: np.ndarray
    masked: np.ndarray
    world_from_cam: np.ndarray
    fov: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    def chosen(
        self, percent: float = 0.0, *, most: int | None = None, frame: int | None = None, masks: bool = True
    ) -> np.ndarray:
        """i64[K]: the points left without the least sure percent, of one frame or all; without those that are
        masked, unless `masks` is False; of these the first `most`.
        """
        keep = (self.rank >= percent / 100) & (~self.masked if masks else True)
        if frame is not None:
            keep &= self.frame == frame
        return np.flatnonzero(keep)[:most]

    @cached_property
    def size(self) -> float:
        """A length to measure others by: that of the box around cameras and the middle nine tenths."""
        low, high = _box(self)
        return float(np.linalg.norm(high - low)) or 1.0

    @cached_property
    def depth_colors(self) -> DepthColors:
        return depth_colors(self.scene)

    def picture(self, i: int, kind: str, side: int = 256) -> np.ndarray:
        """u8[h, w, 3], no side longer than `side`: the "photograph", its "depth", or "both", one over the
        other.
        """
        scene = self.scene
        pixels = scene.colors[i]
        if kind != "photograph":
            depth = self.depth_colors(surface(depth_on_photo(scene, i), scene.depth_conf[i], scene))
            pixels = depth if kind == "depth" else (pixels.astype(np.uint16) + depth >> 1).astype(np.uint8)
        image = Image.fromarray(pixels)
        image.thumbnail((side, side))
        return np.asarray(image)


def clouds(results: Sequence[Result], most: int = MOST) -> list[Cloud]:
    """One for each of one or two results; the second is brought to the first one's cameras and put to its
    right. Raises InputError where they share fewer than two photographs.
    """
    first = cloud_of(results[0].scene, most)
    if len(results) == 1:
        return [first]
    other = results[1].scene
    to_first = brought_to(results[0].scene, cameras_of(other, results[0].scene, "other"))
    right = first.world_from_cam[:, :3, 0].mean(0)
    right /= np.linalg.norm(right) or 1.0
    along = np.concatenate([first.xyz[~first.masked] @ right, first.world_from_cam[:, :3, 3] @ right])
    low, high = np.quantile(along, (0.02, 0.98))
    away = APART * ((high - low) or 1.0) * right
    beside = Similarity(to_first.scale, to_first.rotation, to_first.translation + away)
    return [first, cloud_of(other, most, beside)]


def cloud_of(scene: Scene, most: int = MOST, place: Similarity | None = None) -> Cloud:
    """A scene's cloud, brought to another world by `place`."""
    frames, height, width = scene.valid.shape
    on_photo = np.zeros(scene.valid.shape, bool)
    for shown, transform in zip(on_photo, scene.transforms, strict=True):
        left, top, right, bottom = transform.valid
        shown[top:bottom, left:right] = True
    index = np.flatnonzero(on_photo & np.isfinite(scene.points).all(-1) & np.isfinite(scene.points_conf))
    if len(index) > most:
        index = index[spread(len(index), most)]
    index = index[np.random.default_rng(0).permutation(len(index))]
    conf, masked = scene.points_conf.reshape(-1)[index], ~scene.valid.reshape(-1)[index]
    sorted_conf = np.sort(conf[~masked])
    rank = np.searchsorted(sorted_conf, conf) / max(len(sorted_conf), 1)
    rank = np.where(conf >= scene.conf_floor, np.maximum(rank, 1e-6), 0)
    xyz, poses = scene.points.reshape(-1, 3)[index], scene.cam_from_world.astype(np.float64)
    if place is not None:
        xyz, poses = place(xyz), place.of_cameras(poses)
    world_from_cam = np.tile(np.eye(4), (frames, 1, 1))
    world_from_cam[:, :3, :3] = poses[:, :, :3].transpose(0, 2, 1)
    world_from_cam[:, :3, 3] = -np.einsum("fji,fj->fi", poses[:, :, :3], poses[:, :, 3])
    return Cloud(
        scene=scene,
        xyz=xyz.astype(np.float32),
        rgb=scene.colors.reshape(-1, 3)[index],
        frame=(index // (height * width)).astype(np.int32),
        rank=rank.astype(np.float32),
        masked=masked,
        world_from_cam=world_from_cam,
        fov=2 * np.arctan2(height / 2, scene.K[:, 1, 1].astype(np.float64)),
    )


def _box(cloud: Cloud) -> tuple[np.ndarray, np.ndarray]:
    corners = [cloud.world_from_cam[:, :3, 3]]
    points = cloud.xyz[cloud.chosen(25.0, most=100_000)]
    if len(points):
        corners.append(np.quantile(points, (0.05, 0.95), axis=0))
    both = np.concatenate(corners)
    return both.min(0), both.max(0)
