"""Public functions: argument checks and dispatch over implementations. What an array means stands here; how
it is computed, and by what, does not.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pallas_kernels import tuning
from pallas_kernels.block_mask import DEFAULT_BLOCK, WORD, BlockMask, Lengths, cdiv, joined
from pallas_kernels.implementation import ATTENTION, MASK, Implementation, Request, choose, find

Array = jax.Array
log = logging.getLogger(__name__)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
SCORES = jnp.float8_e4m3fn  # what q and k may be instead


@cache
def _log_once(operation: str, implementation: str, slow_on: str, reasons: str) -> None:
    if slow_on:
        what = f"which is slow on a {slow_on.upper()}"
        log.warning("%s: implementation %r, %s: %s", operation, implementation, what, reasons)
    else:
        log.info("%s: implementation %r", operation, implementation)


def _choose(request: Request, implementation: str | None) -> Implementation:
    """The named one, or the first that can serve, which is logged once."""
    chosen, reasons = choose(request, implementation)
    if implementation is None:
        slow = request.device.platform in chosen.slow_on
        why = (request.device.platform, "; ".join(reasons)) if slow else ("", "")
        _log_once(request.operation, chosen.name, *why)
    return chosen


def pooled_block_mask(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B L N H"],
    *,
    keep_count: int | Int[Array, ""] | None = None,
    cdf_threshold: float | Float[Array, ""] | None = None,
    block: tuple[int, int] = DEFAULT_BLOCK,
    kv_runs: tuple[int, ...] | None = None,
    pool: str = "mean",
    lengths: Lengths | None = None,
    k_length: Int[Array, ""] | None = None,
    implementation: str | None = None,
) -> BlockMask:
    """Which key blocks each query block keeps, from attention between mean- (or max-) pooled blocks (arXiv
    2509.07120, §3).

    A row keeps the blocks that score at least its threshold. Blocks of one score are therefore kept or
    dropped together: those that tie at the n-th place are all kept, where "reference" keeps the first of
    them. No gradient passes.

    Args:
      q: [B, T, N, H] patch queries, after QK-norm and RoPE.
      k: [B, L, N, H] patch keys.
      keep_count: n_ratio, how many key blocks a row keeps at least; a scalar that may be traced.
      cdf_threshold: τ; blocks are kept while their cumulative probability is at most τ. A scalar that may be
        traced.
      block: (queries, keys) of a block.
      kv_runs: runs of the keys that the mask will be used with (see `BlockMask`): it may add keys after the L
        pooled ones. Blocks past the ceil(L / block[1]) pooled ones are always kept. Default (L,).
      pool: "mean" or "max".
      lengths: how many of the queries and of the keys that the mask will be used with count; None: all. The
        mask is that of these alone, in the blocks' places of here.
      k_length: how many of the L pooled keys count, i32[]. Default: the first run's.
      implementation: None takes the first that can serve, in the order of `implementation.names()`; or the
        name of one, which never becomes another.

    Returns:
      BlockMask for T queries and sum(kv_runs) keys.

    Raises:
      ValueError: shapes that do not fit together or are empty; neither `keep_count` nor `cdf_threshold`, or
        arrays of them; an unknown pool or implementation; a block that is not positive; runs that do not
        cover the pooled keys; lengths that are not traced and not of these arrays.
      NotImplementedError: the named implementation cannot run here or cannot do this.
    """
    if keep_count is None and cdf_threshold is None:
        raise ValueError("give keep_count, cdf_threshold or both; without either no block would be selected")
    for name, value in (("keep_count", keep_count), ("cdf_threshold", cdf_threshold)):
        if value is not None and np.ndim(value):
            raise ValueError(f"{name} must be one number, not an array of shape {np.shape(value)}")
    if pool not in ("mean", "max"):
        raise ValueError(f"{pool=} must be 'mean' or 'max'")
    if q.ndim != 4 or k.ndim != 4 or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q {q.shape} and k {k.shape} must be [B, T, N, H] and [B, L, N, H]")
    if q.dtype != k.dtype or q.dtype not in (*DTYPES, SCORES):
        text = "q and k must share one dtype, float32, bfloat16, float16 or float8_e4m3fn"
        raise ValueError(f"{text}, not {q.dtype} and {k.dtype}")
    if 0 in (*q.shape, *k.shape):
        raise ValueError(f"q {q.shape} and k {k.shape} must not be empty")
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"{block=} must be two positive integers (queries, keys)")
    block = (block[0], block[1])
    kv_runs = (k.shape[1],) if kv_runs is None else tuple(kv_runs)
    if not kv_runs or kv_runs[0] < k.shape[1] or min(kv_runs) < 0:
        raise ValueError(
            f"the first run of {kv_runs=} must hold the {k.shape[1]} pooled keys, and none may be negative"
        )
    how: dict[str, Any] = {}
    if lengths is not None:
        _check_lengths(lengths, q.shape[1], kv_runs)
        how = {"lengths": lengths, "k_length": lengths.kv_runs[0] if k_length is None else k_length}
    elif k_length is not None:
        raise ValueError("k_length says how many pooled keys count, and needs the lengths of all")
    chosen = _choose(Request.of(MASK, q, k, block, lengths=bool(how)), implementation)
    q, k = jax.lax.stop_gradient((q, k))
    return chosen.mask(
        q,
        k,
        kv_runs=kv_runs,
        block=block,
        keep_count=keep_count,
        cdf_threshold=cdf_threshold,
        pool=pool,
        **how,
    )


def block_sparse_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"] | tuple[Array, ...],
    v: Float[Array, "B S N H"] | tuple[Array, ...],
    block_mask: BlockMask,
    *,
    implementation: str | None = None,
    config: Any = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention over the kept key blocks only; a dropped key weighs exactly nothing.

    Args:
      q: [B, T, N, H], of one dtype with k and v, float32, bfloat16 or float16; or q and k float8_e4m3fn,
        whose product a Hopper GPU computes in half the time: rounding to it is the caller's, see `to_float8`.
        Scale is 1 / sqrt(H).
      k: [B, S, N, H]. Or k and v a tuple each, an array for every run of the mask's keys; then these and q
        may be longer than the mask says, by rows of finite numbers that mean nothing: a kernel spares the
        copies.
      v: as k.
      block_mask: for T queries and S keys.
      implementation: None takes the first that can serve, in the order of `implementation.names()`; or the
        name of one, which never becomes another.
      config: a tuning config of the implementation, which may change the speed only; default the one
        measured on this device, else the implementation's own guess. An implementation that has nothing to
        tune ignores it, and so does, where none is named, one that it is not for.

    Returns:
      [B, T, N, H] in v's dtype; statistics are float32. Under jit, zeros for a query block that keeps
      nothing.

    Raises:
      ValueError: shapes that do not fit together or are empty, another dtype, an unknown implementation; a
        query block that keeps nothing, where the mask is not traced.
      TypeError: the mask is no `BlockMask`; the config is another implementation's than the named one's.
      NotImplementedError: the named implementation cannot run here or cannot do this; a derivative, unless
        "reference" is named.
    """
    given = q, k, v
    if not isinstance(block_mask, BlockMask):
        kind = type(block_mask).__name__
        raise TypeError(f"block_mask must be a BlockMask, such as BlockMask.from_dense makes, not {kind}")
    if isinstance(k, (tuple, list)) or isinstance(v, (tuple, list)):
        runs = len(block_mask.kv_runs)
        if not (isinstance(k, tuple) and isinstance(v, tuple) and len(k) == len(v) == runs):
            raise ValueError(f"k and v must be arrays, or both tuples of an array for each of {runs} runs")
        if len({x.dtype for x in k}) > 1 or len({x.dtype for x in v}) > 1:
            raise ValueError("the runs of k, and those of v, must share one dtype")
        if q.ndim != 4 or any(x.ndim != 4 for x in (*k, *v)):
            raise ValueError("q and the runs of k and v must be [B, T, N, H] and [B, S, N, H]")
        q, k, v = q[:, : block_mask.q_len], *(joined(x, block_mask.kv_runs) for x in (k, v))
    if (
        q.ndim != 4
        or k.ndim != 4
        or k.shape != v.shape
        or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:])
    ):
        raise ValueError(
            f"q {q.shape}, k {k.shape} and v {v.shape} must be [B, T, N, H], [B, S, N, H] and [B, S, N, H]"
        )
    if 0 in (*q.shape, *k.shape):
        raise ValueError(f"q {q.shape} and k {k.shape} must not be empty")
    if q.dtype != k.dtype or q.dtype not in (v.dtype, SCORES):
        text = "q, k and v must share one dtype, or q and k be float8_e4m3fn"
        raise ValueError(f"{text}, not {q.dtype}, {k.dtype}, {v.dtype}")
    if v.dtype not in DTYPES:
        raise ValueError(f"v must be float32, bfloat16 or float16, not {v.dtype}")
    if max(q.shape[1], k.shape[1]) >= 2**31:
        raise ValueError(
            f"{q.shape[1]} queries and {k.shape[1]} keys are too many: their numbers are 32-bit integers"
        )
    _check_mask(block_mask, q, k)
    request = Request.of(ATTENTION, q, k, block_mask.block, config, v, block_mask.lengths is not None)
    chosen = _choose(request, implementation)
    if not isinstance(config, chosen.config_type or ()):
        if implementation is not None and config is not None and chosen.config_type is not None:
            expected = f"{chosen.config_type.__module__}.{chosen.config_type.__name__}"
            raise TypeError(f"{config=} must be a {expected} for {implementation=}")
        config = tuning.lookup(chosen, request.device, request.H, request.block)
    arrays: tuple[Any, Any, Any] = given if chosen.takes_runs else (q, k, v)
    if q.dtype == SCORES and not chosen.takes_float8:  # the same numbers
        arrays = jax.tree.map(lambda x: x.astype(v.dtype), arrays)
    if not chosen.differentiable:
        arrays = jax.tree.map(_forward_only, arrays)
    return chosen.attend(*arrays, block_mask, config)[:, : block_mask.q_len]


