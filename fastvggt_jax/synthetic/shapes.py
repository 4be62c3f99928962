"""Where rays meet unit shapes, and which way the surface faces there.

Every function takes origins and directions f32[..., 3] in the shape's own coordinates and returns the distance f32[...] to the first
surface in front of the origin, in units of the direction's length; inf where there is none. Surfaces are seen from outside and inside.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
NEAREST = 1e-3  # closer hits are the surface that the ray starts from
FLAT = 1e-9


def box(origin: Array, direction: Array) -> Array:
    """The cube [-1, 1]³."""
    low, high = _slab(origin, direction)
    enter, leave = low.max(-1), high.min(-1)
    return jnp.where(enter <= leave, _in_front(enter, leave), jnp.inf)


def sphere(origin: Array, direction: Array) -> Array:
    """The unit sphere."""
    return _in_front(*_roots((direction**2).sum(-1), (origin * direction).sum(-1), (origin**2).sum(-1) - 1))


def cylinder(origin: Array, direction: Array) -> Array:
    """Radius 1 about z, |z| <= 1, with both ends closed."""
    (ox, oy, oz), (dx, dy, dz) = (jnp.moveaxis(x, -1, 0) for x in (origin, direction))
    enter, leave = _roots(dx**2 + dy**2, ox * dx + oy * dy, ox**2 + oy**2 - 1)
    low, high = _slab(oz, dz)
    enter, leave = jnp.maximum(enter, low), jnp.minimum(leave, high)
    return jnp.where(enter <= leave, _in_front(enter, leave), jnp.inf)


def cone(origin: Array, direction: Array) -> Array:
    """Apex at z = 1, radius 1 at its closed end z = -1."""
    (ox, oy, oz), (dx, dy, dz) = (jnp.moveaxis(x, -1, 0) for x in (origin, direction))
    h, dh = (1 - oz) / 2, -dz / 2  # radius at the ray's height, and how it changes
    sides = _roots(dx**2 + dy**2 - dh**2, ox * dx + oy * dy - h * dh, ox**2 + oy**2 - h**2)
    end = (-1 - oz) / jnp.where(jnp.abs(dz) < FLAT, FLAT, dz)
    hits = []
    for t in sides:
        z = oz + t * dz
        hits.append(jnp.where((jnp.abs(z) <= 1) & (t > NEAREST), t, jnp.inf))
    inside = (ox + end * dx) ** 2 + (oy + end * dy) ** 2 <= 1
    hits.append(jnp.where(inside & (end > NEAREST), end, jnp.inf))
    return jnp.min(jnp.stack(hits), 0)


def normal(kind: Array, point: Array) -> Array:
    """The outward direction, f32[..., 3] of any length, at a point on the surface of the shape of that number, see `KINDS`."""
    x, y, z = jnp.moveaxis(point, -1, 0)
    largest = jnp.abs(point) >= jnp.max(jnp.abs(point), -1, keepdims=True)
    of_box = jnp.where(largest, jnp.sign(point), 0)
    flat = jnp.zeros_like(x)
    on_end = jnp.abs(z) > jnp.maximum(jnp.hypot(x, y), 1 - 1e-4)
    of_cylinder = jnp.where(on_end[..., None], jnp.stack([flat, flat, jnp.sign(z)], -1), jnp.stack([x, y, flat], -1))
    on_base = z < -1 + 1e-4
    slope = jnp.hypot(x, y) / 2
    of_cone = jnp.where(on_base[..., None], jnp.stack([flat, flat, -jnp.ones_like(z)], -1), jnp.stack([x, y, slope], -1))
    return jnp.select([kind[..., None] == i for i in range(4)], [of_box, point, of_cylinder, of_cone])


KINDS = (box, sphere, cylinder, cone)


def _roots(a: Array, half_b: Array, c: Array) -> tuple[Array, Array]:
    """Both solutions of a t² + 2 half_b t + c = 0 in ascending order; (inf, -inf) where there is none."""
    root = half_b**2 - a * c
    a = jnp.where(jnp.abs(a) < FLAT, FLAT, a)
    s = jnp.sqrt(jnp.maximum(root, 0))
    first, second = (-half_b - s) / a, (-half_b + s) / a
    return jnp.where(root >= 0, jnp.minimum(first, second), jnp.inf), jnp.where(root >= 0, jnp.maximum(first, second), -jnp.inf)


def _slab(origin: Array, direction: Array) -> tuple[Array, Array]:
    """Where a coordinate enters and leaves [-1, 1]."""
    inverse = 1 / jnp.where(jnp.abs(direction) < FLAT, FLAT, direction)
    first, second = (-1 - origin) * inverse, (1 - origin) * inverse
    return jnp.minimum(first, second), jnp.maximum(first, second)


def _in_front(enter: Array, leave: Array) -> Array:
    return jnp.where(enter > NEAREST, enter, jnp.where(leave > NEAREST, leave, jnp.inf))
