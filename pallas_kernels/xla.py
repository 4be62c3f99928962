"""Block-sparse attention in plain XLA that computes only the kept blocks: for CPUs and for GPUs without a kernel of ours.

Query blocks are taken a few at a time; for each, the kept key blocks are gathered a few a step and folded into an online softmax. The
largest temporary is some 64 MiB whatever T and S are, besides one copy of K and V cut into blocks. The number of steps follows the fullest
row of the query blocks at hand.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import reference
from pallas_kernels.block_mask import BlockMask, cdiv

Array = jax.Array
KEYS_PER_STEP = 512
TEMPORARY_BYTES = 64 * 2**20  # of the score tile of one step
MASK_ROWS_BYTES = 64 * 2**20  # of the pooled map of the query blocks at hand


def pooled_block_mask(
    q: Array,
    k: Array,
    kv_runs: tuple[int, ...],
    block: tuple[int, int],
    keep_count: int | Array | None,
    max_keep: int,
    cdf_threshold: float | Array | None,
    pool: str,
) -> BlockMask:
    """See `api.pooled_block_mask`. The pooled map exists only for a few query blocks at a time."""
    pooled_q = reference.pool_blocks(q, block[0], pool)
    pooled_k = reference.pool_blocks(k, block[1], pool)
    B, N, Tb, H = pooled_q.shape
    Lb = pooled_k.shape[2]
    forced = sum(cdiv(run, block[1]) for run in kv_runs) - Lb
    width = (Lb if cdf_threshold is not None else min(max(max_keep, 1), Lb)) + forced

    def rows(pooled_rows: Array) -> BlockMask:  # f32[B, N, R, H]
        p = reference.pooled_probabilities(pooled_rows, pooled_k)
        kept = reference.select_blocks(p, keep_count, cdf_threshold)
        kept = jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (0, forced)), constant_values=True)
        return BlockMask.from_dense(kept, pooled_rows.shape[2] * block[0], kv_runs, block, width)

    chunk = max(1, min(Tb, MASK_ROWS_BYTES // (4 * B * N * Lb)))
    chunks = cdiv(Tb, chunk)
    padded = jnp.pad(pooled_q, ((0, 0), (0, 0), (0, chunks * chunk - Tb), (0, 0)))
    padded = padded.reshape(B, N, chunks, chunk, H).transpose(2, 0, 1, 3, 4)
    parts = jax.lax.map(rows, padded)  # each leaf [chunks, B, N, chunk, ...]
    counts = jnp.moveaxis(parts.kv_num_blocks, 0, 2).reshape(B, N, chunks * chunk)[:, :, :Tb]
    indices = jnp.moveaxis(parts.kv_indices, 0, 2).reshape(B, N, chunks * chunk, width)[:, :, :Tb]
    return BlockMask(counts, indices, q.shape[1], kv_runs, block)


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
    """See `api.block_sparse_attention`. Not differentiable in reverse mode (its loop has a data-dependent length)."""
    B, T, N, H = q.shape
    block_q, block_k = mask.block
    Tb, Sb = mask.num_q_blocks, mask.num_kv_blocks
    group = max(1, min(Sb, KEYS_PER_STEP // block_k))  # key blocks a step
    chunk = max(1, min(Tb, TEMPORARY_BYTES // (4 * B * N * block_q * group * block_k)))  # query blocks at a time
    chunks = cdiv(Tb, chunk)

    k_blocks, v_blocks = _key_blocks(k, mask), _key_blocks(v, mask)
    block_len = jnp.array([stop - start for start, stop in mask.kv_block_bounds()], jnp.int32)
    pad_rows = chunks * chunk - Tb
    q = jnp.pad(q, ((0, 0), (0, chunks * chunk * block_q - T), (0, 0), (0, 0)))
    q = q.reshape(B, chunks, chunk, block_q, N, H).transpose(1, 0, 4, 2, 3, 5)  # [chunks, B, N, chunk, bq, H]
    counts = jnp.pad(mask.kv_num_blocks, ((0, 0), (0, 0), (0, pad_rows)))
    counts = counts.reshape(B, N, chunks, chunk).transpose(2, 0, 1, 3)
    width = mask.kv_indices.shape[-1]
    indices = jnp.pad(mask.kv_indices, ((0, 0), (0, 0), (0, pad_rows), (0, -width % group)))
    indices = indices.reshape(B, N, chunks, chunk, -1).transpose(2, 0, 1, 3, 4)
    gather = jax.vmap(jax.vmap(lambda blocks, i: blocks[i]))  # over B and N: [Sb, bk, H], [chunk, group]

    def attend(args: tuple[Array, Array, Array]) -> Array:
        q_tile, count, index = args

        def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, acc = carry
            now = jax.lax.dynamic_slice_in_dim(index, i * group, group, axis=-1)  # [B, N, chunk, group]
            slot_used = i * group + jnp.arange(group) < count[..., None]
            key_used = slot_used[..., None] & (jnp.arange(block_k) < block_len[now][..., None])
            key_used = key_used.reshape(*count.shape, 1, group * block_k)
            k_now = gather(k_blocks, now).reshape(*count.shape, group * block_k, H)
            v_now = gather(v_blocks, now).reshape(*count.shape, group * block_k, H)
            scores = jnp.einsum("bncth,bncsh->bncts", q_tile, k_now, preferred_element_type=jnp.float32) * H**-0.5
            scores = jnp.where(key_used, scores, -jnp.inf)
            new_top = jnp.maximum(top, scores.max(-1))
            finite_top = jnp.where(jnp.isfinite(new_top), new_top, 0.0)  # a row that has seen no key yet
            p = jnp.exp(scores - finite_top[..., None])
            rescale = jnp.exp(top - finite_top)
            update = jnp.einsum("bncts,bncsh->bncth", p.astype(v.dtype), v_now, preferred_element_type=jnp.float32)
            return new_top, total * rescale + p.sum(-1), acc * rescale[..., None] + update

        shape = q_tile.shape[:-1]
        start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, H)))
        _, total, acc = jax.lax.fori_loop(0, (count.max() + group - 1) // group, step, start)
        return (acc / jnp.where(total == 0, 1.0, total)[..., None]).astype(v.dtype)

    out = jax.lax.map(attend, (q, counts, indices))  # [chunks, B, N, chunk, bq, H]
    out = out.transpose(1, 0, 3, 4, 2, 5).reshape(B, -1, N, H)
    return out[:, :T]
