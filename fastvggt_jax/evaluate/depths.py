"""Depth as MonST3R, CUT3R and π³ compare it: a video is one problem, of one scale, or one scale and shift.

Source of the definitions: π³'s evaluation branch, utils/depth.py and videodepth/eval.py. [M] are the depths
of all pixels of all frames whose true depth is known.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fastvggt_jax.errors import InputError

ROUNDS, TINY, SMALLEST_SCALE = 10, 1e-8, 1e-3  # of the reweighted scale
STEPS, RATE, STILL = 1000, 1e-4, 1e-6  # of scale and shift, which Adam descends to
ALIGNMENTS = SCALE, SCALE_SHIFT, MEDIAN, METRIC = "scale", "scale&shift", "median", "metric"
LIMITS = (1.25, 1.25**2, 1.25**3)


def aligned(
    depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"], how: str = SCALE
) -> Float[np.ndarray, " M"]:
    """The depths, f64[M], after one of ALIGNMENTS; METRIC is none. Raises InputError for another word."""
    depth, truth = np.asarray(depth, np.float64), np.asarray(truth, np.float64)
    if how == SCALE:
        return scale(depth, truth) * depth
    if how == SCALE_SHIFT:
        factor, shift = scale_and_shift(depth, truth)
        return factor * depth + shift
    if how == MEDIAN:
        return float(np.median(truth) / np.median(depth)) * depth
    if how == METRIC:
        return depth
    raise InputError(f"alignment must be one of {', '.join(ALIGNMENTS)}, not {how!r}", argument="alignment")


def scale(depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"]) -> float:
    """The factor after ten rounds of least squares, reweighted towards the smallest sum of distances, from
    the ratio of the means; at least 0.001.
    """
    depth, truth = np.asarray(depth, np.float64), np.asarray(truth, np.float64)
    found = truth.mean() / depth.mean()
    for _ in range(ROUNDS):
        weight = 1 / (np.abs(found * depth - truth) + TINY)
        found = max((weight * depth * truth).sum() / (weight * depth * depth).sum(), SMALLEST_SCALE)
    return float(found)


def scale_and_shift(
    depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"], *, rate: float = RATE
) -> tuple[float, float]:
    """(scale, shift) after at most 1,000 steps of Adam down the sum of distances, from the ratio of medians
    and 0: with steps of `rate` it need not arrive, and this is what the published numbers are made with.
    """
    start = float(np.median(truth) / np.median(depth))
    found = _descend(*(jnp.asarray(x, jnp.float32) for x in (depth, truth, start, rate)))
    return float(found[0]), float(found[1])


@jax.jit
def _descend(depth: jax.Array, truth: jax.Array, start: jax.Array, rate: jax.Array) -> jax.Array:
    loss = lambda x: jnp.abs(x[0] * depth + x[1] - truth).sum()

    def step(state: tuple) -> tuple:
        n, x, first, second, now, _ = state
        value, slope = jax.value_and_grad(loss)(x)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        n = n + 1
        first_, second_ = first / (1 - 0.9**n), second / (1 - 0.999**n)
        return n, x - rate * first_ / (jnp.sqrt(second_) + 1e-8), first, second, value, now

    def going(state: tuple) -> jax.Array:
        n, *_, now, before = state
        return (n < STEPS) & (jnp.abs(now - before) >= STILL)

    zero = jnp.zeros(2)
    state = (jnp.float32(0), jnp.stack([start, jnp.float32(0)]), zero, zero, jnp.float32(0), -jnp.inf)
    return jax.lax.while_loop(going, step, state)[1]


def depth_errors(depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"]) -> dict[str, float]:
    """ "AbsRel", "SqRel", "RMSE", "log RMSE" (of depths of 0.00001 at least), and "delta", "delta 2", "delta
    3": percent of depths wrong by a factor below 1.25, 1.25², 1.25³.
    """
    depth, truth = np.asarray(depth, np.float64), np.asarray(truth, np.float64)
    error = depth - truth
    ratio = np.maximum(depth / truth, truth / np.where(depth > 0, depth, np.nan))
    ratio = np.where(depth > 0, ratio, np.inf)
    within = [100 * float((ratio < limit).mean()) for limit in LIMITS]
    return {
        "AbsRel": float((np.abs(error) / truth).mean()),
        "SqRel": float((error**2 / truth).mean()),
        "RMSE": float(np.sqrt((error**2).mean())),
        "log RMSE": float(np.sqrt(((np.log(np.maximum(depth, 1e-5)) - np.log(truth)) ** 2).mean())),
        **dict(zip(("delta", "delta 2", "delta 3"), within, strict=True)),
    }


def cubic_resized(values: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """f64[height, width] by OpenCV's cubic interpolation: four taps with a = -0.75 at pixel centres, the
    border repeated, no smoothing where it shrinks.
    """
    values = np.asarray(values, np.float64)
    for axis, size in ((0, height), (1, width)):
        taps, weights = _cubic(values.shape[axis], size)
        columns = [np.take(values, tap, axis) for tap in taps]
        shape = (-1, 1) if axis == 0 else (1, -1)
        values = sum(
            (weight.reshape(shape) * column for weight, column in zip(weights, columns, strict=True)),
            start=np.zeros(()),
        )
    return values


def _cubic(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The four pixels around each of `size` new ones, i64[4, size], and their weights f64[4, size]."""
    a = -0.75
    at = (np.arange(size) + 0.5) * length / size - 0.5
    first = np.floor(at).astype(np.int64)
    x = np.abs(at - first - np.arange(-1, 3)[:, None])
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.clip(first + np.arange(-1, 3)[:, None], 0, length - 1), np.where(x <= 1, near, far)
