"""TUM RGB-D's dynamic sequences: an office with people moving, and a motion capture's cameras; trajectories.

J. Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems", IROS 2012. The layout is MonST3R's,
`SEQUENCE/rgb_90/*.png` and `SEQUENCE/groundtruth_90.txt`; or the released one, with rgb.txt, groundtruth.txt
and rgb/, whose frames are associated with cameras by time as MonST3R does.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from scipy.spatial.transform import Rotation

from fastvggt_jax.datasets.base import SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    cameras,
    inverted,
    need,
    pictures,
    root_of,
    several,
    stored,
    there,
    views_of,
)
from fastvggt_jax.errors import SceneError

SEQUENCES = tuple(
    f"rgbd_dataset_freiburg3_{how}_{motion}"
    for how in ("sitting", "walking")
    for motion in ("static", "xyz", "halfsphere", "rpy")
)
VIEWS, STEP, APART = 90, 3, 0.02  # seconds between a frame and its camera, at most


@dataclasses.dataclass(frozen=True)
class TUM(FileDataset):
    """`views` frames of each sequence, every third of those that have a camera, from the first on."""

    views: int = VIEWS

    name: ClassVar[str] = "tum"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("trajectory",), SCENES)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        root, views = root_of(options, cls.name), views_of(options, VIEWS)
        there(root, SEQUENCES)
        return cls.of(options, root, {name: [] for name in SEQUENCES}, views=views)

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        if (folder / f"rgb_{self.views}").is_dir():
            paths = pictures(folder / f"rgb_{self.views}")
            need(scene, [folder / f"groundtruth_{self.views}.txt"])
            poses = read_trajectory(folder / f"groundtruth_{self.views}.txt", scene)[1]
        else:
            need(scene, [folder / "rgb.txt", folder / "groundtruth.txt"])
            times, files = _table(folder / "rgb.txt", scene)
            moments, known = read_trajectory(folder / "groundtruth.txt", scene)
            pairs = associated(times, moments)[::STEP][: self.views]
            paths = [folder / files[i] for i, _ in pairs]
            poses = known[[j for _, j in pairs]] if pairs else known[:0]
            need(scene, paths)
        if len(paths) != len(poses):
            raise SceneError(f"it has {len(paths)} frames and {len(poses)} cameras", scene=scene)
        several(scene, len(paths))
        truth = Truth(cam_from_world=cameras(scene, inverted(poses)))
        return Sample(scene, [stored(path) for path in paths], truth)

    def describe(self) -> dict:
        return super().describe() | {"views": self.views, "frames": f"associated[::{STEP}][:{self.views}]"}


def _lines(path: Path, scene: str) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} cannot be read ({error})", scene=scene) from error
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def _table(path: Path, scene: str) -> tuple[np.ndarray, list[str]]:
    try:
        lines = _lines(path, scene)
        return np.array([float(line[0]) for line in lines]), [line[1] for line in lines]
    except (ValueError, IndexError) as error:
        raise SceneError(f"{path} must have a time and a file a line ({error})", scene=scene) from error


def read_trajectory(path: Path, scene: str) -> tuple[np.ndarray, np.ndarray]:
    """Times f64[F] and world_from_cam f64[F, 4, 4] of lines `time x y z qx qy qz qw`. Raises SceneError."""
    try:
        values = np.array(_lines(path, scene), np.float64).reshape(-1, 8)
        poses = np.tile(np.eye(4), (len(values), 1, 1))
        finite = np.isfinite(values).all(1)
        poses[finite, :3, :3] = Rotation.from_quat(values[finite, 4:]).as_matrix()
        poses[~finite] = np.nan
        poses[:, :3, 3] = values[:, 1:4]
    except ValueError as error:
        raise SceneError(f"{path} must have 8 numbers a line ({error})", scene=scene) from error
    return values[:, 0], poses


def associated(times: np.ndarray, moments: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (number of a time, number of a moment) less than 0.02 s apart, each in one at most: the nearest
    two first, then those of what is left; in order of time.
    """
    order = np.argsort(moments)
    start = np.searchsorted(moments[order], times - APART, "right")
    stop = np.searchsorted(moments[order], times + APART, "left")
    near = [(abs(times[i] - moments[j]), i, j) for i in range(len(times)) for j in order[start[i] : stop[i]]]
    found: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(near):
        if i not in found and j not in taken:
            found[i] = int(j)
            taken.add(j)
    return sorted(found.items(), key=lambda pair: times[pair[0]])
