"""Points, depth, rays and cameras as MapAnything's dense N-view benchmark compares them: seen from the first
view, in units of the mean distance of a scene's points from there, with no other alignment. Numpy, float64.

Source of the definitions: facebookresearch/map-anything, benchmarking/dense_n_view/benchmark.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fastvggt_jax.evaluate.trajectories import world_from_cam
from fastvggt_jax.geometry.alignment import best_rotation

WITHIN = 1.03  # a factor


class Views(NamedTuple):
    """What is said or true of F views.

    Attributes:
      cam_from_world: f64[F, 3, 4], OpenCV axes.
      points: f64[F, H, W, 3] in the world. depth: f64[F, H, W] along the camera's z.
      rays: f64[F, H, W, 3], directions in camera coordinates, of any length.
    """

    cam_from_world: Float[np.ndarray, "F 3 4"]
    points: Float[np.ndarray, "F H W 3"]
    depth: Float[np.ndarray, "F H W"]
    rays: Float[np.ndarray, "F H W 3"]


def rays_of(K: Float[np.ndarray, "F 3 3"], height: int, width: int) -> Float[np.ndarray, "F H W 3"]:
    """f64, through the centres of pixels, the first one's at (0.5, 0.5)."""
    at = np.stack(np.broadcast_arrays(np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5, 1.0), -1)
    return np.einsum("fij,hwj->fhwi", np.linalg.inv(np.asarray(K, np.float64)), at)


def rays_to(views: Views) -> Float[np.ndarray, "F H W 3"]:
    """Of a model that predicts no K: from each camera to its points."""
    R, t = views.cam_from_world[:, :, :3], views.cam_from_world[:, :, 3]
    return np.einsum("fij,fhwj->fhwi", R, views.points) + t[:, None, None]


def normalised_errors(
    found: Views, truth: Views, valid: Bool[np.ndarray, "F H W"], metric_scale: float = 1.0
) -> dict[str, float]:
    """Each the mean over the views that have a valid pixel, of its valid pixels (of rays: over all).

    "points AbsRel": of |p - p*| / |p*|. "points within 3 %": percent of points whose distances from the first
    view, |p| and |p*|, are within a factor of 1.03. "z AbsRel" and "z within 3 %": of depths. "ray error":
    degrees. "rigid ATE": the mean distance of camera centres after a rotation and a translation (Horn), in
    the unit of the points. "scale AbsRel": |s - s*| / s* of the two units in metres, where the prediction's
    is `metric_scale` metres per unit of its own.
    """
    points, points_true = (_seen_from_first(views) for views in (found, truth))
    unit, unit_true = (float(np.linalg.norm(x[valid], axis=-1).mean()) for x in (points, points_true))
    values: dict[str, list[float]] = {}
    for f in np.flatnonzero(valid.any((1, 2))):
        some = valid[f]
        p, q = points[f][some] / unit, points_true[f][some] / unit_true
        z, z_true = found.depth[f][some] / unit, truth.depth[f][some] / unit_true
        near, far = (np.linalg.norm(x, axis=-1) for x in (p, q))
        for name, value in (
            ("points AbsRel", np.linalg.norm(p - q, axis=-1) / far),
            ("points within 3 %", 100.0 * _within(near, far)),
            ("z AbsRel", np.abs(z - z_true) / z_true),
            ("z within 3 %", 100.0 * _within(np.abs(z), z_true)),
        ):
            values.setdefault(name, []).append(float(value.mean()))
    chord = np.linalg.norm(_directions(found.rays) - _directions(truth.rays), axis=-1)
    angles = np.rad2deg(2 * np.arcsin(np.minimum(chord / 2, 1)))
    return {
        **{name: float(np.mean(each)) for name, each in values.items()},
        "ray error": float(angles.mean()),
        "rigid ATE": rigid_ate(
            world_from_cam(found.cam_from_world)[1] / unit,
            world_from_cam(truth.cam_from_world)[1] / unit_true,
        ),
        "scale AbsRel": abs(unit * metric_scale - unit_true) / unit_true,
    }


def rigid_ate(centres: Float[np.ndarray, "F 3"], truth: Float[np.ndarray, "F 3"]) -> float:
    """The mean distance after the rotation and translation that bring the centres nearest to the true ones in
    the sense of least squares.
    """
    mean, mean_true = centres.mean(0), truth.mean(0)
    rotation, _ = best_rotation(np.einsum("fi,fj->ij", truth - mean_true, centres - mean))
    moved = np.einsum("ij,fj->fi", rotation, centres - mean)
    return float(np.linalg.norm(moved - (truth - mean_true), axis=-1).mean())


def _seen_from_first(views: Views) -> np.ndarray:
    R, t = views.cam_from_world[0, :, :3], views.cam_from_world[0, :, 3]
    return np.einsum("ij,fhwj->fhwi", R, views.points) + t


def _directions(rays: np.ndarray) -> np.ndarray:
    return rays / np.maximum(np.linalg.norm(rays, axis=-1, keepdims=True), 1e-12)


def _within(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x < WITHIN * y) & (y < WITHIN * x)
