"""Intrinsics recovered from points, where they are known."""

import numpy as np
import pytest

from fastvggt_jax.geometry.intrinsics import fit_intrinsics

K = np.array([[80.0, 0, 55], [0, 95, 30], [0, 0, 1]])


def points_seen_by(K, height=70, width=100):
    """f32[H, W, 3] on an uneven surface, each where its pixel's centre is seen."""
    rng = np.random.default_rng(0)
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    return (rays * rng.uniform(1, 5, (height, width, 1))).astype(np.float32)


def test_a_pinhole_camera_is_found():
    points = points_seen_by(K)
    found, error = fit_intrinsics(points, np.ones((70, 100)))
    np.testing.assert_allclose(found, K, rtol=1e-5)
    assert error < 1e-3


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_wrong_points_count_little(share):
    rng = np.random.default_rng(1)
    points = points_seen_by(K)
    wrong = rng.random((70, 100)) < share
    points[wrong, :2] += rng.normal(2, 2, (wrong.sum(), 2)).astype(np.float32)
    found, _ = fit_intrinsics(points, np.ones((70, 100)))
    np.testing.assert_allclose(found, K, rtol=1e-3)


def test_what_has_no_weight_does_not_count():
    points, weights = points_seen_by(K), np.ones((70, 100))
    points[:40], weights[:40] = np.nan, 0
    points[:, :40, 2], points[40:, :40, 0] = -1, 7  # behind the camera
    points[:, 90:, :2] *= 3
    weights[:, 90:] = 0
    np.testing.assert_allclose(fit_intrinsics(points, weights)[0], K, rtol=1e-5)


def test_a_heavy_minority_outweighs_a_light_majority():
    light = np.random.default_rng(2).random((70, 100)) < 0.6
    points = np.where(light[..., None], points_seen_by(K * np.array([[1.5], [1.2], [1]])), points_seen_by(K))
    found, error = fit_intrinsics(points, np.where(light, 0.2, 1))
    np.testing.assert_allclose(found, K, rtol=1e-3)
    assert error < 0.1


def test_large_images_are_sampled():
    np.testing.assert_allclose(
        fit_intrinsics(points_seen_by(K, 600, 500), np.ones((600, 500)))[0], K, rtol=1e-5
    )


@pytest.mark.parametrize("case", ["mirrored", "one direction", "nothing counts"])
def test_no_camera_is_nan(case):
    points, weights = points_seen_by(K), np.ones((70, 100))
    if case == "mirrored":
        points[..., 0] *= -1
    elif case == "one direction":
        points[...] = (0, 0, 1)
    else:
        weights[...] = 0
    found, error = fit_intrinsics(points, weights)
    assert np.isnan(found).all() and np.isnan(error)
