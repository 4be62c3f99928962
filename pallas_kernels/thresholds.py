"""The row threshold of the mask by bisection (docs/method.md §4): the steps, a loop over them for one row,
which the GPU kernels run, and one over all rows in plain XLA.

A row's kept blocks are {score >= t}. With ρ alone, t is the largest value that at least n = max(1,
keep_count) blocks reach; with τ alone the smallest whose blocks hold at most τ + 1e-5 of the mass, where a
block's mass is exp(score); with both, the smaller of the two. If not even the best block qualifies, ρ
decides. What is bisected is the order-preserving integer image of a float32, so 32 steps find t exactly. It
is a score, not a probability: blocks far away would tie at p = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import add
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.reference import CDF_SLACK
from pallas_kernels.varying import varying_as

Array = jax.Array
Bracket = tuple[Array, Array, Array, Array]
LOWEST, HIGHEST = -0x7F800001, 0x7F800000  # images of -inf and +inf, see `image_to_float`
STEPS = 32  # HIGHEST - LOWEST < 2**32


def image_to_float(image: Array) -> Array:
    """i32 -> f32, increasing: the inverse of a float's order-preserving image (a negative float's bits, the
    sign's apart, inverted).
    """
    return jax.lax.bitcast_convert_type(jnp.where(image < 0, image ^ 0x7FFFFFFF, image), jnp.float32)


def start_bracket(like: Array, size: int) -> Bracket:
    """The whole range of thresholds, for rows of `size` blocks; `like` has the shape and dtype of a row's
    count.

    The count at -inf is one more than there are, since -inf is never tried: a threshold that keeps every
    block still has to be found.
    """
    image = jnp.zeros(like.shape, jnp.int32)
    return image + LOWEST, image + HIGHEST, jnp.full_like(like, size + 1), jnp.zeros_like(like)


def middle(bracket: Bracket) -> Array:
    lo, hi, _, _ = bracket
    return (lo & hi) + ((lo ^ hi) >> 1)  # floor of the mean; lo + hi would overflow


def narrow(
    bracket: Bracket, count: Array, n: Array | int, mass: Array | None, limit: Array | None
) -> Bracket:
    """One step of the bisection for the row threshold t of docs/method.md §4: a block is kept where its score
    is at least t.

    A bracket is (lo, hi, blocks that score >= lo, blocks that score >= hi), thresholds as images. At lo there
    are too many: at least n blocks and, with τ, a mass above the limit; at hi there are not. `count` and
    `mass` are those of the blocks at or above the middle.
    """
    lo, hi, count_lo, count_hi = bracket
    mid = middle(bracket)
    too_many = count >= n
    if mass is not None and limit is not None:
        too_many &= mass > limit
    return (
        jnp.where(too_many, mid, lo),
        jnp.where(too_many, hi, mid),
        jnp.where(too_many, count, count_lo),
        jnp.where(too_many, count_hi, count),
    )


def is_settled(bracket: Bracket, n: Array) -> Array:
    """bool: further steps could move the threshold but not change which blocks are kept."""
    lo, hi, count_lo, count_hi = bracket
    return (count_lo == n) | (count_lo - count_hi <= 1) | (lo + 1 >= hi)


def threshold(bracket: Bracket, n: Array | int) -> Array:
    """The image of t: hi, where τ stopped, unless it keeps fewer than n."""
    lo, hi, _, count_hi = bracket
    return jnp.where(count_hi >= n, hi, lo)


def row_threshold(
    fold: Callable[..., Any], shape: tuple[int, ...], size: int, n: Array, tau: Array | None
) -> Array:
    """f32[], one row's threshold, inside a kernel, in as many steps as the row needs.

    `fold(f, combine)` gives the combined f(chunk) of the row's chunks, each f32 of `shape`, filled up with
    NaN; `size` scores at most. n and tau are f32[]; arrays of `shape` stand where Mosaic GPU has no scalar
    operation.
    """
    limit = None
    if tau is not None:
        top = jnp.max(fold(lambda x: jnp.where(x >= -jnp.inf, x, -jnp.inf), jnp.maximum))

    def at_least(low: Array) -> tuple[Array, ...]:
        """How many scores of the row are at least `low`, in float32, and with τ their mass."""

        def terms(x: Array) -> tuple[Array, ...]:
            above = x >= low
            count = jnp.where(above, 1.0, 0.0)
            return (count,) if tau is None else (count, jnp.where(above, jnp.exp(x - top), 0.0))

        return tuple(jnp.sum(term) for term in fold(terms, add))

    if tau is not None:
        limit = (tau + CDF_SLACK) * at_least(jnp.full(shape, -jnp.inf))[1]

    as_floats = lambda image: image_to_float(jnp.full(shape, image))

    def step(bracket: Bracket) -> Bracket:
        count, *mass = at_least(as_floats(middle(bracket)))
        return narrow(bracket, count, n, mass[0] if mass else None, limit)

    bracket = start_bracket(n, size)
    bracket = jax.lax.while_loop(lambda b: ~is_settled(b, n), step, bracket)
    return jnp.max(as_floats(threshold(bracket, n)))  # all are equal


def row_thresholds(scores: Array, n: Array | int, cdf_threshold: Array | float | None) -> Array:
    """f32[..., S] -> f32[...]: the row's kept blocks are those that score at least this, see
    `pooled_block_mask`. NaN is never kept.
    """
    limit = None
    if cdf_threshold is not None:
        weight = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
        limit = (cdf_threshold + CDF_SLACK) * jnp.sum(weight, -1)

    def step(_: Array, bracket: Bracket) -> Bracket:
        above = scores >= image_to_float(middle(bracket))[..., None]
        mass = None if limit is None else jnp.sum(jnp.where(above, weight, 0), -1)
        return narrow(bracket, jnp.sum(above, -1, dtype=jnp.int32), n, mass, limit)

    bracket = start_bracket(jnp.zeros(scores.shape[:-1], jnp.int32), scores.shape[-1])
    bracket = varying_as(bracket, scores)
    return image_to_float(threshold(jax.lax.fori_loop(0, STEPS, step, bracket), n))
