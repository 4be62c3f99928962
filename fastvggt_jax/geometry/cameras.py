"""Cameras: VGGT's pose encoding, K, unprojection. Conventions as in `fastvggt_jax.geometry`.

Source: VGGT's utils/pose_enc.py and utils/geometry.py (the formulas, not the code).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from fastvggt_jax.geometry.rotations import Array, einsum, quat_xyzw_to_rotation, rotation_to_quat_xyzw

# OpenCV's axes, of a camera or a world, to OpenGL's (y up, z back), and back: half a turn about x.
GL_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])


def decode_pose(
    pose_enc: Float[Array, "... 9"], height: int, width: int
) -> tuple[Float[jax.Array, "... 3 4"], Float[jax.Array, "... 3 3"]]:
    """(cam_from_world f32[..., 3, 4], K f32[..., 3, 3]) of a pose encoding f32[..., 9].

    pose_enc is [t (3), quaternion x y z w, fov_h, fov_w]; height and width are those of the images that the
    model saw, in pixels. The principal point is the image's centre. A field of view of 0 has no finite K.
    """
    pose_enc = jnp.asarray(pose_enc, jnp.float32)
    rotation = quat_xyzw_to_rotation(pose_enc[..., 3:7])
    cam_from_world = jnp.concatenate([rotation, pose_enc[..., :3, None]], -1)
    fy = (height / 2) / jnp.tan(pose_enc[..., 7] / 2)
    fx = (width / 2) / jnp.tan(pose_enc[..., 8] / 2)
    return cam_from_world, intrinsic_matrix(fx, fy, width / 2, height / 2)


def encode_pose(
    cam_from_world: Float[Array, "... 3 4"], K: Float[Array, "... 3 3"], height: int, width: int
) -> Float[jax.Array, "... 9"]:
    """The pose encoding f32[..., 9] of f32[..., 3, 4] and K f32[..., 3, 3]; the principal point is not
    encoded.
    """
    cam_from_world, K = jnp.asarray(cam_from_world, jnp.float32), jnp.asarray(K, jnp.float32)
    fov_h = 2 * jnp.arctan((height / 2) / K[..., 1, 1])
    fov_w = 2 * jnp.arctan((width / 2) / K[..., 0, 0])
    quat = rotation_to_quat_xyzw(cam_from_world[..., :3, :3])
    return jnp.concatenate([cam_from_world[..., :3, 3], quat, fov_h[..., None], fov_w[..., None]], -1)


def intrinsic_matrix(
    fx: ArrayLike, fy: ArrayLike, cx: ArrayLike, cy: ArrayLike
) -> Float[jax.Array, "... 3 3"]:
    """K f32[..., 3, 3] in pixels; the four arguments broadcast."""
    fx, fy, cx, cy = jnp.broadcast_arrays(*(jnp.asarray(v, jnp.float32) for v in (fx, fy, cx, cy)))
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = [[fx, zero, cx], [zero, fy, cy], [zero, zero, one]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def unproject_depth(
    depth: Float[Array, "... H W 1"], K: Float[Array, "... 3 3"], cam_from_world: Float[Array, "... 3 4"]
) -> Float[jax.Array, "... H W 3"]:
    """World points f32[..., H, W, 3] of depth (z in the camera) f32[..., H, W, 1].

    K f32[..., 3, 3] and cam_from_world f32[..., 3, 4] have depth's leading axes. The ray of column u and row
    v goes through (u, v), not (u + 0.5, v + 0.5): the model was trained with upstream's integer pixel
    coordinates.
    """
    depth, K = jnp.asarray(depth, jnp.float32), jnp.asarray(K, jnp.float32)
    cam_from_world = jnp.asarray(cam_from_world, jnp.float32)
    if depth.shape[-1] != 1 or depth.ndim < 3:
        raise ValueError(f"depth must have the shape [..., H, W, 1], not {list(depth.shape)}")
    height, width = depth.shape[-3:-1]
    z = depth[..., 0]  # [..., H, W]
    K = K[..., None, None, :, :]
    x = (jnp.arange(width, dtype=jnp.float32) - K[..., 0, 2]) * z / K[..., 0, 0]
    y = (jnp.arange(height, dtype=jnp.float32)[:, None] - K[..., 1, 2]) * z / K[..., 1, 1]
    in_cam = jnp.stack([x, y, z], -1) - cam_from_world[..., None, None, :3, 3]  # [..., H, W, 3]
    return einsum("...hwi,...ij->...hwj", in_cam, cam_from_world[..., :3, :3])  # Rᵀ (x - t)


def move_origin(K: Float[Array, "... 3 3"], pixels: float) -> Float[jax.Array, "... 3 3"]:
    """K [..., 3, 3] in coordinates in which every pixel's are larger by `pixels`.

    0.5 leads from coordinates that are 0 at the first pixel's centre, as upstream's, to ours, which are 0 at
    its outer corner.
    """
    return jnp.asarray(K).at[..., :2, 2].add(pixels)


def depth_of(
    points: Float[Array, "... H W 3"], cam_from_world: Float[Array, "... 3 4"]
) -> Float[jax.Array, "... H W"]:
    """z in the camera, f32[..., H, W], of points f32[..., H, W, 3] and cam_from_world f32[..., 3, 4]."""
    row = jnp.asarray(cam_from_world, jnp.float32)[..., 2, :]
    return einsum("...hwi,...i->...hw", points, row[..., :3]) + row[..., None, None, 3]
