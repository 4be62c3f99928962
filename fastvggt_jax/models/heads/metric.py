"""Pi3X's metric scale: one token per scene that attends to all tokens of all frames (upstream:
pi3/models/layers/transformer_head.py).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.attention import Lengths, dense_attention, varying_as
from fastvggt_jax.models.rope import Rope, apply_rope
from fastvggt_jax.models.vit import Mlp, layer_norm, scan_blocks

Array = jax.Array
NORM_EPS = 1e-6


class CrossAttention(nn.Module):
    """x attends to y, whose keys RoPE turns; queries stand at (0, 0), where it turns nothing."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, y: Array, rope: Rope, lengths: Lengths | None = None) -> Array:
        D = x.shape[-1]
        project = lambda name, z: nn.Dense(D, dtype=self.dtype, name=name)(z).reshape(
            *z.shape[:2], self.num_heads, D // self.num_heads
        )  # [B, T, N, H]
        q, k, v = project("q_proj", x), project("k_proj", y), project("v_proj", y)
        out = dense_attention(q, apply_rope(k, rope).astype(self.dtype), v, lengths)
        return nn.Dense(D, dtype=self.dtype, name="proj")(out.reshape(x.shape))


class CrossBlock(nn.Module):
    """x += attn(norm2 x, norm_y y); x += mlp(norm3 x): no self-attention, hence upstream's numbers."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, y: Array, rope: Rope, lengths: Lengths | None = None) -> Array:
        D = x.shape[-1]
        y = layer_norm(NORM_EPS, "norm_y")(y)
        attend = CrossAttention(self.num_heads, self.dtype, name="cross_attn")
        x = x + attend(layer_norm(NORM_EPS, "norm2")(x), y, rope, lengths)
        return x + Mlp(4 * D, D, self.dtype, name="mlp")(layer_norm(NORM_EPS, "norm3")(x))


class MetricDecoder(nn.Module):
    """A token f32[1, 1, 2D] and the tokens of all frames -> f32[B, 1, out_dim]."""

    embed_dim: int
    depth: int
    num_heads: int
    out_dim: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        dense = lambda features: nn.Dense(features, dtype=self.dtype)
        self.projects_x, self.projects_y = dense(self.embed_dim), dense(self.embed_dim)
        self.blocks = CrossBlock(self.num_heads, self.dtype)
        self.linear_out = dense(self.out_dim)

    def context(self, tokens: Array) -> Array:
        """dtype[N, P, 2D] -> f32[N, P, embed_dim], of some frames: what their tokens are here."""
        return self.projects_y(tokens).astype(jnp.float32)

    def __call__(self, token: Array, context: Array, rope: Rope, lengths: Lengths | None = None) -> Array:
        """token f32[1, 1, 2D]; context f32[B, F·P, embed_dim]; rope of the F·P tokens; how many of these
        count.
        """
        x = self.projects_x(token).astype(jnp.float32)
        x = varying_as(jnp.broadcast_to(x, (len(context), 1, self.embed_dim)), context)
        x = scan_blocks(self.blocks, self.depth, x, context, rope, lengths, remat=self.remat)
        return self.linear_out(x).astype(jnp.float32)
