"""A toy data set: a wavy wall from several cameras, with cameras and depth but no points.

To be used as `with registered("walls", Walls.build): …`.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from fastvggt_jax.datasets.base import Sample, Truth


@dataclasses.dataclass
class Walls:
    """Scenes of `views` photographs of `shape` (height, width) each."""

    scenes: int = 2
    views: int = 3
    size: int | None = None
    shape: tuple[int, int] = (32, 40)

    name: ClassVar[str] = "walls"
    metrics: ClassVar[tuple[str, ...]] = ("cameras", "depth", "points")

    @classmethod
    def build(cls, options):
        options.refuse(cls.name, "first")
        return cls(options.scenes or 2, options.views or 3, options.size)

    def __len__(self):
        return self.scenes

    def __getitem__(self, number):
        rng = np.random.default_rng(number)
        (height, width), F = self.shape, self.views
        K = np.array([[width, 0, width / 2 + 0.5], [0, width, height / 2 + 0.5], [0, 0, 1]])
        angle = rng.uniform(-0.2, 0.2, F)
        poses = np.tile(np.eye(3, 4), (F, 1, 1))
        poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angle)
        poses[:, 0, 2], poses[:, 2, 0] = np.sin(angle), -np.sin(angle)
        poses[:, :, 3] = rng.uniform(-1, 1, (F, 3))
        v, u = np.mgrid[:height, :width] + 0.5
        depth = 4 + 0.03 * u + 0.5 * np.sin(v / 5 + np.arange(F)[:, None, None])
        images = np.clip(40 * depth[..., None] + [0, 20, 40], 0, 255).astype(np.uint8)
        truth = Truth(cam_from_world=poses, K=np.tile(K, (F, 1, 1)), depth=depth)
        return Sample(f"wall {number}", images, truth)

    def describe(self):
        return {"views": self.views}
