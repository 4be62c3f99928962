"""Alternating attention, the backbone that VGGT and π³ share: blocks within each frame and across all frames
in turn, scanned in pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fastvggt_jax.attention import (
    dense_attention,
    frame_attention,
    hilbert_order,
    sparse_global_attention,
    to_float8,
    varying_as,
)
from fastvggt_jax.models.chunks import Arrays, over_chunks, take
from fastvggt_jax.models.memory import on_host
from fastvggt_jax.models.rope import Rope, patch_positions, rope_tables
from fastvggt_jax.models.vit import Block
from fastvggt_jax.sharding import Spread
from fastvggt_jax.sparsity import Sparsity

Array = jax.Array


def alternate(
    frame_blocks: Block,
    global_blocks: Block,
    x: Array,
    *,
    spread: Spread,
    grid: tuple[int, int],
    num_special: int,
    taps: tuple[int, ...],
    sparsity: Sparsity | None,
    dtype: DTypeLike,
    remat: bool = False,
    low_memory: bool = False,
    chunk: int | None = None,
    float8_scores: bool = False,
    after: Callable[[Array, Array, np.ndarray], Array] | None = None,
) -> tuple[Array, Array, Array | None]:
    """Applies `taps[-1] + 1` pairs of a frame and a global block, whose parameters get a leading layer axis.

    Args:
      x: f32[B, F, P, D], each frame's `num_special` special tokens, then its patches in raster order; of the
        frames of this device.
      spread: how many frames there are in all, and on which devices.
      grid: (h, w), the patches of a frame.
      taps: pairs whose output is kept, in ascending order; the last pair is the last of them.
      sparsity: of the global blocks; None = dense.
      dtype: of the taps.
      remat: whether a derivative keeps each pair's input alone and computes the rest again.
      low_memory: the taps are in the host's memory.
      chunk: frames, of all scenes, that a frame block takes at a time; None: all.
      float8_scores: see `Model`.
      after: what becomes of the tokens f32[B, F, P, D] after each pair, whose number i32[] it is told, and
        the (y, x) of each token, i32[P, 2], in their order here.

    Returns:
      dtype[taps, B, F, P, 2D], the frame block's output beside the global block's; f32[B, F, 2D], the same of
      the last pair's first token; and the share of blocks that each pair's global attention computed,
      f32[pairs], or None of dense attention.
    """
    B, F, P, D = x.shape
    positions, order = patch_positions(*grid, num_special), None
    if sparsity is not None and sparsity.order == "hilbert":
        order = np.array([*range(num_special), *(num_special + i for i in hilbert_order(*grid))])
        x, positions = x[:, :, order], positions[order]
    rope = rope_tables(positions, D // global_blocks.num_heads)
    global_rope = Rope(*(jnp.tile(t, (F, 1, 1)) for t in rope))
    depth = taps[-1] + 1
    layers = {"tap": jnp.array([layer in taps for layer in range(depth)]), "pair": jnp.arange(depth)}
    layers |= {"slot": jnp.array([sum(tap < layer for tap in taps) for layer in range(depth)])}
    if sparsity is not None:
        layers |= _layer_sparsity(sparsity, depth, spread, grid[0] * grid[1])

    def pair(
        frame_block: Block, carry: tuple, layer: dict, global_block: Block
    ) -> tuple[tuple, Array | None]:
        # Which flax's scan, when it looks at the loop once, does not know of what goes around.
        x, tapped = spread.differing(carry[:2])
        densities = []

        def of_frames(frame_block: Block, x: Arrays, start: Array | int, size: int) -> Arrays:
            some = take(x[0], start, size).reshape(B * size, P, D)
            return (frame_block(some, rope).reshape(B, size, P, D),)

        most = F if chunk is None else max(chunk // B, 1)
        (frame_out,) = over_chunks(frame_block, of_frames, (x,), most, in_place=True)

        def whole(q: Array, k: Array, v: Array) -> tuple[Array, Array | None]:
            if sparsity is None:
                return dense_attention(q, k, v, spread.lengths(P)), None
            return _attend_by_plan(q, k, v, spread, num_special, sparsity, depth, layer)

        def attend(q: Array, k: Array, v: Array) -> Array:
            if float8_scores:
                q, k = to_float8(q), to_float8(k)
            out, density = spread.over_heads(whole, q, k, v)
            densities.append(density)
            return out

        x = global_block(frame_out.reshape(B, F * P, D), global_rope, attend).reshape(B, F, P, D)
        if after is not None:
            x = after(x, layer["pair"], positions)
            global_block.sow("intermediates", "after", x)

        def write(tapped: Array, frame_out: Array, x: Array) -> Array:
            both = jnp.concatenate([frame_out, x], -1).astype(tapped.dtype)
            if order is not None:
                both = both[:, :, np.argsort(order)]
            if low_memory:  # where the taps are: flax's scan looks at the loop once with all on the device
                both = jax.device_put(both, jax.typeof(tapped).memory_space)
            return jax.lax.dynamic_update_index_in_dim(tapped, both, layer["slot"], 0)

        with jax.named_scope("taps"):
            tapped = jax.lax.cond(layer["tap"], write, lambda tapped, *_: tapped, tapped, frame_out, x)
        first = jnp.concatenate([frame_out[:, :, 0], x[:, :, 0]], -1)
        return (x, tapped, first), densities[0]

    scan = nn.scan(
        nn.remat(pair, prevent_cse=False) if remat else pair,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=depth,
    )
    tapped = jnp.zeros((len(taps), B, F, P, 2 * D), dtype)
    if low_memory:
        tapped = on_host(tapped)
    carry = (x, *varying_as((tapped, jnp.zeros((B, F, 2 * D), jnp.float32)), x))
    (_, tapped, first), density = scan(frame_blocks, carry, layers, global_blocks)
    return tapped, first, density


def _layer_sparsity(sparsity: Sparsity, depth: int, spread: Spread, patches: int) -> dict[str, Array]:
    """What the scan hands to each layer: whether it is sparse, its n_ratio and its τ; of frames of so many
    patches.
    """
    sparsity.check_depth(depth)

    def keep_of(frames: int) -> list[int] | None:
        return sparsity.keep_counts(sparsity.num_kv_blocks(frames * patches), depth)

    keep = keep_of(spread.frames)
    cdf = sparsity.cdf_thresholds(depth)
    plan = sparsity.plan(depth)
    layers = {"kind": jnp.array([_kinds(plan).index(kind) for kind in plan])}
    if keep is not None and spread.real is not None:  # by table: double precision is Python's alone
        every = [keep_of(frames) for frames in range(1, spread.frames + 1)]
        layers["keep"] = jnp.array(every, jnp.int32)[spread.real - 1]
    elif keep is not None:
        layers["keep"] = jnp.array(keep, jnp.int32)
    layers |= {} if cdf is None else {"cdf": jnp.array(cdf, jnp.float32)}
    return layers


def _kinds(plan: list[str]) -> list[str]:
    """Those that there are, in order."""
    return sorted(set(plan))


def _attend_by_plan(
    q: Array,
    k: Array,
    v: Array,
    spread: Spread,
    num_special: int,
    sparsity: Sparsity,
    depth: int,
    layer: dict[str, Array],
) -> tuple[Array, Array]:
    """One global layer's attention and the density of each head, of the kind that `Sparsity.plan` has for
    it.
    """

    frames, real = spread.frames, spread.real

    def uniform(density: float | Array) -> Array:
        return varying_as(jnp.full(q.shape[2], density, jnp.float32), q)

    def sparse(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        return sparse_global_attention(
            q,
            k,
            v,
            frames=frames,
            num_special=num_special,
            sparsity=sparsity,
            keep_count=layer.get("keep"),
            cdf_threshold=layer.get("cdf"),
            real=real,
        )

    def dense(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        return dense_attention(q, k, v, spread.lengths(q.shape[1] // frames)), uniform(1)

    def frame(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        out = frame_attention(q, k, v, frames=frames, num_special=num_special, real=real)
        return out, uniform(1 / (frames if real is None else real))

    ways = {"dense": dense, "frame": frame, "sparse": sparse}
    kinds = [ways[kind] for kind in _kinds(sparsity.plan(depth))]
    return kinds[0](q, k, v) if len(kinds) == 1 else jax.lax.switch(layer["kind"], kinds, q, k, v)
