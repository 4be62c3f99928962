"""DINOv2 ViT with registers, the image encoder (upstream: vggt/layers/vision_transformer.py). LayerNorm eps
1e-6 everywhere.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.attention import varying_as
from fastvggt_jax.models.base import to_unit
from fastvggt_jax.models.chunks import Arrays, over_chunks, take
from fastvggt_jax.models.vit import Block, layer_norm, scan_blocks

Array = jax.Array
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
NORM_EPS = 1e-6


def resize_pos_embed(table: Array, h: int, w: int) -> Array:
    """Position table [1, 1 + n·n, C] for an h×w patch grid: [1, 1 + h·w, C]; row 0 belongs to the class
    token.

    Bicubic with antialias and half-pixel centres, no offset (upstream sets interpolate_antialias and
    interpolate_offset=0 for the register variants). With antialias torch uses the Keys kernel a = -0.5, as
    jax.image.resize does. Used as it is where the grid fits.
    """
    n = round((table.shape[1] - 1) ** 0.5)
    if (h, w) == (n, n):
        return table
    grid = table[0, 1:].astype(jnp.float32).reshape(n, n, -1)
    grid = jax.image.resize(grid, (h, w, grid.shape[-1]), "cubic", antialias=True)
    return jnp.concatenate([table[:, :1], grid.reshape(1, h * w, -1)], 1)


class PatchProjection(nn.Module):
    """A convolution whose stride is its size, as one matrix product: [B, h·p, w·p, C] -> [B, h·w, D],
    row-major.
    """

    patch_size: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Array) -> Array:
        p, (B, H, W, C) = self.patch_size, images.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, C, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        patches = images.reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3).reshape(B, -1, p * p * C)
        kernel = kernel.reshape(p * p * C, self.features)
        return patches.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    patch_size: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Array) -> Array:
        return PatchProjection(self.patch_size, self.features, self.dtype, name="proj")(images)


class DinoV2(nn.Module):
    """Images to patch tokens; by default ViT-L/14 with 4 registers, its position table made for 518 px."""

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        D, normal = self.embed_dim, nn.initializers.normal(0.02)
        self.cls_token = self.param("cls_token", normal, (1, 1, D), jnp.float32)
        self.pos_embed = self.param(
            "pos_embed", normal, (1, 1 + (self.img_size // self.patch_size) ** 2, D), jnp.float32
        )
        self.register_tokens = self.param(
            "register_tokens", normal, (1, self.num_register_tokens, D), jnp.float32
        )
        self.patch_embed = PatchEmbed(self.patch_size, D, self.dtype)
        self.blocks = Block(self.num_heads, NORM_EPS, self.mlp_ratio, dtype=self.dtype)
        self.norm = layer_norm(NORM_EPS)

    def standardise(self, images: Array) -> Array:
        return (images - jnp.asarray(IMAGE_MEAN, jnp.float32)) / jnp.asarray(IMAGE_STD, jnp.float32)

    def embed(self, images: Array) -> Array:
        """[B, H, W, 3] in [0, 1] -> f32[B, 1 + registers + h·w, D]: class token, registers, patches.
        Registers get no position.
        """
        B, H, W, _ = images.shape
        patches = self.patch_embed(self.standardise(images)).astype(jnp.float32)
        x = jnp.concatenate([jnp.tile(self.cls_token, (B, 1, 1)), patches], 1)
        x = x + resize_pos_embed(self.pos_embed, H // self.patch_size, W // self.patch_size)
        return jnp.concatenate([x[:, :1], jnp.tile(self.register_tokens, (B, 1, 1)), x[:, 1:]], 1)

    def __call__(self, images: Array) -> Array:
        """f32[B, H, W, 3] in [0, 1] -> f32[B, h·w, D]: the normed patch tokens; class and register tokens are
        dropped.
        """
        x = scan_blocks(self.blocks, self.depth, self.embed(images), remat=self.remat)
        return self.norm(x)[:, 1 + self.num_register_tokens :]


def embed_frames(encoder: DinoV2, special: Array, images: Array, chunk: int | None) -> Array:
    """Special tokens f32[1, F, S, D] before each frame's patches, of images [B, F, H, W, 3] as a model gets
    them: f32[B, F, S + h·w, D]. `chunk`: frames, of all scenes, that the encoder takes at a time; None: all.
    """
    B, F, H, W, _ = images.shape

    def step(encoder: DinoV2, _: Arrays, start: Array | int, size: int) -> Arrays:
        some = to_unit(take(images, start, size))
        patches = encoder(some.reshape(B * size, H, W, -1)).reshape(B, size, -1, encoder.embed_dim)
        front = take(special, start, size)
        return (jnp.concatenate([jnp.broadcast_to(front, (B, *front.shape[1:])), patches], 2),)

    h, w = H // encoder.patch_size, W // encoder.patch_size
    tokens = jnp.zeros((B, F, special.shape[2] + h * w, encoder.embed_dim), jnp.float32)
    tokens = varying_as(tokens, images)
    return over_chunks(encoder, step, (tokens,), F if chunk is None else max(chunk // B, 1))[0]
