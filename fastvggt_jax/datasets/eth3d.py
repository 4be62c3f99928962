"""ETH3D: photographs of buildings and landscapes with a laser scanner's depth; point clouds.

T. Schöps et al., "A multi-view stereo benchmark", CVPR 2017. The layout is that of π³'s evaluation, which
`fastvggt data prepare eth3d` makes of the released files: `SCENE/images/custom_undistorted/*.JPG`,
`SCENE/ground_truth_depth/custom_undistorted/*.JPG`, raw float32 in metres in spite of the name, and
`SCENE/custom_undistorted_cam/*.npz` with `intrinsics` 3x3 and `extrinsics` 4x4, cam_from_world.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import CLOUD_WIDTH, SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    DAMAGED,
    FileDataset,
    Lazy,
    cameras,
    need,
    pictures,
    root_of,
    size_of,
    stored,
    stride_of,
    strided,
    there,
)
from fastvggt_jax.errors import SceneError

ALL = (
    *("courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes", "playground"),
    *("relief", "relief_2", "terrace", "terrains"),
)
IMAGES, DEPTH = "images/custom_undistorted", "ground_truth_depth/custom_undistorted"
CAMERAS = "custom_undistorted_cam"
STRIDE = 5


@dataclasses.dataclass(frozen=True)
class ETH3D(FileDataset):
    """Every fifth photograph of each scene, by name."""

    name: ClassVar[str] = "eth3d"
    field: ClassVar[Field] = Field(("clouds",), SCENES, CLOUD_WIDTH)
    published: ClassVar = {"aa06b13789d62b4e": "as published with π³, every 5th"}

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views")
        root, stride = root_of(options, cls.name), stride_of(options, STRIDE)
        there(root, ALL, IMAGES)
        counts = {scene: len(pictures(root / scene / IMAGES)) for scene in ALL}
        return cls.of(options, root, {scene: strided(count, stride) for scene, count in counts.items()})

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        paths = pictures(folder / IMAGES)
        paths = [paths[i] for i in self.taken(scene, len(paths))]
        depth = [folder / DEPTH / path.name for path in paths]
        cams = [folder / CAMERAS / f"{path.stem}.npz" for path in paths]
        need(scene, [*depth, *cams])
        K, poses = zip(*(_camera(path, scene) for path in cams), strict=True)
        half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # π³ counts from the first pixel's centre
        maps = [
            partial(raw_depth, d, size_of(path, scene), scene) for d, path in zip(depth, paths, strict=True)
        ]
        truth = Truth(cam_from_world=cameras(scene, poses), K=np.stack(K) + half, depth=Lazy(maps))
        return Sample(scene, [stored(path) for path in paths], truth)


def _camera(path: Path, scene: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            K, pose = (np.asarray(found[name], np.float64) for name in ("intrinsics", "extrinsics"))
            return K.reshape(3, 3), pose.reshape(4, 4)
    except DAMAGED as error:
        text = f"{path} must hold intrinsics, 3x3, and extrinsics, 4x4 ({error})"
        raise SceneError(text, scene=scene) from error


def raw_depth(path: Path, size: tuple[int, int], scene: str) -> np.ndarray:
    """f32[H, W] of a file of numbers alone, 0 where there is none. Raises SceneError."""
    width, height = size
    try:
        depth = np.fromfile(path, "<f4")
    except OSError as error:
        raise SceneError(f"{path} cannot be read ({error.strerror})", scene=scene) from error
    if depth.size != width * height or path.stat().st_size != 4 * depth.size:
        text = f"{path} has {path.stat().st_size} bytes, and {width}x{height} depths of 4 are wanted"
        raise SceneError(text, scene=scene)
    return np.where(np.isfinite(depth), depth, 0).reshape(height, width)
