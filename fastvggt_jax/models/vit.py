"""The transformer block that the encoder, the aggregator and the camera head share.

Dtype policy of the whole package: parameters float32 (or bfloat16 where asked); matrix products in `dtype`,
in which the tapped layers that the heads read are kept too; everything else float32: the residual stream,
LayerNorm, QK-norm, RoPE, softmax statistics, heads, geometry. So it is in the official demo under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.attention import aligned, dense_attention, faster_matmul_gelu, matmul_gelu, varying_as
from fastvggt_jax.models.chunks import Arrays, over_chunks, take
from fastvggt_jax.models.rope import Rope, apply_rope, rotate, swap_pairs

Array = jax.Array
Attend = Callable[[Array, Array, Array], Array]  # q [B, T, N, H], k and v [B, S, N, H] -> [B, T, N, H]


def layer_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    # The fast variance E[x²] - E[x]² loses tokens of small variance to cancellation.
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, computed in float32. jax.nn.gelu rounds sqrt(1/2) and the product with it to
    bfloat16, in two passes.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


class DenseGelu(nn.Module):
    """gelu(x w + b), of a kernel of ours where that is faster: then [M, features], M being filled up as
    the kernel takes it (`aligned`), where x [..., K] has other rows. To cut them off here would copy the
    result.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if name := faster_matmul_gelu(x, kernel):
            rows = aligned(x.reshape(1, -1, x.shape[-1]))[0]
            return _in_one(name, rows if rows.size > x.size else x, kernel, bias)
        return _in_turn(x, kernel, bias)


def _in_turn(x: Array, kernel: Array, bias: Array) -> Array:
    return gelu(x @ kernel + bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_one(name: str, x: Array, kernel: Array, bias: Array) -> Array:
    """By the kernel of that name, which has no derivative: where one is asked for, XLA runs both ways."""
    return matmul_gelu(x, kernel, bias, implementation=name)


_in_one.defvjp(lambda _, *arrays: jax.vjp(_in_turn, *arrays), lambda _, backward, g: backward(g))


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x.astype(jnp.float32) * self.param(
            "gamma", nn.initializers.constant(0.01), x.shape[-1:], jnp.float32
        )


def over_rows(mlp: Mlp, x: Array, rows: int | None) -> Array:
    """mlp(x) of [B, T, D], of so many tokens at a time: what lies between its products is larger than x."""
    B, T, D = x.shape
    if rows is None or rows >= B * T:
        return mlp(x)
    x = x.astype(mlp.dtype).reshape(B * T, D)  # as its first product has it

    def step(mlp: Mlp, _: Arrays, start: Array | int, size: int) -> Arrays:
        return (mlp(take(x, start, size, 0)),)

    (out,) = over_chunks(mlp, step, (varying_as(jnp.zeros_like(x), x),), rows, axis=0)
    return out.reshape(B, T, D)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear; `out_bias` is where the last bias starts."""

    hidden: int
    out: int
    dtype: DTypeLike = jnp.float32
    out_bias: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = DenseGelu(self.hidden, self.dtype, name="fc1")(x)
        out = nn.Dense(self.out, dtype=self.dtype, bias_init=self.out_bias, name="fc2")(hidden)
        if out.shape[:-1] != x.shape[:-1]:  # rows that were filled up; cut off in what adds the result up
            out = out[: math.prod(x.shape[:-1])].reshape(*x.shape[:-1], self.out)
        return out


class HeadNorm(nn.Module):
    """LayerNorm over the head dim (eps 1e-5 wherever upstream has it) and then RoPE: [B, T, N, H] -> f32[B,
    T, N, H].

    Written for two passes over x, where XLA would make four, two of them over a float32 copy: the statistics
    end behind a barrier, and the rotation's partner channels are normalised where they are read. Of bfloat16
    the variance is E[x²] - E[x]²: in float32 its cancellation loses less than the rounding of x already has.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, rope: Rope | None) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32).astype(jnp.float32)
        one_pass = x.dtype == jnp.bfloat16
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        variance = (
            jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0)
            if one_pass
            else x.var(-1, keepdims=True)
        )
        mean, factor = jax.lax.optimization_barrier((mean, jax.lax.rsqrt(variance + self.epsilon)))
        normed = self.normalise(x, mean, factor * scale, bias)
        if rope is None:
            return normed
        return rotate(
            normed, self.normalise(swap_pairs(x), mean, factor * swap_pairs(scale), swap_pairs(bias)), rope
        )

    def normalise(self, x: Array, mean: Array, scale: Array, bias: Array) -> Array:
        return (x - mean) * scale + bias


class Attention(nn.Module):
    """Self-attention with one qkv projection; QK-norm precedes RoPE, v is left alone."""

    num_heads: int
    qk_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rope: Rope | None = None, attend: Attend = dense_attention) -> Array:
        B, T, D = x.shape
        qkv = nn.Dense(3 * D, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, T, N, H]
        if self.qk_norm:
            q, k = HeadNorm(name="q_norm")(q, rope), HeadNorm(name="k_norm")(k, rope)
        elif rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        with jax.named_scope("attend"):
            out = attend(q.astype(self.dtype), k.astype(self.dtype), v)
        return nn.Dense(D, dtype=self.dtype, name="proj")(out.reshape(B, T, D))


class Block(nn.Module):
    """x += ls1·attn(norm1 x); x += ls2·mlp(norm2 x). `norm_eps` differs by site: 1e-5 in VGGT's aggregator
    and camera trunk, else 1e-6.
    """

    num_heads: int
    norm_eps: float
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    layer_scale: bool = True
    dtype: DTypeLike = jnp.float32
    rows: int | None = None  # tokens that the MLP takes at a time; None: all

    @nn.compact
    def __call__(self, x: Array, rope: Rope | None = None, attend: Attend = dense_attention) -> Array:
        """f32[B, T, D] -> f32[B, T, D]."""
        scaled = lambda name, y: LayerScale(name=name)(y) if self.layer_scale else y
        D = x.shape[-1]
        y = Attention(self.num_heads, self.qk_norm, self.dtype, name="attn")(
            layer_norm(self.norm_eps, "norm1")(x), rope, attend
        )
        x = x + scaled("ls1", y)
        mlp = Mlp(int(D * self.mlp_ratio), D, self.dtype, name="mlp")
        y = over_rows(mlp, layer_norm(self.norm_eps, "norm2")(x), self.rows)
        return x + scaled("ls2", y)


def scan_blocks(block: nn.Module, depth: int, x: Array, *args: Any, remat: bool = False) -> Array:
    """Applies `depth` blocks in turn, each to (x, *args). Their parameters get a leading layer axis; one
    block is compiled, not `depth`.

    With `remat` a derivative keeps each block's input alone and computes the rest again.
    """
    step = lambda block, x, _: (block(x, *args), None)
    scan = nn.scan(
        nn.remat(step, prevent_cse=False) if remat else step,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=depth,
    )
    return scan(block, x, None)[0]
