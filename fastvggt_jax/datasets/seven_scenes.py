"""7-Scenes: rooms filmed by a Kinect, with cameras by KinectFusion; point clouds.

J. Shotton et al., "Scene coordinate regression forests", CVPR 2013. Files as released, `SCENE/seq-03/` with
`frame-000000.color.png`, `.pose.txt` (world_from_cam) and `.depth.png`: millimetres of 16 bits, of another
camera than the colours. Papers measure on `.depth.proj.png`, which SimpleRecon's 7scenes_preprocessing makes
of it; where that is not there, the depth is registered as it is read.
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
STRIDE, REGISTERED = 200, ".depth.proj.png"
NONE, NEAREST, FARTHEST = 65535, 1e-3, 10.0  # no depth; metres
FOCAL, DEPTH_FOCAL = 525.0, 585.0  # pixels, of the colours' camera and of the depth's
K = intrinsics(FOCAL, FOCAL, 320, 240, centres=True)
SIZE = (640, 480)  # of the photographs that K is of
# Of a Kinect's two cameras, metres: the LIRIS laboratory's calibration, as SimpleRecon's script takes it.
COLOUR_FROM_DEPTH = np.array(
    [
        [0.99996518012567637, 0.0026765126468950343, -0.0079041012313000904, -0.025558943178152542],
        [-0.0027409311281316700, 0.99996302803027592, -0.0081504520778013286, 0.00010109636268061706],
        [0.0078819942130445332, 0.0081718328771890631, 0.99993554558014031, 0.0020318321729487039],
    ]
)


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
        depth = [_first(folder, stem, (REGISTERED, ".depth.png")) for stem in stems]
        need(scene, [*colour, *depth])
        of_size(colour, SIZE, scene)
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
    depth = millimetres(path, scene, none=NONE)
    return within(depth if path.name.endswith(REGISTERED) else registered(depth), NEAREST, FARTHEST)


def registered(depth: np.ndarray) -> np.ndarray:
    """The depth f32[H, W] at the pixels of the colours' camera, in whole millimetres; of several that come to
    lie on a pixel the nearest, 0 where none does.

    As SimpleRecon's 7scenes_preprocessing: both principal points in the middle, rays through the centres of
    pixels, which are then rounded as if these stood at whole numbers.
    """
    height, width = depth.shape
    middle = np.array([width / 2, height / 2])
    rows, columns = np.nonzero(depth > 0)
    z = depth[rows, columns].astype(np.float64)
    rays = (np.stack([columns, rows], -1) + 0.5 - middle) / DEPTH_FOCAL  # f64[M, 2]
    points = np.concatenate([rays * z[:, None], z[:, None], np.ones((len(z), 1))], -1) @ COLOUR_FROM_DEPTH.T
    u, v = np.rint(points[:, :2] / points[:, 2:] * FOCAL + middle).astype(np.int64).T
    inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
    out = np.full(depth.shape, np.inf, np.float32)
    np.minimum.at(out, (v[inside], u[inside]), points[inside, 2].astype(np.float32))
    return np.where(np.isfinite(out), np.floor(1000 * out), 0).astype(np.float32) / np.float32(1000)
