"""The mask on Hopper GPUs: row thresholds by a Pallas Mosaic GPU kernel, the rest as in `xla`.

The kernel is the bisection of `thresholds` with a warpgroup a row: the row is read once and stays on the chip
while its threshold is sought. What surrounds it is memory-bound and left to XLA: pooling reads q and k once;
a float32 matrix product writes the scores, which are read twice, by the kernel and by the pass that compares
them with the thresholds and packs the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import thresholds, xla
from pallas_kernels.block_mask import BlockMask, cdiv
from pallas_kernels.mosaic_sm90.config import LINE
from pallas_kernels.varying import result, varying_as

Array = jax.Array
SCORES_BYTES = 256 * 2**20  # of the pooled scores of the query blocks at hand
REGISTER_LINES = 16  # rows up to this stay in registers, longer ones in shared memory
CHUNK_LINES = 4  # of a long row that is in registers at a time


def row_multiple(num_blocks: int) -> int:
    """What `row_thresholds` wants the length of rows of `num_blocks` scores, at most `MAX_KEY_BLOCKS`, to
    be a multiple of.
    """
    return LINE if num_blocks <= REGISTER_LINES * LINE else CHUNK_LINES * LINE


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
            out_ref[row] = thresholds.row_threshold(lambda f, combine: f(x), x.shape, size, n, tau)

        def in_shared_memory(row_ref: Any, copied: Any) -> None:
            plgpu.copy_gmem_to_smem(scores_ref.at[row], row_ref, copied)
            plgpu.barrier_wait(copied)
            chunk = lambda i: row_ref[pl.ds(i * CHUNK_LINES, CHUNK_LINES)]

            def fold(f: Callable, combine: Callable) -> Any:
                more = lambda i, total: jax.tree.map(combine, total, f(chunk(i)))
                return jax.lax.fori_loop(1, lines // CHUNK_LINES, more, f(chunk(0)))

            out_ref[row] = thresholds.row_threshold(fold, (CHUNK_LINES, LINE), size, n, tau)

        if lines <= REGISTER_LINES:
            in_registers()
        else:
            pl.run_scoped(in_shared_memory, plgpu.SMEM((lines, LINE), jnp.float32), plgpu.Barrier())

    rows = scores.reshape(-1, lines, LINE)
    # One warpgroup a block: Mosaic gives all warpgroups of a block the same scratch for sums to a scalar.
    # Some ten blocks share an SM.
    found = plgpu.kernel(
        kernel,
        out_type=result((rows.shape[0],), jnp.float32, rows),
        grid=(rows.shape[0],),
        grid_names=("row",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(rows, *(jnp.full(1, x, jnp.float32) for x in parameters))
    return varying_as(found, rows).reshape(shape)


def pooled_block_mask(
    q: Array,
    k: Array,
    *,
    kv_runs: tuple[int, ...],
    block: tuple[int, int],
    keep_count: int | Array | None,
    cdf_threshold: float | Array | None,
    pool: str,
    **lengths: Any,
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
        **lengths,
        find_thresholds=row_thresholds,
        row_multiple=row_multiple(cdiv(k.shape[1], block[1])),
        rows_bytes=SCORES_BYTES,
    )
