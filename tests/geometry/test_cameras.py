"""Cameras against their own definitions; tests/parity holds them to upstream's numbers."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from safetensors.numpy import load_file

from fastvggt_jax import geometry
from tests.parity.pipeline import cameras

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
GOLDEN = load_file(GOLDEN_DIR / "geometry.safetensors")


def test_outputs_are_float32_jax_arrays_also_under_jit():
    for value in jax.jit(lambda: cameras(GOLDEN, (56, 84)))().values():
        assert isinstance(value, jax.Array) and value.dtype == jnp.float32


def test_a_projected_point_unprojects_to_itself():
    cam_from_world, K = GOLDEN["extrinsics"][0], GOLDEN["intrinsics"][0]
    depth = np.full((5, 4, 6, 1), 2.5, np.float32)
    world = np.asarray(geometry.unproject_depth(depth, K, cam_from_world))
    in_cam = np.einsum("fij,fhwj->fhwi", cam_from_world[..., :3], world) + cam_from_world[:, None, None, :, 3]
    pixels = np.einsum("fij,fhwj->fhwi", K, in_cam)
    np.testing.assert_allclose(pixels[..., 2], 2.5, rtol=1e-5)
    u, v = np.meshgrid(np.arange(6), np.arange(4))
    np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], np.broadcast_to(u, (5, 4, 6)), atol=1e-3)
    np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], np.broadcast_to(v, (5, 4, 6)), atol=1e-3)


def test_half_turns_have_finite_quaternions_and_gradients():
    half_turns = np.stack([np.diag(d) for d in ([1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1])])
    quats = geometry.rotation_to_quat_xyzw(half_turns)
    np.testing.assert_allclose(quats, np.eye(4), atol=1e-7)
    gradient = jax.grad(lambda m: geometry.rotation_to_quat_xyzw(m).sum())(jnp.asarray(half_turns))
    assert np.isfinite(gradient).all()


def test_inverting_twice_gives_the_same_transform():
    four = geometry.invert_se3(GOLDEN["extrinsics"])
    np.testing.assert_allclose(geometry.invert_se3(four)[..., :3, :], GOLDEN["extrinsics"], atol=1e-6)
    np.testing.assert_allclose(four[..., 3, :], np.broadcast_to([0, 0, 0, 1], (2, 5, 4)))


def test_depth_without_its_last_axis_is_refused():
    with pytest.raises(ValueError, match=r"\[\.\.\., H, W, 1\], not \[2, 4, 6\]"):
        inspect.unwrap(geometry.unproject_depth)(np.ones((2, 4, 6)), np.eye(3), np.eye(4)[:3])


def exact_rotation(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rotation by LAPACK's SVD in float64, and s2 ± s3 relative to s1, by which errors grow."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64))
    sign = np.linalg.det(u @ vt)
    u[..., 2] *= sign[..., None]
    return u @ vt, (s[..., 1] + sign * s[..., 2]) / s[..., 0]


@pytest.mark.parametrize("kind", ["any", "a rotation", "a reflection", "nearly flat", "tiny", "huge"])
def test_the_nearest_rotation_is_that_of_an_exact_svd(kind):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(1, 50_000, 3, 3))
    if kind in ("a rotation", "a reflection"):
        matrix = exact_rotation(matrix)[0] @ np.diag([1, 2, 3] if kind == "a reflection" else [1, 1, 1])
        matrix = -matrix if kind == "a reflection" else matrix
    elif kind == "nearly flat":
        matrix[..., 2] = matrix[..., 0] + matrix[..., 1] + 1e-7 * rng.normal(size=(1, 50_000, 3))
    else:
        matrix = matrix * {"any": 1, "tiny": 1e-30, "huge": 1e30}[kind]
    matrix = matrix.astype(np.float32)
    found, (exact, gap) = np.asarray(jax.jit(geometry.nearest_rotation)(matrix)), exact_rotation(matrix)
    assert (np.abs(found - exact).max((-1, -2)) * gap).max() < 2e-6
    np.testing.assert_allclose(
        found @ found.swapaxes(-1, -2), np.broadcast_to(np.eye(3), found.shape), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-5)


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 3)), np.ones((3, 3)), np.diag([0, 0, 2.0]), np.diag([0, -1.0, 0])]
)
def test_a_matrix_without_one_nearest_rotation_gives_one_all_the_same(matrix):
    found = np.asarray(geometry.nearest_rotation(matrix))
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    assert abs(np.linalg.det(found) - 1) < 1e-5
    assert abs(np.trace(found.T @ matrix) - np.linalg.svd(matrix)[1].sum()) < 1e-5


def test_the_nearest_rotation_has_derivatives_also_where_singular_values_coincide():
    for matrix in (np.eye(3), np.random.default_rng(0).normal(size=(3, 3))):
        check_grads(
            jax.jit(geometry.nearest_rotation),
            (jnp.asarray(matrix, jnp.float32),),
            order=2,
            eps=1e-2,
            atol=3e-3,
            rtol=3e-3,
        )


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.diag([0, 0, 2.0]), np.diag([1, 1, -1.0])])
def test_where_there_is_no_derivative_it_is_finite(matrix):
    gradient = jax.grad(lambda m: (geometry.nearest_rotation(m) * jnp.arange(9.0).reshape(3, 3)).sum())(
        jnp.asarray(matrix, jnp.float32)
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_nearest_rotation_is_found_at_the_scale_of_one(scale, monkeypatch):
    """Not every SVD scales its input, and the derivative's determinant would leave float32's range."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    largest, svd = [], jnp.linalg.svd
    monkeypatch.setattr(jnp.linalg, "svd", lambda m: largest.append(float(jnp.abs(m).max())) or svd(m))
    geometry.nearest_rotation(scale * matrix)
    assert largest == pytest.approx([1])
    monkeypatch.undo()
    turn = jnp.arange(9.0).reshape(3, 3)
    gradient = jax.grad(lambda m: (geometry.nearest_rotation(m) * turn).sum())
    np.testing.assert_allclose(gradient(scale * matrix) * scale, gradient(matrix), rtol=1e-4, atol=1e-5)
