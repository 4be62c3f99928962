"""π³'s heads: a transformer within each frame, pixel shuffle for points and confidence, a pose (upstream:
pi3/models/layers).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.geometry import nearest_rotation
from fastvggt_jax.models.rope import Rope
from fastvggt_jax.models.vit import Block, scan_blocks

Array = jax.Array


class FrameDecoder(nn.Module):
    """Linear, blocks with RoPE but neither QK-norm nor LayerScale (eps 1e-6), Linear; no final norm: [B, P,
    2D] -> f32[B, P, out].
    """

    embed_dim: int
    depth: int
    num_heads: int
    out_dim: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, rope: Rope) -> Array:
        x = nn.Dense(self.embed_dim, dtype=self.dtype, name="projects")(x).astype(jnp.float32)
        block = Block(self.num_heads, 1e-6, layer_scale=False, dtype=self.dtype, name="blocks")
        x = scan_blocks(block, self.depth, x, rope, remat=self.remat)
        return nn.Dense(self.out_dim, dtype=self.dtype, name="linear_out")(x).astype(jnp.float32)


class PixelShuffleHead(nn.Module):
    """Linear to every pixel of a patch: f32[B, h·w, C] -> f32[B, h·p, w·p, channels]; channel index c·p² +
    row·p + column.
    """

    channels: int
    patch_size: int

    @nn.compact
    def __call__(self, tokens: Array, grid: tuple[int, int]) -> Array:
        (h, w), p, c = grid, self.patch_size, self.channels
        x = nn.Dense(c * p * p, name="proj")(tokens)
        x = x.reshape(-1, h, w, c, p, p).transpose(0, 1, 4, 2, 5, 3)  # [B, h, p, w, p, c]
        return x.reshape(-1, h * p, w * p, c)


class ResidualMlp(nn.Module):
    """x + relu(l3 relu(l2 relu(l1 x))): the ReLU follows the third layer too."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for i in (1, 2, 3):
            y = jax.nn.relu(nn.Dense(x.shape[-1], name=f"res_conv{i}")(y))
        return x + y


class PoseHead(nn.Module):
    """Patch tokens to a camera: f32[B, h·w, C] -> translation f32[B, 3] and a 3×3 matrix f32[B, 9],
    row-major, not yet a rotation.
    """

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        x = tokens
        for i in (0, 1):
            x = ResidualMlp(name=f"res_conv_{i}")(x)
        x = x.mean(1)
        for i in (0, 2):
            x = jax.nn.relu(nn.Dense(x.shape[-1], name=f"more_mlps_{i}")(x))
        return nn.Dense(3, name="fc_t")(x), nn.Dense(9, name="fc_rot")(x)


def decode_rotation(matrix: Array) -> Array:
    """The rotation nearest to `matrix` with its rows normalised (eps 1e-12): f32[..., 3, 3] -> f32[..., 3,
    3].
    """
    squares = jnp.sum(jnp.square(matrix), -1, keepdims=True)
    return nearest_rotation(
        matrix / jnp.sqrt(jnp.maximum(squares, 1e-24))
    )  # clamped before the root, whose derivative at 0 is infinite


def activate_points(raw: Array) -> Array:
    """(x, y, z) -> (x·e^z, y·e^z, e^z)."""
    z = jnp.exp(raw[..., 2:])
    return jnp.concatenate([raw[..., :2] * z, z], -1)
