"""One K for photographs of one camera, and square pixels: what formats that say less than a K per photograph
need. The scene that comes back has that K everywhere, so that all its files agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from fastvggt_jax.errors import InputError
from fastvggt_jax.scene import Scene
from fastvggt_jax.sources import ImageTransform


def with_shared_camera(scene: Scene) -> Scene:
    """The scene as taken by one camera: in original pixels one focal length, the median of all fx and fy,
    and for each size of photographs the median principal point.

    Photographs whose longer and shorter sides are those of others, turned or not, have their focal length in
    common; those of another size were scaled or cropped, and have one of their own. A K that was a guess has
    no voice where another has one. Equal K that were given, or adjusted together, stay as they are.
    """
    K, sizes = _K_original(scene), original_sizes(scene.transforms)
    sure = np.array([kind != "guessed" for kind in scene.intrinsics])
    settled = np.array([kind in ("given", "adjusted") for kind in scene.intrinsics])
    shared = K.copy()
    for group in _groups([tuple(sorted(size)) for size in sizes]):
        voices = K[group & sure] if (group & sure).any() else K[group]
        if not (settled[group].all() and _equal(K[group][:, [0, 1], [0, 1]])):
            shared[group, 0, 0] = shared[group, 1, 1] = np.median(voices[:, [0, 1], [0, 1]])
    for group in _groups(sizes):
        voices = K[group & sure] if (group & sure).any() else K[group]
        if not _equal(K[group][:, :2, 2]):
            shared[group, :2, 2] = np.median(voices[:, :2, 2], axis=0)
    stays = settled & (shared == K).all((1, 2))
    if stays.all():
        return scene
    kinds = [kind if same else "shared" for kind, same in zip(scene.intrinsics, stays, strict=True)]
    return with_K(scene, shared, tuple(kinds))


def with_square_pixels(scene: Scene) -> Scene:
    """The scene with fx = fy in original pixels, their geometric mean, for each photograph."""
    K = _K_original(scene)
    if _equal(K[:, [0, 1], [0, 1]].T):
        return scene
    K[:, 0, 0] = K[:, 1, 1] = np.sqrt(K[:, 0, 0] * K[:, 1, 1])
    return with_K(scene, K, scene.intrinsics)


def as_asked(scene: Scene, *, shared_camera: bool, camera_model: str) -> Scene:
    """The scene with the cameras that `ExportOptions` ask for. InputError where a K that was given forbids
    it.
    """
    given = np.array([kind == "given" for kind in scene.intrinsics])
    sizes = [size for size, is_given in zip(original_sizes(scene.transforms), given, strict=True) if is_given]
    check_given(_K_original(scene)[given], sizes, shared_camera=shared_camera, camera_model=camera_model)
    if shared_camera:
        return with_shared_camera(scene)
    return with_square_pixels(scene) if camera_model == "SIMPLE_RADIAL" else scene


def check_given(
    K: np.ndarray, sizes: Sequence[tuple[int, int]], *, shared_camera: bool, camera_model: str
) -> None:
    """Raises InputError where known K f64[F, 3, 3] of photographs of these original sizes (width, height)
    would have to become others.
    """
    focal = K[:, [0, 1], [0, 1]]
    if camera_model == "SIMPLE_RADIAL" and not _equal(focal.T):
        text = (
            "camera_model SIMPLE_RADIAL has one focal length, but the intrinsics that were given have an fx"
        )
        raise InputError(f"{text} and an fy: take PINHOLE", argument="camera_model")
    same = all(_equal(focal[group]) for group in _groups([tuple(sorted(size)) for size in sizes]))
    if shared_camera and not (same and all(_equal(K[group]) for group in _groups(sizes))):
        text = "shared_camera is one camera, but the intrinsics that were given are of several"
        raise InputError(f"{text}: leave one of the two out", argument="shared_camera")


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


def original_sizes(transforms: Sequence[ImageTransform]) -> list[tuple[int, int]]:
    """(width, height) of photographs."""
    return [(t.original_width, t.original_height) for t in transforms]


def _equal(values: np.ndarray) -> bool:
    """Whether all rows of [F, ...] are the first one, as far as float32 tells."""
    return bool(np.allclose(values, values[:1], rtol=1e-5, atol=0))


def _K_original(scene: Scene) -> np.ndarray:
    return np.stack([scene.K_original(i) for i in range(len(scene.names))])  # f64[F, 3, 3]


def model_from_original(t: ImageTransform) -> np.ndarray:
    return np.array([[t.scale_x, 0, t.offset_x], [0, t.scale_y, t.offset_y], [0, 0, 1]])


def _groups(keys: Sequence[Hashable]) -> list[np.ndarray]:
    """For every different key, bool[F]: whose it is."""
    return [np.array([other == key for other in keys]) for key in dict.fromkeys(keys)]
