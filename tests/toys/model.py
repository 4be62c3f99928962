"""A toy model: cameras in a row, depth and confidence from colours by two layers. Patches of 4 pixels."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from fastvggt_jax import geometry
from fastvggt_jax.models.base import Model, check_images, to_unit
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.sources import ImagePolicy

Array = jax.Array
PATH = "tests.toys.model:Toy"


@flax.struct.dataclass
class ToyPrediction(Prediction):
    """With an output that no other model has: f32[B, F]."""

    brightness: Array | None = None


class Toy(Model):
    conversion: ClassVar[str] = "tests.toys.rules"
    point_sources: ClassVar[tuple[str, ...]] = ("depth",)
    takes_frames: ClassVar[bool] = True  # nothing goes from one to another
    patch_size: int = 4
    width: int = 8
    depth: int = 1
    num_heads: int = 1
    embed_dim: int = 8
    heads: tuple[str, ...] = ("depth",)

    def smallest_inputs(self):
        return (jax.ShapeDtypeStruct((1, 1, 4, 4, 3), jnp.float32),)

    @property
    def image_policy(self) -> ImagePolicy:
        return ImagePolicy("crop", 16, self.patch_size)

    @property
    def num_special(self) -> int:
        return 0

    @classmethod
    def head_parameters(cls, head):
        return (f"{head}_head/",)

    @classmethod
    def heads_for(cls, points_from):
        cls.check_points_from(points_from)
        return ("depth",)

    @nn.compact
    def __call__(
        self, images: Array, query_points: None = None, *, frames: Array | None = None
    ) -> Prediction:
        check_images(images, self.patch_size)
        x = nn.Dense(self.width, name="colours")(to_unit(images))
        y = nn.Dense(2, name="depth_head")(jnp.tanh(x))
        poses = jnp.tile(jnp.eye(4), (*images.shape[:2], 1, 1))
        poses = poses.at[..., 0, 3].set(0.1 * jnp.arange(images.shape[1], dtype=jnp.float32))
        return ToyPrediction(
            brightness=to_unit(images).mean((2, 3, 4)),
            depth=jnp.exp(y[..., :1]),
            depth_conf=1 + jnp.exp(y[..., 1]),
            camera_poses=poses,
            made_by=type(self),
        )

    @classmethod
    def reconstruction(cls, prediction: Prediction, points_from: str | None = None) -> Reconstruction:
        cls.check_points_from(points_from)
        depth, conf = prediction.need("depth", "depth", "depth_conf")
        B, F, H, W, _ = depth.shape
        K = jnp.broadcast_to(geometry.intrinsic_matrix(W, W, W / 2, H / 2), (B, F, 3, 3))
        cam_from_world = geometry.invert_se3(prediction.camera_poses)[..., :3, :]
        points = geometry.unproject_depth(depth, geometry.move_origin(K, -0.5), cam_from_world)
        return Reconstruction(
            cam_from_world=cam_from_world, K=K, depth=depth[..., 0], depth_conf=conf, points=points, conf=conf
        )

    @classmethod
    def loss(cls, prediction, truth, **weights):
        error = jnp.abs(prediction.depth[..., 0] - truth.depth)
        error = jnp.where(truth.valid, error, 0).mean()
        return error, {"depth error": error}
