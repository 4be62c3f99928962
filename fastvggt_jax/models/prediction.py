"""What a model returns, in upstream's terms (`Prediction`), and what it says, in ours (`Reconstruction`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from fastvggt_jax.errors import InputError

if TYPE_CHECKING:
    from fastvggt_jax.models.base import Model

Array = jax.Array


@flax.struct.dataclass
class Prediction:
    """One dataclass for every model; a field is None when its head is off. Names are upstream's.

    B batch, F frames, H×W pixels of the model's input, Q query points; everything float32.

    Attributes:
      pose_enc: [B, F, 9] translation (3), quaternion x y z w (4), vertical and horizontal field of view in
        radians (2); the camera is cam_from_world, OpenCV axes, in units of the scene (not metres), the first
        frame near the origin.
      pose_enc_list: the same after each iteration of the camera head, the last being `pose_enc`.
      depth: [B, F, H, W, 1] distance along the optical axis, in units of the scene, > 0.
      depth_conf: [B, F, H, W] confidence of `depth`, > 1.
      world_points: [B, F, H, W, 3] in the coordinates of the first camera.
      world_points_conf: [B, F, H, W] confidence of `world_points`, > 1.
      track: [B, F, Q, 2] where the query points are seen, pixels (x, y) as these are counted.
      track_list: [iterations, B, F, Q, 2] the same after each iteration of the tracker, the last being
        `track`.
      vis: [B, F, Q] probability that the point is visible.
      conf: VGGT: [B, F, Q] probability that the track is right. π³: [B, F, H, W, 1] confidence of the points,
        a logit.
      points: [B, F, H, W, 3] in π³'s own world; no camera is at its origin.
      local_points: [B, F, H, W, 3] the same in each camera's coordinates, OpenCV axes; the last is the depth.
      camera_poses: [B, F, 4, 4] world_from_cam.
      rays: [B, F, H, W, 3] Pi3X: the direction of each pixel in its camera's coordinates, of length 1.
      metric: [B] Pi3X: the factor that has made the points and cameras metres; None: they have no unit.
      density: [layers] the share of blocks that each global layer computed; None without sparsity.
      made_by: the model's class, which knows what the fields mean.
    """

    pose_enc: Float[Array, "B F 9"] | None = None
    pose_enc_list: tuple[Float[Array, "B F 9"], ...] | None = None
    depth: Float[Array, "B F H W 1"] | None = None
    depth_conf: Float[Array, "B F H W"] | None = None
    world_points: Float[Array, "B F H W 3"] | None = None
    world_points_conf: Float[Array, "B F H W"] | None = None
    track: Float[Array, "B F Q 2"] | None = None
    track_list: Float[Array, "iterations B F Q 2"] | None = None
    vis: Float[Array, "B F Q"] | None = None
    conf: Float[Array, "B F *pixels"] | None = None
    points: Float[Array, "B F H W 3"] | None = None
    local_points: Float[Array, "B F H W 3"] | None = None
    camera_poses: Float[Array, "B F 4 4"] | None = None
    rays: Float[Array, "B F H W 3"] | None = None
    metric: Float[Array, " B"] | None = None
    density: Float[Array, " layers"] | None = None
    made_by: type[Model] | None = flax.struct.field(pytree_node=False, default=None)

    def need(self, head: str, *names: str) -> list[Array]:
        """The fields of these names, which this head gives. Raises InputError if it was off."""
        found = [getattr(self, name) for name in names]
        if any(x is None for x in found):
            text = f"a reconstruction needs {names[0]}: run the model with its {head} head on"
            raise InputError(text, argument="heads")
        return found

    @classmethod
    def specs(cls, made_by: type[Model], scenes: str | None, frames: str | None) -> Prediction:
        """How each field lies along axes of a mesh of these names, as for `jax.shard_map`."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "made_by"]
        specs: dict[str, Any] = dict.fromkeys(names, PartitionSpec(scenes, frames))
        specs |= {"track_list": PartitionSpec(None, scenes, frames), "density": PartitionSpec()}
        specs["metric"] = PartitionSpec(scenes)
        return cls(**specs, made_by=made_by)


@flax.struct.dataclass
class Reconstruction:
    """What a model says about B scenes of F photographs, in the same terms whatever the model.

    Pixels are counted as in `fastvggt_jax.sources.ImageTransform`: the outer corner of the first one is (0,
    0), its centre (0.5, 0.5). A point is seen at the centre of its pixel.

    Attributes:
      cam_from_world: f32[B, F, 3, 4], OpenCV axes. The world is the first camera's frame, about or exactly.
      K: f32[B, F, 3, 3] in model pixels, or None of a model that predicts no intrinsics.
      depth: f32[B, F, H, W] along the camera's z. depth_conf: f32[B, F, H, W], larger is surer.
      points: f32[B, F, H, W, 3] in the world. conf: f32[B, F, H, W], of the points.
      clipped: bool[B, F], where the model's field of view has no K and was clipped, or None.
      metric_scale: f32[B], metres per unit, or None where nobody knows.
      track: f32[B, F, Q, 2], where query points are seen, or None. track_conf: f32[B, F, Q], the probability
        that they are, and there.
      conf_floor: the confidence of nothing at all, such as sky; what lies below is no surface.
    """

    cam_from_world: Float[Array, "B F 3 4"]
    K: Float[Array, "B F 3 3"] | None
    depth: Float[Array, "B F H W"]
    depth_conf: Float[Array, "B F H W"]
    points: Float[Array, "B F H W 3"]
    conf: Float[Array, "B F H W"]
    clipped: Bool[Array, "B F"] | None = None
    metric_scale: Float[Array, " B"] | None = None
    track: Float[Array, "B F Q 2"] | None = None
    track_conf: Float[Array, "B F Q"] | None = None
    conf_floor: float = flax.struct.field(pytree_node=False, default=-float("inf"))

    def first(self, frames: int) -> Reconstruction:
        """That of the first so many photographs, as arrays of numpy."""
        return jax.tree.map(lambda x: np.asarray(x)[:, :frames] if x.ndim > 1 else x, self)
