"""Softmax attention, BTNH: dense (a kernel of ours where it is faster, cuDNN or XLA) and the block-sparse
global attention between frames.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from fastvggt_jax.sparsity import Sparsity
from pallas_kernels import BlockMask, block_sparse_attention, cudnn_serves, faster_dense, joined
from pallas_kernels import Lengths as Lengths  # for models too
from pallas_kernels import aligned as aligned  # for models too
from pallas_kernels import faster_matmul_gelu as faster_matmul_gelu  # for models
from pallas_kernels import matmul_gelu as matmul_gelu  # for models
from pallas_kernels import slower_sparse as slower_sparse  # for models
from pallas_kernels import to_float8 as to_float8  # for models
from pallas_kernels import unused_float8 as unused_float8  # for models
from pallas_kernels.varying import varying_as as varying_as  # for loops over layers

Array = jax.Array
# XLA's attention takes so many queries at a time that their float32 logits stay below this.
LOGITS_BYTES = 256 * 2**20


def dense_attention(q: Array, k: Array, v: Array, lengths: Lengths | None = None) -> Array:
    """softmax(q kᵀ / sqrt(H)) v: [B, T, N, H], [B, S, N, H] ×2 -> [B, T, N, H]. All of one dtype, or q and k
    float8_e4m3fn.

    Memory grows with T + S, not with T·S, but for a bit for every 8,192 pairs where the kernel serves.

    lengths: how many of the queries and of the keys count, see `Lengths`; None: all. For inference.
    """
    if lengths is not None:
        return _attention_to_some(q, k, v, lengths)
    if kernel := faster_dense(q, k, v):
        return _kernel_attention(kernel, q, k, v)
    return _library_attention(q, k, v)


def _attention_to_some(q: Array, k: Array, v: Array, lengths: Lengths) -> Array:
    """Each library computes the queries that do not count, too, which keeps them finite."""
    (B, T, N, _), S = q.shape, k.shape[1]
    if kernel := faster_dense(q, k, v, lengths=True):
        full = BlockMask.full(B, N, T, (S,), lengths=lengths)
        return block_sparse_attention(q, k, v, full, implementation=kernel)
    (keys,) = lengths.kv_runs
    return _library_attention(q, k, v, jnp.broadcast_to(keys, B))


def _library_attention(q: Array, k: Array, v: Array, keys: Array | None = None) -> Array:
    """cuDNN's, which takes numbers of 16 bits, or XLA's, a few queries at a time. keys: i32[B], how many
    count.
    """
    q, k = q.astype(v.dtype), k.astype(v.dtype)
    if cudnn_serves(q):
        return _cudnn_attention(q, k, v) if keys is None else _cudnn(q, k, v, key_value_seq_lengths=keys)
    if v.dtype == jnp.float16 and jax.default_backend() == "cpu":  # whose XLA lacks the product JAX asks for
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        return _library_attention(q, k, v, keys).astype(jnp.float16)
    attend = partial(jax.nn.dot_product_attention, key_value_seq_lengths=keys, implementation="xla")
    B, T, N, H = q.shape
    rows = max(1, LOGITS_BYTES // (4 * B * N * k.shape[1]))
    if rows >= T:
        return attend(q, k, v)
    chunks = -(-T // rows)
    q = jnp.pad(q, ((0, 0), (0, chunks * rows - T), (0, 0), (0, 0))).reshape(B, chunks, rows, N, H)
    out = jax.lax.map(lambda rows_of_q: attend(rows_of_q, k, v), jnp.moveaxis(q, 1, 0))
    return jnp.moveaxis(out, 0, 1).reshape(B, chunks * rows, N, H)[:, :T]


_cudnn: Callable[..., Array] = partial(jax.nn.dot_product_attention, implementation="cudnn")


@jax.custom_vjp
def _cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    return _cudnn(q, k, v)


def _even_attention(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's as JAX differentiates it, which is at even lengths alone: an odd one gets a token that nobody
    sees.
    """
    if q.shape[1] % 2 == k.shape[1] % 2 == 0:
        return _cudnn(q, k, v)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    queries, keys = (jnp.full(x.shape[0], x.shape[1], jnp.int32) for x in (q, k))
    return _cudnn(pad(q), pad(k), pad(v), query_seq_lengths=queries, key_value_seq_lengths=keys)[
        :, : q.shape[1]
    ]


