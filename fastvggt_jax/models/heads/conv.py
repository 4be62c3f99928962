"""Pi3X's dense head: convolutions and upsampling to every pixel (upstream: pi3/models/layers/conv_head.py).
NHWC, float32.

Unlike in VGGT's DPT heads: convolutions pad by repeating the edge, the resize does not align corners, the
image plane's (u, v) are two channels more and not an embedding, and a residual unit's skip carries its input
itself.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastvggt_jax.models.heads.dpt import PatchUpsample, uv_axes

Array = jax.Array
RESIDUALS = 2  # units in a stage
GROUP = 32  # channels of a group in a unit's second norm; the first norm has one group
HIDDEN = 32  # channels before an output's last convolution
NORM_EPS = 1e-5


def append_uv(x: Array, aspect: float) -> Array:
    """[N, h, w, C] -> [N, h, w, C + 2]: u and v of each cell on the plane of an image of this W / H."""
    u, v = (jnp.asarray(axis, x.dtype) for axis in uv_axes(x.shape[1], x.shape[2], aspect))
    shape = (*x.shape[:3], 1)
    planes = (jnp.broadcast_to(u[:, None], shape), jnp.broadcast_to(v[:, None, None], shape))
    return jnp.concatenate([x, *planes], -1)


def conv3(features: int, x: Array, name: str) -> Array:
    """A 3x3 convolution whose border is the edge once more."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    return nn.Conv(features, (3, 3), padding="VALID", name=name)(x)


def group_norm(groups: int, name: str) -> nn.GroupNorm:
    """Statistics over a group's channels and all cells of one frame."""
    return nn.GroupNorm(groups, epsilon=NORM_EPS, dtype=jnp.float32, use_fast_variance=False, name=name)


class Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), twice as wide inside; numbers as upstream counts layers."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        C = x.shape[-1]
        y = conv3(2 * C, jax.nn.relu(group_norm(1, "layers_0")(x)), "layers_2")
        return x + conv3(C, jax.nn.relu(group_norm(2 * C // GROUP, "layers_3")(y)), "layers_5")


class ConvHead(nn.Module):
    """Stages that double the map's sides, then a resize to the pixels and an output for each of `outputs`.

    Args: `stages`, the channels of each; `outputs`, the channels of each output; `patch_size`.
    """

    stages: tuple[int, ...]
    outputs: tuple[int, ...]
    patch_size: int

    @nn.compact
    def __call__(self, tokens: Array, grid: tuple[int, int]) -> Array:
        """f32[N, h·w, C] -> f32[N, H, W, sum(outputs)]."""
        (h, w), p = grid, self.patch_size
        aspect = w / h
        x = tokens.astype(jnp.float32).reshape(-1, h, w, tokens.shape[-1])
        for s, features in enumerate(self.stages):
            name = f"upsample_blocks_{s}"
            x = PatchUpsample(2, features=features, name=f"{name}_0_0")(append_uv(x, aspect))
            x = conv3(features, x, f"{name}_0_1")
            for r in range(1, 1 + RESIDUALS):
                x = Residual(name=f"{name}_{r}")(x)
        x = append_uv(jax.image.resize(x, (len(x), p * h, p * w, x.shape[-1]), "bilinear"), aspect)
        found = []
        for k, channels in enumerate(self.outputs):
            y = jax.nn.relu(conv3(HIDDEN, x, f"output_block_{k}_0"))
            found.append(nn.Conv(channels, (1, 1), name=f"output_block_{k}_2")(y))
        return jnp.concatenate(found, -1)
