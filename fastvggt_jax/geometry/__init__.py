"""Cameras, rotations, alignment: the geometry that models, scenes, data sets and metrics share.

Conventions, here and in everything that this package writes: OpenCV axes (x right, y down, z into the scene);
`cam_from_world` is the 3x4 matrix [R | t] with x_cam = R x_world + t, `world_from_cam` its 4x4 inverse; `K`
is 3x3 in pixels; quaternions are (x, y, z, w), w last; fields of view are in radians, the vertical one first.

The functions of `cameras` and `rotations` take jax or numpy arrays with any leading axes ([...]), compute in
float32 and return jax arrays; those of `intrinsics` and `alignment` are numpy and float64.
"""

from fastvggt_jax.geometry.cameras import (
    GL_FROM_CV,
    decode_pose,
    depth_of,
    encode_pose,
    intrinsic_matrix,
    move_origin,
    unproject_depth,
)
from fastvggt_jax.geometry.rotations import (
    compose,
    einsum,
    invert_se3,
    nearest_rotation,
    quat_xyzw_to_rotation,
    rotation_to_quat_xyzw,
    to_4x4,
    transform,
)

__all__ = [
    "GL_FROM_CV",
    "compose",
    "decode_pose",
    "depth_of",
    "einsum",
    "encode_pose",
    "intrinsic_matrix",
    "invert_se3",
    "move_origin",
    "nearest_rotation",
    "quat_xyzw_to_rotation",
    "rotation_to_quat_xyzw",
    "to_4x4",
    "transform",
    "unproject_depth",
]