_cudnn_attention.defvjp(lambda q, k, v: jax.vjp(_even_attention, q, k, v), lambda backward, g: backward(g))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_attention(kernel: str, q: Array, k: Array, v: Array) -> Array:
    """By the kernel of that name, which has no derivative: where one is asked for, the library runs both
    ways.
    """
    B, T, N, _ = q.shape
    full = BlockMask.full(B, N, T, (k.shape[1],))
    return block_sparse_attention(q, k, v, full, implementation=kernel)


_kernel_attention.defvjp(
    lambda _, q, k, v: jax.vjp(_library_attention, q, k, v), lambda _, backward, g: backward(g)
)


@jax.named_scope("split_tokens")
def split_tokens(x: Array, frames: int, num_special: int) -> tuple[Array, Array]:
    """[B, F·P, N, H] -> special tokens [B, F·S, N, H] and patch tokens [B, F·(P-S), N, H], frame after
    frame.
    """
    B, _, N, H = x.shape
    x = x.reshape(B, frames, -1, N, H)
    return x[:, :, :num_special].reshape(B, -1, N, H), x[:, :, num_special:].reshape(B, -1, N, H)


@jax.named_scope("merge_tokens")
def merge_tokens(special: Array, patch: Array, frames: int) -> Array:
    """The inverse of `split_tokens`. A concatenation would be clearer; XLA's takes three times as long."""
    B, _, N, H = patch.shape
    special, patch = (x.reshape(B, frames, -1, N, H) for x in (special, patch))
    S, P = special.shape[2], special.shape[2] + patch.shape[2]
    special = jnp.pad(special, ((0, 0), (0, 0), (0, P - S), (0, 0), (0, 0)))
    patch = jnp.pad(patch, ((0, 0), (0, 0), (S, 0), (0, 0), (0, 0)))
    is_special = (jnp.arange(P) < S)[:, None, None]
    return jnp.where(is_special, special, patch).reshape(B, -1, N, H)


def frame_attention(
    q: Array, k: Array, v: Array, *, frames: int, num_special: int, real: Array | None = None
) -> Array:
    """[B, F·P, N, H] in model order: patch queries attend to the tokens of their own frame, special ones to
    all, so that cameras still hear of each other; of the first `real` frames, if that is given.
    """
    B, T, N, H = q.shape
    own_q, own_k, own_v = (x.reshape(B * frames, -1, N, H) for x in (q, k, v))
    out = dense_attention(own_q, own_k, own_v).reshape(B, T, N, H)
    _, out_patch = split_tokens(out, frames, num_special)
    q_special, _ = split_tokens(q, frames, num_special)
    with jax.named_scope("special_queries"):
        special, tokens = num_special, k.shape[1] // frames
        lengths = None if real is None else Lengths(real * special, (real * tokens,))
        out_special = dense_attention(q_special, k, v, lengths)
    return merge_tokens(out_special, out_patch, frames)


