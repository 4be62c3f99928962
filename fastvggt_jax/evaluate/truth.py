"""A scene's truth in the pixels that the model sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.sources import ImageTransform


def in_model_pixels(truth: Truth, transforms: Sequence[ImageTransform]) -> Truth:
    """The truth of F photographs in their own pixels (`datasets.base.Sample`) in the model's, in numpy.

    Maps are taken from the nearest pixel; padding is not valid. Points follow from depth, K and cameras
    where they are not given; what needs a part that is not known stays None.
    """
    points, valid = _points(truth), known(truth)
    frames = range(len(transforms))
    if valid is None:
        cropped = None
    else:
        shows = [t.valid_mask() for t in transforms]
        cropped = np.stack([_nearest(valid[f], transforms[f]) & shows[f] for f in frames])
    maps = lambda values: (
        None if values is None else np.stack([_nearest(np.asarray(values[f]), transforms[f]) for f in frames])
    )
    K = None
    if truth.K is not None:
        K = np.stack([_to_model(t) @ np.asarray(truth.K[f], np.float64) for f, t in enumerate(transforms)])
    poses = None if truth.cam_from_world is None else np.asarray(truth.cam_from_world)
    return Truth(cam_from_world=poses, K=K, depth=maps(truth.depth), points=maps(points), valid=cropped)


def known(truth: Truth) -> list[np.ndarray] | None:
    """bool[H, W] of each photograph: where the depth or the point of a pixel is known. None if nowhere."""
    if truth.valid is not None:
        return [np.asarray(one) for one in truth.valid]
    if truth.depth is not None:
        return [np.isfinite(one) & (np.asarray(one) > 0) for one in truth.depth]
    if truth.points is not None:
        return [np.isfinite(one).all(-1) for one in truth.points]
    return None


def _points(truth: Truth) -> Sequence[np.ndarray] | None:
    if truth.points is not None:
        return truth.points
    if truth.depth is None or truth.K is None or truth.cam_from_world is None:
        return None
    return [
        _unprojected(np.asarray(depth), np.asarray(K, np.float64), np.asarray(pose, np.float64))
        for depth, K, pose in zip(truth.depth, truth.K, truth.cam_from_world, strict=True)
    ]


def _unprojected(depth: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """f32[H, W, 3] in the world. In numpy: XLA would compile it for every size of a photograph."""
    rows, columns = np.indices(depth.shape)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(depth.shape)], -1) @ np.linalg.inv(K).T
    R, t = cam_from_world[:, :3], cam_from_world[:, 3]
    return ((rays * depth[..., None] - t) @ R).astype(np.float32)


def _nearest(values: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """[original height, original width, ...] -> [model height, model width, ...]; beyond the photograph its
    border goes on.
    """
    width, height = transform.model_width, transform.model_height
    x = transform.to_original(np.stack([np.arange(width) + 0.5, np.zeros(width)], -1))[:, 0]
    y = transform.to_original(np.stack([np.zeros(height), np.arange(height) + 0.5], -1))[:, 1]
    column = np.clip(np.floor(x).astype(np.int64), 0, transform.original_width - 1)
    row = np.clip(np.floor(y).astype(np.int64), 0, transform.original_height - 1)
    return values[row[:, None], column]


def _to_model(transform: ImageTransform) -> np.ndarray:
    return np.array(
        [
            [transform.scale_x, 0, transform.offset_x],
            [0, transform.scale_y, transform.offset_y],
            [0, 0, 1],
        ]
    )
