"""MPI Sintel: an animated film with its own cameras and depth; trajectories and video depth.

D. Butler et al., "A naturalistic open source movie for optical flow evaluation", ECCV 2012. Files as
released, in the root or in its folder `training`: `final/SEQUENCE/*.png`, `depth/SEQUENCE/*.dpt` and
`camdata_left/SEQUENCE/*.cam`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    Lazy,
    cameras,
    need,
    pictures,
    root_of,
    several,
    stored,
    there,
)
from fastvggt_jax.errors import SceneError

SEQUENCES = (
    *("alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
TAG = 202021.25  # with which every .dpt and .cam begins
FARTHEST = 70.0


@dataclasses.dataclass(frozen=True)
class Sintel(FileDataset):
    """Fourteen sequences of its training set, all frames, as MonST3R chose them."""

    name: ClassVar[str] = "sintel"
    metrics: ClassVar[tuple[str, ...]] = ("cameras", "depth")
    field: ClassVar[Field] = Field(("trajectory", "video depth"), SCENES, farthest=FARTHEST, clipped=True)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "views", "stride", "frames")
        root = root_of(options, cls.name)
        root = root / "training" if (root / "training").is_dir() else root
        there(root / "final", SEQUENCES)
        return cls.of(options, root, {one: [] for one in SEQUENCES})

    def read(self, scene: str) -> Sample:
        paths = pictures(self.root / "final" / scene)
        several(scene, len(paths))
        depth = [self.root / "depth" / scene / f"{path.stem}.dpt" for path in paths]
        cams = [self.root / "camdata_left" / scene / f"{path.stem}.cam" for path in paths]
        need(scene, [*depth, *cams])
        K, poses = zip(*(read_cam(path, scene) for path in cams), strict=True)
        truth = Truth(
            cam_from_world=cameras(scene, np.stack(poses)),
            K=np.stack(K),
            depth=Lazy(partial(read_dpt, path, scene) for path in depth),
        )
        return Sample(scene, [stored(path) for path in paths], truth)


def read_dpt(path: Path, scene: str) -> np.ndarray:
    """f32[H, W] of a .dpt: its tag, width, height, and the depths. Raises SceneError."""
    data = _tagged(path, scene)
    width, height = np.frombuffer(data, "<i4", 2, 4) if len(data) >= 12 else (0, 0)
    if width < 1 or height < 1 or len(data) != 12 + 4 * int(width) * int(height):
        raise SceneError(
            f"{path} has {len(data)} bytes, which {width}x{height} depths do not fill", scene=scene
        )
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width)


def read_cam(path: Path, scene: str) -> tuple[np.ndarray, np.ndarray]:
    """(K f64[3, 3], cam_from_world f64[3, 4]) of a .cam: its tag, then both, row by row. SceneError."""
    data = _tagged(path, scene)
    if len(data) != 4 + 8 * 21:
        raise SceneError(f"{path} has {len(data)} bytes, and a .cam has {4 + 8 * 21}", scene=scene)
    values = np.frombuffer(data, "<f8", offset=4)
    return values[:9].reshape(3, 3), values[9:].reshape(3, 4)


def _tagged(path: Path, scene: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path} cannot be read ({error.strerror})", scene=scene) from error
    if len(data) < 4 or np.frombuffer(data, "<f4", 1)[0] != np.float32(TAG):
        raise SceneError(f"{path} does not begin with Sintel's tag {TAG}", scene=scene)
    return data
