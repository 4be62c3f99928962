"""2-D rotary position embedding (upstream: vggt/layers/rope.py). Angles, sines and cosines are float32."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Rope(NamedTuple):
    """Cosines and sines of T tokens, f32[T, 2, H/4]: axis 1 is (y, x)."""

    cos: Array
    sin: Array


def patch_positions(h: int, w: int, num_special: int) -> np.ndarray:
    """i32[num_special + h·w, 2]: (y, x) of each token. Patches count from 1; special tokens sit at (0, 0),
    which rotates nothing.
    """
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2) + 1
    return np.concatenate([np.zeros((num_special, 2)), grid]).astype(np.int32)


def rope_tables(positions: Array | np.ndarray, head_dim: int, base: float = 100.0) -> Rope:
    """positions [T, 2] (y, x). Of the head's H channels the first half turns with y, the second with x, at
    base^(-2j / (H/2)).
    """
    quarter = head_dim // 4
    frequency = base ** (-np.arange(quarter, dtype=np.float32) / quarter)
    angle = jnp.asarray(positions, jnp.float32)[:, :, None] * frequency  # [T, 2, H/4]
    return Rope(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Array, swapped: Array, rope: Rope) -> Array:
    """x·cos + swapped·(±sin): f32[B, T, N, H] ×2 -> f32[B, T, N, H]; `swapped` is `swap_pairs(x)`, by
    whatever way that came about.
    """
    cos = jnp.concatenate([rope.cos, rope.cos], -1)  # [T, 2, H/2]
    sin = jnp.concatenate([-rope.sin, rope.sin], -1)
    return x * cos.reshape(-1, 1, x.shape[-1]) + swapped * sin.reshape(-1, 1, x.shape[-1])


def swap_pairs(x: Array) -> Array:
    """[..., H] -> [..., H]. Within each half of the channels, channel j changes places with its partner j +
    H/4 ("rotate half").
    """
    return x.reshape(*x.shape[:-1], 2, 2, -1)[..., ::-1, :].reshape(x.shape)


def apply_rope(x: Array, rope: Rope) -> Array:
    """[B, T, N, H] -> f32[B, T, N, H]."""
    x = x.astype(jnp.float32)
    return rotate(x, swap_pairs(x), rope)
