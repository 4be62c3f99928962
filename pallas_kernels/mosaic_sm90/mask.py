"""The mask on Hopper GPUs: row thresholds by a Pallas Mosaic GPU kernel, the rest as in `xla`.

The kernel is the bisection of `thresholds` with a warpgroup a row: the row is read once and stays on the chip
while its threshold is sought. What surrounds it is memory-bound and left to XLA: pooling reads q and k once;
a float32 matrix product writes the scores, which are read twice, by the kernel and by the pass that compares
them with the thresholds and packs the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import add
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import thresholds, xla
from pallas_kernels.block_mask import BlockMask, cdiv
from pallas_kernels.mosaic_sm90.config import LINE
from pallas_kernels.reference import CDF_SLACK

Array = jax.Array
SCORES_BYTES = 256 * 2**20  # of the pooled scores of the query blocks at hand
REGISTER_LINES = 16  # rows up to this stay in registers, longer ones in shared memory
CHUNK_LINES = 4  # of a long row that is in registers at a time


def row_multiple(num_blocks: int) -> int:
    """What `row_thresholds` wants the length of rows of `num_blocks` scores, at most `MAX_KEY_BLOCKS`, to
    be a multiple of.
    """
    return LINE if num_blocks <= REGISTER_LINES * LINE else CHUNK_LINES * LINE


def _find(fold: Callable[..., Any], shape: tuple[int, int], size: int, n: Array, tau: Array | None) -> Array:
    """One row's threshold. `fold(f, combine)` gives the combined f(chunk) of the row's chunks, each of
    `shape`.
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

    # Mosaic has no bitcast of a scalar.
    as_floats = lambda image: thresholds.image_to_float(jnp.full(shape, image))

    def step(bracket: thresholds.Bracket) -> thresholds.Bracket:
        count, *mass = at_least(as_floats(thresholds.middle(bracket)))
        return thresholds.narrow(bracket, count, n, mass[0] if mass else None, limit)

    bracket = thresholds.start_bracket(n, size)
    bracket = jax.lax.while_loop(lambda b: ~thresholds.is_settled(b, n), step, bracket)
    return jnp.max(as_floats(thresholds.threshold(bracket, n)))  # all are equal


def row_thresholds(scores: Array, n: Array | int, cdf_threshold: Array | float | None) -> Array:
    """f32[..., S] -> f32[...], see `thresholds.row_thresholds`; S a multiple of `row_multiple`."""
    *shape, size = scores.shape
    lines = size // LINE
    parameters = [n] if cdf_threshold is None else [n, cdf_threshold]

    def kernel(scores_ref: Any, *refs: Any) -> None:
        n_ref, *tau_refs, out_ref = refs
        n, tau = n_ref[0], tau_refs[0][0] if tau_refs else None
        row = jax.lax.axis_index("row")

        def in_registers() -> None:
            x = scores_ref[row]
            out_ref[row] = _find(lambda f, combine: f(x), x.shape, size, n, tau)

        def in_shared_memory(row_ref: Any, copied: Any) -> None:
            plgpu.copy_gmem_to_smem(scores_ref.at[row], row_ref, copied)
            plgpu.barrier_wait(copied)
            chunk = lambda i: row_ref[pl.ds(i * CHUNK_LINES, CHUNK_LINES)]

            def fold(f: Callable, combine: Callable) -> Any:
                more = lambda i, total: jax.tree.map(combine, total, f(chunk(i)))
                return jax.lax.fori_loop(1, lines // CHUNK_LINES, more, f(chunk(0)))

            out_ref[row] = _find(fold, (CHUNK_LINES, LINE), size, n, tau)

        if lines <= REGISTER_LINES:
            in_registers()
        else:
            pl.run_scoped(in_shared_memory, plgpu.SMEM((lines, LINE), jnp.float32), plgpu.Barrier())

    rows = scores.reshape(-1, lines, LINE)
    # One warpgroup a block: Mosaic gives all warpgroups of a block the same scratch for sums to a scalar.
    # Some ten blocks share an SM.
    found = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((rows.shape[0],), jnp.float32),
        grid=(rows.shape[0],),
        grid_names=("row",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(rows, *(jnp.full(1, x, jnp.float32) for x in parameters))
    return found.reshape(shape)


def pooled_block_mask(
    q: Array,
    k: Array,
    *,
    kv_runs: tuple[int, ...],
    block: tuple[int, int],
    keep_count: int | Array | None,
    cdf_threshold: float | Array | None,
    pool: str,
) -> BlockMask:
    """See `api.pooled_block_mask` and `xla.pooled_block_mask`."""
    return xla.pooled_block_mask(
        q,
        k,
        kv_runs=kv_runs,
        block=block,
        keep_count=keep_count,
        cdf_threshold=cdf_threshold,
        pool=pool,
        find_thresholds=row_thresholds,
        row_multiple=row_multiple(cdiv(k.shape[1], block[1])),
        rows_bytes=SCORES_BYTES,
    )
