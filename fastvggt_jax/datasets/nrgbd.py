"""NRGBD: rendered rooms; point clouds.

D. Azinović et al., "Neural RGB-D surface reconstruction", CVPR 2022. Files as released:
`SCENE/images/img0.png`, `SCENE/depth/depth0.png` (millimetres of 16 bits) and `SCENE/poses.txt`, four lines a
frame: world_from_cam with OpenGL axes.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import CLOUD_WIDTH, SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    Lazy,
    cameras,
    intrinsics,
    inverted,
    millimetres,
    need,
    numbered,
    numbers_in,
    of_size,
    root_of,
    several,
    stored,
    stride_of,
    strided,
    there,
    within,
)
from fastvggt_jax.errors import SceneError
from fastvggt_jax.geometry import GL_FROM_CV

ALL = (
    *("breakfast_room", "complete_kitchen", "green_room", "grey_white_room", "kitchen", "morning_apartment"),
    *("staircase", "thin_geometry", "whiteroom"),
)
STRIDE, CUT3R = 500, "cut3r"  # the latter is the protocol, which takes others
NEAREST, FARTHEST = 1e-3, 10.0  # metres
FOCAL = 554.2562584220408
K = intrinsics(FOCAL, FOCAL, 320, 240, centres=True)
SIZE = (640, 480)  # of the photographs that K is of


@dataclasses.dataclass(frozen=True)
class NRGBD(FileDataset):
    """Every 500th frame of each scene, of one of which that is one alone; the dense table has every 100th.

    By CUT3R's protocol every 500th, or every n/2-th of n frames where there are fewer than 1,000; of these,
    frames without a camera are not taken (posed_only).
    """

    posed_only: bool = False

    name: ClassVar[str] = "nrgbd"
    field: ClassVar[Field] = Field(("clouds",), SCENES, CLOUD_WIDTH)
    published: ClassVar = {
        "1d6e3ac1fb6e8d9a": "as published with π³, every 500th",
        "1efdf042cdecc931": "as published with π³, every 100th",
    }

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views")
        root, stride = root_of(options, cls.name), stride_of(options, STRIDE)
        there(root, ALL, "images")
        counts = {scene: len(numbered(root / scene / "images", "img*.png")) for scene in ALL}
        cut3r = options.protocol == CUT3R
        step = lambda count: min(stride, max(1, count // 2)) if cut3r else stride
        frames = {scene: strided(count, step(count)) for scene, count in counts.items()}
        return cls.of(options, root, frames, posed_only=cut3r)

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        images = numbered(folder / "images", "img*.png")
        depth = numbered(folder / "depth", "depth*.png")
        need(scene, [folder / "poses.txt"])
        poses = read_poses(folder / "poses.txt", scene)
        if not len(images) == len(depth) == len(poses):
            text = f"it has {len(images)} images, {len(depth)} depth images and {len(poses)} cameras"
            raise SceneError(text, scene=scene)
        numbers = self.taken(scene, len(images), least=1)
        if self.posed_only:
            numbers = [i for i in numbers if np.isfinite(poses[i]).all()]
            several(scene, len(numbers))
        of_size([images[i] for i in numbers], SIZE, scene)
        truth = Truth(
            cam_from_world=cameras(scene, inverted(poses[numbers])),
            K=np.tile(K, (len(numbers), 1, 1)),
            depth=Lazy(partial(_depth, depth[i], scene) for i in numbers),
        )
        return Sample(scene, [stored(images[i]) for i in numbers], truth)


def read_poses(path: Path, scene: str) -> np.ndarray:
    """world_from_cam f64[F, 4, 4] with OpenCV axes; some copies have NaN."""
    return numbers_in(path, scene, (-1, 4, 4)) @ GL_FROM_CV


def _depth(path: Path, scene: str) -> np.ndarray:
    return within(millimetres(path, scene), NEAREST, FARTHEST)
