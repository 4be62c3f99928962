"""The test split of `fastvggt_jax.datasets.synthetic`: rendered scenes that no model was trained on."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import jax
import numpy as np

from fastvggt_jax import geometry
from fastvggt_jax.datasets import synthetic
from fastvggt_jax.datasets.base import Options, Sample, Truth
from fastvggt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rendered:
    """`scenes` scenes of the test split from number `first` on, of each `views` square photographs of `size`
    pixels.

    Raises InputError for what cannot be measured.
    """

    scenes: int = 200
    first: int = 0
    views: int = 8
    size: int = 224

    name: ClassVar[str] = "synthetic"
    metrics: ClassVar[tuple[str, ...]] = ("cameras", "depth", "points")

    def __post_init__(self) -> None:
        last = synthetic.SPLIT_SIZE - 1
        for argument, least, why in (
            ("scenes", 1, "there is nothing to measure otherwise"),
            ("first", 0, "scenes are numbered from there on"),
            ("views", 2, "cameras are compared in pairs"),
            ("size", 8, "less shows nothing"),
        ):
            if getattr(self, argument) < least:
                text = f"{argument} must be at least {least}, not {getattr(self, argument)}: {why}"
                raise InputError(text, argument=argument)
        if self.first + self.scenes - 1 > last:
            text = (
                f"first must be at most {last + 1 - self.scenes} for {self.scenes} scenes, not {self.first}"
            )
            raise InputError(f"{text}: the last one is number {last}", argument="first")

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "root", "stride", "frames")
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < self.scenes:
            raise IndexError(number)
        number += self.first
        scene = synthetic.sample("test", number, frames=self.views, height=self.size, width=self.size)
        # Rays go through whole numbers; a Truth counts from the pixel's outer corner.
        K = geometry.move_origin(scene.K, 0.5)
        K, images, poses, depth, points, valid = jax.device_get(
            (K, scene.images, scene.cam_from_world, scene.depth[..., 0], scene.world_points, scene.valid)
        )
        truth = Truth(
            cam_from_world=poses,
            K=np.broadcast_to(K, (self.views, 3, 3)),
            depth=depth,
            points=points,
            valid=valid,
        )
        return Sample(f"test scene {number}", np.rint(images * 255).astype(np.uint8), truth)

    def describe(self) -> dict[str, Any]:
        return {"split": "test", "first": self.first, "views": self.views, "size": self.size}
