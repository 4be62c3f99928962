"""A ray renderer: for every pixel the first surface, its colour in the light, and how far away it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastvggt_jax.datasets.synthetic import shapes
from fastvggt_jax.datasets.synthetic.loops import together
from fastvggt_jax.datasets.synthetic.shapes import Vector
from fastvggt_jax.datasets.synthetic.texture import albedo, fractal_noise
from fastvggt_jax.datasets.synthetic.world import COUNTS, World, height_of_ground

Array = jax.Array
FAR = 80.0  # the ground ends there
MARCH_STEPS, BISECTIONS = 48, 14
SURFACE = 100  # surfaces of the room and the ground are numbered from here on, shapes from 0
SKY = -1
SHADOW_OFFSET = 2e-3


def first_hit(world: World, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Distance f32[...] along unit directions f32[..., 3], and the number i32[...] of what is hit: a shape,
    SURFACE + n, or SKY.
    """
    o, d = _split(origin), _split(direction)
    best, hit = _surroundings(world, o, d)
    start = 0
    for kind, count in zip(shapes.KINDS, COUNTS, strict=True):
        here = slice(start, start + count)

        def nearer(
            carry: tuple[Array, Array], shape: tuple, kind: Callable[[Vector, Vector], Array] = kind
        ) -> tuple[tuple[Array, Array], None]:
            best, hit = carry
            rotation, centre, size, number = shape
            t = kind(*_into(rotation, centre, size, o, d))
            return (jnp.minimum(best, t), jnp.where(t < best, number, hit)), None

        stack = (world.rotation[here], world.centre[here], world.size[here], jnp.arange(start, start + count))
        (best, hit), _ = jax.lax.scan(nearer, (best, hit), stack, unroll=together(count))
        start += count
    return best, hit


def _split(x: Array) -> Vector:
    return x[..., 0], x[..., 1], x[..., 2]


def _into(
    rotation: Array, centre: Array, size: Array, origin: Vector, direction: Vector
) -> tuple[Vector, Vector]:
    """The ray in a shape's own coordinates, in which it has unit size. Distances along it stay the same."""
    axes = _split(rotation.T)

    def turn(v: Vector) -> Vector:
        x, y, z = (shapes.dot(v, axes[axis]) / size[axis] for axis in range(3))
        return x, y, z

    (ox, oy, oz), (cx, cy, cz) = origin, _split(centre)
    return turn((ox - cx, oy - cy, oz - cz)), turn(direction)


def _surroundings(world: World, origin: Vector, direction: Vector) -> tuple[Array, Array]:
    """The walls, floor and ceiling, or the ground."""
    nearest: Any = jnp.inf
    wall: Any = 0
    low, high = _split(world.room * jnp.array([-1, -1, 0])), _split(world.room)
    for axis, (o, d) in enumerate(zip(origin, direction, strict=True)):
        # The origin is inside.
        to_face = (jnp.where(d > 0, high[axis], low[axis]) - o) / shapes.away_from_zero(d)
        wall = jnp.where(to_face < nearest, 2 * axis + (d > 0), wall)
        nearest = jnp.minimum(nearest, to_face)
    ground = _ground(world, origin, direction)
    t = jnp.where(world.outdoors, ground, nearest)
    number = jnp.where(world.outdoors, jnp.where(jnp.isfinite(ground), SURFACE + 4, SKY), SURFACE + wall)
    return t, number


