"""What the models' losses share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from fastvggt_jax import geometry

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
TINY = 1e-8


def normalise(truth: Truth) -> Truth:
    """The truth in the coordinates of each scene's first camera and in units of the mean distance of its
    valid points from there, 0 where nothing is valid. A scene without a valid point keeps its unit.
    """
    R, t = truth.cam_from_world[..., :3], truth.cam_from_world[..., 3]
    rotation = geometry.einsum("bfij,bkj->bfik", R, R[:, 0])
    translation = t - geometry.einsum("bfij,bj->bfi", rotation, t[:, 0])
    points = geometry.einsum("bij,bfhwj->bfhwi", R[:, 0], truth.points) + t[:, 0, None, None, None]
    valid, mask = truth.valid, truth.valid[..., None]
    distance = jnp.linalg.norm(jnp.where(mask, points, 1.0), axis=-1)
    count = valid.sum((1, 2, 3))
    mean = jnp.where(valid, distance, 0).sum((1, 2, 3)) / jnp.maximum(count, 1)
    scale = jnp.where(count > 0, mean, 1.0)
    divide = lambda x: x / scale.reshape(-1, *[1] * (x.ndim - 1))
    return dataclasses.replace(
        truth,
        cam_from_world=jnp.concatenate([rotation, divide(translation)[..., None]], -1),
        depth=jnp.where(valid, divide(truth.depth), 0),
        points=jnp.where(mask, divide(points), 0),
    )


def steps_between(rotation: Array, centre: Array) -> Array:
    """World_from_cam f32[..., F, 3, 3], f32[..., F, 3] -> each second camera's centre in the first one's
    coordinates, f32[..., F, F, 3].
    """
    between = centre[..., None, :, :] - centre[..., :, None, :]
    return geometry.einsum("...fji,...fgj->...fgi", rotation, between)


def mean_where(x: Array, valid: Array) -> Array:
    """Mean over where `valid`, 0 if that is nowhere."""
    return jnp.where(valid, x, 0).sum() / jnp.maximum(valid.sum(), 1)


def norm(x: Array) -> Array:
    """|x| along the last axis, with a finite derivative at 0."""
    return jnp.sqrt(jnp.square(x).sum(-1) + TINY**2)
