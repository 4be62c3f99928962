"""Tanks & Temples: photographs of large scenes; poses against COLMAP's of all photographs.

A. Knapitsch et al., "Tanks and temples", SIGGRAPH 2017; the metrics after MASt3R-SfM (§5.1) and FlowMap. A
scene is a folder with a COLMAP model and its photographs (see `datasets.colmap`), or of the released ones a
folder of photographs and `SCENE_COLMAP_SfM.log`, beside it or in it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import SCENES, Field, Options, Sample, Truth
from fastvggt_jax.datasets.colmap import evenly, read_colmap
from fastvggt_jax.datasets.files import (
    FileDataset,
    cameras,
    folders,
    inverted,
    need,
    pictures,
    root_of,
    several,
    stored,
    views_of,
)
from fastvggt_jax.errors import MissingError, SceneError
from fastvggt_jax.io.colmap import find_model

VIEWS = 25


@dataclasses.dataclass(frozen=True)
class TanksAndTemples(FileDataset):
    """`views` photographs of each scene, evenly spread from the first to the last; more than there are: all.
    The published tables have 25, 50, 100, 200 and all.
    """

    views: int = VIEWS

    name: ClassVar[str] = "tanksandtemples"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("cameras", "Procrustes"), SCENES)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        root = root_of(options, cls.name)
        scenes = [name for name in folders(root) if find_model(root / name) or _log(root, name)]
        if not scenes:
            text = f"root {root} holds no scene: a folder with a COLMAP model, such as Barn/sparse/0, or a "
            raise MissingError(text + "folder of photographs Barn and Barn_COLMAP_SfM.log", argument="root")
        return cls.of(options, root, {scene: [] for scene in scenes}, views=views_of(options, VIEWS))

    def read(self, scene: str) -> Sample:
        log = _log(self.root, scene)
        if find_model(self.root / scene) is not None or log is None:
            return read_colmap(self.root / scene, scene, self.views)
        need(scene, [log])
        poses, paths = read_log(log, scene), pictures(self.root / scene)
        if len(poses) != len(paths):
            text = f"{log.name} has {len(poses)} cameras, and the folder {len(paths)} photographs"
            raise SceneError(text, scene=scene)
        numbers = evenly(len(paths), self.views)
        several(scene, len(numbers))
        truth = Truth(cam_from_world=cameras(scene, inverted(poses[numbers])))
        return Sample(scene, [stored(paths[i]) for i in numbers], truth)

    def describe(self) -> dict:
        spread = "round(linspace(0, n - 1, views)) of the photographs in order of names"
        return super().describe() | {"views": self.views, "frames": spread}


def _log(root: Path, scene: str) -> Path | None:
    paths = [root / inside / f"{scene}_COLMAP_SfM.log" for inside in ("", scene)]
    return next((path for path in paths if path.is_file()), None)


def read_log(path: Path, scene: str) -> np.ndarray:
    """world_from_cam f64[F, 4, 4] of a released .log, a block of five lines for each photograph in order: its
    number twice and 0, then the matrix.
    """
    try:
        values = np.array(path.read_text(encoding="utf-8").split(), np.float64).reshape(-1, 19)
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} must hold blocks of 3 and 16 numbers ({error})", scene=scene) from error
    return values[np.argsort(values[:, 0], kind="stable"), 3:].reshape(-1, 4, 4)
