"""Public functions: argument checks and dispatch over implementations. What an array means stands here; how it is computed does not."""

from __future__ import annotations

import logging
from functools import cache

import jax

from pallas_kernels import reference, xla
from pallas_kernels.block_mask import BlockMask, cdiv

Array = jax.Array
log = logging.getLogger(__name__)
IMPLEMENTATIONS = ("xla", "reference")


@cache
def _log_once(operation: str, implementation: str) -> None:
    log.info("%s: implementation %r", operation, implementation)


def _choose(operation: str, implementation: str | None) -> str:
    if implementation is None:
        _log_once(operation, IMPLEMENTATIONS[0])
        return IMPLEMENTATIONS[0]
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{implementation=} must be None or one of {IMPLEMENTATIONS}")
    return implementation


def pooled_block_mask(
    q: Array,
    k: Array,
    *,
    keep_count: int | Array | None = None,
    max_keep: int | None = None,
    cdf_threshold: float | Array | None = None,
    block: tuple[int, int] = (128, 64),
    kv_runs: tuple[int, ...] | None = None,
    pool: str = "mean",
    implementation: str | None = None,
) -> BlockMask:
    """Which key blocks each query block keeps, from attention between mean- (or max-) pooled blocks (arXiv 2509.07120, §3).

    Args:
      q: [B, L, N, H] patch queries, after QK-norm and RoPE.
      k: [B, L, N, H] patch keys.
      keep_count: n_ratio, how many key blocks a row keeps at least; may be traced (then give `max_keep`).
      max_keep: static upper bound of `keep_count`; default `keep_count`.
      cdf_threshold: τ; blocks are kept while their cumulative probability is at most τ. May be traced.
      block: (queries, keys) of a block.
      kv_runs: runs of the keys that the mask will be used with (see `BlockMask`): it may add keys after the L pooled ones. Blocks past
        the ceil(L / block[1]) pooled ones are always kept. Default (L,).
      pool: "mean" or "max".
      implementation: None, "xla" or "reference".

    Returns:
      BlockMask for L queries and sum(kv_runs) keys.

    Raises:
      ValueError: neither `keep_count` nor `cdf_threshold`; unknown pool or implementation; runs that do not cover the pooled keys.
    """
    if keep_count is None and cdf_threshold is None:
        raise ValueError("give keep_count, cdf_threshold or both; without either no block would be selected")
    if pool not in ("mean", "max"):
        raise ValueError(f"{pool=} must be 'mean' or 'max'")
    if max_keep is None:
        max_keep = 0 if keep_count is None else int(keep_count)
    kv_runs = (k.shape[1],) if kv_runs is None else tuple(kv_runs)
    if kv_runs[0] < k.shape[1]:
        raise ValueError(f"the first run of {kv_runs=} must hold the {k.shape[1]} pooled keys")
    block = tuple(block)
    if _choose("pooled_block_mask", implementation) == "xla":
        return xla.pooled_block_mask(q, k, kv_runs, block, keep_count, max_keep, cdf_threshold, pool)
    p = reference.pooled_probabilities(reference.pool_blocks(q, block[0], pool), reference.pool_blocks(k, block[1], pool))
    kept = reference.select_blocks(p, keep_count, cdf_threshold)
    forced = sum(cdiv(run, block[1]) for run in kv_runs) - kept.shape[-1]
    kept = jax.numpy.pad(kept, ((0, 0), (0, 0), (0, 0), (0, forced)), constant_values=True)
    return BlockMask.from_dense(kept, q.shape[1], kv_runs, block)


def block_sparse_attention(q: Array, k: Array, v: Array, block_mask: BlockMask, *, implementation: str | None = None) -> Array:
    """Softmax attention over the kept key blocks only; a dropped key weighs exactly nothing.

    Args:
      q: [B, T, N, H]. k, v: [B, S, N, H], same dtype as q (float32, bfloat16 or float16). Scale is 1 / sqrt(H).
      block_mask: for T queries and S keys.
      implementation: None takes the first that serves; "xla"; "reference" (holds the T×S matrix). A named one never becomes another.

    Returns:
      [B, T, N, H] in q's dtype; statistics are float32. Zeros for a query block that keeps nothing.

    Raises:
      ValueError: shapes that do not fit together, or an unknown implementation.
    """
    B, T, N, H = q.shape
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (B, N, H):
        raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} must be [B, T, N, H], [B, S, N, H] and [B, S, N, H]")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share one dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
    if (block_mask.q_len, block_mask.kv_len) != (T, k.shape[1]):
        raise ValueError(f"the mask is for {block_mask.q_len}×{block_mask.kv_len} tokens, q and k have {T}×{k.shape[1]}")
    if block_mask.kv_num_blocks.shape[:2] != (B, N):
        raise ValueError(f"the mask is for {block_mask.kv_num_blocks.shape[:2]} (batch, heads), q has {(B, N)}")
    chosen = xla if _choose("block_sparse_attention", implementation) == "xla" else reference
    return chosen.block_sparse_attention(q, k, v, block_mask)
