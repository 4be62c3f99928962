"""RealEstate10K: clips of houses from YouTube with cameras by SLAM and bundle adjustment; poses.

T. Zhou et al., "Stereo magnification", SIGGRAPH 2018. The layout is that of π³'s evaluation:
`SEQUENCE/images/0000.png`, ... and `SEQUENCE/annotations.json`, or in the latter's place the released camera
file `SEQUENCE.txt`, in the root or in its folder `test`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import PAIRS, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    cameras,
    drawn,
    folders,
    need,
    pictures,
    root_of,
    stored,
    there,
    views_of,
)
from fastvggt_jax.errors import Error, SceneError
from fastvggt_jax.io.json_files import read_json

VIEWS = 10
NUMBERS = 19  # on a line: time, fx, fy, cx, cy in widths and heights, 0, 0, and cam_from_world, row by row


@dataclasses.dataclass(frozen=True)
class RealEstate10K(FileDataset):
    """Ten frames of each sequence, in the order in which they are drawn."""

    name: ClassVar[str] = "realestate10k"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("cameras",), PAIRS)
    published: ClassVar = {"d0adb386dcb1c491": "as published with π³, 1,719 sequences"}

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride")
        root, views = root_of(options, cls.name), views_of(options, VIEWS)
        counts = {name: len(pictures(root / name / "images")) for name in folders(root)}
        counts = {name: count for name, count in counts.items() if count}
        there(root, list(counts) or ["000c3ab189999a83"], "images")
        return cls.of(options, root, drawn(counts, views))

    def read(self, scene: str) -> Sample:
        paths = pictures(self.root / scene / "images")
        poses = self._poses(scene)
        if len(poses) != len(paths):
            text = f"it has {len(paths)} frames, and cameras of {len(poses)}: a frame that could not be had "
            raise SceneError(text + "shifts the names of all that follow", scene=scene)
        numbers = self.taken(scene, len(paths))
        return Sample(
            scene,
            [stored(paths[i]) for i in numbers],
            Truth(cam_from_world=cameras(scene, [poses[i] for i in numbers])),
        )

    def _poses(self, scene: str) -> np.ndarray:
        path = self.root / scene / "annotations.json"
        texts = [self.root / f"{scene}.txt", self.root / "test" / f"{scene}.txt"]
        released = next(filter(Path.is_file, texts), None)
        if not path.is_file() and released is not None:
            return read_camera_file(released, scene)
        need(scene, [path])
        try:
            entries = sorted(read_json(path), key=lambda one: one["idx"])
            return np.array([one["extrinsics"] for one in entries], np.float64).reshape(-1, 4, 4)[:, :3]
        except (Error, KeyError, TypeError, ValueError) as error:
            text = f"{path} must be a list of objects with idx and extrinsics, 4x4 ({error})"
            raise SceneError(text, scene=scene) from error


def read_camera_file(path: Path, scene: str) -> np.ndarray:
    """cam_from_world f64[F, 3, 4] of a file as it was released: an address, then a line for each frame."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        values: Any = [line.split() for line in lines if line.strip()]
        return np.array(values, np.float64).reshape(-1, NUMBERS)[:, 7:].reshape(-1, 3, 4)
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} must hold {NUMBERS} numbers a line ({error})", scene=scene) from error
