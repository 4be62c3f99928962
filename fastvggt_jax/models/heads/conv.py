"""Pi3X's dense head: convolutions and upsampling to every pixel (upstream: pi3/models/layers/conv_head.py).
NHWC; float32, or float16 where `in_half` says so.

Unlike in VGGT's DPT heads: convolutions pad by repeating the edge, the resize does not align corners, the
image plane's (u, v) are two channels more and not an embedding, and a residual unit's skip carries its input
itself.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.models.heads.dpt import PatchUpsample, uv_axes

Array = jax.Array
RESIDUALS = 2  # units in a stage
GROUP = 32  # channels of a group in a unit's second norm; the first norm has one group
HIDDEN = 32  # channels before an output's last convolution
NORM_EPS = 1e-5


def uv_planes(h: int, w: int, aspect: float) -> Array:
    """f32[1, h, w, 2]: u and v of each cell on the plane of an image of this W / H."""
    u, v = (jnp.asarray(axis, jnp.float32) for axis in uv_axes(h, w, aspect))
    return jnp.stack([jnp.broadcast_to(u, (h, w)), jnp.broadcast_to(v[:, None], (h, w))], -1)[None]


class Conv3(nn.Module):
    """A 3x3 convolution whose border is the edge once more. `planes` [1, h, w, c] are further channels, the
    same of every frame, so what they add is computed once: no copy of all of them, and of x's channels alone
    there are a multiple of 8, as a GPU's fast convolutions take them.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, planes: Array | None = None) -> Array:
        C = x.shape[-1]
        shape = (3, 3, C if planes is None else C + planes.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

        def convolve(x: Array, kernel: Array) -> Array:
            x = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel.astype(self.dtype), (1, 1), "VALID", dimension_numbers=numbers
            )

        added = bias.astype(self.dtype)
        if planes is not None:
            added = added + convolve(planes, kernel[:, :, C:])
        return convolve(x, kernel[:, :, :C]) + added


def group_norm(groups: int, dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """Statistics, float32, over a group's channels and all cells of one frame."""
    return nn.GroupNorm(groups, epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False, name=name)


class Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), twice as wide inside; numbers as upstream counts layers."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        C, relu = x.shape[-1], jax.nn.relu
        y = relu(group_norm(1, self.dtype, "layers_0")(x))
        y = Conv3(2 * C, self.dtype, name="layers_2")(y)
        y = relu(group_norm(2 * C // GROUP, self.dtype, "layers_3")(y))
        return x + Conv3(C, self.dtype, name="layers_5")(y)


class ConvHead(nn.Module):
    """Stages that double the map's sides, then a resize to the pixels and an output for each of `outputs`.

    Args: `stages`, the channels of each; `outputs`, the channels of each output; `patch_size`; `dtype` of the
    convolutions and what lies between them.
    """

    stages: tuple[int, ...]
    outputs: tuple[int, ...]
    patch_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, grid: tuple[int, int]) -> Array:
        """f32[N, h·w, C] -> f32[N, H, W, sum(outputs)]."""
        (h, w), p, dtype = grid, self.patch_size, self.dtype
        aspect = w / h
        x = tokens.astype(dtype).reshape(-1, h, w, tokens.shape[-1])
        for s, features in enumerate(self.stages):
            name, planes = f"upsample_blocks_{s}", uv_planes(x.shape[1], x.shape[2], aspect)
            x = PatchUpsample(2, dtype, features, name=f"{name}_0_0")(x, planes)
            x = Conv3(features, dtype, name=f"{name}_0_1")(x)
            for r in range(1, 1 + RESIDUALS):
                x = Residual(dtype, name=f"{name}_{r}")(x)
        x = jax.image.resize(x, (len(x), p * h, p * w, x.shape[-1]), "bilinear")
        found, planes = [], uv_planes(p * h, p * w, aspect)
        for k, channels in enumerate(self.outputs):
            y = jax.nn.relu(Conv3(HIDDEN, dtype, name=f"output_block_{k}_0")(x, planes))
            found.append(nn.Conv(channels, (1, 1), dtype=jnp.float32, name=f"output_block_{k}_2")(y))
        return jnp.concatenate(found, -1)
