"""The mask and block-sparse attention in plain XLA: for CPUs, and for GPUs without a kernel of ours.

The mask: pooled scores of a few query blocks at a time, a threshold for each row by bisection, one
comparison, bits. Nothing is sorted.

Attention computes only the kept blocks. Query blocks are taken a few at a time; for each, the kept key blocks
are gathered a few a step and folded into an online softmax. The largest temporary is some 64 MiB whatever T
and S are, besides one copy of K and V cut into blocks. The number of steps follows the fullest row of the
query blocks at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import reference
from pallas_kernels.block_mask import WORD, BlockMask, Lengths, cdiv, pack_bits
from pallas_kernels.implementation import Implementation
from pallas_kernels.thresholds import row_thresholds
from pallas_kernels.varying import varying_as

Array = jax.Array
KEYS_PER_STEP = 512
TEMPORARY_BYTES = 64 * 2**20  # of the score tile of one step
MASK_ROWS_BYTES = 64 * 2**20  # of the pooled scores of the query blocks at hand


def pooled_block_mask(
    q: Array,
    k: Array,
    *,
    kv_runs: tuple[int, ...],
    block: tuple[int, int],
    keep_count: int | Array | None,
    cdf_threshold: float | Array | None,
    pool: str,
    lengths: Lengths | None = None,
    k_length: Array | None = None,
    find_thresholds: Callable[[Array, Array | int, Array | float | None], Array] | None = None,
    row_multiple: int = 1,
    rows_bytes: int | None = None,
) -> BlockMask:
    """See `api.pooled_block_mask`. Scores exist only for a few query blocks at a time: `rows_bytes` of them,
    default MASK_ROWS_BYTES.

    With rounding aside, equal scores are all that tells the result from `reference.select_blocks`: blocks
    that tie at the threshold are kept or dropped together, so ties at the n-th place are all kept, and ties
    across τ are dropped as one.

    `find_thresholds` does what `row_thresholds` does for scores whose rows are filled with NaN up to a
    multiple of `row_multiple`: NaN fails every comparison, so that it is neither counted nor kept. So are the
    blocks filled that do not count.
    """
    if find_thresholds is None:
        find_thresholds = row_thresholds if k_length is None else _thresholds_of_filled
    q_length = None if lengths is None else lengths.q
    pooled_q = reference.pool_blocks(q, block[0], pool, q_length) * q.shape[-1] ** -0.5
    pooled_k = reference.pool_blocks(k, block[1], pool, k_length)
    B, N, Tb, H = pooled_q.shape
    Lb = pooled_k.shape[2]
    Sb = sum(cdiv(run, block[1]) for run in kv_runs)
    most: Any = Lb
    if k_length is not None:
        most = cdiv(k_length, block[1])
        pooled_k = jnp.where(np.arange(Lb)[:, None] < most, pooled_k, jnp.nan)
    n = 1 if keep_count is None else jnp.clip(keep_count, 1, most)
    pooled_k = jnp.pad(pooled_k, ((0, 0), (0, 0), (0, -Lb % row_multiple), (0, 0)), constant_values=jnp.nan)

    def rows(pooled_rows: Array) -> Array:  # f32[B, N, R, H] -> u32[B, N, R, words]
        scores = jnp.einsum("bnth,bnsh->bnts", pooled_rows, pooled_k, precision="highest")
        kept = scores >= find_thresholds(scores, n, cdf_threshold)[..., None]
        # A NaN among the queries scores nothing: keep every block, so that it shows in the output.
        lost = jnp.isnan(pooled_rows).any(-1, keepdims=True) & (np.arange(scores.shape[-1]) < Lb)
        return pack_bits(kept | lost)

    chunks = cdiv(Tb, max(1, (rows_bytes or MASK_ROWS_BYTES) // (4 * B * N * pooled_k.shape[2])))
    if chunks == 1:
        bits = rows(pooled_q)
    else:
        chunk = cdiv(Tb, chunks)
        chunks = cdiv(Tb, chunk)
        padded = jnp.pad(pooled_q, ((0, 0), (0, 0), (0, chunks * chunk - Tb), (0, 0)))
        bits = jax.lax.map(
            rows, padded.reshape(B, N, chunks, chunk, H).transpose(2, 0, 1, 3, 4)
        )  # [chunks, B, N, chunk, words]
        bits = jnp.moveaxis(bits, 0, 2).reshape(B, N, chunks * chunk, -1)[:, :, :Tb]
    words = cdiv(Sb, WORD)
    column = np.arange(words * WORD)
    past = np.packbits((column >= Lb) & (column < Sb), bitorder="little").view("<u4")  # the pooled keys
    forced = past if k_length is None else pack_bits(column >= most)
    bits = jnp.pad(bits, ((0, 0), (0, 0), (0, 0), (0, words)))[..., :words]
    return BlockMask.from_bits(bits | forced, q.shape[1], kv_runs, block, lengths)


def _thresholds_of_filled(scores: Array, n: Array | int, cdf_threshold: Array | float | None) -> Array:
    return row_thresholds(jnp.where(jnp.isnan(scores), -jnp.inf, scores), n, cdf_threshold)


def nth_set_bit(bits: Array, before: Array, n: Array) -> Array:
    """The number of the n-th set bit of each row, counted from 0: u32[..., W], i32[..., W], i32[..., G] ->
    i32[..., G].

    `before` counts the bits set in earlier words. Where a row has no n-th bit the result means nothing.
    """
    word = jnp.sum(before[..., None, :] <= n[..., None], -1) - 1
    rest = n - jnp.take_along_axis(before, word, -1)
    now = jnp.take_along_axis(bits, word, -1)
    bit = jnp.zeros_like(n)
    for half in (16, 8, 4, 2, 1):
        low = jax.lax.population_count(now & ((1 << half) - 1)).astype(jnp.int32)
        upper = rest >= low
        rest = jnp.where(upper, rest - low, rest)
        now = jnp.where(upper, now >> half, now)
        bit = jnp.where(upper, bit + half, bit)
    return word.astype(jnp.int32) * WORD + bit


def _key_blocks(x: Array, mask: BlockMask) -> Array:
    """[B, S, N, H] -> [B, N, Sb, block_k, H]; each run is padded to whole blocks."""
    block_k, parts, start = mask.block[1], [], 0
    for run in mask.kv_runs:
        part = x[:, start : start + run]
        parts.append(jnp.pad(part, ((0, 0), (0, -run % block_k), (0, 0), (0, 0))))
        start += run
    x = jnp.concatenate(parts, 1)
    return x.reshape(x.shape[0], -1, block_k, *x.shape[2:]).transpose(0, 3, 1, 2, 4)


def block_sparse_attention(q: Array, k: Array, v: Array, mask: BlockMask) -> Array:
    """See `api.block_sparse_attention`."""
    B, T, N, H = q.shape
    block_q, block_k = mask.block
    Tb, Sb = mask.num_q_blocks, mask.num_kv_blocks
    group = max(1, min(Sb, KEYS_PER_STEP // block_k))  # key blocks a step
    chunk = max(
        1, min(Tb, TEMPORARY_BYTES // (4 * B * N * block_q * group * block_k))
    )  # query blocks at a time
    chunks = cdiv(Tb, chunk)

    k_blocks, v_blocks = _key_blocks(k, mask), _key_blocks(v, mask)
    block_len = jnp.asarray(mask.kv_block_lengths())
    pad_rows = chunks * chunk - Tb
    q = jnp.pad(q, ((0, 0), (0, chunks * chunk * block_q - T), (0, 0), (0, 0)))
    q = q.reshape(B, chunks, chunk, block_q, N, H).transpose(1, 0, 4, 2, 3, 5)  # [chunks, B, N, chunk, bq, H]
    counts = jnp.pad(mask.kv_num_blocks, ((0, 0), (0, 0), (0, pad_rows)))
    counts = counts.reshape(B, N, chunks, chunk).transpose(2, 0, 1, 3)
    bits = jnp.pad(mask.kv_bits, ((0, 0), (0, 0), (0, pad_rows), (0, 0)))
    bits = bits.reshape(B, N, chunks, chunk, -1).transpose(2, 0, 1, 3, 4)
    gather = jax.vmap(jax.vmap(lambda blocks, i: blocks[i]))  # over B and N: [Sb, bk, H], [chunk, group]

    def attend(args: tuple[Array, Array, Array]) -> Array:
        q_tile, count, bits = args
        in_word = jax.lax.population_count(bits).astype(jnp.int32)
        before = jnp.cumsum(in_word, -1) - in_word

        def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, acc = carry
            slot = jnp.broadcast_to(
                i * group + jnp.arange(group), (*count.shape, group)
            )  # of the kept blocks, in order
            slot_used = slot < count[..., None]
            now = jnp.where(slot_used, nth_set_bit(bits, before, slot), 0)  # [B, N, chunk, group]
            key_used = slot_used[..., None] & (jnp.arange(block_k) < block_len[now][..., None])
            key_used = key_used.reshape(*count.shape, 1, group * block_k)
            k_now = gather(k_blocks, now).reshape(*count.shape, group * block_k, H)
            v_now = gather(v_blocks, now).reshape(*count.shape, group * block_k, H)
            v_now = jnp.where(key_used[..., 0, :, None], v_now, 0)  # 0 · NaN is NaN
            scores = (
                jnp.einsum("bncth,bncsh->bncts", q_tile, k_now, preferred_element_type=jnp.float32) * H**-0.5
            )
            scores = jnp.where(key_used, scores, -jnp.inf)
            new_top = jnp.maximum(top, scores.max(-1))
            finite_top = jnp.where(jnp.isfinite(new_top), new_top, 0.0)  # a row that has seen no key yet
            p = jnp.exp(scores - finite_top[..., None])
            rescale = jnp.exp(top - finite_top)
            update = jnp.einsum(
                "bncts,bncsh->bncth", p.astype(v.dtype), v_now, preferred_element_type=jnp.float32
            )
            return new_top, total * rescale + p.sum(-1), acc * rescale[..., None] + update

        shape = q_tile.shape[:-1]
        start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, H)))
        start = varying_as(start, q_tile)
        _, total, acc = jax.lax.fori_loop(0, (count.max() + group - 1) // group, step, start)
        return (acc / jnp.where(total == 0, 1.0, total)[..., None]).astype(v.dtype)

    out = jax.lax.map(attend, (q, counts, bits))  # [chunks, B, N, chunk, bq, H]
    out = out.transpose(1, 0, 3, 4, 2, 5).reshape(B, -1, N, H)
    return out[:, :T]


class XLA(Implementation):
    """Serves everything, everywhere; but attention outside `jax.shard_map` on a mesh of explicit axes, where
    JAX wants to be told how each gather is sharded.
    """

    name = "xla"
    everywhere = True
    slow_on = ("gpu",)
    takes_lengths = True

    def mask(self, q: Array, k: Array, **how: Any) -> BlockMask:
        return pooled_block_mask(q, k, **how)

    def attend(self, q: Array, k: Array, v: Array, block_mask: BlockMask, config: Any = None) -> Array:
        if any(axis is not None for x in (q, k, v) for axis in jax.typeof(x).sharding.spec):
            where = "the arrays are sharded over explicit axes of a mesh"
            raise NotImplementedError(f"'xla' cannot do this: {where}: call it inside jax.shard_map")
        return block_sparse_attention(q, k, v, block_mask)
