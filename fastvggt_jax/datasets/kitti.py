"""KITTI's depth benchmark: streets from a car, with a laser scanner's depth; video depth.

J. Uhrig et al., "Sparsity invariant CNNs", 3DV 2017. The layout is MonST3R's, in the root or in its folder
`val_selection_cropped`: `image_gathered/DRIVE_02/*.png` and `groundtruth_depth_gathered/DRIVE_02/*.png`, the
first 110 frames of each drive of the validation set.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar, Self

from fastvggt_jax.datasets.base import SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    Lazy,
    folders,
    millimetres,
    need,
    pictures,
    root_of,
    several,
    stored,
)
from fastvggt_jax.errors import MissingError

IMAGES, DEPTH = "image_gathered", "groundtruth_depth_gathered"
PER_METRE = 256.0
VIEWS = 110


@dataclasses.dataclass(frozen=True)
class KITTI(FileDataset):
    """110 frames of each drive, or as many as it has."""

    name: ClassVar[str] = "kitti"
    metrics: ClassVar[tuple[str, ...]] = ("depth",)
    field: ClassVar[Field] = Field(("video depth",), SCENES)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views", "stride", "frames")
        root = root_of(options, cls.name)
        inside = root / "val_selection_cropped"
        root = inside if inside.is_dir() else root
        drives = folders(root / IMAGES) if (root / IMAGES).is_dir() else []
        if not drives:
            raise MissingError(f"root {root} holds no folders {IMAGES}/DRIVE_02", argument="root")
        return cls.of(options, root, {one: [] for one in drives})

    def read(self, scene: str) -> Sample:
        paths = pictures(self.root / IMAGES / scene)[:VIEWS]
        several(scene, len(paths), 1)
        depth = [self.root / DEPTH / scene / path.name for path in paths]
        need(scene, depth)
        truth = Truth(depth=Lazy(partial(millimetres, path, scene, per_unit=PER_METRE) for path in depth))
        return Sample(scene, [stored(path) for path in paths], truth)
