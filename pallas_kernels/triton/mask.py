"""The mask on GPUs without the Hopper kernel: row thresholds by a Pallas Triton kernel, the rest as in `xla`.

The kernel is the bisection of `thresholds` with a thread block a row. A row of up to `REGISTER_SCORES` is
read once and stays in registers while its threshold is sought; a longer one is read a chunk at a time,
mostly from the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp

from pallas_kernels import thresholds, xla
from pallas_kernels.block_mask import BlockMask, cdiv
from pallas_kernels.triton.calls import droppable
from pallas_kernels.varying import result

Array = jax.Array
Ref = Any
SCORES_BYTES = 256 * 2**20  # of the pooled scores of the query blocks at hand
REGISTER_SCORES = 8192  # of a row, or of a chunk of one
SCORES_PER_WARP = 1024


def row_thresholds(
    scores: Array, n: Array | int, cdf_threshold: Array | float | None, *, interpret: bool = False
) -> Array:
    """f32[..., S] -> f32[...], see `thresholds.row_thresholds`."""
    *shape, size = scores.shape
    rows = scores.reshape(-1, size)
    chunk = min(REGISTER_SCORES, 1 << (size - 1).bit_length())  # tiles of Triton are powers of two
    parameters = [n] if cdf_threshold is None else [n, cdf_threshold]
    call = pl.pallas_call(
        partial(_find_threshold, size=size, chunk=chunk),
        grid=(rows.shape[0],),
        in_specs=[
            pl.BlockSpec((None, size), lambda row: (row, 0)),
            *[pl.BlockSpec((1,), lambda row: (0,)) for _ in parameters],
        ],
        out_specs=pl.BlockSpec((1,), lambda row: (row,)),
        out_shape=result((rows.shape[0],), jnp.float32, rows),
        compiler_params=plgpu.CompilerParams(num_warps=max(1, chunk // SCORES_PER_WARP), num_stages=1),
        interpret=interpret,
    )
    found = droppable(call)(rows, *(jnp.full(1, x, jnp.float32) for x in parameters))
    return found.reshape(shape)


def _find_threshold(row_ref: Ref, n_ref: Ref, *refs: Ref, size: int, chunk: int) -> None:
    """Of the row f32[size]; the references are n and, if it is given, τ, both f32[1], and the result's."""
    *tau_refs, out_ref = refs
    place = jnp.arange(chunk)

    def load(i: Array | int) -> Array:
        here = i * chunk + place
        return plgpu.load(row_ref.at[here], mask=here < size, other=jnp.nan)

    if size <= chunk:
        row = load(0)
        fold = lambda f, combine: f(row)
    else:

        def fold(f: Callable[..., Any], combine: Callable[..., Any]) -> Any:
            more = lambda i, total: jax.tree.map(combine, total, f(load(i)))
            return jax.lax.fori_loop(1, cdiv(size, chunk), more, f(load(0)))

    tau = tau_refs[0][0] if tau_refs else None
    out_ref[0] = thresholds.row_threshold(fold, (chunk,), size, n_ref[0], tau)


def pooled_block_mask(q: Array, k: Array, *, interpret: bool = False, **how: Any) -> BlockMask:
    """See `api.pooled_block_mask` and `xla.pooled_block_mask`; `interpret` as in `row_thresholds`."""
    find = partial(row_thresholds, interpret=interpret)
    return xla.pooled_block_mask(q, k, **how, find_thresholds=find, rows_bytes=SCORES_BYTES)
