"""What a model returns. One dataclass for every model; a field is None when its head is off."""

from __future__ import annotations

import flax.struct
import jax

Array = jax.Array


@flax.struct.dataclass
class Prediction:
    """Names are upstream's. B batch, F frames, H×W pixels of the model's input, Q query points; everything
    float32.

    Attributes:
      pose_enc: [B, F, 9] translation (3), quaternion x y z w (4), vertical and horizontal field of view in
        radians (2); the camera is cam_from_world, OpenCV axes, in units of the scene (not metres), the first
        frame near the origin.
      pose_enc_list: the same after each iteration of the camera head, the last being `pose_enc`.
      depth: [B, F, H, W, 1] distance along the optical axis, in units of the scene, > 0.
      depth_conf: [B, F, H, W] confidence of `depth`, > 1.
      world_points: [B, F, H, W, 3] in the coordinates of the first camera.
      world_points_conf: [B, F, H, W] confidence of `world_points`, > 1.
      track: [B, F, Q, 2] where the query points of frame 0 are seen, pixels (x, y).
      track_list: [iterations, B, F, Q, 2] the same after each iteration of the tracker, the last being
        `track`.
      vis: [B, F, Q] probability that the point is visible.
      conf: VGGT: [B, F, Q] probability that the track is right. π³: [B, F, H, W, 1] confidence of the points,
        a logit.
      points: [B, F, H, W, 3] in π³'s own world; no camera is at its origin.
      local_points: [B, F, H, W, 3] the same in each camera's coordinates, OpenCV axes; the last is the depth.
      camera_poses: [B, F, 4, 4] world_from_cam.
    """

    pose_enc: Array | None = None
    pose_enc_list: tuple[Array, ...] | None = None
    depth: Array | None = None
    depth_conf: Array | None = None
    world_points: Array | None = None
    world_points_conf: Array | None = None
    track: Array | None = None
    track_list: Array | None = None
    vis: Array | None = None
    conf: Array | None = None
    points: Array | None = None
    local_points: Array | None = None
    camera_poses: Array | None = None
