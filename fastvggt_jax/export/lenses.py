"""One K for photographs of one camera, and square pixels: what formats that say less than a K per photograph
need. The scene that comes back has that K everywhere, so that all its files agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from fastvggt_jax.scene import Scene
from fastvggt_jax.sources import ImageTransform


def with_shared_camera(scene: Scene) -> Scene:
    """The scene as taken by one camera: in original pixels one focal length, the median of all fx and fy,
    and for each size of photographs the median principal point.

    Photographs whose longer and shorter sides are those of others, turned or not, have their focal length in
    common; those of another size were scaled or cropped, and have one of their own. A K that was a guess has
    no voice where another has one.
    """
    K, sizes = _K_original(scene), [(t.original_width, t.original_height) for t in scene.transforms]
    sure = np.array([kind != "guessed" for kind in scene.intrinsics])
    shared = np.tile(np.eye(3), (len(K), 1, 1))
    for group in _groups([tuple(sorted(size)) for size in sizes]):
        voices = K[group & sure] if (group & sure).any() else K[group]
        shared[group, 0, 0] = shared[group, 1, 1] = np.median(voices[:, [0, 1], [0, 1]])
    for group in _groups(sizes):
        voices = K[group & sure] if (group & sure).any() else K[group]
        shared[group, :2, 2] = np.median(voices[:, :2, 2], axis=0)
    return with_K(scene, shared, ("shared",) * len(K))


def with_square_pixels(scene: Scene) -> Scene:
    """The scene with fx = fy in original pixels, their geometric mean, for each photograph."""
    K = _K_original(scene)
    K[:, 0, 0] = K[:, 1, 1] = np.sqrt(K[:, 0, 0] * K[:, 1, 1])
    return with_K(scene, K, scene.intrinsics)


def with_K(scene: Scene, K_original: np.ndarray, intrinsics: tuple[str, ...]) -> Scene:
    """The scene seen through other K f64[F, 3, 3] of the original pixels: depth and poses stay, every point
    moves so that it is seen where it was.
    """
    K = np.stack([model_from_original(t) @ k for t, k in zip(scene.transforms, K_original, strict=True)])
    points, world_from_cam = np.empty_like(scene.points), scene.world_from_cam.astype(np.float64)
    for i, (pose, back) in enumerate(zip(scene.cam_from_world, world_from_cam, strict=True)):
        local = scene.points[i].astype(np.float64) @ pose[:, :3].T + pose[:, 3]  # [H, W, 3]
        # K⁻¹ K_old keeps z, and the pixel through the new K.
        local = local @ (np.linalg.inv(K[i]) @ scene.K[i]).T
        points[i] = local @ back[:3, :3].T + back[:3, 3]
    return dataclasses.replace(scene, K=K.astype(np.float32), points=points, intrinsics=intrinsics)


def _K_original(scene: Scene) -> np.ndarray:
    return np.stack([scene.K_original(i) for i in range(len(scene.names))])  # f64[F, 3, 3]


def model_from_original(t: ImageTransform) -> np.ndarray:
    return np.array([[t.scale_x, 0, t.offset_x], [0, t.scale_y, t.offset_y], [0, 0, 1]])


def _groups(keys: Sequence[Hashable]) -> list[np.ndarray]:
    """For every different key, bool[F]: whose it is."""
    return [np.array([other == key for other in keys]) for key in dict.fromkeys(keys)]
