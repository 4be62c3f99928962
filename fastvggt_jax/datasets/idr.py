"""A scene in the layout of IDR, NeuS and VolSDF, such as their copies of DTU: cameras; poses.

L. Yariv et al., "Multiview neural surface reconstruction", NeurIPS 2020. `SCENE/image/*.png` and
`SCENE/cameras_sphere.npz` (or cameras.npz, cameras_large.npz), whose `world_mat_0`, ... are K ·
cam_from_world.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from scipy.linalg import rq

from fastvggt_jax.datasets.base import PAIRS, Field, Options, Sample, Truth
from fastvggt_jax.datasets.colmap import evenly
from fastvggt_jax.datasets.files import (
    DAMAGED,
    FileDataset,
    cameras,
    pictures,
    several,
    stored,
    views_of,
)
from fastvggt_jax.errors import SceneError

FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")


@dataclasses.dataclass(frozen=True)
class IDR(FileDataset):
    """The folder of one scene, or of several; `views` photographs in order, evenly spread, or all."""

    views: int | None = None

    name: ClassVar[str] = "idr"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("cameras",), PAIRS)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        lacking = f"none of {', '.join(FILES)}, and no folder with one"
        is_scene = lambda folder: _file(folder) is not None
        return cls.of_folders(options, is_scene, lacking, views=views_of(options, None))

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        K, poses = read_cameras_npz(_file(folder) or folder / FILES[0], scene)
        paths = pictures(folder / "image") or pictures(folder / "images")
        if len(paths) != len(poses):
            raise SceneError(f"it has {len(paths)} photographs and {len(poses)} cameras", scene=scene)
        numbers = evenly(len(paths), self.views)
        several(scene, len(numbers))
        truth = Truth(cam_from_world=cameras(scene, poses[numbers]), K=K[numbers])
        return Sample(scene, [stored(paths[i]) for i in numbers], truth)


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read_cameras_npz(path: Path, scene: str) -> tuple[np.ndarray, np.ndarray]:
    """(K f64[F, 3, 3], cam_from_world f64[F, 3, 4]). Raises SceneError."""
    try:
        with np.load(path, allow_pickle=False) as found:
            count = sum(name.startswith("world_mat_") and name[10:].isdecimal() for name in found.files)
            matrices = [np.asarray(found[f"world_mat_{i}"], np.float64)[:3, :4] for i in range(count)]
        return tuple(map(np.stack, zip(*map(decomposed, matrices), strict=True)))  # type: ignore[return-value]
    except (*DAMAGED, np.linalg.LinAlgError) as error:
        raise SceneError(f"{path} must hold world_mat_0, ..., 4x4 ({error})", scene=scene) from error


def decomposed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K f64[3, 3], with ones and positive focal lengths, and cam_from_world f64[3, 4] of their product."""
    if np.linalg.det(matrix[:, :3]) < 0:  # a projection is known up to its sign
        matrix = -matrix
    K, R = rq(matrix[:, :3])
    signs = np.diag(np.sign(np.diag(K)))
    K, R = K @ signs, signs @ R
    return K / K[2, 2], np.concatenate([R, np.linalg.solve(K, matrix[:, 3:])], 1)
