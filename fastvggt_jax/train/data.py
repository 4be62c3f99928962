"""Batches of procedural scenes, rendered on the device as they are needed."""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from fastvggt_jax import geometry
from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.datasets.synthetic import Sample, tracks
from fastvggt_jax.datasets.synthetic.sample import photograph, split_key
from fastvggt_jax.train.config import Shape

Array = jax.Array


@flax.struct.dataclass
class Batch:
    """B scenes of F photographs f32[B, F, H, W, 3], points to track f32[B, Q, 2] in the first of them or
    None, and what is true.
    """

    images: Array
    query_points: Array | None
    truth: Truth


def render(
    split: str,
    first: int,
    shape: Shape,
    *,
    query_points: int = 0,
    supersampling: int = 2,
    sharding: NamedSharding | None = None,
) -> Batch:
    """Scenes `first`, `first` + 1, … of a split, the views of each in random order; each device renders its
    own with `sharding`.
    """
    return _render(split_key(split), first, shape, query_points, supersampling, sharding)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _render(
    of_split: Array,
    first: int,
    shape: Shape,
    query_points: int,
    supersampling: int,
    sharding: NamedSharding | None,
) -> Batch:
    frames, height, width = shape.frames, shape.height, shape.width

    def one(index: Array) -> tuple[Sample, tuple[Array, Array, Array] | None]:
        key = jax.random.fold_in(of_split, index)
        scene = photograph(key, frames=frames, height=height, width=width, supersampling=supersampling)
        of_order, of_queries = jax.random.split(
            jax.random.fold_in(key, 1 << 16)
        )  # apart from photograph's own keys
        order = jax.random.permutation(of_order, frames)
        views = ("images", "depth", "valid", "world_points", "world_from_cam", "cam_from_world")
        scene = scene.replace(**{name: getattr(scene, name)[order] for name in views})
        if not query_points:
            return scene, None
        weights = scene.valid[0].ravel() + 1e-6  # where all is sky, any pixel
        pixel = jax.random.choice(of_queries, height * width, (query_points,), p=weights / weights.sum())
        points = jnp.stack([pixel % width, pixel // width], -1).astype(jnp.float32)
        return scene, (points, *tracks(scene, points))

    indices = first + jnp.arange(shape.scenes)
    scenes, tracked = jax.vmap(one)(
        indices if sharding is None else jax.lax.with_sharding_constraint(indices, sharding)
    )
    K = geometry.move_origin(scenes.K, 0.5)  # rays go through whole numbers; a Truth counts from the corner
    truth = Truth(
        cam_from_world=scenes.cam_from_world,
        K=jnp.broadcast_to(K[:, None], (shape.scenes, frames, 3, 3)),
        depth=scenes.depth[..., 0],
        points=scenes.world_points,
        valid=scenes.valid,
    )
    points = None
    if tracked is not None:
        points, where, seen = tracked
        truth = dataclasses.replace(truth, tracks=where, visible=seen)
    return Batch(images=scenes.images, query_points=points, truth=truth)
