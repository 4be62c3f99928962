"""Where rays meet unit shapes, and which way the surface faces there.

Every shape takes origins and directions in its own coordinates, (x, y, z) of f32[...] each, so that a
compiler can follow a ray through many shapes without writing anything down. It returns the distance f32[...]
to the first surface in front of the origin, in units of the direction's length; inf where there is none.
Surfaces are seen from outside and inside.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Vector = tuple[Array, Array, Array]  # x, y, z
NEAREST = 1e-3  # closer hits are the surface that the ray starts from
FLAT = 1e-9


def box(origin: Vector, direction: Vector) -> Array:
    """The cube [-1, 1]³."""
    enter: Any = -jnp.inf
    leave: Any = jnp.inf
    for o, d in zip(origin, direction, strict=True):
        low, high = _slab(o, d)
        enter, leave = jnp.maximum(enter, low), jnp.minimum(leave, high)
    return jnp.where(enter <= leave, _in_front(enter, leave), jnp.inf)


def sphere(origin: Vector, direction: Vector) -> Array:
    """The unit sphere."""
    return _in_front(*_roots(dot(direction, direction), dot(origin, direction), dot(origin, origin) - 1))


def cylinder(origin: Vector, direction: Vector) -> Array:
    """Radius 1 about z, |z| <= 1, with both ends closed."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    enter, leave = _roots(dx**2 + dy**2, ox * dx + oy * dy, ox**2 + oy**2 - 1)
    low, high = _slab(oz, dz)
    enter, leave = jnp.maximum(enter, low), jnp.minimum(leave, high)
    return jnp.where(enter <= leave, _in_front(enter, leave), jnp.inf)


def cone(origin: Vector, direction: Vector) -> Array:
    """Apex at z = 1, radius 1 at its closed end z = -1."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    h, dh = (1 - oz) / 2, -dz / 2  # radius at the ray's height, and how it changes
    end = (-1 - oz) / away_from_zero(dz)
    inside = (ox + end * dx) ** 2 + (oy + end * dy) ** 2 <= 1
    nearest = jnp.where(inside & (end > NEAREST), end, jnp.inf)
    for t in _roots(dx**2 + dy**2 - dh**2, ox * dx + oy * dy - h * dh, ox**2 + oy**2 - h**2):
        on_side = (jnp.abs(oz + t * dz) <= 1) & (t > NEAREST)
        nearest = jnp.minimum(nearest, jnp.where(on_side, t, jnp.inf))
    return nearest


def normal(kind: Array, point: Array) -> Array:
    """The outward direction, f32[..., 3] of any length, at a point on the surface of the shape of that
    number, see `KINDS`.
    """
    x, y, z = jnp.moveaxis(point, -1, 0)
    largest = jnp.abs(point) >= jnp.max(jnp.abs(point), -1, keepdims=True)
    of_box = jnp.where(largest, jnp.sign(point), 0)
    flat = jnp.zeros_like(x)
    on_end = jnp.abs(z) > jnp.maximum(jnp.hypot(x, y), 1 - 1e-4)
    of_cylinder = jnp.where(
        on_end[..., None], jnp.stack([flat, flat, jnp.sign(z)], -1), jnp.stack([x, y, flat], -1)
    )
    on_base = z < -1 + 1e-4
    slope = jnp.hypot(x, y) / 2
    of_cone = jnp.where(
        on_base[..., None], jnp.stack([flat, flat, -jnp.ones_like(z)], -1), jnp.stack([x, y, slope], -1)
    )
    return jnp.select([kind[..., None] == i for i in range(4)], [of_box, point, of_cylinder, of_cone])


KINDS = (box, sphere, cylinder, cone)


def _roots(a: Array, half_b: Array, c: Array) -> tuple[Array, Array]:
    """Both solutions of a t² + 2 half_b t + c = 0 in ascending order; (inf, -inf) where there is none."""
    root = half_b**2 - a * c
    a = away_from_zero(a)
    s = jnp.sqrt(jnp.maximum(root, 0))
    first, second = (-half_b - s) / a, (-half_b + s) / a
    return jnp.where(root >= 0, jnp.minimum(first, second), jnp.inf), jnp.where(
        root >= 0, jnp.maximum(first, second), -jnp.inf
    )


def _slab(origin: Array, direction: Array) -> tuple[Array, Array]:
    """Where a coordinate enters and leaves [-1, 1]."""
    inverse = 1 / away_from_zero(direction)
    first, second = (-1 - origin) * inverse, (1 - origin) * inverse
    return jnp.minimum(first, second), jnp.maximum(first, second)


def dot(a: Vector, b: Vector | Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def away_from_zero(x: Array) -> Array:
    """x, fit to divide by."""
    return jnp.where(jnp.abs(x) < FLAT, FLAT, x)


def _in_front(enter: Array, leave: Array) -> Array:
    return jnp.where(enter > NEAREST, enter, jnp.where(leave > NEAREST, leave, jnp.inf))