def sparse_global_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    frames: int,
    num_special: int,
    sparsity: Sparsity,
    keep_count: Array | int | None,
    cdf_threshold: Array | float | None,
    real: Array | None = None,
) -> tuple[Array, Array]:
    """Block-sparse attention between the tokens of all frames (docs/method.md; arXiv 2509.07120 §3).

    Special queries attend to every key. Patch queries attend to the patch blocks that the pooled map selects
    and to the special keys.

    Args:
      q, k, v: [B, F·P, N, H] in model order (each frame: `num_special` special tokens, then its patches),
        after QK-norm and RoPE.
      keep_count, cdf_threshold: of this layer, see `pallas_kernels.pooled_block_mask`.
      real: how many frames count, the first ones, i32[]; None: all.

    Returns:
      [B, F·P, N, H], and the density of each head f32[N]: the mean of its block mask, the forced special
      columns included, special queries not.
    """
    B, _, N, _ = q.shape
    specials = frames * num_special
    patches = q.shape[1] - specials
    # Behind a barrier: so XLA writes them once, as the kernel takes them, and nothing in the model's order.
    with jax.named_scope("split_tokens"):
        split = [tuple(map(aligned, split_tokens(x, frames, num_special))) for x in (q, k, v)]
    (q_special, q_patch), (k_special, k_patch), (v_special, v_patch) = jax.lax.optimization_barrier(split)
    k_runs: tuple[Array, ...] = (k_patch, k_special)
    v_runs: tuple[Array, ...] = (v_patch, v_special)
    kv_runs: tuple[int, ...] = (patches, specials)
    of_patches = of_special = k_length = None
    if real is not None:
        count = (real * (patches // frames), real * num_special)
        of_patches, of_special, k_length = Lengths(count[0], count), Lengths(count[1], count), count[0]
    if sparsity.special_keys == "official":
        # The special keys follow the patch keys without a gap, so the first of them share the last, partial
        # patch block.
        k_runs, v_runs = (_in_a_row(k_runs, kv_runs, k_length),), (_in_a_row(v_runs, kv_runs, k_length),)
        kv_runs = (patches + specials,)
        of_patches, of_special = (one and one.in_a_row() for one in (of_patches, of_special))
    mask = sparsity.block_mask(
        q_patch[:, :patches],
        k_patch[:, :patches],
        keep_count=keep_count,
        cdf_threshold=cdf_threshold,
        kv_runs=kv_runs,
        **({} if real is None else {"lengths": of_patches, "k_length": k_length}),
    )
    out_patch = block_sparse_attention(q_patch, k_runs, v_runs, mask)
    k_all, v_all = _in_a_row(k_runs, kv_runs, k_length), _in_a_row(v_runs, kv_runs, k_length)
    with jax.named_scope("special_queries"):
        if kernel := faster_dense(q_special, k_all, v_all, lengths=real is not None):
            full = BlockMask.full(B, N, specials, kv_runs, lengths=of_special)
            out_special = block_sparse_attention(q_special, k_runs, v_runs, full, implementation=kernel)
        else:
            of_special = of_special and of_special.in_a_row()
            out_special = dense_attention(q_special[:, :specials], k_all, v_all, of_special)
    return merge_tokens(out_special, out_patch, frames), mask.head_densities


def _in_a_row(runs: tuple[Array, ...], lengths: tuple[int, ...], first: Array | None) -> Array:
    """The runs joined, all keys that count first: of a second run behind those `first` ones of the first
    run. None: all count.
    """
    x = joined(runs, lengths)
    if first is None or len(runs) == 1:
        return x
    return jax.lax.dynamic_update_slice_in_dim(x, runs[1][:, : lengths[1]], first, 1)


def hilbert_order(h: int, w: int) -> list[int]:
    """Row-major indices y·w + x of an h×w grid along the generalised Hilbert ("gilbert") curve.

    Starts at (0, 0) and runs along the longer side, along x for a square. Source: the curve of J. Červený's
    public description, the order that the released sparse-vggt code uses when its Hilbert option is on.
    """
    cells: list[int] = []

    def walk(x: int, y: int, ax: int, ay: int, bx: int, by: int) -> None:
        """Fills the rectangle spanned by a (the main direction) and b from corner (x, y)."""
        width, height = abs(ax + ay), abs(bx + by)
        dax, day, dbx, dby = _sign(ax), _sign(ay), _sign(bx), _sign(by)
        if height == 1:
            cells.extend((y + i * day) * w + x + i * dax for i in range(width))
            return
        if width == 1:
            cells.extend((y + i * dby) * w + x + i * dbx for i in range(height))
            return
        # Halves rounded down, towards minus infinity: the curve is defined by that.
        ax2, ay2, bx2, by2 = ax // 2, ay // 2, bx // 2, by // 2
        if 2 * width > 3 * height:
            if abs(ax2 + ay2) % 2 and width > 2:
                ax2, ay2 = ax2 + dax, ay2 + day
            walk(x, y, ax2, ay2, bx, by)
            walk(x + ax2, y + ay2, ax - ax2, ay - ay2, bx, by)
            return
        if abs(bx2 + by2) % 2 and height > 2:
            bx2, by2 = bx2 + dbx, by2 + dby
        walk(x, y, bx2, by2, ax2, ay2)
        walk(x + bx2, y + by2, ax, ay, bx - bx2, by - by2)
        walk(x + (ax - dax) + (bx2 - dbx), y + (ay - day) + (by2 - dby), -bx2, -by2, -(ax - ax2), -(ay - ay2))

    if w >= h:
        walk(0, 0, w, 0, 0, h)
    else:
        walk(0, 0, 0, h, w, 0)
    return cells


def _sign(n: int) -> int:
    return (n > 0) - (n < 0)