def _check_lengths(lengths: Lengths, q_len: int, kv_runs: tuple[int, ...]) -> None:
    if not isinstance(lengths, Lengths) or not isinstance(lengths.kv_runs, tuple):
        raise ValueError(f"{lengths=} must be Lengths(queries, (keys of a run, ...))")
    if len(lengths.kv_runs) != len(kv_runs):
        raise ValueError(f"{lengths=} must be of the queries and of each of {len(kv_runs)} runs of keys")
    for length, most in zip((lengths.q, *lengths.kv_runs), (q_len, *kv_runs), strict=True):
        if np.ndim(length):
            raise ValueError(f"{lengths=} must be numbers, the same for all of a batch")
        if _is_known(length) and not min(1, most) <= int(length) <= most:
            raise ValueError(f"{lengths=} must be at least 1 and at most {q_len} queries and {kv_runs} keys")


def _is_known(x: Any) -> bool:
    """Whether its numbers can be read here."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def _check_mask(mask: BlockMask, q: Array, k: Array) -> None:
    if mask.lengths is not None:
        _check_lengths(mask.lengths, mask.q_len, mask.kv_runs)
    if (mask.q_len, mask.kv_len) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"the mask is for {mask.q_len}×{mask.kv_len} tokens, q and k have {q.shape[1]}×{k.shape[1]}"
        )
    if mask.kv_num_blocks.shape[:2] != (q.shape[0], q.shape[2]):
        raise ValueError(
            f"the mask is for {mask.kv_num_blocks.shape[:2]} (batch, heads), q has {(q.shape[0], q.shape[2])}"
        )
    rows = (q.shape[0], q.shape[2], mask.num_q_blocks)
    expected = (*rows, cdiv(mask.num_kv_blocks, WORD))
    if mask.kv_num_blocks.shape != rows or mask.kv_bits.shape != expected:
        found = f"kv_num_blocks {mask.kv_num_blocks.shape} and kv_bits {mask.kv_bits.shape}"
        raise ValueError(
            f"the mask has {found}; blocks of {mask.block[0]}×{mask.block[1]} make it {rows} and {expected}"
        )
    if not _is_known(mask.kv_num_blocks):
        return
    # By numpy: under a surrounding jit jnp would be traced.
    counts = np.asarray(mask.kv_num_blocks)
    if mask.lengths is not None:
        if not _is_known(mask.lengths.q):
            return
        counts = counts[:, :, : cdiv(int(mask.lengths.q), mask.block[0])]
    empty = np.argwhere(counts == 0)
    if len(empty):
        b, n, row = map(int, empty[0])
        raise ValueError(
            f"query block {row} of head {n} in batch element {b} keeps no key block; "
            "every one must keep at least one"
        )


def matmul_gelu(x: Array, w: Array, bias: Array, *, implementation: str) -> Array:
    """The exact GELU of x w + bias, of [..., K], [K, N] and [N] of one dtype -> [..., N], without what lies
    between in memory. It has no derivative of its own.

    Args:
      implementation: the name that `faster_matmul_gelu` gave for these.
    """
    return find(implementation).matmul_gelu(x, w, bias)


@jax.custom_jvp
def to_float8(x: Array) -> Array:
    """Rounded to float8_e4m3fn: 3 bits of mantissa, fewer below 2^-6, 0 below 2^-10; what is larger than 448,
    its largest number, becomes that. There is no scale: heads whose channels are normalised need none.

    A derivative raises NotImplementedError: it would be of 8 bits, too.
    """
    largest = float(jnp.finfo(SCORES).max)
    return jnp.clip(x, -largest, largest).astype(SCORES)


@to_float8.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    raise NotImplementedError("rounding to 8 bits (float8_scores) has no gradient, it is for inference")


@jax.custom_jvp
def _forward_only(x: Array) -> Array:
    return x


@_forward_only.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    raise NotImplementedError(
        "block-sparse attention has no gradient, it is for inference: differentiate a dense model, or use "
        "implementation='reference'"
    )
