"""Bonn RGB-D: people and balloons in a room; video depth.

E. Palazzolo et al., "ReFusion", IROS 2019. The layout is MonST3R's, `rgbd_bonn_SEQUENCE/rgb_110/*.png` and
`depth_110/*.png`, or the released one, `rgb/` and `depth/`, of whose sorted files numbers 30 to 139 are taken
each.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

from fastvggt_jax.datasets.base import SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    Lazy,
    millimetres,
    pictures,
    root_of,
    several,
    stored,
    there,
)
from fastvggt_jax.errors import SceneError

SEQUENCES = tuple(
    f"rgbd_bonn_{name}" for name in ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
)
PER_METRE, FARTHEST = 5000.0, 70.0
FIRST, LAST = 30, 140


@dataclasses.dataclass(frozen=True)
class Bonn(FileDataset):
    """110 frames of five sequences; colours and depth are paired by order, not by time, as published."""

    name: ClassVar[str] = "bonn"
    metrics: ClassVar[tuple[str, ...]] = ("depth",)
    field: ClassVar[Field] = Field(("video depth",), SCENES, farthest=FARTHEST)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views", "stride", "frames")
        root = root_of(options, cls.name)
        there(root, SEQUENCES)
        return cls.of(options, root, {one: [] for one in SEQUENCES})

    def read(self, scene: str) -> Sample:
        paths, depth = (_some(self.root / scene, kind) for kind in ("rgb", "depth"))
        if len(paths) != len(depth):
            raise SceneError(f"it has {len(paths)} frames and {len(depth)} depth images", scene=scene)
        several(scene, len(paths), 1)
        truth = Truth(depth=Lazy(partial(millimetres, path, scene, per_unit=PER_METRE) for path in depth))
        return Sample(scene, [stored(path) for path in paths], truth)


def _some(folder: Path, kind: str) -> list[Path]:
    prepared = pictures(folder / f"{kind}_{LAST - FIRST}")
    return prepared or pictures(folder / kind)[FIRST:LAST]
