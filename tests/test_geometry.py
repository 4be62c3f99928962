"""Cameras against their own definitions; tests/parity holds them to upstream's numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fastvggt_jax import geometry
from tests.parity.pipeline import cameras

GOLDEN_DIR = Path(__file__).parent / "golden"
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
        geometry.unproject_depth(np.ones((2, 4, 6)), np.eye(3), np.eye(4)[:3])
