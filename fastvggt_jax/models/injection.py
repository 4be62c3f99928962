"""How Pi3X hears of known cameras inside its decoder: attention between the patches of all views in which
queries, keys and values are seen from their cameras (upstream: pi3/models/layers/{prope,block}.py; PRoPE,
arXiv 2507.10496, in the form of GTA, arXiv 2310.10375, which uses no intrinsics).

The first half of a head's channels, in groups of four, is moved by the cameras' 4x4 matrices, the second half
turned by the patch's column and row. Only how two cameras stand to each other enters.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fastvggt_jax import geometry
from fastvggt_jax.attention import dense_attention
from fastvggt_jax.models.rope import Rope, apply_rope, rope_tables
from fastvggt_jax.models.vit import Attention, LayerScale, Mlp, layer_norm, over_rows

Array = jax.Array
NORM_EPS = 1e-6
UNSEEN = 1e9  # what a key without a camera scores less by: more than any key scores
EXTRA = 8  # channels that a head gets to say so; cuDNN takes multiples of 8


class Views(NamedTuple):
    """Where the patches of F views are.

    Attributes:
      world_from_cam: f32[B, F, 4, 4], rigid.
      posed: bool[B, F], which views have a camera; None: all.
      positions: i32[p, 2], (y, x) of each of a view's patches, counted from 0.
    """

    world_from_cam: Array
    posed: Array | None
    positions: np.ndarray


def prope_attention(q: Array, k: Array, v: Array, views: Views) -> Array:
    """[B, F·p, N, H] -> [B, F·p, N, H]: attention as the views' cameras see it, H a multiple of 8. Views
    without a camera are not attended to; what theirs attend to means nothing, but is finite.
    """
    if views.posed is None:
        return restore(dense_attention(*_seen_from(q, k, v, views)), views)
    H = q.shape[-1]  # attention divides by the root of the wider head
    q, k, v = hide_unposed(*_seen_from(q, k, v, views, math.sqrt((H + EXTRA) / H)), views.posed)
    return restore(dense_attention(q, k, v)[..., :-EXTRA], views)


def _seen_from(q: Array, k: Array, v: Array, views: Views, longer: float = 1.0) -> tuple[Array, Array, Array]:
    """Queries, `longer` times as long, keys and values [B, F·p, N, H] as attention takes them, in the dtype
    that they had.
    """
    forth = views.world_from_cam
    back = jnp.swapaxes(geometry.invert_se3(forth), -1, -2)
    turn = _rope(views, q.shape[-1], -1)
    moved = lambda x, matrix: transform(x, matrix, turn).astype(x.dtype)
    seen_q = longer * transform(q, back, turn)  # rounded once
    return seen_q.astype(q.dtype), moved(k, forth), moved(v, forth)


def restore(out: Array, views: Views) -> Array:
    """What attention gives [B, F·p, N, H], in each view's own terms again."""
    back = geometry.invert_se3(views.world_from_cam)
    return transform(out, back, _rope(views, out.shape[-1], 1)).astype(out.dtype)


def _rope(views: Views, head_dim: int, direction: int) -> Rope:
    """Columns turn the first half of the rotary channels, rows the second; -1 is against the decoder's
    RoPE.
    """
    return rope_tables(direction * views.positions[:, ::-1], head_dim // 2)


def transform(x: Array, matrices: Array, rope: Rope) -> Array:
    """[B, F·p, N, H] -> f32[B, F·p, N, H]: each view's f32[B, F, 4, 4] times groups of four channels in the
    first half, the second half turned.
    """
    (B, T, N, H), F = x.shape, matrices.shape[1]
    x = x.astype(jnp.float32).reshape(B, F, T // F, N, H)
    groups = x[..., : H // 2].reshape(B, F, -1, N, H // 8, 4)
    moved = geometry.einsum("bfij,bfpngj->bfpngi", matrices, groups).reshape(B, F, -1, N, H // 2)
    turned = apply_rope(x[..., H // 2 :].reshape(B * F, -1, N, H // 2), rope)
    return jnp.concatenate([moved, turned.reshape(moved.shape)], -1).reshape(B, T, N, H)


def hide_unposed(q: Array, k: Array, v: Array, posed: Array) -> tuple[Array, Array, Array]:
    """[B, F·p, N, H] -> the same with `EXTRA` channels more, of which one makes the keys of views that are
    not posed, bool[B, F], score so little that they weigh exactly nothing. So no kernel has to know of masks.
    If no view is posed, all keys score alike.
    """
    T, H, F = q.shape[1], q.shape[3], posed.shape[1]
    wide = partial(jnp.pad, pad_width=((0, 0), (0, 0), (0, 0), (0, EXTRA)))
    least = min(UNSEEN, float(jnp.finfo(k.dtype).max) / 4)
    penalty = jnp.repeat(jnp.where(posed, 0, -least), T // F, 1)[:, :, None]  # [B, T, 1]
    return wide(q).at[..., H].set(1), wide(k).at[..., H].set(penalty.astype(k.dtype)), wide(v)


class InjectionBlock(nn.Module):
    """ls1·attn(norm1 x) + ls2·mlp(norm2 x), both of the same x: what is added to the patch tokens of all
    views, f32[B, F·p, D] -> f32[B, F·p, D].
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: DTypeLike = jnp.float32
    rows: int | None = None

    @nn.compact
    def __call__(self, x: Array, views: Views) -> Array:
        D = x.shape[-1]
        attend = partial(prope_attention, views=views)
        attention = Attention(self.num_heads, True, self.dtype, name="attn")
        seen = attention(layer_norm(NORM_EPS, "norm1")(x), None, attend)
        mlp = Mlp(int(D * self.mlp_ratio), D, self.dtype, name="mlp")
        thought = over_rows(mlp, layer_norm(NORM_EPS, "norm2")(x), self.rows)
        return LayerScale(name="ls1")(seen) + LayerScale(name="ls2")(thought)
