"""Cameras: VGGT's pose encoding, quaternions, rigid transforms, unprojection.

Conventions, here and in everything that this package writes: OpenCV axes (x right, y down, z into the scene);
`cam_from_world` is the 3x4 matrix [R | t] with x_cam = R x_world + t, `world_from_cam` its 4x4 inverse; `K`
is 3x3 in pixels; quaternions are (x, y, z, w), w last; fields of view are in radians, the vertical one first.
All functions take jax or numpy arrays with any leading axes ([...]), compute in float32 and return jax
arrays.

Source: VGGT's utils/pose_enc.py, utils/rotation.py, utils/geometry.py (the formulas, not the code).
"""

import functools

import jax
import jax.numpy as jnp

# Geometry stays in float32 where matrix units would round to TF32 or bfloat16.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def quat_xyzw_to_rotation(quat_xyzw: jax.Array) -> jax.Array:
    """Rotation matrices of quaternions of any length but zero: f32[..., 4] -> f32[..., 3, 3].

    The factor 2/|q|² takes the place of a normalisation, as upstream; a zero quaternion gives non-finite
    numbers.
    """
    x, y, z, w = jnp.moveaxis(jnp.asarray(quat_xyzw, jnp.float32), -1, 0)
    s = 2.0 / (x * x + y * y + z * z + w * w)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)  # [..., 3, 3]


def rotation_to_quat_xyzw(rotation: jax.Array) -> jax.Array:
    """Unit quaternions with w >= 0 of rotation matrices: f32[..., 3, 3] -> f32[..., 4].

    Of the four ways to divide, the one whose divisor (the largest component) is best conditioned is taken.
    """
    m = jnp.asarray(rotation, jnp.float32)
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # 4·(component)² of w, x, y, z
    squares = jnp.stack(
        [1 + d0 + d1 + d2, 1 + d0 - d1 - d2, 1 - d0 + d1 - d2, 1 - d0 - d1 + d2], -1
    )  # [..., 4]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    # Row i is 4·(component i)·(x, y, z, w), for i = w, x, y, z.
    candidates = jnp.stack(
        [
            jnp.stack([wx, wy, wz, squares[..., 0]], -1),
            jnp.stack([squares[..., 1], xy, xz, wx], -1),
            jnp.stack([xy, squares[..., 2], yz, wy], -1),
            jnp.stack([xz, yz, squares[..., 3], wz], -1),
        ],
        -2,
    )  # [..., 4 candidates, 4]
    best = jnp.argmax(squares, -1)[..., None]
    # The largest of four squares that add up to 4 is at least 1, so neither the root nor its gradient can
    # blow up.
    divisor = 2 * jnp.sqrt(jnp.take_along_axis(squares, best, -1))
    quat = jnp.take_along_axis(candidates, best[..., None], -2)[..., 0, :] / divisor
    return jnp.where(quat[..., 3:] < 0, -quat, quat)


@jax.custom_jvp
def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """The rotation R that maximises tr(Rᵀ M), the nearest in the Frobenius norm: f32[..., 3, 3] -> f32[...,
    3, 3].

    With M = U S Vᵀ, R = U diag(1, 1, det(U Vᵀ)) Vᵀ (Kabsch 1976). Where M has rank 1 or 0, more than one
    rotation is nearest, and one of them is returned. Differentiable also where singular values coincide, as a
    rotation's own do: the SVD's derivative is not used.
    """
    matrix = jnp.asarray(matrix, jnp.float32)
    largest = jnp.max(jnp.abs(matrix), (-2, -1), keepdims=True)
    u, _, vt = jnp.linalg.svd(matrix / jnp.where(largest > 0, largest, 1))
    sign = jnp.where(jnp.linalg.det(u) * jnp.linalg.det(vt) < 0, -1.0, 1.0)
    one = jnp.ones_like(sign)
    return _einsum("...ij,...jk->...ik", u * jnp.stack([one, one, sign], -1)[..., None, :], vt)


