"""ScanNet v2: rooms filmed with a tablet's depth camera; trajectories.

A. Dai et al., "ScanNet", CVPR 2017. The layout is MonST3R's: `SCENE/color_90/frame_0000.jpg` and
`SCENE/pose_90.txt`, 16 numbers a line, world_from_cam; or what the `.sens` files unpack to,
`SCENE/color/0.jpg` and `SCENE/pose/0.txt`, of whose first 270 frames every third is taken.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    cameras,
    folders,
    inverted,
    need,
    numbered,
    numbers_in,
    root_of,
    several,
    stored,
    views_of,
)
from fastvggt_jax.errors import MissingError, SceneError

VIEWS, STEP = 90, 3


@dataclasses.dataclass(frozen=True)
class ScanNet(FileDataset):
    """`views` frames of each scene, every third from the first on; the official test scenes are scene0707_00
    to scene0806_00.
    """

    views: int = VIEWS

    name: ClassVar[str] = "scannet"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("trajectory",), SCENES)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        root, views = root_of(options, cls.name), views_of(options, VIEWS)
        inside = (f"color_{views}", "color")
        scenes = [name for name in folders(root) if any((root / name / folder).is_dir() for folder in inside)]
        if not scenes:
            text = (
                f"root {root} holds no scene: a folder like scene0707_00/color_{views} or scene0707_00/color"
            )
            raise MissingError(text, argument="root")
        return cls.of(options, root, {scene: [] for scene in scenes}, views=views)

    def read(self, scene: str) -> Sample:
        folder = self.root / scene
        if (folder / f"color_{self.views}").is_dir():
            paths = numbered(folder / f"color_{self.views}", "*.jpg")
            need(scene, [folder / f"pose_{self.views}.txt"])
            poses = numbers_in(folder / f"pose_{self.views}.txt", scene, (-1, 4, 4))
        else:
            some = slice(0, self.views * STEP, STEP)
            paths, cams = numbered(folder / "color", "*.jpg")[some], _poses(folder, scene)[some]
            _same_frames(scene, paths, cams)
            poses = np.stack([numbers_in(path, scene, (4, 4)) for path in cams])
        if len(paths) != len(poses):
            raise SceneError(f"it has {len(paths)} frames and {len(poses)} cameras", scene=scene)
        several(scene, len(paths), self.views)
        truth = Truth(cam_from_world=cameras(scene, inverted(poses)))
        return Sample(scene, [stored(path) for path in paths], truth)

    def describe(self) -> dict:
        return super().describe() | {"views": self.views, "frames": f"[:{self.views * STEP}:{STEP}]"}


def _poses(folder: Path, scene: str) -> list[Path]:
    found = numbered(folder / "pose", "*.txt")
    if not found:
        raise SceneError(f"{folder / 'pose'} holds no cameras", scene=scene)
    return found


def _same_frames(scene: str, paths: list[Path], cams: list[Path]) -> None:
    """Raises SceneError where a photograph and the camera of its rank are not of the same frame."""
    for path, cam in zip(paths, cams, strict=False):
        if _number(path) != _number(cam):
            text = f"{path} and {cam} must be of the same frame: one before them is missing"
            raise SceneError(text, scene=scene)


def _number(path: Path) -> str:
    return re.sub(r"\D", "", path.stem).lstrip("0")
