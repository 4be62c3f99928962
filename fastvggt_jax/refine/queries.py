"""Which points a model is asked to follow through the photographs."""

from __future__ import annotations

import dataclasses

import numpy as np

from fastvggt_jax.refine.matching import corners, to_grey
from fastvggt_jax.scene import spread

FRAMES = 8  # photographs that points are of, at most: each takes a run of the tracker of its own
POINTS = 512  # of each, at most


@dataclasses.dataclass(frozen=True)
class Queries:
    """As many points of each of some frames, one frame's after the other's.

    frames: these. pixel: i64[Q], which of the F·H·W pixels each point is of. xy: f32[Q, 2], that pixel's
    (column, row), which is how models with a track head count.
    """

    frames: tuple[int, ...]
    pixel: np.ndarray
    xy: np.ndarray


def choose_queries(pixels: np.ndarray, shown: np.ndarray, max_points: int) -> Queries | None:
    """Points of evenly spread frames that show something, evenly spread where these have texture; about
    `max_points` at most. None if no frame shows anything.

    pixels: u8[F, H, W, 3]. shown: bool[F, H, W], where points may be. A frame that has too little texture
    gives points without, and one of very few pixels some of them twice.
    """
    frames = np.flatnonzero(shown.any((1, 2)))
    if not len(frames):
        return None
    count = min(FRAMES, len(frames), max_points)
    frames = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    each = min(POINTS, max_points // count)
    _, height, width = shown.shape
    chosen = []
    for frame in frames:
        index = corners(to_grey(pixels[frame]), shown[frame])
        if len(index) < each:
            plain = np.setdiff1d(np.flatnonzero(shown[frame]), index)
            missing = min(each - len(index), len(plain))
            index = np.concatenate([index, plain[spread(len(plain), missing)]])
        index = np.resize(index, each) if len(index) < each else index[spread(len(index), each)]
        chosen.append(index)
    of_frame = np.stack(chosen)  # i64[K, each]
    xy = np.stack([of_frame % width, of_frame // width], -1).reshape(-1, 2)
    pixel = (of_frame + frames[:, None] * height * width).reshape(-1)
    return Queries(tuple(int(frame) for frame in frames), pixel, xy.astype(np.float32))
