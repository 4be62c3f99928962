"""The definitions, in plain XLA and float32. Read this first: every faster implementation must agree with it.

Source: "Faster VGGT with Block-Sparse Global Attention" (arXiv 2509.07120) and the behaviour of its released
code; quirks are named where they stand. Letters: B batch, T queries, S keys, N heads, H head dim, Tb / Sb
query / key blocks; arrays are BTNH.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_mask import BlockMask, Lengths, cdiv
from pallas_kernels.implementation import Implementation

Array = jax.Array
CDF_SLACK = 1e-5  # the released code compares the cumulative mass with τ + 1e-5


def pool_blocks(x: Array, block: int, pool: str = "mean", length: Array | None = None) -> Array:
    """Mean or max over windows of `block` tokens: [B, T, N, H] -> f32[B, N, ceil(T / block), H].

    The last window covers only the tokens it really has; and so does, where `length` of the tokens count, the
    last one of these. Those past it mean nothing.
    """
    B, T, N, H = x.shape
    reduce = jnp.sum if pool == "mean" else jnp.max
    whole = T // block * block
    windows = [x[:, :whole].reshape(B, -1, block, N, H), x[:, None, whole:]]
    # Padding the last window, or fusing the sums with what follows, would make XLA read x on GPUs one number
    # at a time.
    parts = [
        jax.lax.optimization_barrier(reduce(part.astype(jnp.float32), 2)) for part in windows if part.size
    ]
    pooled = jnp.concatenate(parts, 1)  # [B, Tb, N, H]
    if pool == "mean":
        pooled /= np.minimum(block, T - np.arange(0, T, block, dtype=np.float32))[:, None, None]
    if length is not None:
        number = (length - 1) // block
        start = jnp.minimum(number * block, max(T - block, 0))
        window = jax.lax.dynamic_slice_in_dim(x, start, min(block, T), 1).astype(jnp.float32)
        place = start + np.arange(window.shape[1])
        counts = ((place >= number * block) & (place < length))[:, None, None]
        last = reduce(jnp.where(counts, window, 0 if pool == "mean" else -jnp.inf), 1)
        last = last / (length - number * block) if pool == "mean" else last
        pooled = jax.lax.dynamic_update_slice_in_dim(pooled, last[:, None], number, 1)
    return pooled.transpose(0, 2, 1, 3)


def pooled_probabilities(pooled_q: Array, pooled_k: Array, blocks: Array | None = None) -> Array:
    """softmax over key blocks, over the first `blocks` of them, of q̄·k̄ / sqrt(H): f32[B, N, Tb, H], f32[B,
    N, Sb, H] -> f32[B, N, Tb, Sb].
    """
    scores = (
        jnp.einsum("bnth,bnsh->bnts", pooled_q, pooled_k, precision="highest") * pooled_q.shape[-1] ** -0.5
    )
    if blocks is not None:
        scores = jnp.where(np.arange(scores.shape[-1]) < blocks, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def select_blocks(p: Array, keep_count: int | Array | None, cdf_threshold: float | Array | None) -> Array:
    """Which key blocks are kept: f32[..., Sb] -> bool[..., Sb].

    A row's blocks in descending order of p; the first n are kept, n = max(n_cdf, n_ratio), at least 1. n_cdf
    counts the leading positions whose cumulative mass is at most τ: the block that crosses τ is *not* kept,
    as in the released code.
    """
    order = jnp.argsort(p, axis=-1, descending=True, stable=True)
    n = jnp.ones(p.shape[:-1], jnp.int32)
    if keep_count is not None:
        n = jnp.maximum(n, keep_count)
    if cdf_threshold is not None:
        mass = jnp.cumsum(jnp.take_along_axis(p, order, axis=-1), axis=-1)
        n = jnp.maximum(n, jnp.sum(mass <= cdf_threshold + CDF_SLACK, axis=-1, dtype=jnp.int32))
    rank = jnp.argsort(order, axis=-1)
    return rank < n[..., None]


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
) -> BlockMask:
    """See `api.pooled_block_mask`; sorts, and holds the whole map."""
    pooled_q = pool_blocks(q, block[0], pool, None if lengths is None else lengths.q)
    pooled_k = pool_blocks(k, block[1], pool, k_length)
    blocks = None if k_length is None else cdiv(k_length, block[1])
    p = pooled_probabilities(pooled_q, pooled_k, blocks)
    kept = select_blocks(p, keep_count, cdf_threshold)
    forced = sum(cdiv(length, block[1]) for length in kv_runs) - kept.shape[-1]
    kept = jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (0, forced)), constant_values=True)
    if blocks is not None:
        kept = kept | (np.arange(kept.shape[-1]) >= blocks)
    return BlockMask.from_dense(kept, q.shape[1], kv_runs, block, lengths)


def block_sparse_attention(q: Array, k: Array, v: Array, block_mask: BlockMask) -> Array:
    """softmax(q kᵀ / sqrt(H)) v over the kept key blocks only, exactly; holds the whole T×S matrix in
    float32.

    [B, T, N, H], [B, S, N, H], [B, S, N, H] -> [B, T, N, H] in q's dtype. A query block without any kept
    block gives zeros. What is not finite in v reaches every query here; in other implementations those alone
    that keep its block.
    """
    key_block = jnp.concatenate(
        [jnp.full(stop - start, i, jnp.int32) for i, (start, stop) in enumerate(block_mask.kv_block_bounds())]
    )
    query_block = jnp.arange(block_mask.q_len) // block_mask.block[0]
    mask = block_mask.to_dense()[:, :, query_block][:, :, :, key_block]  # [B, N, T, S]
    if block_mask.lengths is not None:
        place = np.concatenate([np.arange(run) for run in block_mask.kv_runs]) % block_mask.block[1]
        mask = mask & (place < block_mask.kv_block_lengths()[key_block])
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest", preferred_element_type=jnp.float32)
    p = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1, where=mask)
    out = jnp.einsum("bnts,bsnh->btnh", jnp.where(mask, p, 0), v.astype(jnp.float32), precision="highest")
    return out.astype(q.dtype)


class Reference(Implementation):
    """The definitions, for tests: it is slow and takes the memory of the whole T×S matrix."""

    name = "reference"
    everywhere = True
    differentiable = True
    takes_lengths = True

    def mask(self, q: Array, k: Array, **how: Any) -> BlockMask:
        return pooled_block_mask(q, k, **how)

    def attend(self, q: Array, k: Array, v: Array, block_mask: BlockMask, config: Any = None) -> Array:
        return block_sparse_attention(q, k, v, block_mask)
