"""Procedural materials: a colour for every point of a surface, with detail at several scales.

Patterns are drawn on the two coordinates that lie in the surface (`surface_coordinates`), noise in all three.
Lattice noise is hashed with integers, so it is the same on every device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fastvggt_jax.datasets.synthetic.loops import together

Array = jax.Array
PATTERNS = ("plain", "bricks", "checks", "stripes", "voronoi", "wood", "marble", "spots")


def hash_unit(*integers: Array) -> Array:
    """Whole numbers i32[...] to one number in [0, 1) that looks random (the mixing steps of murmur3)."""
    h = jnp.zeros((), jnp.uint32)
    for i, x in enumerate(integers):
        h = (h ^ jnp.asarray(x, jnp.int32).astype(jnp.uint32)) * jnp.uint32(0x9E3779B1 + 2 * i)
        h = (h ^ (h >> 15)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        h = h ^ (h >> 16)
    return (h >> 8).astype(jnp.float32) / (1 << 24)


def noise(point: Array, seed: Array) -> Array:
    """Smooth value noise in [0, 1): f32[..., 3] -> f32[...], features about one unit wide."""
    cell = jnp.floor(point)
    f = point - cell
    f = f * f * (3 - 2 * f)
    i = cell.astype(jnp.int32)
    total: Any = 0.0
    for corner in range(8):
        offset = (corner & 1, corner >> 1 & 1, corner >> 2)
        weight: Any = 1.0
        for axis, o in enumerate(offset):
            weight *= f[..., axis] if o else 1 - f[..., axis]
        total += weight * hash_unit(i[..., 0] + offset[0], i[..., 1] + offset[1], i[..., 2] + offset[2], seed)
    return total


def fractal_noise(point: Array, seed: Array, octaves: int) -> Array:
    """Noise at `octaves` scales, each half as wide and about half as strong: f32[..., 3] -> f32[...] in [0,
    1).
    """
    strengths = [0.55**octave for octave in range(octaves)]

    def add(total: Array, octave: tuple[Array, Array]) -> tuple[Array, None]:
        number, strength = octave
        return total + strength * noise(point * 2.0**number + 17 * number, seed + number), None

    start = jnp.zeros(point.shape[:-1], point.dtype)
    each = jnp.arange(octaves), jnp.array(strengths, point.dtype)
    total, _ = jax.lax.scan(add, start, each, unroll=together(octaves))
    return total / sum(strengths)


def surface_coordinates(point: Array, normal: Array) -> Array:
    """The two of the three coordinates that lie in the surface best: f32[..., 3], f32[..., 3] -> f32[..., 2];
    upright on walls.
    """
    x, y, z = jnp.moveaxis(point, -1, 0)
    axis = jnp.argmax(jnp.abs(normal), -1)
    return jnp.stack([jnp.where(axis == 0, y, x), jnp.where(axis == 2, y, z)], -1)


def albedo(point: Array, normal: Array, pattern: Array, scale: Array, seed: Array, colors: Array) -> Array:
    """Linear colour f32[..., 3] of a material at a point.

    Args:
      point, normal: f32[..., 3] in the object's own axes, in the scene's unit.
      pattern: i32[...], an index of PATTERNS. scale: f32[...], pattern elements a unit. seed: i32[...].
      colors: f32[..., 3, 3], three colours that the pattern mixes.
    """
    p = point * scale[..., None]
    uv = surface_coordinates(p, normal)
    coarse, fine = fractal_noise(p, seed, 4), fractal_noise(6 * p, seed + 31, 3)
    u, v = uv[..., 0], uv[..., 1]

    # Bricks: every other row is shifted by half a brick; every brick has a shade of its own.
    row = jnp.floor(2 * v)
    shifted = u + 0.5 * (row % 2)
    of_row, of_brick = 2 * v - row, shifted - jnp.floor(shifted)
    mortar = (of_row < 0.09) | (of_brick < 0.045)
    brick = jnp.where(
        mortar, 0.0, 0.6 + 0.4 * hash_unit(jnp.floor(shifted).astype(jnp.int32), row.astype(jnp.int32), seed)
    )
    i, j = jnp.floor(2 * u).astype(jnp.int32), jnp.floor(2 * v).astype(jnp.int32)
    checks = ((i + j) % 2).astype(jnp.float32) * 0.85 + 0.15 * hash_unit(i, j, seed)
    wave = u + 0.35 * coarse
    stripes = 0.5 + 0.5 * jnp.sign(
        jnp.sin(2 * jnp.pi * (wave * 2))
        + 0.6 * (hash_unit(jnp.floor(2 * wave).astype(jnp.int32), seed) - 0.5)
    )
    nearest, second, cell = _voronoi(2 * uv, seed)
    voronoi = jnp.where(second - nearest < 0.06, 0.0, 0.35 + 0.65 * cell)
    rings = jnp.hypot(uv[..., 0] * 0.35 + 0.4 * (coarse - 0.5), p[..., 2] * 0.06 + 0.5) * 9
    wood = (rings - jnp.floor(rings)) * 0.7 + 0.3 * fractal_noise(p * jnp.array([9.0, 9.0, 0.8]), seed + 7, 3)
    marble = 0.5 + 0.5 * jnp.sin(2 * jnp.pi * (0.8 * u + 0.5 * v + 2.2 * coarse))
    spots = jnp.where(nearest < 0.18 + 0.2 * cell, 0.25 + 0.75 * cell, 0.0)
    mix = jnp.select(
        [pattern == n for n in range(len(PATTERNS))],
        [coarse, brick, checks, stripes, voronoi, wood, marble, spots],
    )
    mix = mix[..., None]
    color = jnp.where(mix < 0.5, colors[..., 0, :] + 2 * mix * (colors[..., 1, :] - colors[..., 0, :]), 0)
    color = jnp.where(
        mix >= 0.5, colors[..., 1, :] + (2 * mix - 1) * (colors[..., 2, :] - colors[..., 1, :]), color
    )
    dirt = 0.55 + 0.45 * coarse + 0.5 * (fine - 0.5)
    return jnp.clip(color * dirt[..., None], 0.01, 1)


def _voronoi(uv: Array, seed: Array) -> tuple[Array, Array, Array]:
    """Distances to the nearest and the second-nearest of the points that lie one in each cell, and a number
    in [0, 1) of the nearest.
    """
    cell = jnp.floor(uv).astype(jnp.int32)
    nearest = jnp.full(uv.shape[:-1], jnp.inf)
    second, of_nearest = nearest, jnp.zeros_like(nearest)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            i, j = cell[..., 0] + du, cell[..., 1] + dv
            x, y = i + 0.15 + 0.7 * hash_unit(i, j, seed), j + 0.15 + 0.7 * hash_unit(i, j, seed + 1)
            distance = jnp.hypot(uv[..., 0] - x, uv[..., 1] - y)
            second = jnp.minimum(second, jnp.maximum(nearest, distance))
            of_nearest = jnp.where(distance < nearest, hash_unit(i, j, seed + 2), of_nearest)
            nearest = jnp.minimum(nearest, distance)
    return nearest, second, of_nearest
