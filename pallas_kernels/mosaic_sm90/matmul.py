# mypy: disable-error-code="no-redef, call-arg"
# (`pl.when` decorates functions that are all named `_`; `plgpu.load` differs between releases of JAX.)
"""gelu(x w + b) for Hopper GPUs (sm_90a) as one Pallas Mosaic GPU kernel: the GELU is computed of the
product's float32 accumulator, so that what lies between never goes to memory, which takes as long as the
product itself.

How it works. Thread blocks stay on their multiprocessors and take tiles of the result in turn. In each, a
*producer* warpgroup copies (TMA) the tile's rows of x and columns of w, 64 of their common dimension at a
time, into a ring of stages in shared memory, and two *consumer* warpgroups, each for half of the rows,
multiply what lies there (wgmma). While they compute GELUs the producer fetches what the next tile begins
with. Barriers count arrivals: a copy arrives when its bytes have landed, a consumer when it has read a stage.
Where the last rows do not fill a tile the copy engine reads zeros, and writes nothing. Mosaic takes rows in
multiples of 8 only (see `aligned`): others are filled up, and cut off afterwards, which copies them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.block_mask import aligned, cdiv
from pallas_kernels.mosaic_sm90.config import MATMUL_COLUMNS, MATMUL_DEPTH
from pallas_kernels.varying import result, varying_as

Array = jax.Array
Ref = Any
ROWS, CONSUMERS, STAGES = 128, 2, 3  # rows of a consumer's part of a tile
ACROSS = 16  # tiles that follow one another across the columns, before the next rows: L2 keeps their w
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40
# log(Φ(x) / Φ(-x)) = x P(x²), by least squares reweighted to equal errors of the left side for |x| < 5.2, to
# 9e-4 at most, which is the relative error of the GELU; beyond x² = 36 P stays what it is there, and the GELU
# what it should be to 1e-7. A bfloat16 is rounded by up to 2e-3.
LOG_ODDS = (
    1.5935775348002303,
    0.07506833681598855,
    -0.0008273898538117188,
    -4.23133543285883e-06,
    4.745064725113151e-07,
    -6.0989392056284845e-09,
)
FARTHEST = 36.0


def gelu(x: Array) -> Array:
    """x Φ(x), of float32: Φ is the logistic function of `LOG_ODDS`, one exponential and one division."""
    square = jnp.minimum(x * x, FARTHEST)
    odds: Array | float = -math.log2(math.e) * LOG_ODDS[-1]
    for coefficient in LOG_ODDS[-2::-1]:
        odds = odds * square - math.log2(math.e) * coefficient
    return x / (1 + jnp.exp2(x * odds))


def matmul_gelu(
    x: Array, w: Array, bias: Array, *, num_blocks: int | None = None, interpret: Any = None
) -> Array:
    """See `api.matmul_gelu`: [..., K], [K, N], [N], all bfloat16 -> bfloat16 [..., N]; K a multiple of
    MATMUL_DEPTH, N of MATMUL_COLUMNS.

    Args:
      num_blocks: thread blocks that stay resident; default one a multiprocessor of the first GPU.
      interpret: `plgpu.InterpretGPUParams` runs the kernel in Pallas' simulator, on a CPU.
    """
    blocks = num_blocks or jax.local_devices(backend="gpu")[0].core_count

    @jax.custom_batching.custom_vmap
    def product(x: Array, w: Array, bias: Array) -> Array:
        rows = x.reshape(1, -1, x.shape[-1])
        out = _launch(aligned(rows)[0], w, bias, blocks, interpret)
        return out[: rows.shape[1]].reshape(*x.shape[:-1], -1)

    @product.def_vmap
    def _(size: int, batched: list[bool], x: Array, w: Array, bias: Array) -> tuple[Array, bool]:
        if batched == [True, False, False]:
            return product(x, w, bias), True
        arrays = [
            a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_batched in zip((x, w, bias), batched, strict=True)
        ]
        return lax.map(lambda one: product(*one), tuple(arrays)), True

    return product(x, w, bias)


def _launch(x: Array, w: Array, bias: Array, blocks: int, interpret: Any) -> Array:
    (M, K), N = x.shape, w.shape[1]
    steps, columns = K // MATMUL_DEPTH, N // MATMUL_COLUMNS
    tiles = cdiv(M, CONSUMERS * ROWS) * columns
    across = math.gcd(columns, ACROSS)

    def kernel(
        x_ref: Ref,
        w_ref: Ref,
        bias_ref: Ref,
        out_ref: Ref,
        x_smem: Ref,
        w_smem: Ref,
        out_smem: Ref,
        full: Ref,
        free: Ref,
    ) -> None:
        wg, block = lax.axis_index("wg"), lax.axis_index("block")
        count = lax.div(tiles - 1 - block, blocks) + 1  # of this block's tiles

        def place(item: Array) -> tuple[Array, Array]:
            """(first row of the tile, first column)."""
            number = item * blocks + block
            together = tiles // (columns // across)
            group, rest = lax.div(number, together), lax.rem(number, together)
            column = group * across + lax.rem(rest, across)
            return lax.div(rest, across) * (CONSUMERS * ROWS), column * MATMUL_COLUMNS

        def produce() -> None:
            plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")

            @pl.loop(0, count * steps)
            def _(i: Array) -> None:
                stage, item = lax.rem(i, STAGES), lax.div(i, steps)
                row, column = place(item)
                depth = pl.ds(lax.rem(i, steps) * MATMUL_DEPTH, MATMUL_DEPTH)

                @pl.when(i >= STAGES)
                def _() -> None:
                    plgpu.barrier_wait(free.at[stage])

                for part in range(CONSUMERS):
                    rows = pl.ds(row + part * ROWS, ROWS)
                    plgpu.copy_gmem_to_smem(x_ref.at[rows, depth], x_smem.at[stage, part], full.at[stage])
                source = w_ref.at[depth, pl.ds(column, MATMUL_COLUMNS)]
                plgpu.copy_gmem_to_smem(source, w_smem.at[stage], full.at[stage])

            @pl.loop(jnp.maximum(count * steps - STAGES, 0), count * steps)  # no arrival is left unwaited for
            def _(i: Array) -> None:
                plgpu.barrier_wait(free.at[lax.rem(i, STAGES)])

        def consume() -> None:
            plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")

            @pl.loop(0, count)
            def _(item: Array) -> None:
                row, column = place(item)
                stage = lambda i: lax.rem(item * steps + i, STAGES)

                def product(acc: Ref) -> Array:
                    @pl.loop(0, steps)
                    def _(i: Array) -> None:
                        plgpu.barrier_wait(full.at[stage(i)])
                        plgpu.wgmma(acc, x_smem.at[stage(i), wg], w_smem.at[stage(i)])
                        plgpu.wgmma_wait(1)  # so that of the step before is done

                        @pl.when(i > 0)
                        def _() -> None:
                            plgpu.barrier_arrive(free.at[stage(i - 1)])

                    return acc[...]

                y = pl.run_scoped(product, plgpu.ACC((ROWS, MATMUL_COLUMNS)))
                plgpu.barrier_arrive(free.at[stage(steps - 1)])
                own = bias_ref.at[pl.ds(column, MATMUL_COLUMNS)]
                b = plgpu.load(own, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
                y = gelu(y + lax.broadcast_in_dim(b.astype(jnp.float32), y.shape, [1]))
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out_smem[wg] = y.astype(out_ref.dtype)
                plgpu.commit_smem()
                target = out_ref.at[pl.ds(row + wg * ROWS, ROWS), pl.ds(column, MATMUL_COLUMNS)]
                plgpu.copy_smem_to_gmem(out_smem.at[wg], target)

            plgpu.wait_smem_to_gmem(0)

        pl.when(wg < CONSUMERS)(consume)
        pl.when(wg == CONSUMERS)(produce)

    def entry(*refs: Ref) -> None:
        tiled: Any = plgpu.TilingTransform  # which mypy takes for abstract in some releases of JAX
        swizzled: Any = plgpu.SwizzleTransform

        def smem(*shape: int) -> Any:
            """In the layout that wgmma reads: rows of 128 bytes, swizzled."""
            return plgpu.SMEM(shape, x.dtype, transforms=(tiled((8, 64)), swizzled(128)))

        pl.run_scoped(
            lambda *scratch: kernel(*refs, *scratch),
            smem(STAGES, CONSUMERS, ROWS, MATMUL_DEPTH),
            smem(STAGES, MATMUL_DEPTH, MATMUL_COLUMNS),
            smem(CONSUMERS, ROWS, MATMUL_COLUMNS),
            plgpu.Barrier(num_arrivals=CONSUMERS + 1, num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=STAGES),
            collective_axes="wg",
        )

    found = plgpu.kernel(
        entry,
        out_type=result((M, N), x.dtype, x),
        grid=(min(blocks, tiles),),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({} if interpret is None else {"interpret": interpret}),
    )(x, w, bias)
    return varying_as(found, x)  # from jax 0.12 on a kernel's results forget where they differ
