"""DPT heads: four tapped layers of tokens to a dense map a frame (upstream: vggt/heads/dpt_head.py). NHWC;
float32, or float16 where `in_half` says so.

Three quirks of upstream that trained weights rely on: every resize aligns corners; a position embedding of
the image plane is added twice; the residual units' skip carries relu(x), because upstream's ReLU works in
place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fastvggt_jax.attention import varying_as
from fastvggt_jax.models.chunks import Arrays, over_chunks, take
from fastvggt_jax.models.memory import on_device
from fastvggt_jax.models.vit import layer_norm

Array = jax.Array
UV_RATIO = 0.1


def uv_axes(h: int, w: int, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """f64[w], f64[h]: u and v of pixel centres on an image plane of half diagonal 1 whose aspect W/H is the
    *image's*.
    """
    span_u, span_v = aspect / np.sqrt(aspect**2 + 1), 1 / np.sqrt(aspect**2 + 1)
    u = np.linspace(-span_u * (w - 1) / w, span_u * (w - 1) / w, w)
    v = np.linspace(-span_v * (h - 1) / h, span_v * (h - 1) / h, h)
    return u, v


def uv_embedding(h: int, w: int, channels: int, aspect: float) -> Array:
    """f32[h, w, channels]: [sin u·ω, cos u·ω, sin v·ω, cos v·ω], ω = 100^(-j / (channels/4)); angles in
    float64.

    Half of the channels depend on the column alone, half on the row: two small tables, so no large constant
      enters the program.
    """
    omega = 100.0 ** (-np.arange(channels // 4) / (channels / 4))
    angles = [axis[:, None] * omega for axis in uv_axes(h, w, aspect)]
    u, v = (np.concatenate([np.sin(a), np.cos(a)], -1).astype(np.float32) for a in angles)
    shape = (h, w, channels // 2)
    return jnp.concatenate([jnp.broadcast_to(u, shape), jnp.broadcast_to(v[:, None], shape)], -1)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _lerp_axis(x: Array, size: int, axis: int) -> Array:
    if size == x.shape[axis]:
        return x
    low, high, weight = _neighbours(x.shape[axis], size)
    weight = weight.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


@_lerp_axis.defjvp
def _(size: int, axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """As a matrix product: the transpose of a gather would be a scatter, slow on a GPU."""
    (x,), (tangent,) = primals, tangents
    low, high, weight = _neighbours(x.shape[axis], size)
    matrix = np.zeros((size, x.shape[axis]), np.float32)
    np.add.at(matrix, (np.arange(size), low), 1 - weight)
    np.add.at(matrix, (np.arange(size), high), weight)
    return _lerp_axis(x, size, axis), jnp.moveaxis(jnp.tensordot(matrix, tangent, (1, axis)), 0, axis)


def _neighbours(old: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `size` points spread over `old` ones, corners aligned: the point below, the one above, the
    weight of the latter.
    """
    source = np.arange(size) * ((old - 1) / (size - 1) if size > 1 else 0.0)
    low = np.minimum(source.astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), (source - low).astype(np.float32)


def resize_align_corners(x: Array, h: int, w: int) -> Array:
    """Bilinear, corners aligned: [N, h', w', C] -> [N, h, w, C], in float32. Not what jax.image.resize
    does.
    """
    return _lerp_axis(_lerp_axis(x, h, 1), w, 2).astype(x.dtype)


def _conv(
    features: int, size: int, name: str, dtype: DTypeLike, use_bias: bool = True, stride: int = 1
) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=use_bias,
        dtype=dtype,
        name=name,
    )


class PatchUpsample(nn.Module):
    """A transposed convolution whose stride is its size: [N, h, w, C] -> [N, h·size, w·size, features],
    by default as many as there were. `planes` [1, h, w, c] are further channels, the same of every frame.
    """

    size: int
    dtype: DTypeLike = jnp.float32
    features: int | None = None

    @nn.compact
    def __call__(self, x: Array, planes: Array | None = None) -> Array:
        _, h, w, C = x.shape
        s, D = self.size, self.features or C
        shape = (s, s, C if planes is None else C + planes.shape[-1], D)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=-2), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (D,), jnp.float32)

        def upsample(x: Array, kernel: Array) -> Array:
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
            return jnp.einsum("nhwc,ijcd->nhiwjd", x, kernel).reshape(len(x), h * s, w * s, D)

        added = bias.astype(self.dtype)
        if planes is not None:
            added = added + upsample(planes, kernel[:, :, C:])
        return upsample(x, kernel[:, :, :C]) + added


class ResidualConvUnit(nn.Module):
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = jax.nn.relu(x)
        y = _conv(x.shape[-1], 3, "conv1", self.dtype)(x)
        return _conv(x.shape[-1], 3, "conv2", self.dtype)(jax.nn.relu(y)) + x


