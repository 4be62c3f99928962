"""A scene's truth in the pixels that the model sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.sources import ImageTransform


def in_model_pixels(truth: Truth, transforms: Sequence[ImageTransform]) -> Truth:
    """The truth of F photographs in their own pixels (`datasets.base.Sample`) in the model's, in numpy.

    Maps are taken from the nearest pixel; padding is not valid. Points follow from depth, K and cameras
    where they are not given; what needs a part that is not known stays None. Maps are read one photograph
    at a time.
    """
    frames = [_sampled(truth, f, transform) for f, transform in enumerate(transforms)]

    def stacked(part: str) -> np.ndarray | None:
        maps = [found for x in frames if (found := x[part]) is not None]
        return np.stack(maps) if maps and len(maps) == len(frames) else None

    K = None
    if truth.K is not None:
        K = np.stack([_to_model(t) @ np.asarray(truth.K[f], np.float64) for f, t in enumerate(transforms)])
    poses = None if truth.cam_from_world is None else np.asarray(truth.cam_from_world)
    return Truth(poses, K, stacked("depth"), stacked("points"), stacked("valid"))


def known(truth: Truth) -> list[np.ndarray] | None:
    """bool[H, W] of each photograph: where the depth or the point of a pixel is known. None if nowhere."""
    parts = (truth.valid, truth.depth, truth.points)
    there = next((part for part in parts if part is not None), None)
    if there is None:
        return None
    valid, depth, points = (part is there and part is not None for part in parts)
    each = [_known(one if valid else None, one if depth else None, one if points else None) for one in there]
    return [one for one in each if one is not None]


def _known(
    valid: np.ndarray | None, depth: np.ndarray | None, points: np.ndarray | None
) -> np.ndarray | None:
    if valid is not None:
        return np.asarray(valid)
    if depth is not None:
        return np.isfinite(depth) & (np.asarray(depth) > 0)
    return None if points is None else np.isfinite(points).all(-1)


def _sampled(truth: Truth, f: int, transform: ImageTransform) -> dict[str, np.ndarray | None]:
    """The maps of one photograph at the model's pixels."""
    rows, columns = _nearest(transform)
    maps: dict[str, np.ndarray | None] = {}
    for part in ("valid", "depth", "points"):
        values = getattr(truth, part)
        maps[part] = None if values is None else np.asarray(values[f])[rows[:, None], columns]
    valid = _known(maps["valid"], maps["depth"], maps["points"])
    maps["valid"] = None if valid is None else valid & transform.valid_mask()
    depth, K, pose = maps["depth"], truth.K, truth.cam_from_world
    if maps["points"] is None and depth is not None and K is not None and pose is not None:
        K, pose = (np.asarray(x[f], np.float64) for x in (K, pose))
        maps["points"] = unprojected(depth, columns + 0.5, rows + 0.5, K, pose)
    return maps


def unprojected(
    depth: np.ndarray, x: np.ndarray, y: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray
) -> np.ndarray:
    """f32[H, W, 3] in the world, of depth [H, W] at the pixels x [W] and y [H]. In numpy: XLA would compile
    it for every size of a photograph.
    """
    at = np.stack(np.broadcast_arrays(x, y[:, None], 1.0), -1)  # [H, W, 3]
    rays = at @ np.linalg.inv(K).T
    R, t = cam_from_world[:, :3], cam_from_world[:, 3]
    return ((rays * depth[..., None] - t) @ R).astype(np.float32)


def _nearest(transform: ImageTransform) -> tuple[np.ndarray, np.ndarray]:
    """Rows i64[model height] and columns i64[model width] of the photograph; beyond it its border goes on."""
    width, height = transform.model_width, transform.model_height
    x = transform.to_original(np.stack([np.arange(width) + 0.5, np.zeros(width)], -1))[:, 0]
    y = transform.to_original(np.stack([np.zeros(height), np.arange(height) + 0.5], -1))[:, 1]
    columns = np.clip(np.floor(x).astype(np.int64), 0, transform.original_width - 1)
    return np.clip(np.floor(y).astype(np.int64), 0, transform.original_height - 1), columns


def _to_model(transform: ImageTransform) -> np.ndarray:
    return np.array(
        [
            [transform.scale_x, 0, transform.offset_x],
            [0, transform.scale_y, transform.offset_y],
            [0, 0, 1],
        ]
    )
