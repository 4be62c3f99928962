"""How two reconstructions of some of the same frames lie to each other."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fastvggt_jax.geometry.alignment import Similarity, align
from fastvggt_jax.models.prediction import Reconstruction

PIXELS = 2000  # of each frame that are compared, about
LEAST_POINTS = 100  # that two reconstructions must both be sure of
ROUNDS, HUBER_ROUNDS = 20, 8  # of reweighting, and of these the first ones, which want no good start
INLIER = 2.0  # times the median residual, about where a residual ceases to count
LINE = 0.01  # of their extent along it: how far points on a line reach aside
AXES = 0.01  # of the points' weight: the cameras', which fix a rotation where points lie on a line


@dataclasses.dataclass(frozen=True)
class Part:
    """What is kept of a reconstruction of some frames, to compare it with others.

    Attributes:
      frames: their numbers in the sequence, each once.
      cam_from_world: of each frame.
      points: in this part's world, of the same pixels of every frame.
      conf: of these, 0 where there is no surface.
      depth: of the points of each frame the median, in this part's unit.
    """

    frames: Int[np.ndarray, " n"]
    cam_from_world: Float[np.ndarray, "n 3 4"]
    points: Float[np.ndarray, "n m 3"]
    conf: Float[np.ndarray, "n m"]
    depth: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, frames: np.ndarray, found: Reconstruction, shown: np.ndarray) -> Part:
        """Of a scene of these frames, [1, n, ...]. shown: bool[n, H, W], where pixels are of a photograph."""
        height, width = found.depth.shape[2:]
        stride = max(1, round((height * width / PIXELS) ** 0.5))
        grid = (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
        points, conf, depth, shown = (
            np.asarray(x)[grid].reshape(len(frames), -1, *np.shape(x)[3:])
            for x in (found.points[0], found.conf[0], found.depth[0], shown)
        )
        seen = shown & np.isfinite(points).all(-1) & (conf > found.conf_floor) & (depth > 0)
        conf = np.where(seen, conf, 0).astype(np.float64)
        median = [np.median(d[s]) if s.any() else 1.0 for d, s in zip(depth, seen, strict=True)]
        points = np.where(seen[..., None], points, 0).astype(np.float64)
        return cls(frames, np.asarray(found.cam_from_world[0], np.float64), points, conf, np.array(median))


class Fit(NamedTuple):
    """similarity: from the second part's world to the first's. residual: of the points that both see the
    median, over their distance from the camera. about: the middle of the cameras that both have, in the
    second's world. line: whether the points lie so nearly on a line that the cameras had to say how they are
    turned about it.
    """

    similarity: Similarity
    residual: float
    about: Float[np.ndarray, " 3"]
    line: bool = False


def fit(first: Part, second: Part) -> Fit | None:
    """None where they share no frame, or too few points that both are sure of.

    Points of the same pixels of the same frames are brought together, each by the product of its confidences
    and over its distance; iteratively reweighted (Huber's weights, then Geman and McClure's), so that in the
    end what one of the two got wrong counts for nothing.
    """
    _, a, b = np.intersect1d(first.frames, second.frames, return_indices=True)
    conf = np.sqrt(first.conf[a] * second.conf[b])
    both = conf > 0
    if both.sum() < LEAST_POINTS:
        return None
    frame = np.nonzero(both)[0]
    truth, points = first.points[a][both], second.points[b][both]
    distance = np.linalg.norm(truth - centres(first.cam_from_world[a])[frame], axis=-1)
    distance = np.maximum(distance, 1e-3 * np.median(distance))
    weights = conf[both] / distance**2
    # Of each camera its centre and a point a median depth along each of its axes.
    axes, of_axes = (_axes(part, at) for part, at in ((first, a), (second, b)))
    axes_weight = AXES * weights.sum() / len(axes)
    all_points, all_truth = np.concatenate([points, of_axes]), np.concatenate([truth, axes])
    factor = np.ones(len(points))
    for number in range(ROUNDS):
        all_weights = np.concatenate([weights * factor, np.full(len(axes), axes_weight)])
        found = align(all_points, all_truth, all_weights)
        off = np.linalg.norm(found(points) - truth, axis=-1) / distance
        median = float(np.median(off))
        if median < 1e-9:
            break
        if number < HUBER_ROUNDS:
            factor = np.minimum(1, 0.5 * median / np.maximum(off, 1e-12))
        else:
            factor = 1 / np.square(1 + np.square(off / (INLIER * median)))
    about = centres(second.cam_from_world[b]).mean(0)
    return Fit(found, median, about, _on_a_line(truth, weights * factor))


def _on_a_line(points: np.ndarray, weights: np.ndarray) -> bool:
    centred = points - np.average(points, axis=0, weights=weights)
    spread = np.linalg.eigvalsh(np.einsum("m,mi,mj->ij", weights, centred, centred))
    return bool(spread[1] < LINE**2 * spread[2])


def centres(cam_from_world: Float[np.ndarray, "n 3 4"]) -> Float[np.ndarray, "n 3"]:
    """Of the cameras, in the world."""
    return -np.einsum("nji,nj->ni", cam_from_world[..., :3], cam_from_world[..., 3])


def _axes(part: Part, at: np.ndarray) -> np.ndarray:
    """f64[4n, 3]."""
    centre = centres(part.cam_from_world[at])[:, None]
    ends = centre + part.cam_from_world[at][..., :3] * part.depth[at][:, None, None]
    return np.concatenate([centre, ends], 1).reshape(-1, 3)