@nearest_rotation.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """dR = R [ω]×, where P = Rᵀ M is symmetric and (tr(P) 1 - P) ω is the axial vector of Rᵀ dM - dMᵀ R."""
    matrix, tangent = (jnp.asarray(x, jnp.float32) for x in (primals[0], tangents[0]))
    rotation = nearest_rotation(matrix)
    scale = jax.lax.stop_gradient(
        jnp.maximum(jnp.max(jnp.abs(matrix), (-2, -1), keepdims=True), jnp.finfo(jnp.float32).tiny)
    )
    p = _einsum("...ji,...jk->...ik", rotation, matrix / scale)
    p = (p + jnp.swapaxes(p, -1, -2)) / 2
    skew = _einsum("...ji,...jk->...ik", rotation, tangent / scale)
    skew = skew - jnp.swapaxes(skew, -1, -2)
    axial = jnp.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    system = jnp.trace(p, axis1=-2, axis2=-1)[..., None, None] * jnp.eye(3, dtype=jnp.float32) - p
    rows = [system[..., i, :] for i in range(3)]
    adjugate = jnp.stack(
        [jnp.cross(rows[1], rows[2]), jnp.cross(rows[2], rows[0]), jnp.cross(rows[0], rows[1])], -1
    )
    determinant = (rows[0] * adjugate[..., 0]).sum(-1)
    unique = determinant > 1e-12  # elsewhere R is not the only nearest rotation, and no derivative exists
    x, y, z = jnp.moveaxis(
        _einsum("...ij,...j->...i", adjugate, axial) / jnp.where(unique, determinant, jnp.inf)[..., None],
        -1,
        0,
    )
    zero = jnp.zeros_like(x)
    turn = jnp.stack(
        [jnp.stack([zero, -z, y], -1), jnp.stack([z, zero, -x], -1), jnp.stack([-y, x, zero], -1)], -2
    )
    return rotation, _einsum("...ij,...jk->...ik", rotation, turn)


def decode_pose(pose_enc: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """(cam_from_world f32[..., 3, 4], K f32[..., 3, 3]) of a pose encoding f32[..., 9].

    pose_enc is [t (3), quaternion x y z w, fov_h, fov_w]; height and width are those of the images that the
    model saw, in pixels. The principal point is the image's centre. A field of view of 0 has no finite K.
    """
    pose_enc = jnp.asarray(pose_enc, jnp.float32)
    rotation = quat_xyzw_to_rotation(pose_enc[..., 3:7])
    cam_from_world = jnp.concatenate([rotation, pose_enc[..., :3, None]], -1)
    fy = (height / 2) / jnp.tan(pose_enc[..., 7] / 2)
    fx = (width / 2) / jnp.tan(pose_enc[..., 8] / 2)
    return cam_from_world, intrinsics(fx, fy, width / 2, height / 2)


def encode_pose(cam_from_world: jax.Array, K: jax.Array, height: int, width: int) -> jax.Array:
    """The pose encoding f32[..., 9] of f32[..., 3, 4] and K f32[..., 3, 3]; the principal point is not
    encoded.
    """
    cam_from_world, K = jnp.asarray(cam_from_world, jnp.float32), jnp.asarray(K, jnp.float32)
    fov_h = 2 * jnp.arctan((height / 2) / K[..., 1, 1])
    fov_w = 2 * jnp.arctan((width / 2) / K[..., 0, 0])
    quat = rotation_to_quat_xyzw(cam_from_world[..., :3, :3])
    return jnp.concatenate([cam_from_world[..., :3, 3], quat, fov_h[..., None], fov_w[..., None]], -1)


def intrinsics(fx: jax.Array, fy: jax.Array, cx: jax.Array, cy: jax.Array) -> jax.Array:
    """K f32[..., 3, 3] in pixels; the four arguments broadcast."""
    fx, fy, cx, cy = jnp.broadcast_arrays(*(jnp.asarray(v, jnp.float32) for v in (fx, fy, cx, cy)))
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = [[fx, zero, cx], [zero, fy, cy], [zero, zero, one]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def invert_se3(transform: jax.Array) -> jax.Array:
    """The inverse, f32[..., 4, 4], of a rigid transform f32[..., 3, 4] or f32[..., 4, 4]."""
    transform = jnp.asarray(transform, jnp.float32)
    rotation = jnp.swapaxes(transform[..., :3, :3], -1, -2)
    translation = -_einsum("...ij,...j->...i", rotation, transform[..., :3, 3])
    top = jnp.concatenate([rotation, translation[..., None]], -1)  # [..., 3, 4]
    bottom = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 0.0, 1.0]), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, bottom], -2)


def unproject_depth(depth: jax.Array, K: jax.Array, cam_from_world: jax.Array) -> jax.Array:
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
    return _einsum("...hwi,...ij->...hwj", in_cam, cam_from_world[..., :3, :3])  # Rᵀ (x - t)
