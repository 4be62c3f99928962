"""Rotations and rigid transforms: quaternions, the nearest rotation, inverses.

Conventions as in `fastvggt_jax.geometry`. Source of the quaternions: VGGT's utils/rotation.py (the formulas,
not the code).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray

# Geometry stays in float32 where matrix units would round to TF32 or bfloat16.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def quat_xyzw_to_rotation(quat_xyzw: Float[Array, "... 4"]) -> Float[jax.Array, "... 3 3"]:
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


def rotation_to_quat_xyzw(rotation: Float[Array, "... 3 3"]) -> Float[jax.Array, "... 4"]:
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
def nearest_rotation(matrix: Float[Array, "... 3 3"]) -> Float[jax.Array, "... 3 3"]:
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
    return einsum("...ij,...jk->...ik", u * jnp.stack([one, one, sign], -1)[..., None, :], vt)


@nearest_rotation.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """dR = R [ω]×, where P = Rᵀ M is symmetric and (tr(P) 1 - P) ω is the axial vector of Rᵀ dM - dMᵀ R."""
    matrix, tangent = (jnp.asarray(x, jnp.float32) for x in (primals[0], tangents[0]))
    rotation = nearest_rotation(matrix)
    scale = jax.lax.stop_gradient(
        jnp.maximum(jnp.max(jnp.abs(matrix), (-2, -1), keepdims=True), jnp.finfo(jnp.float32).tiny)
    )
    p = einsum("...ji,...jk->...ik", rotation, matrix / scale)
    p = (p + jnp.swapaxes(p, -1, -2)) / 2
    skew = einsum("...ji,...jk->...ik", rotation, tangent / scale)
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
        einsum("...ij,...j->...i", adjugate, axial) / jnp.where(unique, determinant, jnp.inf)[..., None],
        -1,
        0,
    )
    zero = jnp.zeros_like(x)
    turn = jnp.stack(
        [jnp.stack([zero, -z, y], -1), jnp.stack([z, zero, -x], -1), jnp.stack([-y, x, zero], -1)], -2
    )
    return rotation, einsum("...ij,...jk->...ik", rotation, turn)


def invert_se3(transform: Float[Array, "... _ 4"]) -> Float[jax.Array, "... 4 4"]:
    """The inverse, f32[..., 4, 4], of a rigid transform f32[..., 3, 4] or f32[..., 4, 4]."""
    transform = jnp.asarray(transform, jnp.float32)
    rotation = jnp.swapaxes(transform[..., :3, :3], -1, -2)
    translation = -einsum("...ij,...j->...i", rotation, transform[..., :3, 3])
    return to_4x4(jnp.concatenate([rotation, translation[..., None]], -1))


def to_4x4(transform: Float[Array, "... 3 4"]) -> Float[jax.Array, "... 4 4"]:
    """f32[..., 3, 4] -> f32[..., 4, 4] with the last row 0 0 0 1."""
    bottom = jnp.broadcast_to(jnp.array([0.0, 0, 0, 1], transform.dtype), (*transform.shape[:-2], 1, 4))
    return jnp.concatenate([transform, bottom], -2)


def compose(first: Float[Array, "... 4 4"], second: Float[Array, "... 4 4"]) -> Float[jax.Array, "... 4 4"]:
    """first @ second of rigid transforms f32[..., 4, 4]: the second is applied first."""
    return einsum("...ij,...jk->...ik", *jnp.broadcast_arrays(first, second))


def transform(
    to_from: Float[Array, "... _ 4"], points: Float[Array, "... H W 3"]
) -> Float[jax.Array, "... H W 3"]:
    """Points f32[..., H, W, 3] of maps, each moved by its rigid transform f32[..., 3 or 4, 4]."""
    moved = einsum("...ij,...hwj->...hwi", to_from[..., :3, :3], points)
    return moved + to_from[..., None, None, :3, 3]
