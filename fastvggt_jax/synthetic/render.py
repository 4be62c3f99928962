"""A ray renderer: for every pixel the first surface, its colour in the light, and how far away it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fastvggt_jax.synthetic import shapes
from fastvggt_jax.synthetic.texture import albedo, fractal_noise
from fastvggt_jax.synthetic.world import COUNTS, World, height_of_ground

Array = jax.Array
FAR = 80.0  # the ground ends there
MARCH_STEPS, BISECTIONS = 48, 14
SURFACE = 100  # surfaces of the room and the ground are numbered from here on, shapes from 0
SKY = -1
SHADOW_OFFSET = 2e-3


def first_hit(world: World, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Distance f32[...] along unit directions f32[..., 3], and the number i32[...] of what is hit: a shape, SURFACE + n, or SKY."""
    best, hit = _surroundings(world, origin, direction)
    start = 0
    for kind, count in zip(shapes.KINDS, COUNTS, strict=True):
        here = slice(start, start + count)

        def nearer(carry: tuple[Array, Array], shape: tuple, kind=kind) -> tuple[tuple[Array, Array], None]:
            best, hit = carry
            rotation, centre, size, number = shape
            t = kind(*_into(rotation, centre, size, origin, direction))
            return (jnp.minimum(best, t), jnp.where(t < best, number, hit)), None

        stack = (world.rotation[here], world.centre[here], world.size[here], jnp.arange(start, start + count))
        (best, hit), _ = jax.lax.scan(nearer, (best, hit), stack)
        start += count
    return best, hit


def _into(rotation: Array, centre: Array, size: Array, origin: Array, direction: Array) -> tuple[Array, Array]:
    """The ray in a shape's own coordinates, in which it has unit size. Distances along it stay the same."""
    turn = lambda x: jnp.einsum("...i,...ij->...j", x, rotation, precision="highest") / size
    return turn(origin - centre), turn(direction)


def _surroundings(world: World, origin: Array, direction: Array) -> tuple[Array, Array]:
    """The walls, floor and ceiling, or the ground."""
    low, high = world.room * jnp.array([-1, -1, 0]), world.room
    inverse = 1 / jnp.where(jnp.abs(direction) < shapes.FLAT, shapes.FLAT, direction)
    to_face = jnp.where(direction > 0, high - origin, low - origin) * inverse  # [..., 3]; the origin is inside
    axis = jnp.argmin(to_face, -1)
    wall = 2 * axis + (jnp.take_along_axis(direction, axis[..., None], -1)[..., 0] > 0)
    ground = _ground(world, origin, direction)
    t = jnp.where(world.outdoors, ground, to_face.min(-1))
    number = jnp.where(world.outdoors, jnp.where(jnp.isfinite(ground), SURFACE + 4, SKY), SURFACE + wall)
    return t, number


def _ground(world: World, origin: Array, direction: Array) -> Array:
    """Distance to the hills by marching, in steps that grow with the distance, and bisection; inf beyond FAR."""

    def above(t: Array) -> Array:
        p = origin + t[..., None] * direction
        return p[..., 2] - height_of_ground(world.hills, p[..., 0], p[..., 1])

    edges = FAR * (jnp.arange(1, MARCH_STEPS + 1) / MARCH_STEPS) ** 2

    def march(carry: tuple[Array, Array, Array], edge: Array) -> tuple[tuple[Array, Array, Array], None]:
        low, high, found = carry
        under = above(jnp.broadcast_to(edge, low.shape)) < 0
        low = jnp.where(found | under, low, edge)
        high = jnp.where(~found & under, edge, high)
        return (low, high, found | under), None

    start = jnp.zeros(direction.shape[:-1])
    (low, high, found), _ = jax.lax.scan(march, (start, start, start > 0), edges)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        under = above(middle) < 0
        return jnp.where(under, low, middle), jnp.where(under, middle, high)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
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
    of_wall = -jnp.sign(face % 2 - 0.5)[..., None] * (jnp.arange(3) == (face // 2)[..., None])
    amplitude, kx, ky, phase = jnp.moveaxis(world.hills, -1, 0)
    slope = amplitude * jnp.cos(kx * point[..., :1] + ky * point[..., 1:2] + phase)
    of_ground = jnp.stack([-(slope * kx).sum(-1), -(slope * ky).sum(-1), jnp.ones_like(point[..., 0])], -1)
    surrounding = hit >= SURFACE
    normal = jnp.where(surrounding[..., None], jnp.where(world.outdoors, of_ground, of_wall), turned)
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)

    where, facing = jnp.where(surrounding[..., None], point, local), jnp.where(surrounding[..., None], normal, of_shape)
    choose = lambda a, b: jnp.where(surrounding.reshape(surrounding.shape + (1,) * (a.ndim - 1)), b[face], a[shape])
    m = jax.tree.map(choose, world.materials, world.surfaces)
    return normal, albedo(where, facing, m.pattern, m.scale, m.seed, m.colors)


def shade(world: World, origin: Array, direction: Array) -> Array:
    """Linear colour f32[..., 3] along unit directions f32[..., 3]."""
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
    clouds = fractal_noise(direction * jnp.array([3.0, 3.0, 9.0]), jnp.int32(5) + world.surfaces.seed[0], 4)[..., None]
    high = jnp.clip(direction[..., 2:] * 2, 0, 1)
    sky = world.sky[0] + high * (world.sky[1] - world.sky[0]) + 0.6 * jnp.maximum(clouds - 0.55, 0)
    return jnp.where((hit == SKY)[..., None], sky, lit)
