"""A scene of your own whose cameras COLMAP knows: its model and the photographs; poses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import PAIRS, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import FileDataset, cameras, listed, several, stored, views_of
from fastvggt_jax.errors import Error, SceneError
from fastvggt_jax.io.colmap import Photograph, find_model, read_model

IMAGES = ("images", "images_4", "images_2", "", "image", "input", "rgb")


@dataclasses.dataclass(frozen=True)
class Colmap(FileDataset):
    """The folder of one scene, or of several: each holds a model, .bin or .txt, where COLMAP puts it, and
    the photographs in images/ or beside it. Those that the model lacks are not used; of the others `views`,
    evenly spread, or all.
    """

    views: int | None = None

    name: ClassVar[str] = "colmap"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("cameras",), PAIRS)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        lacking = "no COLMAP model, and no folder with one: cameras and images, .bin or .txt"
        is_scene = lambda folder: find_model(folder) is not None
        return cls.of_folders(options, is_scene, lacking, views=views_of(options, None))

    def read(self, scene: str) -> Sample:
        return read_colmap(self.root / scene, scene, self.views)


def read_colmap(folder: Path, scene: str, views: int | None) -> Sample:
    """Of `views` photographs, evenly spread over those that the model has, or of all. Raises SceneError."""
    try:
        model = read_model(folder)
    except Error as error:
        raise SceneError(error.text, scene=scene) from error
    chosen = [model[i] for i in evenly(len(model), views)]
    several(scene, len(chosen))
    paths = _photographs(folder, scene, chosen)
    poses, K = np.stack([one.cam_from_world for one in chosen]), np.stack([one.K for one in chosen])
    truth = Truth(cam_from_world=cameras(scene, poses), K=K)
    return Sample(scene, [stored(path) for path in paths], truth)


def evenly(count: int, views: int | None) -> list[int]:
    """Numbers of `views` of so many, from the first to the last; all, where there are no more."""
    if views is None or views >= count:
        return list(range(count))
    return np.rint(np.linspace(0, count - 1, views)).astype(int).tolist()


def _photographs(folder: Path, scene: str, chosen: list[Photograph]) -> list[Path]:
    """In the first folder that holds all of them. Raises SceneError."""
    for inside in IMAGES:
        paths = [folder / inside / one.name for one in chosen]
        if all(path.is_file() for path in paths):
            return paths
    gone = [one.name for one in chosen if not (folder / "images" / one.name).is_file()]
    text = f"{folder / 'images'} lacks {len(gone)} of the model's photographs: {listed(gone)}"
    raise SceneError(text, scene=scene)
