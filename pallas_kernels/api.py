"""Public functions: argument checks and dispatch over implementations. What an array means stands here; how
it is computed does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import reference, xla
from pallas_kernels.block_mask import WORD, BlockMask, cdiv

if TYPE_CHECKING:
    from pallas_kernels.tuning import TuningConfig

Array = jax.Array
Result = TypeVar("Result")
log = logging.getLogger(__name__)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
IMPLEMENTATIONS = ("mosaic_sm90", "xla", "reference")  # in the order in which they are tried


@cache
def has_hopper() -> bool:
    """Whether our Pallas Mosaic GPU kernels can run: jax >= 0.11, and a GPU of compute capability 9.x is the
    default backend.
    """
    if jax.__version_info__ < (0, 11) or jax.default_backend() != "gpu":
        return False
    return jax.local_devices(backend="gpu")[0].compute_capability.startswith("9.")


def _hopper_kernels(module: str) -> ModuleType:
    """pallas_kernels.`module`, imported here because it needs jax >= 0.11. NotImplementedError where it
    cannot run.
    """
    if not has_hopper():
        needs = "jax >= 0.11 and a Hopper GPU (compute capability 9.x) as the default backend"
        raise NotImplementedError(
            f"'mosaic_sm90' needs {needs}; this is jax {jax.__version__} on {jax.default_backend()!r}"
        )
    try:
        return import_module(f"pallas_kernels.{module}")
    except ImportError as error:
        raise NotImplementedError(f"'mosaic_sm90' cannot be imported: {error}") from error


@cache
def _log_once(operation: str, implementation: str, why_not_faster: str) -> None:
    if implementation == "xla" and jax.default_backend() == "gpu":
        log.warning("%s: implementation 'xla', which is slow on a GPU: %s", operation, why_not_faster)
    else:
        log.info("%s: implementation %r", operation, implementation)


def _dispatch(operation: str, implementation: str | None, run: Callable[[str], Result]) -> Result:
    """`run` of the named implementation, or of the first that does not raise NotImplementedError."""
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"{implementation=} must be None or one of {IMPLEMENTATIONS}")
        return run(implementation)
    why_not = ""
    for name in IMPLEMENTATIONS:
        try:
            result = run(name)
        except NotImplementedError as reason:
            why_not = str(reason)
        else:
            _log_once(operation, name, why_not)
            return result
    raise AssertionError("'xla' serves everything")


def pooled_block_mask(
    q: Array,
    k: Array,
    *,
    keep_count: int | Array | None = None,
    cdf_threshold: float | Array | None = None,
    block: tuple[int, int] = (128, 64),
    kv_runs: tuple[int, ...] | None = None,
    pool: str = "mean",
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
      implementation: None takes the first that serves of "mosaic_sm90" (Hopper GPUs) and "xla"; or one of
        these or "reference" (sorts, and holds the whole map). A named one never becomes another.

    Returns:
      BlockMask for T queries and sum(kv_runs) keys.

    Raises:
      ValueError: shapes that do not fit together or are empty; neither `keep_count` nor `cdf_threshold`; an
        unknown pool or implementation; a block that is not positive; runs that do not cover the pooled keys.
      NotImplementedError: the named implementation cannot run here or cannot do this.
    """
    if keep_count is None and cdf_threshold is None:
        raise ValueError("give keep_count, cdf_threshold or both; without either no block would be selected")
    if pool not in ("mean", "max"):
        raise ValueError(f"{pool=} must be 'mean' or 'max'")
    if q.ndim != 4 or k.ndim != 4 or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q {q.shape} and k {k.shape} must be [B, T, N, H] and [B, L, N, H]")
    if 0 in (*q.shape, *k.shape):
        raise ValueError(f"q {q.shape} and k {k.shape} must not be empty")
    block = tuple(block)
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"{block=} must be two positive integers (queries, keys)")
    kv_runs = (k.shape[1],) if kv_runs is None else tuple(kv_runs)
    if not kv_runs or kv_runs[0] < k.shape[1] or min(kv_runs) < 0:
        raise ValueError(
            f"the first run of {kv_runs=} must hold the {k.shape[1]} pooled keys, and none may be negative"
        )
    q, k = jax.lax.stop_gradient((q, k))

    def run(name: str) -> BlockMask:
        if name != "reference":
            chosen = xla if name == "xla" else _hopper_kernels("mosaic_mask")
            return chosen.pooled_block_mask(q, k, kv_runs, block, keep_count, cdf_threshold, pool)
        p = reference.pooled_probabilities(
            reference.pool_blocks(q, block[0], pool), reference.pool_blocks(k, block[1], pool)
        )
        kept = reference.select_blocks(p, keep_count, cdf_threshold)
        forced = sum(cdiv(length, block[1]) for length in kv_runs) - kept.shape[-1]
        kept = jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (0, forced)), constant_values=True)
        return BlockMask.from_dense(kept, q.shape[1], kv_runs, block)

    return _dispatch("pooled_block_mask", implementation, run)


def block_sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    block_mask: BlockMask,
    *,
    implementation: str | None = None,
    config: TuningConfig | None = None,
) -> Array:
    """Softmax attention over the kept key blocks only; a dropped key weighs exactly nothing.

    Args:
      q: [B, T, N, H]. k, v: [B, S, N, H], same dtype as q (float32, bfloat16 or float16). Scale is 1 /
        sqrt(H).
      block_mask: for T queries and S keys.
      implementation: None takes the first that serves of "mosaic_sm90" (Hopper GPUs) and "xla"; or one of
        these or "reference" (holds the T×S matrix). A named one never becomes another.
      config: how "mosaic_sm90" runs; it may change the speed only. The others have nothing to tune.

    Returns:
      [B, T, N, H] in q's dtype; statistics are float32. Under jit, zeros for a query block that keeps
      nothing.

    Raises:
      ValueError: shapes that do not fit together or are empty, another dtype, an unknown implementation; a
        query block that keeps nothing, where the mask is not traced.
      NotImplementedError: the named implementation cannot run here or cannot do this; a derivative, unless
        "reference" is named.
    """
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
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share one dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q, k and v must be float32, bfloat16 or float16, not {q.dtype}")
    if max(q.shape[1], k.shape[1]) >= 2**31:
        raise ValueError(
            f"{q.shape[1]} queries and {k.shape[1]} keys are too many: their numbers are 32-bit integers"
        )
    _check_mask(block_mask, q, k)
    if implementation != "reference":
        q, k, v = (_forward_only(x) for x in (q, k, v))

    def run(name: str) -> Array:
        if name == "mosaic_sm90":
            return _hopper_kernels("mosaic_sm90").block_sparse_attention(q, k, v, block_mask, config)
        return (xla if name == "xla" else reference).block_sparse_attention(q, k, v, block_mask)

    return _dispatch("block_sparse_attention", implementation, run)


def _check_mask(mask: BlockMask, q: Array, k: Array) -> None:
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
    if isinstance(mask.kv_num_blocks, jax.core.Tracer) or not mask.kv_num_blocks.is_fully_addressable:
        return
    empty = np.argwhere(
        np.asarray(mask.kv_num_blocks) == 0
    )  # by numpy: under a surrounding jit jnp would be traced
    if len(empty):
        b, n, row = map(int, empty[0])
        raise ValueError(
            f"query block {row} of head {n} in batch element {b} keeps no key block; every one must keep at least one"
        )


@jax.custom_jvp
def _forward_only(x: Array) -> Array:
    return x


@_forward_only.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> None:
    raise NotImplementedError(
        "block-sparse attention has no gradient, it is for inference: differentiate a dense model, or use implementation='reference'"
    )
