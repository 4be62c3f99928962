"""The transformer block that the encoder, the aggregator and the camera head share.

Dtype policy of the whole package: parameters float32 (or bfloat16 where asked); matrix products in `dtype`, in which the tapped layers that
the heads read are kept too; everything else float32: the residual stream, LayerNorm, QK-norm, RoPE, softmax statistics, heads, geometry. So
it is in the official demo under autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastvggt_jax.attention import dense_attention
from fastvggt_jax.models.rope import Rope, apply_rope

Array = jax.Array
Attend = Callable[[Array, Array, Array], Array]  # q [B, T, N, H], k and v [B, S, N, H] -> [B, T, N, H]


def layer_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    # The fast variance E[x²] - E[x]² loses tokens of small variance to cancellation.
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, computed in float32. jax.nn.gelu rounds sqrt(1/2) and the product with it to bfloat16, in two passes."""
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x.astype(jnp.float32) * self.param("gamma", nn.initializers.constant(0.01), x.shape[-1:])


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    hidden: int
    out: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        return nn.Dense(self.out, dtype=self.dtype, name="fc2")(x)


class Attention(nn.Module):
    """Self-attention with one qkv projection; QK-norm (eps 1e-5 wherever upstream has it) precedes RoPE, v is left alone."""

    num_heads: int
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rope: Rope | None = None, attend: Attend = dense_attention) -> Array:
        B, T, D = x.shape
        qkv = nn.Dense(3 * D, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, T, N, H]
        if self.qk_norm:
            q, k = layer_norm(1e-5, "q_norm")(q), layer_norm(1e-5, "k_norm")(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        out = attend(q.astype(self.dtype), k.astype(self.dtype), v)
        return nn.Dense(D, dtype=self.dtype, name="proj")(out.reshape(B, T, D))


class Block(nn.Module):
    """x += ls1·attn(norm1 x); x += ls2·mlp(norm2 x). `norm_eps` differs by site: encoder 1e-6, aggregator and camera trunk 1e-5."""

    num_heads: int
    norm_eps: float
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rope: Rope | None = None, attend: Attend = dense_attention) -> Array:
        """f32[B, T, D] -> f32[B, T, D]."""
        D = x.shape[-1]
        y = Attention(self.num_heads, self.qk_norm, self.dtype, name="attn")(layer_norm(self.norm_eps, "norm1")(x), rope, attend)
        x = x + LayerScale(name="ls1")(y)
        y = Mlp(int(D * self.mlp_ratio), D, self.dtype, name="mlp")(layer_norm(self.norm_eps, "norm2")(x))
        return x + LayerScale(name="ls2")(y)


def scan_blocks(block: nn.Module, depth: int, x: Array) -> Array:
    """Applies `depth` blocks in turn. `block`'s parameters get a leading layer axis; one block is compiled, not `depth`."""
    scan = nn.scan(
        lambda block, x, _: (block(x), None),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=depth,
    )
    return scan(block, x, None)[0]
