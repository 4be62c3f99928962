"""Intrinsics from points: π³ predicts for every pixel a point in the camera's coordinates, but no K.

A pinhole camera sees at (u, v) what lies in the direction x/z = (u - cx) / fx, y/z = (v - cy) / fy: two
straight lines over the pixels. They are fitted by least squares, reweighted until the sum of distances is
smallest (Weiszfeld's algorithm, by which DUSt3R finds its focal length, arXiv 2312.14132 §3.3), so that a
minority of wrong points counts little. Unlike there the errors are those of the directions, since the pixels
are known exactly, the principal point is fitted too, and fx and fy apart: photographs are stretched to the
model's size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

SAMPLES = 20_000  # pixels of a frame that are looked at, at most
ITERATIONS = 20
SMALLEST_ERROR = 1e-6  # of x/z; keeps the weight of a perfect point finite


def fit_intrinsics(
    local_points: Float[np.ndarray, "H W 3"], weights: Float[np.ndarray, "H W"]
) -> tuple[Float[np.ndarray, "3 3"], float]:
    """The pinhole camera that sees every point where its pixel is.

    Args:
      local_points: f32[H, W, 3] in the camera's coordinates, OpenCV axes.
      weights: f32[H, W], how much each point counts; 0 for not at all.

    Returns:
      K f64[3, 3] in pixels, the outer corner of the first one being (0, 0); and the weighted median distance,
      in pixels, between where K sees the points and their pixels. K is NaN if fewer than three points count,
      or no camera sees them.
    """
    height, width, _ = local_points.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / SAMPLES))))
    grid = (slice(step // 2, None, step),) * 2
    points, w = (
        local_points[grid].reshape(-1, 3).astype(np.float64),
        weights[grid].reshape(-1).astype(np.float64),
    )
    v, u = np.meshgrid(np.arange(height)[grid[0]] + 0.5, np.arange(width)[grid[1]] + 0.5, indexing="ij")
    usable = (w > 0) & np.isfinite(points).all(-1) & (points[:, 2] > 0)
    points, w, u, v = points[usable], w[usable], u.ravel()[usable], v.ravel()[usable]
    if len(w) < 3:
        return np.full((3, 3), np.nan), np.nan
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    now = w
    for _ in range(ITERATIONS):
        (slope_x, at_x), (slope_y, at_y) = _line(u, x, now), _line(v, y, now)
        now = w / np.maximum(np.hypot(slope_x * u + at_x - x, slope_y * v + at_y - y), SMALLEST_ERROR)
    if not (slope_x > 0 and slope_y > 0):  # NaN too
        return np.full((3, 3), np.nan), np.nan
    K = np.array([[1 / slope_x, 0, -at_x / slope_x], [0, 1 / slope_y, -at_y / slope_y], [0, 0, 1]])
    error = np.hypot(K[0, 0] * x + K[0, 2] - u, K[1, 1] * y + K[1, 2] - v)
    order = np.argsort(error)
    half = np.searchsorted(np.cumsum(w[order]), w.sum() / 2)
    return K, float(error[order][half])


def _line(u: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """(slope, offset) of the line x = slope·u + offset by weighted least squares; NaN if the u are all the
    same.
    """
    mean_u, mean_x = np.average(u, weights=w), np.average(x, weights=w)
    variance = (w * (u - mean_u) ** 2).sum()
    slope = (w * (u - mean_u) * (x - mean_x)).sum() / variance if variance > 0 else np.nan
    return slope, mean_x - slope * mean_u
