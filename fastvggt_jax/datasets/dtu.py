"""DTU: objects on a table, photographed by a robot, with depth of a scanner's surface; point clouds.

R. Jensen et al., "Large scale multi-view stereopsis evaluation", CVPR 2014. The layout is MVSNet's with
Spann3R's depth and masks: `scan1/images/00000000.jpg`, `scan1/depths/00000000.npy` (millimetres),
`scan1/binary_masks/00000000.png` and `scan1/cams/00000000_cam.txt`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from fastvggt_jax.datasets.base import CLOUD_WIDTH, SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    DAMAGED,
    FileDataset,
    Lazy,
    cameras,
    need,
    pictures,
    root_of,
    stride_of,
    strided,
    there,
)
from fastvggt_jax.errors import SceneError
from fastvggt_jax.sources.base import Frame
from fastvggt_jax.sources.photographs import open_as_stored

SCANS = (1, 4, 9, 10, 11, 12, 13, 15, 23, 24, 29, 32, 33, 34, 48, 49, 62, 75, 77, 110, 114, 118)
STRIDE = 5
REACH = 100.0  # millimetres
ERODED = np.ones((10, 10), bool)


@dataclasses.dataclass(frozen=True)
class DTU(FileDataset):
    """Every fifth of 49 photographs of each scan."""

    name: ClassVar[str] = "dtu"
    field: ClassVar[Field] = Field(("clouds",), SCENES, CLOUD_WIDTH, reach=REACH)
    published: ClassVar = {"62a417196d3bef4b": "as published with π³, every 5th"}

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views")
        root, stride = root_of(options, cls.name), stride_of(options, STRIDE)
        scans = [f"scan{number}" for number in SCANS]
        there(root, scans, "images")
        counts = {scan: len(pictures(root / scan / "images")) for scan in scans}
        return cls.of(options, root, {scan: strided(count, stride) for scan, count in counts.items()})

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        paths = pictures(folder / "images")
        paths = [paths[i] for i in self.taken(scene, len(paths))]
        depth = [folder / "depths" / f"{path.stem}.npy" for path in paths]
        masks = [folder / "binary_masks" / f"{path.stem}.png" for path in paths]
        cams = [folder / "cams" / f"{path.stem}_cam.txt" for path in paths]
        need(scene, [*depth, *masks, *cams])
        poses, K = zip(*(read_cam(path, scene) for path in cams), strict=True)
        half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # as π³ counts pixels
        truth = Truth(
            cam_from_world=cameras(scene, poses),
            K=np.stack(K) + half,
            depth=Lazy(partial(_depth, d, m, scene) for d, m in zip(depth, masks, strict=True)),
        )
        sizes = [_size(path, scene) for path in depth]
        images = [Frame(partial(_resized, path, size), path) for path, size in zip(paths, sizes, strict=True)]
        return Sample(scene, images, truth)


def read_cam(path: Path, scene: str) -> tuple[np.ndarray, np.ndarray]:
    """(cam_from_world f64[4, 4], K f64[3, 3]) of MVSNet's camera file. Raises SceneError."""
    try:
        words = path.read_text(encoding="utf-8").split()
        if words[0] != "extrinsic" or words[17] != "intrinsic":
            raise ValueError("'extrinsic' and 'intrinsic' stand before a matrix each")
        return np.array(words[1:17], float).reshape(4, 4), np.array(words[18:27], float).reshape(3, 3)
    except (OSError, ValueError, IndexError) as error:
        raise SceneError(f"{path} is no camera file of MVSNet ({error})", scene=scene) from error


def _size(depth: Path, scene: str) -> tuple[int, int]:
    """(width, height) of a file of depths."""
    try:
        height, width = np.load(depth, mmap_mode="r", allow_pickle=False).shape[:2]
    except DAMAGED as error:
        raise SceneError(f"{depth} must hold depths, height x width ({error})", scene=scene) from error
    return width, height


def _resized(path: Path, size: tuple[int, int]) -> Image.Image:
    """The photograph at the depth's size, for which its K is."""
    image = open_as_stored(path)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _depth(path: Path, mask: Path, scene: str) -> np.ndarray:
    """f32[H, W], 0 outside of the mask, ten pixels of whose border are taken off."""
    try:
        depth = np.load(path, allow_pickle=False).astype(np.float32)
        depth = depth.reshape(depth.shape[:2])
        size = (depth.shape[1], depth.shape[0])
        with Image.open(mask) as image:
            small = image.convert("L").resize(size, Image.Resampling.NEAREST)
    except (*DAMAGED, SyntaxError) as error:
        raise SceneError(f"{path} or {mask} cannot be read ({error})", scene=scene) from error
    # OpenCV's erosion keeps to the border of the image, and its even box leans to the left and up.
    inside = binary_erosion(np.asarray(small) > 127.5, ERODED, border_value=1)
    return np.where(inside, depth, 0)
