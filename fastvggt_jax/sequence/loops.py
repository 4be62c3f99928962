"""Distant frames that may show the same place, by what an encoder sees in them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

AGREES = 3.0  # times the usual residual between neighbouring chunks: what a loop's may be
AGREES_AT_LEAST = 0.05  # of the distance; what is nearer is never refused


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
