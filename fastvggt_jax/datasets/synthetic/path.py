"""Cameras: orbits, walks forward and hand-held shots through a world, each view overlapping the one before
it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fastvggt_jax.datasets.synthetic.loops import over_views
from fastvggt_jax.datasets.synthetic.render import first_hit
from fastvggt_jax.datasets.synthetic.world import OUTDOORS, World, height_of_ground
from fastvggt_jax.geometry import intrinsic_matrix

Array = jax.Array
CANDIDATES = 8  # paths that are drawn; the best is taken
PROBE = 12  # rays a side by which paths are judged
CLEARANCE = 0.35  # no surface is nearer than this, times the world's scale
ENOUGH_OVERLAP = 0.6  # more does not make a path better
SAME_POINT = 0.01  # a surface nearer by more than this share of the distance stands before the point


def random_path(key: Array, world: World, frames: int, height: int, width: int) -> tuple[Array, Array]:
    """(K f32[3, 3], world_from_cam f32[frames, 4, 4]): of several random paths the one with most overlap and
    free sight.
    """
    of_lens, of_paths, of_taste = jax.random.split(key, 3)
    focal = jax.random.uniform(of_lens, (), minval=0.65, maxval=1.25) * max(height, width)
    K = intrinsic_matrix(focal, focal, width / 2, height / 2)
    paths = jax.vmap(lambda k: _draw(k, world, frames))(jax.random.split(of_paths, CANDIDATES))
    scores = jax.vmap(lambda path: _score(world, K, path, height, width))(paths)
    scores = scores + 1e-3 * jax.random.uniform(of_taste, scores.shape)
    return K, paths[jnp.argmax(scores)]


def rays(K: Array, world_from_cam: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Origins and unit directions f32[..., 3] in the world through pixels (u, v), and the depth f32[...] that
    a unit of each reaches.
    """
    in_cam = jnp.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], jnp.ones_like(u)], -1)
    length = jnp.linalg.norm(in_cam, axis=-1)
    direction = (
        jnp.einsum("ij,...j->...i", world_from_cam[:3, :3], in_cam, precision="highest") / length[..., None]
    )
    return jnp.broadcast_to(world_from_cam[:3, 3], direction.shape), direction, 1 / length


