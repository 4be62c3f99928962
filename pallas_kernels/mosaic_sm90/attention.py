# mypy: disable-error-code="no-redef, call-arg"
# (`pl.when` decorates functions that are all named `_`; `plgpu.load` differs between releases of JAX.)
"""Block-sparse attention for Hopper GPUs (sm_90a) as one Pallas Mosaic GPU kernel.

How it works. Thread blocks stay on their multiprocessors and take query tiles in turn. In each, one
*producer* warpgroup walks the set bits of the tile's mask row and gathers the kept key blocks, a step of
several blocks at a time, through the copy engine (TMA) into a ring of shared-memory stages; one to three
*consumer* warpgroups of 64 query rows multiply and exponentiate what lies there:

    producer   bits -> K(i+2), V(i+2) -> K(i+3) ...              waits until a stage is free
    consumer   S = Q K(i)ᵀ -> P = exp2(S·c - m) -> O += P V(i)   waits until a stage is full

Both products are asynchronous wgmma: while one consumer exponentiates, the tensor cores work for another, and
P V(i) runs on while the next Q Kᵀ is issued. Barriers count arrivals: a copy arrives when its bytes have
landed, a consumer when it has read a stage.

The shift m of the softmax is fixed where `shift` allows it: no running maximum is needed, nothing is ever
rescaled, and the consumers save about a seventh of their time. Other tiles, and float16, take the online
softmax.

Where a query block has the rows of one warpgroup, a thread block has two such *streams* of producer, consumer
and stages: the consumers of two query tiles take turns as those of one do otherwise.

Where there are so few query tiles that most multiprocessors would have none, the keys are shared out: every
tile is computed several times, each time with a part of its row's key blocks, and XLA merges the parts.

A mask's key block that no step holds a whole number of is cut: a step of 192 keys, the fastest, takes one and
a half of 128.

Special cases cost little: from the step on that holds the last, partial block of a run of keys or is not
full, scores are masked, in a loop of its own. The copy engine fills with zeros what lies past the end of an
array, and every run of keys is an array of its own: so a NaN in a key that is not kept never enters a
product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.block_mask import WORD, BlockMask, Lengths, aligned, cdiv, pack_bits
from pallas_kernels.mosaic_sm90.config import (
    WARPGROUP_ROWS,
    TuningConfig,
    kernel_block,
    kernel_head_dim,
)
from pallas_kernels.shift import FIXED_SHIFT_RANGE, key_bound
from pallas_kernels.varying import result, varying_as

Array = jax.Array
Ref = Any
Runs = tuple[Array, ...]  # [B, S, N, H] for each run of keys that is not empty, at least as long as it
Partials = list[tuple[Array, Any]]  # of each, where it stands in the row's list, and its keys
NEVER = 2**30
# What a tile costs besides those of its keys, and what merging parts does.
PART_STEPS, MERGE_STEPS = 8, 16


def block_sparse_attention(
    q: Array,
    k: Array | tuple[Array, ...],
    v: Array | tuple[Array, ...],
    mask: BlockMask,
    config: TuningConfig,
    *,
    num_blocks: int | None = None,
    interpret: Any = None,
) -> Array:
    """See `api.block_sparse_attention`.

    Args:
      num_blocks: thread blocks that stay resident; default one a multiprocessor of the first GPU.
      interpret: `plgpu.InterpretGPUParams` runs the kernel in Pallas' simulator, on a CPU. It knows no
        `run_state` and no wgmma operand in registers, so there P passes through shared memory and the online
        softmax adds P V to its accumulator instead of into it.
    """
    num_blocks = num_blocks or _device().core_count

    def runs_of(x: Array | tuple[Array, ...]) -> Runs:
        runs = x if isinstance(x, tuple) else jnp.split(x, np.cumsum(mask.kv_runs)[:-1].tolist(), axis=1)
        return tuple(run for run, length in zip(runs, mask.kv_runs, strict=True) if length)

    @jax.custom_batching.custom_vmap
    def attend(q: Array, k: Runs, v: Runs, counts: Array, bits: Array, lengths: Lengths | None) -> Array:
        here = BlockMask(counts, bits, mask.q_len, mask.kv_runs, mask.block, lengths)
        return _attend_padded(q, k, v, here, config, num_blocks, interpret)

    @attend.def_vmap
    def _(size: int, batched: list[Any], *arguments: Any) -> tuple[Array, bool]:
        (*arrays, lengths), (*batched, lengths_are) = arguments, batched
        if any(jax.tree.leaves(lengths_are)):
            raise NotImplementedError("lengths are the same for all of a batch, and are not mapped over")
        whole = lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
        one_batch = lambda x, is_batched: whole(x, is_batched).reshape(-1, *x.shape[1 + is_batched :])
        out = attend(*jax.tree.map(one_batch, arrays, batched), lengths)
        return out.reshape(size, -1, *out.shape[1:]), True

    return attend(q, runs_of(k), runs_of(v), mask.kv_num_blocks, mask.kv_bits, mask.lengths)


def _attend_padded(
    q: Array, k: Runs, v: Runs, mask: BlockMask, config: TuningConfig, num_blocks: int, interpret: Any
) -> Array:
    """Rounds the head dim up to what wgmma takes and query blocks to whole warpgroups, with zeros. Sizes that
    fit are not copied.
    """
    (B, _, N, H), T, (block_q, block_k) = q.shape, mask.q_len, mask.block
    Tb, rows, extra = mask.num_q_blocks, kernel_block(mask.block)[0], kernel_head_dim(H) - H
    if extra:
        q, k, v = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra))), (q, k, v))
    if rows != block_q:
        q = jnp.pad(q[:, :T], ((0, 0), (0, Tb * block_q - T), (0, 0), (0, 0))).reshape(B, Tb, block_q, N, -1)
        q = jnp.pad(q, ((0, 0), (0, 0), (0, rows - block_q), (0, 0), (0, 0))).reshape(B, Tb * rows, N, -1)
        lengths = mask.lengths and mask.lengths._replace(q=cdiv(mask.lengths.q, block_q) * rows)
        mask = dataclasses.replace(mask, q_len=Tb * rows, block=(rows, block_k), lengths=lengths)
    keys = config.gathered_keys(mask.block)
    if keys is not None and keys != block_k:
        mask = _cut_blocks(mask, keys)
    tiles = B * N * cdiv(mask.q_len, WARPGROUP_ROWS * config.warpgroups)
    parts = _number_of_parts(tiles, mask, config, num_blocks)
    launch = partial(
        _launch, config=config, scale=1 / math.sqrt(H), num_blocks=num_blocks, interpret=interpret
    )
    out = launch(q, k, v, mask)[0] if parts == 1 else _attend_in_parts(launch, parts, q, k, v, mask)
    if rows != block_q:
        out = out.reshape(B, Tb, rows, N, -1)[:, :, :block_q].reshape(B, Tb * block_q, N, -1)[:, :T]
    return out[..., :H]


def _cut_blocks(mask: BlockMask, keys: int) -> BlockMask:
    """The same mask in blocks of `keys` keys, a divisor of its own."""
    dense, times = mask.to_dense(), mask.block[1] // keys
    ends = np.cumsum([cdiv(run, mask.block[1]) for run in mask.kv_runs])
    parts = [
        jnp.repeat(blocks, times, -1)[..., : cdiv(run, keys)]  # fewer where the last block is partial
        for blocks, run in zip(jnp.split(dense, ends[:-1], -1), mask.kv_runs, strict=True)
    ]
    cut, block = jnp.concatenate(parts, -1), (mask.block[0], keys)
    return BlockMask.from_dense(cut, mask.q_len, mask.kv_runs, block, mask.lengths)


def _number_of_parts(tiles: int, mask: BlockMask, config: TuningConfig, num_blocks: int) -> int:
    """That the keys of every row are cut into: with which the streams are done first, were all rows full."""
    steps, streams = mask.num_kv_blocks * mask.block[1] / config.step_keys, num_blocks * config.streams

    def time(parts: int) -> float:
        return cdiv(tiles * parts, streams) * (steps / parts + PART_STEPS) + (parts > 1) * MERGE_STEPS

    return min(range(1, min(streams, mask.num_kv_blocks) + 1), key=time)


def _attend_in_parts(
    launch: Callable[..., list[Array]], parts: int, q: Array, k: Runs, v: Runs, mask: BlockMask
) -> Array:
    """Every query block several times, each time with a part of the key blocks."""
    (B, _, N, H), T, Tb = q.shape, mask.q_len, mask.num_q_blocks
    rows = Tb * mask.block[0]
    part = np.arange(mask.kv_bits.shape[-1] * WORD) * parts // mask.num_kv_blocks
    own = np.packbits(part == np.arange(parts)[:, None], axis=-1, bitorder="little").view("<u4")
    bits = mask.kv_bits[:, :, None] & own[:, None]  # [B, N, parts, Tb, words]
    bits = bits.reshape(B, N, parts * Tb, -1)
    copies = BlockMask.from_bits(bits, parts * rows, mask.kv_runs, mask.block)
    copies = dataclasses.replace(copies, lengths=mask.lengths)  # of their keys; what is kept stays
    q = jnp.pad(q[:, :T], ((0, 0), (0, rows - T), (0, 0), (0, 0)))
    out, mass = launch(jnp.tile(q, (1, parts, 1, 1)), k, v, copies, with_mass=True)
    out = out.reshape(B, parts, rows, N, H)[:, :, :T]
    mass = mass.reshape(B, N, parts, rows).transpose(0, 2, 3, 1)[:, :, :T]  # [B, parts, T, N]
    top = mass.max(1, keepdims=True)
    weight = jnp.exp2(mass - jnp.where(top == -jnp.inf, 0.0, top))[..., None]
    total = weight.sum(1)
    return ((out * weight).sum(1) / jnp.where(total == 0, 1.0, total)).astype(out.dtype)


def _device() -> jax.Device:
    return jax.local_devices(backend="gpu")[0]


def _launch(
    q: Array,
    k: Runs,
    v: Runs,
    mask: BlockMask,
    *,
    config: TuningConfig,
    scale: float,
    num_blocks: int,
    interpret: Any,
    with_mass: bool = False,
) -> list[Array]:
    """[B, T, N, H]; and `with_mass` f32[B, N, T], the logarithm to base 2 of each query's sum of
    exponentials, for T a multiple of a warpgroup's rows.
    """
    (B, _, N, H), T = q.shape, mask.q_len
    runs, block_k = tuple(run for run in mask.kv_runs if run), mask.block[1]  # an empty run has no block
    C, G, keys, stages = config.warpgroups, config.streams, config.step_keys, config.stages
    num_streams = num_blocks * G  # that share the tiles out
    buffers = config.query_buffers
    group = keys // block_k  # key blocks a step
    rows = WARPGROUP_ROWS * C  # of a query tile
    tiles = cdiv(T, rows)
    tiles_per_row = mask.block[0] // rows  # query tiles that share a row of the mask
    total = B * N * tiles
    rounds = cdiv(total, num_streams)
    run_blocks = [cdiv(run, block_k) for run in runs]
    run_first = [sum(run_blocks[:r]) for r in range(len(runs))]
    # Runs that may end in a partial block, and how many keys that has; None: it is known at run time.
    partial_runs = [r for r, run in enumerate(runs) if run % block_k or mask.lengths is not None]
    rests = [runs[r] % block_k for r in partial_runs] if mask.lengths is None else None
    Sb, words = mask.num_kv_blocks, mask.kv_bits.shape[-1]
    dtype, simulated = v[0].dtype, interpret is not None
    in_bytes = q.dtype != dtype  # queries and keys are of 8 bits
    scale = scale * math.log2(math.e)  # exponentials are powers of two

    bits = lax.bitcast_convert_type(mask.kv_bits, jnp.int32)
    if mask.lengths is None:
        info = _row_info(mask, bits, group, [run_first[r] + run_blocks[r] - 1 for r in partial_runs])
    else:
        of_runs = [length for length, run in zip(mask.lengths.kv_runs, mask.kv_runs, strict=True) if run]
        info = _row_info_of_lengths(mask, group, run_first, of_runs)
    # The longest tiles of a head first: a thread block's share is fixed, and so comes out even where rows
    # keep different numbers of blocks.
    order = jnp.argsort(-jnp.repeat(mask.kv_num_blocks, tiles_per_row, -1)[..., :tiles], -1).astype(jnp.int32)
    # For the fixed shift, which float16 has no range for: there it is computed and not read. A query's own
    # length cannot be had from 8 bits in the layout of the scores, so the longest one's stands for all.
    k_norm = key_bound(k, scale)  # f32[B, N]
    k_norm = k_norm * key_bound([q], 1.0) if in_bytes else k_norm

    def kernel(
        my_stream: int,
        q_ref: Ref,
        order_ref: Ref,
        info_ref: Ref,
        bits_ref: Ref,
        k_norm_ref: Ref,
        *refs: Any,
    ) -> None:
        """What the warpgroups of one stream do."""
        k_refs, v_refs, out_ref = refs[: len(runs)], refs[len(runs) : 2 * len(runs)], refs[2 * len(runs)]
        mass_ref = refs[2 * len(runs) + 1] if with_mass else None
        (
            (q_smem, out_smem, k_smem, v_smem, bound_smem, column_smem, p_smem),
            (q_full, k_full, v_full),
            (q_free, k_free, v_free),
        ) = refs[2 * len(runs) + 1 + with_mass :]
        wg = lax.axis_index("wg")  # the consumers of all streams, then their producers
        consumer, my_rows = (wg, wg) if C > 1 else (my_stream, 0)  # rows of the tile, in warpgroups
        stream = lax.axis_index("block") * G + my_stream
        stage_of = lambda i: lax.rem(i, stages) + my_stream * stages
        buffer_of = lambda item: lax.rem(item, buffers) + my_stream * buffers

        def position(item: Array | int) -> Array:
            """Of this stream's n-th tile in the order of work. Rounds run to and fro: what one gives unevenly
            the next evens.
            """
            return item * num_streams + jnp.where(lax.rem(item, 2) == 1, num_streams - 1 - stream, stream)

        num_items = rounds - jnp.where(position(jnp.int32(rounds - 1)) < total, 0, 1)

        def head_of(item: Array) -> tuple[Array, Array, Array]:
            """(batch, head, place in the head's order). One head after another, to share what L2 holds of its
            K and V.
            """
            work = jnp.minimum(position(item), total - 1)
            head = lax.div(work, tiles)
            return lax.div(head, N), lax.rem(head, N), lax.rem(work, tiles)

        def tile_of(item: Array) -> Array:
            return order_ref[head_of(item)]

        def consume() -> None:
            plgpu.set_max_registers(config.consumer_registers, action="increase")
            columns, per_row = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1)
            spread = lambda x, like: lax.broadcast_in_dim(x, like.shape, [0])

            def constant(shape: tuple[int, ...], value: float, layout: Any) -> Array:
                return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

            def read_info(item: Array, tile: Array) -> list[Array]:
                b, n, _ = head_of(item)
                return [info_ref[b, n, lax.div(tile, tiles_per_row), j] for j in range(2)]

            def attend_tile(item: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
                # Steps done before this tile; this tile and the next; this tile's row of `info`. Read early,
                # so that nothing waits for it.
                done, tile, next_tile, (count, first_masked) = carry
                b, n, _ = head_of(item)
                next_info, second_next_tile = read_info(item + 1, next_tile), tile_of(item + 2)
                steps = lax.div(count + (group - 1), group)
                buffer = buffer_of(item)
                my_q = q_smem.at[buffer, my_rows]
                stage = lambda i: stage_of(done + i)

                def mask_scores(s: Array, i: Array, partial_slots: Partials) -> Array:
                    column = plgpu.load(column_smem.at[consumer], layout=columns.reduce(0))
                    valid = column < (count - i * group) * block_k
                    for slot, rest in partial_slots:
                        start = (
                            jnp.clip(slot - i * group, -2, group + 1) * block_k
                        )  # out of sight where not in this step
                        valid = valid & ((column < start + rest) | (column >= start + block_k))
                    return jnp.where(lax.broadcast_in_dim(valid, s.shape, [1]), s, -jnp.inf)

                def loop(step: Callable[..., Any], carry: Any) -> Any:
                    cut = jnp.minimum(first_masked, steps)
                    carry = lax.fori_loop(0, cut, partial(step, partial_slots=None), carry)
                    # Read here, to leave the registers to the loop above.
                    number = len(partial_runs)
                    row_info = lambda j: info_ref[b, n, lax.div(tile, tiles_per_row), 2 + j]
                    slots = [row_info(j) for j in range(number)]
                    keys_there = rests or [row_info(number + j) for j in range(number)]
                    partial_slots = list(zip(slots, keys_there, strict=True))
                    return lax.fori_loop(cut, steps, partial(step, partial_slots=partial_slots), carry)

                def weights_operand(p: Array) -> Array | Ref:
                    p = p.astype(dtype)
                    if not simulated:
                        return p
                    p_smem[consumer] = p
                    plgpu.commit_smem()
                    return p_smem.at[consumer]

                def fixed_shift_softmax(bound: Array) -> tuple[Array, Array]:
                    """Unnormalised output and row sums, with the fixed shift `bound`."""

                    def scope(out_acc: Ref) -> tuple[Array, Array]:
                        def step(i: Array, row_sum: Array, partial_slots: Partials | None) -> Array:
                            plgpu.barrier_wait(k_full.at[stage(i)])

                            def scores(s_acc: Ref) -> Array:
                                plgpu.wgmma(s_acc, my_q, k_smem.at[stage(i)].T)
                                return s_acc[...]  # waits for this product and for P V of the step before

                            s = pl.run_scoped(scores, plgpu.ACC((WARPGROUP_ROWS, keys)))

                            @pl.when(i > 0)
                            def _() -> None:
                                plgpu.barrier_arrive(v_free.at[stage(i - 1)])

                            plgpu.barrier_arrive(k_free.at[stage(i)])
                            s = s if partial_slots is None else mask_scores(s, i, partial_slots)
                            p = jnp.exp2(s * scale - spread(bound, s))
                            row_sum = row_sum + p.sum(1)
                            p = weights_operand(p)
                            plgpu.barrier_wait(v_full.at[stage(i)])
                            plgpu.wgmma(out_acc, p, v_smem.at[stage(i)])
                            return row_sum

                        row_sum = loop(step, constant((WARPGROUP_ROWS,), 0.0, per_row))
                        out = out_acc[...]

                        @pl.when(steps > 0)
                        def _() -> None:
                            plgpu.barrier_arrive(v_free.at[stage(steps - 1)])

                        return out, row_sum

                    return pl.run_scoped(scope, plgpu.ACC((WARPGROUP_ROWS, H)))

                def online_softmax() -> tuple[Array, Array, Array]:
                    """The same with the running maximum as shift, which comes third."""

                    def step(
                        i: Array, carry: tuple[Array, Array, Array], partial_slots: Partials | None
                    ) -> tuple[Array, Array, Array]:
                        out, top, row_sum = carry

                        @pl.when((i == 0) | simulated)
                        def _() -> None:
                            plgpu.barrier_wait(k_full.at[stage(i)])

                        def scores(s_acc: Ref) -> Array:
                            plgpu.wgmma(s_acc, my_q, k_smem.at[stage(i)].T)
                            return s_acc[...]

                        s = pl.run_scoped(scores, plgpu.ACC((WARPGROUP_ROWS, keys)))
                        plgpu.barrier_arrive(k_free.at[stage(i)])
                        s = s if partial_slots is None else mask_scores(s, i, partial_slots)
                        new_top = jnp.maximum(top, s.max(1) * scale)
                        rescale = jnp.exp2(top - new_top)
                        p = jnp.exp2(s * scale - spread(new_top, s))
                        row_sum = row_sum * rescale + p.sum(1)
                        out = out * spread(rescale, out)
                        p = weights_operand(p)
                        if simulated:
                            plgpu.barrier_wait(v_full.at[stage(i)])

                            def product(out_acc: Ref) -> Array:
                                plgpu.wgmma(out_acc, p, v_smem.at[stage(i)])
                                return out_acc[...]

                            out = out + pl.run_scoped(product, plgpu.ACC((WARPGROUP_ROWS, H)))
                        else:
                            # All arithmetic before the wait: the tensor cores are another warpgroup's until
                            # then.
                            out, row_sum, new_top, p = lax.optimization_barrier((out, row_sum, new_top, p))
                            plgpu.barrier_wait(v_full.at[stage(i)])

                            def accumulate(out_acc: Ref) -> None:
                                plgpu.wgmma(out_acc, p, v_smem.at[stage(i)])

                                @pl.when(i + 1 < steps)
                                def _() -> None:  # while the product runs
                                    plgpu.barrier_wait(k_full.at[stage(i + 1)])

                            out = pl.run_state(accumulate)(plgpu.ACC.init(out))
                        plgpu.barrier_arrive(v_free.at[stage(i)])
                        return out, new_top, row_sum

                    start = (
                        constant((WARPGROUP_ROWS, H), 0.0, columns),
                        constant((WARPGROUP_ROWS,), -jnp.inf, per_row),
                    )
                    out, top, row_sum = loop(step, (*start, constant((WARPGROUP_ROWS,), 0.0, per_row)))
                    return out, row_sum, top

                plgpu.barrier_wait(q_full.at[buffer])
                if dtype == jnp.bfloat16:
                    if in_bytes:
                        largest = k_norm_ref[b, n]
                        bound = plgpu.layout_cast(jnp.full((WARPGROUP_ROWS,), largest), per_row)
                    else:
                        q32 = plgpu.load(my_q, layout=columns).astype(jnp.float32)
                        bound = lax.sqrt((q32 * q32).sum(1)) * k_norm_ref[b, n]
                        # Mosaic's own reduction to a scalar goes through memory that all warpgroups share, at
                        # one and the same time here.
                        if with_mass:
                            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        bound_smem[consumer] = bound
                        plgpu.commit_smem()
                        largest = reduce(
                            jnp.maximum, [bound_smem[consumer, r] for r in range(WARPGROUP_ROWS)]
                        )
                    in_range = 2 * largest <= FIXED_SHIFT_RANGE  # false for NaN
                    kept = 3 if with_mass else 2  # a shift that nobody reads would take registers
                    out, row_sum, *shift = lax.cond(
                        in_range,
                        lambda: (*fixed_shift_softmax(bound), bound)[:kept],
                        lambda: online_softmax()[:kept],
                    )
                else:
                    out, row_sum, *shift = online_softmax()
                out = out * spread(
                    1.0 / jnp.where(row_sum == 0, 1.0, row_sum), out
                )  # a row that keeps nothing gives zeros
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                if with_mass:
                    bound_smem[consumer] = shift[0] + jnp.log2(row_sum)
                my_out = my_q if out_smem is None else out_smem.at[consumer]
                my_out[...] = out.astype(dtype)
                plgpu.commit_smem()  # also orders the reads of q before the copy that overwrites it
                if out_smem is not None:
                    plgpu.barrier_arrive(q_free.at[buffer])
                first_row = tile * rows + my_rows * WARPGROUP_ROWS
                plgpu.copy_smem_to_gmem(my_out, out_ref.at[b, pl.ds(first_row, WARPGROUP_ROWS), n])
                if mass_ref is not None:
                    my_mass = mass_ref.at[b, n, pl.ds(first_row, WARPGROUP_ROWS)]
                    plgpu.copy_smem_to_gmem(bound_smem.at[consumer], my_mass)
                if out_smem is None:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    plgpu.barrier_arrive(q_free.at[buffer])
                return done + steps, next_tile, second_next_tile, next_info

            # Column numbers, to be read where scores are masked: computed there, they would be hoisted and
            # take the loop's registers.
            column_smem[consumer] = plgpu.broadcasted_iota(jnp.int32, (keys,), 0, layout=columns.reduce(0))
            plgpu.commit_smem()
            first, second = tile_of(jnp.int32(0)), tile_of(jnp.int32(1))
            lax.fori_loop(
                0, num_items, attend_tile, (jnp.int32(0), first, second, read_info(jnp.int32(0), first))
            )
            plgpu.wait_smem_to_gmem(0)

        def produce() -> None:
            plgpu.set_max_registers(config.producer_registers, action="decrease")

            def gather(
                sources: tuple[Ref, ...],
                smem: Ref,
                full: Ref,
                stage: Array,
                blocks: list[Array],
                b: Array,
                n: Array,
            ) -> None:
                def copy(r: int, slot: int) -> None:
                    where = pl.ds((blocks[slot] - run_first[r]) * block_k, block_k)
                    plgpu.copy_gmem_to_smem(
                        sources[r].at[b, where, n],
                        smem.at[stage, pl.ds(slot * block_k, block_k)],
                        full.at[stage],
                    )

                def copy_all(r: int) -> None:
                    for slot in range(group):
                        copy(r, slot)

                if len(sources) == 1:
                    copy_all(0)
                    return

                # A block past all runs (a step that is not full) is the last run's: past its end, hence
                # zeros.
                ends = [*run_first[1:], Sb + 1]
                in_run = lambda block, r: (block >= run_first[r]) & (block < ends[r])
                # Blocks ascend, so the first and the last tell whether one run holds them all: in nearly
                # every step the first one does.
                whole = [in_run(blocks[0], r) & in_run(blocks[-1], r) for r in range(len(sources))]
                for r in range(len(sources)):
                    pl.when(whole[r])(partial(copy_all, r))

                @pl.when(~reduce(jnp.logical_or, whole))
                def _() -> None:
                    for slot in range(group):
                        for r in range(len(sources)):
                            pl.when(in_run(blocks[slot], r))(partial(copy, r, slot))

            def read_row(item: Array, tile: Array) -> tuple[Array, Array]:
                b, n, _ = head_of(item)
                row = lax.div(tile, tiles_per_row)
                return info_ref[b, n, row, 0], bits_ref[b, n, row, 0]

            def feed_tile(item: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
                done, tile, next_tile, (count, first_word) = carry
                b, n, _ = head_of(item)
                row = lax.div(tile, tiles_per_row)

                steps = lax.div(count + (group - 1), group)

                def load_queries() -> None:
                    @pl.when(item >= buffers)
                    def _() -> None:
                        plgpu.barrier_wait(q_free.at[buffer_of(item)])

                    for w in range(C):
                        source = q_ref.at[b, pl.ds(tile * rows + w * WARPGROUP_ROWS, WARPGROUP_ROWS), n]
                        buffer = buffer_of(item)
                        plgpu.copy_gmem_to_smem(source, q_smem.at[buffer, w], q_full.at[buffer])

                # A single buffer is free when the tile before is done, which leaves time to gather keys.
                if buffers > 1:
                    load_queries()
                else:
                    pl.when(steps == 0)(load_queries)
                next_row, second_next_tile = read_row(item + 1, next_tile), tile_of(item + 2)

                def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                    index, word = carry  # the word that is being walked, and its bits not yet taken
                    stage = stage_of(done + i)
                    blocks = []
                    for slot in range(group):
                        index, word = lax.while_loop(
                            lambda c: (c[1] == 0) & (c[0] + 1 < words),
                            lambda c: (c[0] + 1, bits_ref[b, n, row, c[0] + 1]),
                            (index, word),
                        )
                        blocks.append(
                            jnp.where(i * group + slot < count, index * WORD + _lowest_bit(word), Sb)
                        )
                        word = word & (word - 1)
                    for sources, smem, full, free in (
                        (k_refs, k_smem, k_full, k_free),
                        (v_refs, v_smem, v_full, v_free),
                    ):

                        @pl.when(done + i >= stages)
                        def _(free: Ref = free) -> None:
                            plgpu.barrier_wait(free.at[stage])

                        gather(sources, smem, full, stage, blocks, b, n)
                    if buffers == 1:
                        pl.when(i + 1 == jnp.minimum(steps, stages))(load_queries)
                    return index, word

                lax.fori_loop(0, steps, step, (jnp.int32(0), first_word))
                return done + steps, next_tile, second_next_tile, next_row

            first, second = tile_of(jnp.int32(0)), tile_of(jnp.int32(1))
            done, *_ = lax.fori_loop(
                0, num_items, feed_tile, (jnp.int32(0), first, second, read_row(jnp.int32(0), first))
            )

            # Every arrival has been waited for when the block ends.
            @pl.loop(jnp.maximum(done - stages, 0), done)
            def _(i: Array) -> None:
                plgpu.barrier_wait(k_free.at[stage_of(i)])
                plgpu.barrier_wait(v_free.at[stage_of(i)])

            @pl.loop(jnp.maximum(num_items - buffers, 0), num_items)
            def _(item: Array) -> None:
                plgpu.barrier_wait(q_free.at[buffer_of(item)])

        first = C * my_stream
        pl.when((wg < first + C) & (wg >= first) if first else wg < C)(consume)
        pl.when(wg == C * G + my_stream)(produce)

    def entry(*refs: Ref) -> None:
        tiled: Any = plgpu.TilingTransform  # which mypy takes for abstract in some releases of JAX
        swizzled: Any = plgpu.SwizzleTransform

        def smem(*shape: int, of: Any = dtype) -> Any:
            """In the layout that wgmma reads: rows of at most 128 bytes, swizzled."""
            row = min(H, 128 // of.itemsize)
            return plgpu.SMEM(shape, of, transforms=(tiled((8, row)), swizzled(row * of.itemsize)))

        barriers = lambda arrivals, number: plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)

        def streams_of_block(*scratch: Any) -> None:
            for my_stream in range(G):  # each in code of its own: indices that depend on it would cost time
                kernel(my_stream, *refs, *scratch)

        pl.run_scoped(
            streams_of_block,
            (
                smem(G * buffers, C, WARPGROUP_ROWS, H, of=q.dtype),
                smem(G * C, WARPGROUP_ROWS, H) if buffers > 1 or in_bytes else None,
                smem(G * stages, keys, H, of=q.dtype),
                smem(G * stages, keys, H),
                plgpu.SMEM((G * C, WARPGROUP_ROWS), jnp.float32),
                plgpu.SMEM((G * C, keys), jnp.int32),
                smem(G * C, WARPGROUP_ROWS, keys) if simulated else None,
            ),
            (barriers(C, G * buffers), barriers(group, G * stages), barriers(group, G * stages)),  # full
            (barriers(C, G * buffers), barriers(C, G * stages), barriers(C, G * stages)),  # free
            collective_axes="wg",
        )

    q = aligned(q)
    mass = result((B, N, T), jnp.float32, q)
    out, *rest = plgpu.kernel(
        entry,
        out_type=[result(q.shape, dtype, q), *([mass] if with_mass else [])],
        grid=(num_blocks,),
        grid_names=("block",),
        num_threads=(C + 1) * G,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({"interpret": interpret} if simulated else {}),
    )(q, order, info, bits, k_norm, *map(aligned, k), *map(aligned, v))
    # From jax 0.12 on a kernel's results forget where they differ.
    out, *rest = varying_as([out, *rest], q)
    return [out[:, :T], *rest]


def _row_info(mask: BlockMask, bits: Array, group: int, partial_blocks: list[int]) -> Array:
    """i32[B, N, Tb, 2 + len(partial_blocks)]: a row's number of kept blocks, its first step that needs
    masking, and where in the row's list each of `partial_blocks` stands (`NEVER` if it is not kept).
    """
    counts = mask.kv_num_blocks
    first_masked = jnp.where(counts % group == 0, NEVER, counts // group)
    slots = []
    for block in partial_blocks:
        word, bit = divmod(block, WORD)
        from_here = bits[..., word:].at[..., 0].set(lax.shift_right_logical(bits[..., word], jnp.int32(bit)))
        slot = counts - jnp.sum(lax.population_count(from_here), -1)
        slots.append(jnp.where(from_here[..., 0] & 1 == 1, slot, NEVER))
        first_masked = jnp.minimum(first_masked, slots[-1] // group)
    return jnp.stack([counts, first_masked, *slots], -1).astype(jnp.int32)


def _row_info_of_lengths(mask: BlockMask, group: int, run_first: list[int], lengths: list[Array]) -> Array:
    """`_row_info` where the last block of each run, the one that may be partial, is known at run time only:
    i32[B, N, Tb, 2 + 2·runs], a row's slots followed by how many keys each of these blocks has.
    """
    counts, block_k = mask.kv_num_blocks, mask.block[1]
    first_masked = jnp.where(counts % group == 0, NEVER, counts // group)
    place = np.arange(mask.num_kv_blocks)
    slots, rests = [], []
    for first, length in zip(run_first, lengths, strict=True):
        last = first + cdiv(length, block_k) - 1
        rest = length - (last - first) * block_k
        kept_of = lambda blocks: jnp.sum(lax.population_count(mask.kv_bits & pack_bits(blocks)), -1)
        slot = kept_of(place < last).astype(jnp.int32)
        slot = jnp.where((kept_of(place == last) > 0) & (rest < block_k), slot, NEVER)
        first_masked = jnp.minimum(first_masked, slot // group)
        slots.append(slot)
        rests.append(jnp.broadcast_to(rest, counts.shape))
    return jnp.stack([counts, first_masked, *slots, *rests], -1).astype(jnp.int32)


def _lowest_bit(word: Array) -> Array:
    """Number of the lowest set bit of an i32; -1 for zero."""
    return 31 - lax.clz(word & -word)
