"""7-Scenes: rooms filmed by a Kinect, with cameras by KinectFusion; point clouds.

J. Shotton et al., "Scene coordinate regression forests", CVPR 2013. Files as released, `SCENE/seq-03/` with
`frame-000000.color.png`, `.pose.txt` (world_from_cam) and `.depth.proj.png`: millimetres of 16 bits,
projected into the colour camera by SimpleRecon's 7scenes_preprocessing.
"""

from __future__ import annotations

import dataclasses
import warnings
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
    numbers_in,
    of_size,
    root_of,
    stored,
    stride_of,
    strided,
    there,
    within,
)

SEQUENCES = {  # of each scene's TestSplit.txt
    "chess": (3, 5),
    "fire": (3, 4),
    "heads": (1,),
    "office": (2, 6, 7, 9),
    "pumpkin": (1, 7),
    "redkitchen": (3, 4, 6, 12, 14),
    "stairs": (1, 4),
}
STRIDE = 200
NONE, NEAREST, FARTHEST = 65535, 1e-3, 10.0  # no depth; metres
K = intrinsics(525, 525, 320, 240, centres=True)
SIZE = (640, 480)  # of the photographs that K is of


@dataclasses.dataclass(frozen=True)
class SevenScenes(FileDataset):
    """Every 200th frame of the test sequences, "chess/seq-03" and so on; the dense table has every 40th."""

    name: ClassVar[str] = "7scenes"
    field: ClassVar[Field] = Field(("clouds",), SCENES, CLOUD_WIDTH)
    published: ClassVar = {
        "2ab8b504a26adecf": "as published with π³, every 200th",
        "417bc31ca21c98a4": "as published with π³, every 40th",
    }

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views")
        root, stride = root_of(options, cls.name), stride_of(options, STRIDE)
        scenes = [f"{scene}/seq-{number:02}" for scene, numbers in SEQUENCES.items() for number in numbers]
        there(root, scenes)
        counts = {scene: len(list((root / scene).glob("frame-*.pose.txt"))) for scene in scenes}
        return cls.of(options, root, {scene: strided(count, stride) for scene, count in counts.items()})

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        stems = sorted(path.name.removesuffix(".pose.txt") for path in folder.glob("frame-*.pose.txt"))
        stems = [stems[i] for i in self.taken(scene, len(stems))]
        colour = [_first(folder, stem, (".color.png", ".color.jpg")) for stem in stems]
        depth = [_first(folder, stem, (".depth.proj.png", ".depth.png")) for stem in stems]
        need(scene, [*colour, *depth])
        of_size(colour, SIZE, scene)
        raw = [path.name for path in depth if not path.name.endswith(".proj.png")]
        if raw:
            text = f"{scene}: the depth of {raw[0]} and {len(raw) - 1} more is not registered to the colours"
            warnings.warn(f"{text}: make .depth.proj.png, see docs/evaluation.md", stacklevel=2)
        poses = [numbers_in(folder / f"{stem}.pose.txt", scene, (4, 4)) for stem in stems]
        truth = Truth(
            cam_from_world=cameras(scene, inverted(np.stack(poses))),
            K=np.tile(K, (len(stems), 1, 1)),
            depth=Lazy(partial(_depth, path, scene) for path in depth),
        )
        return Sample(scene, [stored(path) for path in colour], truth)


def _first(folder: Path, stem: str, endings: tuple[str, ...]) -> Path:
    paths = [folder / f"{stem}{ending}" for ending in endings]
    return next(filter(Path.is_file, paths), paths[0])


def _depth(path: Path, scene: str) -> np.ndarray:
    return within(millimetres(path, scene, none=NONE), NEAREST, FARTHEST)
