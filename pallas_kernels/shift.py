"""The shift of a softmax that needs no running maximum, for kernels.

Softmax does not depend on its shift m as long as nothing overflows and the largest weights of a row do not
vanish. By Cauchy-Schwarz no score exceeds m = c·|q|·max|k|, and none lies more than 2m below it; weights
are bfloat16, whose exponents reach as far as float32's. Where 2m stays below `FIXED_SHIFT_RANGE`, as in
QK-normalised heads unless their learnt scales are large, the shift may stay m, and nothing is ever
rescaled. Other rows, and float16, take the running maximum. Both are exact; only values of v below 2^-30
may be lost to underflow where the bound is far from the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
# In powers of two; float32 and bfloat16 have 126 below one, the rest is left to the values.
FIXED_SHIFT_RANGE = 96.0


def key_bound(key_runs: Sequence[Array], scale: float) -> Array:
    """scale · max|k|, a little more for rounding: [B, S, N, H] for each run -> f32[B, N]."""
    squares = [jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), -1), 1) for x in key_runs]
    return scale * jnp.sqrt(jax.tree.reduce(jnp.maximum, squares)) * (1 + 1e-3)
