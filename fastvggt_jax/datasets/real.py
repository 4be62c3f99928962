"""Photographs with known cameras: folders that hold a cameras.json, as `fastvggt reconstruct` writes it, and
the photographs that it names in images/ (or beside it).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    FileDataset,
    cameras,
    chosen,
    inverted,
    need,
    root_of,
    several,
    views_of,
)
from fastvggt_jax.errors import MissingError, SceneError
from fastvggt_jax.io.json_files import read_cameras

FILE = "cameras.json"
VIEWS = 8


@dataclasses.dataclass(frozen=True)
class Real(FileDataset):
    """Each folder gives as many scenes as it has runs of `views` photographs that follow one another, at
    least one: "fox 0-7", "fox 8-15", ...; one of fewer photographs is taken whole.

    Measured is how the cameras stand to one another.
    """

    views: int = VIEWS

    name: ClassVar[str] = "real"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        root, views = root_of(options, cls.name), views_of(options, VIEWS)
        folders = (
            [root] if (root / FILE).is_file() else sorted(path.parent for path in root.glob(f"*/{FILE}"))
        )
        if not folders:
            text = (
                f"root {root} holds no {FILE}, and no folder with one: it lies beside images/, and has for "
            )
            raise MissingError(text + "each photograph its name, K and world_from_cam", argument="root")
        scenes = []
        for folder in folders:
            count = len(read_cameras(folder / FILE)["images"])
            runs = max(1, count // views)
            scenes += [f"{folder.name} {views * i}-{min(views * (i + 1), count) - 1}" for i in range(runs)]
        return cls(root, chosen(scenes, options), options.size, views=views)

    def read(self, scene: str) -> Sample:
        name, _, run = scene.rpartition(" ")
        first, last = map(int, run.split("-"))
        folder = self.root if (self.root / FILE).is_file() else self.root / name
        images = read_cameras(folder / FILE)["images"][first : last + 1]
        several(scene, len(images))
        try:
            poses = np.array([one["world_from_cam"] for one in images], np.float64).reshape(-1, 4, 4)
            K = np.array([one["K"] for one in images], np.float64).reshape(-1, 3, 3)
        except (TypeError, ValueError) as error:
            text = f"its world_from_cam must be 4x4 and its K 3x3 numbers ({error})"
            raise SceneError(text, scene=scene) from error
        paths = [photograph(folder, one["name"]) for one in images]
        need(scene, paths)
        return Sample(scene, paths, Truth(cam_from_world=cameras(scene, inverted(poses)), K=K))

    def describe(self) -> dict[str, Any]:
        return {"views": self.views, "size": self.size}


def photograph(folder: Path, name: str) -> Path:
    """The file of this name in images/, or in the folder itself."""
    inside = folder / "images" / name
    return inside if inside.is_file() or not (folder / name).is_file() else folder / name
