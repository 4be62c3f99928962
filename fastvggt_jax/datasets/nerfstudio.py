"""A scene of your own whose cameras a transforms.json knows, as nerfstudio reads it; poses.

https://docs.nerf.studio/quickstart/data_conventions.html: transform_matrix is world_from_cam with OpenGL
axes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import PAIRS, Field, Options, Sample, Truth
from fastvggt_jax.datasets.colmap import evenly
from fastvggt_jax.datasets.files import (
    FileDataset,
    cameras,
    inverted,
    need,
    several,
    stored,
    views_of,
)
from fastvggt_jax.errors import Error, SceneError
from fastvggt_jax.geometry import GL_FROM_CV
from fastvggt_jax.io.json_files import read_json

FILE = "transforms.json"


@dataclasses.dataclass(frozen=True)
class Nerfstudio(FileDataset):
    """The folder of one scene, or of several, with a transforms.json each; `views` of its frames in their
    order, evenly spread, or all.
    """

    views: int | None = None

    name: ClassVar[str] = "nerfstudio"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("cameras",), PAIRS)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride", "frames")
        lacking = f"no {FILE}, and no folder with one"
        is_scene = lambda folder: (folder / FILE).is_file()
        return cls.of_folders(options, is_scene, lacking, views=views_of(options, None))

    def read(self, scene: str) -> Sample:
        path = self.root / scene / FILE
        try:
            frames: Any = read_json(path)["frames"]
            frames = [frames[i] for i in evenly(len(frames), self.views)]
            poses = np.array([one["transform_matrix"] for one in frames], np.float64).reshape(-1, 4, 4)
            paths = [path.parent / one["file_path"] for one in frames]
        except Error as error:
            raise SceneError(error.text, scene=scene) from error
        except (KeyError, TypeError, ValueError) as error:
            text = f"{path} must have frames with file_path and transform_matrix, 4x4 ({error})"
            raise SceneError(text, scene=scene) from error
        several(scene, len(frames))
        # Those of Blender leave out the ending.
        paths = [p if p.is_file() or p.suffix else p.with_suffix(".png") for p in paths]
        need(scene, paths)
        truth = Truth(cam_from_world=cameras(scene, inverted(poses @ GL_FROM_CV)))
        return Sample(scene, [stored(path) for path in paths], truth)