def look(world: World, K: Array, world_from_cam: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """What pixels (u, v) show: points f32[..., 3], their depths and distances f32[...]; for the sky the
    camera's centre, 0 and inf.
    """
    origin, direction, _ = rays(K, world_from_cam, u, v)
    distance, _ = first_hit(world, origin, direction)
    return *at(distance, K, world_from_cam, u, v), distance


def at(distance: Array, K: Array, world_from_cam: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """Points f32[..., 3] at these distances f32[...] in pixels (u, v), and their depths f32[...]; at inf the
    camera's centre and 0.
    """
    origin, direction, forward = rays(K, world_from_cam, u, v)
    reach = jnp.where(jnp.isfinite(distance), distance, 0)
    return origin + reach[..., None] * direction, reach * forward


def project(K: Array, world_from_cam: Array, points: Array) -> tuple[Array, Array]:
    """(pixels (u, v) f32[..., 2], depths f32[...]) of world points f32[..., 3]."""
    cam = jnp.einsum(
        "...i,ij->...j", points - world_from_cam[:3, 3], world_from_cam[:3, :3], precision="highest"
    )
    z = cam[..., 2]
    safe = jnp.where(jnp.abs(z) < 1e-6, 1e-6, z)
    return jnp.stack([K[0, 0] * cam[..., 0] / safe + K[0, 2], K[1, 1] * cam[..., 1] / safe + K[1, 2]], -1), z


def sees(world: World, K: Array, world_from_cam: Array, points: Array, height: int, width: int) -> Array:
    """bool[...]: whether the points f32[..., 3] lie in the image and nothing stands before them."""
    pixels, depth = project(K, world_from_cam, points)
    inside = ((pixels >= 0) & (pixels <= jnp.array([width - 1, height - 1]))).all(-1) & (depth > 0)
    to_point = points - world_from_cam[:3, 3]
    distance = jnp.linalg.norm(to_point, axis=-1)
    t, _ = first_hit(
        world,
        jnp.broadcast_to(world_from_cam[:3, 3], points.shape),
        to_point / jnp.maximum(distance, 1e-6)[..., None],
    )
    return inside & (t > distance * (1 - SAME_POINT) - 1e-3)


def _draw(key: Array, world: World, frames: int) -> Array:
    """One path, world_from_cam f32[frames, 4, 4]."""
    keys = iter(jax.random.split(key, 24))
    scale = jnp.where(world.outdoors, OUTDOORS, 1.0)
    room = jnp.where(world.outdoors, jnp.array([6.0, 6.0, 2.5]), world.room)
    along = jnp.linspace(-0.5, 0.5, frames)  # of the path
    u = lambda low, high, shape=(): jax.random.uniform(next(keys), shape, minval=low, maxval=high)
    wobble = lambda strength: (
        strength * jnp.cumsum(jax.random.normal(next(keys), (frames, 3)), 0) / frames**0.5
    )

    angle = u(0, 2 * jnp.pi) + jnp.sign(u(-1, 1)) * u(0.5, 1.8) * along
    radius = u(0.35, 0.8) * room[:2].min()
    eye_height = u(0.9, 1.9)
    middle = jnp.array([0, 0, 1.0]) * u(0.4, 1.2) + jnp.array([1, 1, 0.0]) * u(-0.5, 0.5, (3,))
    orbit = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), jnp.full(frames, eye_height)], -1)
    orbit_target = jnp.broadcast_to(middle, orbit.shape)

    heading = u(0, 2 * jnp.pi)
    ahead = jnp.stack([jnp.cos(heading), jnp.sin(heading), 0.0])
    walk = (
        ahead * (u(0.3, 1.0) * room[:2].min() * (along - 0.3))[:, None] + jnp.array([0, 0, 1.0]) * eye_height
    )
    walk_target = walk + 3 * ahead + jnp.array([0, 0, 1.0]) * u(-0.8, 0.1) + wobble(0.4)

    stand = u(-0.55, 0.55, (3,)) * jnp.array([1, 1, 0]) * room + jnp.array([0, 0, 1.0]) * eye_height
    hand = stand + wobble(u(0.15, 0.5))
    hand_target = -stand * jnp.array([0.5, 0.5, 0]) + jnp.array([0, 0, 1.0]) * u(0.4, 1.4) + wobble(0.5)

    kind = jax.random.randint(next(keys), (), 0, 3)
    eye = jnp.stack([orbit, walk, hand])[kind] + wobble(0.05)
    target = jnp.stack([orbit_target, walk_target, hand_target])[kind] + wobble(0.08)
    half = 0.92 * room
    eye = jnp.clip(eye, jnp.array([-half[0], -half[1], 0.25]), half)
    eye, target = eye * scale, target * scale
    lift = jnp.where(world.outdoors, 1.0, 0.0) * jnp.array([0, 0, 1.0])
    eye, target = (p + lift * height_of_ground(world.hills, p[:, 0], p[:, 1])[:, None] for p in (eye, target))
    roll = u(-0.1, 0.1) + 0.05 * jax.random.normal(next(keys), (frames,))
    return jax.vmap(_look_at)(eye, target, roll)


def _look_at(eye: Array, target: Array, roll: Array) -> Array:
    """world_from_cam f32[4, 4], OpenCV axes: z towards the target, y down but for the roll."""
    forward = target - eye
    forward = forward / jnp.maximum(jnp.linalg.norm(forward), 1e-6)
    right = jnp.cross(forward, jnp.array([0.0, 0, 1]))
    right = right / jnp.maximum(jnp.linalg.norm(right), 1e-6)
    down = jnp.cross(forward, right)
    c, s = jnp.cos(roll), jnp.sin(roll)
    rotation = jnp.stack([c * right + s * down, c * down - s * right, forward], -1)
    top = jnp.concatenate([rotation, eye[:, None]], -1)
    return jnp.concatenate([top, jnp.array([[0.0, 0, 0, 1]])])


def _score(world: World, K: Array, path: Array, height: int, width: int) -> Array:
    """Higher is better: the smallest overlap of a view with the one before it, less where something is too
    near or all is sky.
    """
    v, u = jnp.meshgrid(jnp.linspace(0, height - 1, PROBE), jnp.linspace(0, width - 1, PROBE), indexing="ij")
    scale = jnp.where(world.outdoors, OUTDOORS, 1.0)

    points, _, distance = over_views(lambda pose: look(world, K, pose, u, v), path)
    known = jnp.isfinite(distance)
    clear = distance.min((1, 2)) > CLEARANCE * scale
    seen = (
        over_views(lambda x: sees(world, K, x[0], x[1], height, width), (path[:-1], points[1:])) & known[1:]
    )
    overlap = (seen.sum((1, 2)) / jnp.maximum(known[1:].sum((1, 2)), 1)).min(initial=1.0)
    return (
        jnp.minimum(overlap, ENOUGH_OVERLAP)
        - jnp.where(clear.all(), 0, 1)
        - jnp.where(known.mean((1, 2)).min() < 0.4, 1, 0)
    )