def _ground(world: World, origin: Vector, direction: Vector) -> Array:
    """Distance to the hills by marching, in growing steps, and bisection; inf beyond FAR."""

    def above(t: Array) -> Array:
        x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
        return z - height_of_ground(world.hills, x, y)

    edges = FAR * (jnp.arange(1, MARCH_STEPS + 1) / MARCH_STEPS) ** 2

    def march(carry: tuple[Array, Array, Array], edge: Array) -> tuple[tuple[Array, Array, Array], None]:
        low, high, found = carry
        under = above(edge) < 0
        low = jnp.where(found | under, low, edge)
        high = jnp.where(~found & under, edge, high)
        return (low, high, found | under), None

    start = jnp.zeros_like(origin[0])
    (low, high, found), _ = jax.lax.scan(
        march, (start, start, start > 0), edges, unroll=together(MARCH_STEPS)
    )

    def halve(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bracket
        middle = (low + high) / 2
        under = above(middle) < 0
        return (jnp.where(under, low, middle), jnp.where(under, middle, high)), None

    (low, high), _ = jax.lax.scan(halve, (low, high), length=BISECTIONS, unroll=together(BISECTIONS))
    return jnp.where(found, (low + high) / 2, jnp.inf)


def _surface(world: World, point: Array, hit: Array) -> tuple[Array, Array]:
    """(unit normal, colour) at hit points."""
    shape = jnp.clip(hit, 0, sum(COUNTS) - 1)
    kinds = jnp.repeat(jnp.arange(len(COUNTS)), jnp.array(COUNTS), total_repeat_length=sum(COUNTS))
    rotation, centre, size = world.rotation[shape], world.centre[shape], world.size[shape]
    local = jnp.einsum("...i,...ij->...j", point - centre, rotation, precision="highest")
    of_shape = shapes.normal(kinds[shape], local / size) / size
    turned = jnp.einsum("...ij,...j->...i", rotation, of_shape, precision="highest")

    face = jnp.clip(hit - SURFACE, 0, 5)
    of_wall = 1.0 * (
        jnp.arange(3) == (face // 2)[..., None]
    )  # or the other way; `shade` turns normals towards the camera
    amplitude, kx, ky, phase = jnp.moveaxis(world.hills, -1, 0)
    slope = amplitude * jnp.cos(kx * point[..., :1] + ky * point[..., 1:2] + phase)
    of_ground = jnp.stack([-(slope * kx).sum(-1), -(slope * ky).sum(-1), jnp.ones_like(point[..., 0])], -1)
    surrounding = hit >= SURFACE
    normal = jnp.where(surrounding[..., None], jnp.where(world.outdoors, of_ground, of_wall), turned)
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)

    where, facing = (
        jnp.where(surrounding[..., None], point, local),
        jnp.where(surrounding[..., None], normal, of_shape),
    )
    choose = lambda a, b: jnp.where(
        surrounding.reshape(surrounding.shape + (1,) * (a.ndim - 1)), b[face], a[shape]
    )
    m = jax.tree.map(choose, world.materials, world.surfaces)
    return normal, albedo(where, facing, m.pattern, m.scale, m.seed, m.colors)


def shade(world: World, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Linear colour f32[..., 3] along unit directions f32[..., 3], and the distance f32[...] of what has
    it.
    """
    t, hit = first_hit(world, origin, direction)
    point = origin + jnp.where(hit == SKY, 0, t)[..., None] * direction
    normal, color = _surface(world, point, hit)
    normal = jnp.where((normal * direction).sum(-1, keepdims=True) > 0, -normal, normal)  # towards the camera
    to_light = world.light - point
    distance = jnp.linalg.norm(to_light, axis=-1)
    to_light = to_light / distance[..., None]
    blocked, _ = first_hit(world, point + SHADOW_OFFSET * normal * jnp.maximum(t, 1)[..., None], to_light)
    facing = jnp.maximum((normal * to_light).sum(-1), 0)
    falloff = jnp.where(world.outdoors, 1.0, 4 / (1 + distance**2))
    direct = jnp.where(blocked < distance * 0.99, 0, facing * falloff)
    up = 0.65 + 0.35 * normal[..., 2]
    lit = color * (direct[..., None] * world.light_color + up[..., None] * world.ambient)
    clouds = fractal_noise(direction * jnp.array([3.0, 3.0, 9.0]), jnp.int32(5) + world.surfaces.seed[0], 4)[
        ..., None
    ]
    high = jnp.clip(direction[..., 2:] * 2, 0, 1)
    sky = world.sky[0] + high * (world.sky[1] - world.sky[0]) + 0.6 * jnp.maximum(clouds - 0.55, 0)
    return jnp.where((hit == SKY)[..., None], sky, lit), t
