"""Distant frames that may show the same place, by what an encoder sees in them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from fastvggt_jax.sequence.fit import Part, centres

AGREES = 3.0  # times the usual residual between neighbouring chunks: what a loop's may be
AGREES_AT_LEAST = 0.05  # of the distance; what is nearer is never refused

SAME = (
    0.1  # of its distance from the camera: how near a surface that two frames see comes out, grids of points
)
ONE_PLACE = 0.2  # of the points of either half of a joint chunk: those that the other half has, too


def candidates(
    descriptors: Float[np.ndarray, "F D"], apart: int, near: int, most: int
) -> list[tuple[int, int]]:
    """(earlier, later) frames at least `apart` frames from each other that look as much alike as neighbours
    `near` frames apart usually do; the most alike first, each in places of its own, at most so many.

    descriptors: of length 1.
    """
    frames = len(descriptors)
    if frames <= apart:
        return []
    alike = descriptors @ descriptors.T
    near = min(near, frames - 1)
    usual = np.median(np.diagonal(alike, near))
    first, second = np.triu_indices(frames, apart)
    values = alike[first, second]
    found: list[tuple[int, int]] = []
    for at in np.argsort(-values, kind="stable"):
        if values[at] < usual or len(found) == most:
            break
        i, j = int(first[at]), int(second[at])
        if all(max(abs(i - a), abs(j - b)) >= apart // 2 for a, b in found):
            found.append((i, j))
    return found


def together(pair: tuple[int, int], frames: int, chunk: int) -> np.ndarray:
    """Frames around both of a pair, half of a chunk each, in order."""
    half = chunk // 2
    sizes = (half, chunk - half)
    starts = [min(max(at - size // 2, 0), frames - size) for at, size in zip(pair, sizes, strict=True)]
    starts[1] = max(starts[1], starts[0] + half)
    return np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])


def one_place(part: Part, half: int) -> bool:
    """Whether the first `half` frames and the others show the same surfaces. Two places that have nothing to
    do with each other come out each as it is, but anywhere to each other.
    """
    sides = []
    for rows in (slice(None, half), slice(half, None)):
        seen = part.conf[rows] > 0
        distance = np.linalg.norm(part.points[rows] - centres(part.cam_from_world[rows])[:, None], axis=-1)
        sides.append((part.points[rows][seen], distance[seen]))
    (one, near_one), (other, near_other) = sides
    if not len(one) or not len(other):
        return False
    shares = [
        np.mean(cKDTree(there).query(points, workers=1)[0] < SAME * distance)
        for points, distance, there in ((one, near_one, other), (other, near_other, one))
    ]
    return min(shares) >= ONE_PLACE
