"""A random world photographed along a random path, with all that is true of it."""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from fastvggt_jax.datasets.synthetic.loops import over_views
from fastvggt_jax.datasets.synthetic.path import at, look, project, random_path, rays, sees
from fastvggt_jax.datasets.synthetic.render import shade
from fastvggt_jax.datasets.synthetic.world import World, random_world
from fastvggt_jax.geometry import invert_se3

Array = jax.Array
SPLITS = {"train": 0, "validation": 1, "test": 2}
SPLIT_SIZE = 1 << 31  # scenes of a split: their numbers are of 31 bits
SUPERSAMPLING = 2  # rays a pixel and side, for the colour; the depth is that of the pixel's own ray


@flax.struct.dataclass
class Sample:
    """F photographs of H×W pixels and their truth.

    Pixel coordinates are VGGT's: the ray of column u and row v goes through (u, v) of K, as in
    `geometry.unproject_depth`.
    """

    images: Array  # f32[F, H, W, 3] in [0, 1], of 8 bits
    depth: Array  # f32[F, H, W, 1] along the camera's z; 0 where there is only sky
    valid: Array  # bool[F, H, W], False for the sky
    world_points: Array  # f32[F, H, W, 3]; 0 for the sky
    K: Array  # f32[3, 3], of all views
    world_from_cam: Array  # f32[F, 4, 4]
    cam_from_world: Array  # f32[F, 3, 4]
    world: World


def sample(
    split: str,
    index: int | Array,
    *,
    frames: int,
    height: int = 224,
    width: int = 224,
    supersampling: int = SUPERSAMPLING,
) -> Sample:
    """Scene number `index` of a split; the same numbers for the same arguments. ValueError for an unknown
    split.
    """
    return photograph(
        scene_key(split, index), frames=frames, height=height, width=width, supersampling=supersampling
    )


def scene_key(split: str, index: int | Array) -> Array:
    """The key that a scene follows from. ValueError for an unknown split."""
    return jax.random.fold_in(split_key(split), index)


def split_key(split: str) -> Array:
    """The key that the keys of its scenes follow from. ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    return jax.random.key(SPLITS[split])


@partial(jax.jit, static_argnames=("frames", "height", "width", "supersampling"))
def photograph(key: Array, *, frames: int, height: int, width: int, supersampling: int) -> Sample:
    """The scene of a key."""
    of_world, of_path, of_camera = jax.random.split(key, 3)
    world = random_world(of_world)
    K, path = random_path(of_path, world, frames, height, width)
    v, u = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )

    def view(pose: Array) -> tuple[Array, Array, Array]:
        def color(offset: tuple[Array, Array]) -> tuple[Array, Array]:
            origin, direction, _ = rays(K, pose, u + offset[0], v + offset[1])
            return shade(world, origin, direction)

        offsets = (jnp.arange(supersampling) + 0.5) / supersampling - 0.5
        du, dv = (x.ravel() for x in jnp.meshgrid(offsets, offsets))
        colors, distances = jax.lax.map(color, (du, dv))
        if supersampling == 1:  # the pixel's own ray has been followed already
            points, depth = at(distances[0], K, pose, u, v)
        else:
            points, depth, _ = look(world, K, pose, u, v)
        return colors.mean(0), depth, points

    linear, depth, points = over_views(view, path)
    return Sample(
        images=_develop(of_camera, linear),
        depth=depth[..., None],
        valid=depth > 0,
        world_points=jnp.where((depth > 0)[..., None], points, 0),
        K=K,
        world_from_cam=path,
        cam_from_world=invert_se3(path)[:, :3],
        world=world,
    )


def _develop(key: Array, linear: Array) -> Array:
    """Linear colours to 8-bit pixels: exposure by the mean, its jitter, white balance, the sRGB curve about,
    noise.
    """
    frames = linear.shape[0]
    of_scene, of_frame, of_balance, of_noise, of_strength = jax.random.split(key, 5)
    exposure = 0.28 / jnp.maximum(linear.mean(), 1e-3) * jnp.exp(0.25 * jax.random.normal(of_scene))
    exposure *= jnp.exp(0.06 * jax.random.normal(of_frame, (frames, 1, 1, 1)))
    balance = jnp.exp(0.04 * jax.random.normal(of_balance, (frames, 1, 1, 3)))
    noise = jax.random.uniform(of_strength, (), maxval=0.02) * jax.random.normal(of_noise, linear.shape)
    pixels = jnp.clip(linear * exposure * balance, 0, 1) ** (1 / 2.2) + noise
    return jnp.round(jnp.clip(pixels, 0, 1) * 255) / 255


def tracks(scene: Sample, query_points: Array) -> tuple[Array, Array]:
    """Where the points seen at pixels (u, v) of the first view are in every view.

    Args:
      query_points: f32[Q, 2], whole pixels of the first view.

    Returns:
      Pixels f32[F, Q, 2] and bool[F, Q], whether the point is seen there; never, for the sky.
    """
    u, v = jnp.moveaxis(jnp.round(query_points).astype(jnp.int32), -1, 0)
    height, width = scene.depth.shape[1:3]
    points, known = scene.world_points[0, v, u], scene.valid[0, v, u]

    def view(pose: Array) -> tuple[Array, Array]:
        return project(scene.K, pose, points)[0], sees(
            scene.world, scene.K, pose, points, height, width
        ) & known

    return over_views(view, scene.world_from_cam)