class FeatureFusion(nn.Module):
    """Adds a finer level (none at the coarsest), refines, resizes to (h, w)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, level: Array | None, h: int, w: int) -> Array:
        if level is not None:
            x = x + ResidualConvUnit(self.dtype, name="resConfUnit1")(level)
        x = ResidualConvUnit(self.dtype, name="resConfUnit2")(x)
        # Upstream resizes first: the same function, since the weights of a bilinear mean add up to 1, of four
        # times the pixels.
        return resize_align_corners(_conv(x.shape[-1], 1, "out_conv", self.dtype)(x), h, w)


class Scratch(nn.Module):
    """From the four levels to the output; upstream keeps MiDaS's name for it. `out_channels` 0 stops before
    output_conv2.
    """

    features: int
    out_channels: int
    uv: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, levels: list[Array], h: int, w: int, aspect: float) -> Array:
        levels = [
            _conv(self.features, 3, f"layer{i + 1}_rn", self.dtype, use_bias=False)(x)
            for i, x in enumerate(levels)
        ]
        x = None
        for i in (3, 2, 1, 0):
            finer = levels[i - 1].shape[1:3] if i else tuple(2 * s for s in levels[0].shape[1:3])
            fusion = FeatureFusion(self.dtype, name=f"refinenet{i + 1}")
            x = fusion(levels[3], None, *finer) if x is None else fusion(x, levels[i], *finer)
        channels = self.features // 2 if self.out_channels else self.features
        x = _conv(channels, 3, "output_conv1", self.dtype)(x)
        x = add_uv(resize_align_corners(x, h, w), aspect, self.uv)
        if not self.out_channels:
            return x.astype(jnp.float32)
        x = jax.nn.relu(_conv(32, 3, "output_conv2_0", self.dtype)(x))  # 32 whatever `features` is
        return _conv(self.out_channels, 1, "output_conv2_2", jnp.float32)(x)


def add_uv(x: Array, aspect: float, uv: bool) -> Array:
    return x + UV_RATIO * uv_embedding(x.shape[1], x.shape[2], x.shape[3], aspect) if uv else x


class DPTHead(nn.Module):
    """Args: `features` of the fusion, `level_channels` of the four levels, `out_channels` logits (0: features
    only), `down_ratio` of the output, `uv` whether the image-plane embedding is added, `dtype` of the
    convolutions and what lies between them.
    """

    features: int = 256
    level_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    out_channels: int = 2
    down_ratio: int = 1
    uv: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, taps: Array, image_size: tuple[int, int], patch_size: int) -> Array:
        """Patch tokens [4, N, h·w, 2D] of the tapped layers -> f32[N, H / down_ratio, W / down_ratio,
        out_channels or features].
        """
        H, W = image_size
        h, w, aspect = H // patch_size, W // patch_size, W / H
        norm = layer_norm(1e-5, "norm")  # shared by the levels
        levels = []
        for i, channels in enumerate(self.level_channels):
            x = norm(taps[i]).reshape(taps.shape[1], h, w, -1)
            x = add_uv(_conv(channels, 1, f"projects_{i}", self.dtype)(x), aspect, self.uv)
            if i < 2:
                x = PatchUpsample(4 // 2**i, self.dtype, name=f"resize_layers_{i}")(x)
            elif i == 3:
                x = _conv(channels, 3, "resize_layers_3", self.dtype, stride=2)(x)
            levels.append(x)
        scratch = Scratch(self.features, self.out_channels, self.uv, self.dtype, name="scratch")
        return scratch(levels, H // self.down_ratio, W // self.down_ratio, aspect)


def activate_depth(logits: Array) -> tuple[Array, Array]:
    """[..., 2] -> depth exp(·) [..., 1] and confidence 1 + exp(·) [...]."""
    return jnp.exp(logits[..., :1]), 1 + jnp.exp(logits[..., 1])


def activate_points(logits: Array) -> tuple[Array, Array]:
    """[..., 4] -> points sign(y)·expm1(|y|) [..., 3] and confidence 1 + exp(·) [...]."""
    xyz = logits[..., :3]
    return jnp.sign(xyz) * jnp.expm1(jnp.abs(xyz)), 1 + jnp.exp(logits[..., 3])


def over_frame_chunks(
    head: nn.Module,
    apply: Callable[[Any, Array], tuple[Array, ...]],
    taps: Array,
    shapes: tuple[tuple[int, ...], ...],
    chunk: int,
    remat: bool = False,
    from_host: bool = False,
) -> tuple[Array, ...]:
    """`apply(head, some frames)` of all frames of taps [taps, B, F, P, C], `chunk` at most at a time, so that
    memory does not grow with F.

    `apply` takes [taps, N, P, C] and returns float32 arrays [N, *shape] of `shapes`; here they are [B, F,
    *shape]. Scenes stay on the devices on which they are: each chunk has as many frames, at least one, of
    every scene. `remat`: see `over_chunks`. `from_host`: the taps are in the host's memory.
    """
    _, B, F, *token = taps.shape

    def step(head: nn.Module, _: Arrays, start: Array | int, size: int) -> Arrays:
        some = take(taps, start, size, 2)
        some = on_device(some) if from_host else some
        outs = apply(head, some.reshape(-1, B * size, *token))
        return tuple(out.reshape(B, size, *out.shape[1:]) for out in outs)

    buffers = varying_as(tuple(jnp.zeros((B, F, *shape), jnp.float32) for shape in shapes), taps)
    return over_chunks(head, step, buffers, max(chunk // B, 1), remat=remat)
