"""A real stereo pair with measured depth: the motorcycle of Middlebury 2014, which scikit-image ships. Needs
the extra `evaluate`.

D. Scharstein et al., "High-resolution stereo datasets with subpixel-accurate ground truth", GCPR 2014.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any, ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import Options, Sample, Truth
from fastvggt_jax.errors import ExtraError

# Of the photographs as scikit-image ships them, in pixels and metres; from its documentation.
FOCAL, CENTRE_X, CENTRE_Y, RIGHT_CENTRE_X, BASELINE = 994.978, 311.193, 254.877, 342.279, 0.193001


@dataclasses.dataclass(frozen=True)
class Stereo:
    """A pair of rectified photographs, u8[H, W, 3], the left one first, and the left one's disparity in
    pixels [H, W], not finite where unknown.

    Measured is how well the depths of the left photograph are ordered, in its own pixels.
    """

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    size: int | None = None

    name: ClassVar[str] = "stereo"
    metrics: ClassVar[tuple[str, ...]] = ("rank correlation",)

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "scenes", "first", "views", "root", "stride", "frames")
        return cls(*motorcycle(), options.size)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> Sample:
        if number != 0:
            raise IndexError(number)
        disparity = np.asarray(self.disparity, np.float64)
        known = np.isfinite(disparity) & (disparity > 0)
        depth = FOCAL * BASELINE / (np.where(known, disparity, 1) + RIGHT_CENTRE_X - CENTRE_X)
        K = np.array([[FOCAL, 0, CENTRE_X + 0.5], [0, FOCAL, CENTRE_Y + 0.5], [0, 0, 1]])
        poses = np.tile(np.eye(3, 4), (2, 1, 1))
        poses[1, 0, 3] = -BASELINE
        truth = Truth(
            cam_from_world=poses,
            K=np.stack([K, K + [[0, 0, RIGHT_CENTRE_X - CENTRE_X], [0, 0, 0], [0, 0, 0]]]),
            depth=np.stack([depth, np.ones_like(depth)]),
            valid=np.stack([known, np.zeros_like(known)]),
        )
        return Sample("motorcycle", [self.left, self.right], truth)

    def describe(self) -> dict[str, Any]:
        return {"pair": "Middlebury 2014 motorcycle", "size": self.size}


def motorcycle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The left and the right photograph, u8[500, 741, 3], and the left one's disparity in pixels f32[500,
    741], not finite where unknown. Raises ExtraError without scikit-image.
    """
    if importlib.util.find_spec("skimage") is None:
        raise ExtraError("the stereo pair comes with scikit-image: pip install 'fastvggt_jax[evaluate]'")
    import skimage.data

    return skimage.data.stereo_motorcycle()
