"""Random rooms and outdoor plots: which shapes stand where, what they are made of, and what lights them.

World axes: z up, the floor or the ground around z = 0, the middle of the scene at the origin. Lengths are
about metres indoors; outdoors everything is `OUTDOORS` times as large.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from fastvggt_jax.datasets.synthetic.texture import PATTERNS

Array = jax.Array
COUNTS = (18, 7, 7, 4)  # boxes, spheres, cylinders, cones, in the order of `shapes.KINDS`
OUTDOORS = 3.0
NUM_SURFACES = 6  # faces of the room (-x, +x, -y, +y, floor, ceiling); outdoors the ground is the fifth


@flax.struct.dataclass
class Materials:
    """Arguments of `texture.albedo` for each of n surfaces."""

    pattern: Array  # i32[n]
    scale: Array  # f32[n]
    seed: Array  # i32[n]
    colors: Array  # f32[n, 3, 3]


@flax.struct.dataclass
class World:
    """K shapes, the room or the ground around them, and a light."""

    rotation: Array  # f32[K, 3, 3], world from the shape's own axes
    centre: Array  # f32[K, 3]
    size: Array  # f32[K, 3], half of its extent along its own axes
    materials: Materials  # of the shapes
    outdoors: Array  # bool[]
    room: Array  # f32[3]: half width, half depth, height
    hills: Array  # f32[4, 4] of the ground: amplitude, the wave vector, phase
    surfaces: Materials  # of the room, n = NUM_SURFACES
    light: Array  # f32[3], where it is; the sun is far away
    light_color: Array  # f32[3]
    ambient: Array  # f32[3]
    sky: Array  # f32[2, 3], at the horizon and above


def height_of_ground(hills: Array, x: Array, y: Array) -> Array:
    """f32[...]: a sum of waves."""
    wave = lambda h: h[0] * jnp.sin(h[1] * x + h[2] * y + h[3])
    return sum((wave(hills[n]) for n in range(1, hills.shape[0])), wave(hills[0]))


def random_world(key: Array) -> World:
    keys = iter(jax.random.split(key, 16))
    outdoors = jax.random.bernoulli(next(keys), 0.45)
    room = jax.random.uniform(
        next(keys), (3,), minval=jnp.array([2.0, 2.0, 2.5]), maxval=jnp.array([4.5, 4.5, 4.0])
    )
    hills = _hills(next(keys), outdoors)
    rotation, centre, size = _layout(next(keys), room, hills, outdoors)
    scale = jnp.where(outdoors, OUTDOORS, 1.0)
    materials, surfaces = (
        _materials(next(keys), sum(COUNTS), scale),
        _materials(next(keys), NUM_SURFACES, scale),
    )
    sun = jax.random.normal(next(keys), (3,)) * jnp.array([1, 1, 0.3]) + jnp.array([0, 0, 1.0])
    lamp = jax.random.uniform(next(keys), (3,), minval=-0.7, maxval=0.7) * room * jnp.array(
        [1, 1, 0]
    ) + room * jnp.array([0, 0, 0.9])
    warmth = jax.random.uniform(next(keys), (3,), minval=0.85, maxval=1.0)
    ambient = jax.random.uniform(next(keys), (), minval=0.25, maxval=0.6)
    sky = jax.random.uniform(
        next(keys),
        (2, 3),
        minval=jnp.array([[0.6, 0.65, 0.7], [0.2, 0.35, 0.6]]),
        maxval=jnp.array([[0.9, 0.95, 1], [0.5, 0.65, 1]]),
    )
    return World(
        rotation=rotation,
        centre=centre,
        size=size,
        materials=materials,
        outdoors=outdoors,
        room=room,
        hills=hills,
        surfaces=surfaces,
        light=jnp.where(outdoors, 1000 * sun / jnp.linalg.norm(sun), lamp),
        light_color=warmth,
        ambient=ambient * jnp.ones(3),
        sky=sky,
    )


def _materials(key: Array, n: int, scene_scale: Array) -> Materials:
    pattern, scale, seed, base, others, light, grey = jax.random.split(key, 7)
    base = jax.random.uniform(base, (n, 1, 3), minval=0.1, maxval=0.85)
    near = base + 0.2 * jax.random.normal(others, (n, 3, 3))
    lightness = jax.random.uniform(light, (n, 3, 1), minval=0.45, maxval=1.35)
    saturation = jax.random.uniform(grey, (n, 1, 1), minval=0.1, maxval=0.8) ** 1.3  # most things are dull
    near = near.mean(-1, keepdims=True) + saturation * (near - near.mean(-1, keepdims=True))
    return Materials(
        pattern=jax.random.randint(pattern, (n,), 0, len(PATTERNS)),
        scale=jnp.exp(jax.random.uniform(scale, (n,), minval=jnp.log(0.7), maxval=jnp.log(4.0)))
        / scene_scale,
        seed=jax.random.randint(seed, (n,), 0, 1 << 20),
        colors=jnp.clip(near * lightness, 0.02, 0.95),
    )


def _hills(key: Array, outdoors: Array) -> Array:
    a, b, c = jax.random.split(key, 3)
    wave = jax.random.normal(b, (4, 2)) * jnp.array([[0.06], [0.12], [0.25], [0.5]])
    amplitude = jax.random.uniform(a, (4, 1), maxval=jnp.array([[0.9], [0.5], [0.2], [0.07]]))
    phase = jax.random.uniform(c, (4, 1), maxval=2 * jnp.pi)
    return jnp.concatenate([jnp.where(outdoors, amplitude, 0), wave, phase], -1)


def _layout(key: Array, room: Array, hills: Array, outdoors: Array) -> tuple[Array, Array, Array]:
    """Rotations, centres and sizes of all shapes: some along the walls, some flat on them, some free, some on
    top of or into others.
    """
    indoors, outside = _indoors(key, room), _outside(key, hills)
    return jax.tree.map(lambda a, b: jnp.where(outdoors, b, a), indoors, outside)


def _about_z(angle: Array) -> Array:
    c, s, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    return jnp.stack(
        [jnp.stack([c, -s, zero], -1), jnp.stack([s, c, zero], -1), jnp.stack([zero, zero, zero + 1], -1)], -2
    )


def _indoors(key: Array, room: Array) -> tuple[Array, Array, Array]:
    K, boxes = sum(COUNTS), COUNTS[0]
    keys = iter(jax.random.split(key, 10))
    size = jax.random.uniform(next(keys), (K, 3), minval=0.08, maxval=0.4)
    size = size.at[:6].set(
        jax.random.uniform(
            next(keys), (6, 3), minval=jnp.array([0.25, 0.2, 0.2]), maxval=jnp.array([0.9, 0.45, 1.1])
        )
    )
    size = size.at[6:11].set(
        jax.random.uniform(
            next(keys), (5, 3), minval=jnp.array([0.2, 0.01, 0.2]), maxval=jnp.array([0.9, 0.04, 0.7])
        )
    )
    place = jax.random.uniform(next(keys), (K, 3), minval=-0.8, maxval=0.8)
    x, y = place[:, 0] * room[0], place[:, 1] * room[1]
    angle = jax.random.uniform(next(keys), (K,), maxval=2 * jnp.pi)

    # The first eleven boxes stand or hang along a wall, facing it.
    wall = jax.random.randint(next(keys), (K,), 0, 4)
    half = size[:, 1]
    at_wall = jnp.stack([room[0] - half, -(room[0] - half), room[1] - half, -(room[1] - half)], -1)
    at_wall = jnp.take_along_axis(at_wall, wall[:, None], -1)[:, 0]
    along = wall < 2  # walls in x
    walled = jnp.arange(K) < 11
    x = jnp.where(walled & along, at_wall, x)
    y = jnp.where(walled & ~along, at_wall, y)
    angle = jnp.where(walled, jnp.where(along, jnp.pi / 2, 0), angle)
    hanging = (jnp.arange(K) >= 6) & (jnp.arange(K) < 11)
    z = jnp.where(hanging, 0.35 * room[2] + 0.3 * room[2] * (place[:, 2] + 0.8) / 1.6, size[:, 2])

    # Half of the others stand on the furniture, a little within its outline.
    below = jax.random.randint(next(keys), (K,), 0, 6)
    on_top = (jnp.arange(K) >= 11) & jax.random.bernoulli(next(keys), 0.5, (K,))
    offset = jax.random.uniform(next(keys), (K, 2), minval=-0.6, maxval=0.6) * jnp.where(
        along[below][:, None], size[below][:, 1::-1], size[below][:, :2]
    )
    x, y = jnp.where(on_top, x[below] + offset[:, 0], x), jnp.where(on_top, y[below] + offset[:, 1], y)
    shrink = jnp.where(on_top, 0.6, 1.0)[:, None]
    size = size * shrink
    z = jnp.where(
        on_top,
        2 * size[below][:, 2] / shrink[below][:, 0] + size[:, 2],
        jnp.where(hanging | walled, z, size[:, 2]),
    )
    round_ = (jnp.arange(K) >= boxes) & (jnp.arange(K) < boxes + COUNTS[1])
    size = jnp.where(
        (round_ & jax.random.bernoulli(next(keys), 0.6, (K,)))[:, None], size[:, 2:], size
    )  # spheres, the rest ellipsoids
    return _about_z(angle), jnp.stack([x, y, z], -1), size


def _outside(key: Array, hills: Array) -> tuple[Array, Array, Array]:
    (boxes, spheres, cylinders, cones), K = COUNTS, sum(COUNTS)
    keys = iter(jax.random.split(key, 8))
    angle = jax.random.uniform(next(keys), (K,), maxval=2 * jnp.pi)
    far = jax.random.uniform(next(keys), (K,), minval=1.5, maxval=12.0)
    size = jax.random.uniform(next(keys), (K, 3), minval=0.25, maxval=1.1)
    # Houses stand around the middle, at 8 to 18 metres.
    houses = jnp.arange(K) < 9
    house = jax.random.uniform(
        next(keys), (K, 3), minval=jnp.array([1.2, 1.2, 1.0]), maxval=jnp.array([4.0, 3.0, 4.5])
    )
    size = jnp.where(houses[:, None], house, size)
    far = jnp.where(houses, 8 + 10 * (far - 1.5) / 10.5, far)
    x, y = far * jnp.cos(angle), far * jnp.sin(angle)
    turn = jax.random.uniform(next(keys), (K,), maxval=2 * jnp.pi)

    # Trees: a crown on each trunk but one. Roofs: the cones but one sit on houses.
    first_sphere, first_cylinder, first_cone = boxes, boxes + spheres, boxes + spheres + cylinders
    trunk = jnp.arange(first_cylinder, first_cylinder + cylinders - 1)
    trunks = jax.random.uniform(
        next(keys), (len(trunk), 3), minval=jnp.array([0.12, 0.12, 0.6]), maxval=jnp.array([0.3, 0.3, 1.4])
    )
    size = size.at[trunk].set(trunks.at[:, 1].set(trunks[:, 0]))
    x, y = (c.at[first_sphere : first_sphere + len(trunk)].set(c[trunk]) for c in (x, y))
    roof, under = jnp.arange(first_cone, first_cone + cones - 1), jnp.arange(cones - 1)
    x, y, turn = (c.at[roof].set(c[under]) for c in (x, y, turn))
    size = size.at[roof].set(
        jnp.concatenate(
            [jnp.hypot(size[under][:, :1], size[under][:, 1:2]) * jnp.ones((1, 2)), size[under][:, 2:] * 0.5],
            -1,
        )
    )

    ground = height_of_ground(hills, x, y)
    z = ground - 0.1 + size[:, 2]
    crown = first_sphere + jnp.arange(len(trunk))
    z = z.at[crown].set(ground[trunk] + 2 * size[trunk, 2] + 0.6 * size[crown, 2])
    z = z.at[roof].set(ground[under] - 0.1 + 2 * size[under, 2] + size[roof, 2])
    return _about_z(turn), jnp.stack([x, y, z], -1), size
