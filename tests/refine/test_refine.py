"""Measured tracks show where photographs have things, whatever the cameras say; bundle adjustment makes the
cameras say it too.
"""

import dataclasses
import importlib.util

import numpy as np
import pytest

from fastvggt_jax import errors
from fastvggt_jax.evaluate import metrics
from fastvggt_jax.export.lenses import with_K
from fastvggt_jax.refine import bundle
from fastvggt_jax.refine.bundle import adjusted_or_as_it_is, bundle_adjust
from fastvggt_jax.refine.matching import measure_tracks
from tests.export.truth import VIEWS, true_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"), "area", 140).scene


def others(tracks, scene):
    """bool[N]: observations in other views than the point's own."""
    return tracks.frame != tracks.pixel[tracks.point] // scene.valid[0].size


def about(axis, degrees):
    axis = np.array(axis, float) / np.linalg.norm(axis)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def disturbed(scene, degrees=0.4, share=0.01, zoom=1.0, frames=range(1, VIEWS)):
    """Cameras that are a little off, with the points and depth that a model would give with them."""
    pose, K, rng = (
        scene.cam_from_world.astype(np.float64),
        scene.K.astype(np.float64),
        np.random.default_rng(5),
    )
    points = scene.points.copy()
    for i in frames:
        local = scene.points[i] @ pose[i, :, :3].T + pose[i, :, 3]
        pose[i] = about(rng.normal(size=3), degrees) @ pose[i]
        pose[i, :, 3] += share * rng.normal(size=3)
        points[i] = (local - pose[i, :, 3]) @ pose[i, :, :3]
    moved = dataclasses.replace(scene, cam_from_world=pose.astype(np.float32), points=points)
    K = np.stack([scene.K_original(i) for i in range(VIEWS)])
    K[:, [0, 1], [0, 1]] *= zoom
    return with_K(moved, K, scene.intrinsics)


# ---- measured tracks


def test_photographs_show_points_where_true_cameras_see_them(scene):
    tracks = measure_tracks(scene)
    away = np.linalg.norm(tracks.residual, axis=-1)
    assert len(tracks) > 300 and tracks.lengths().mean() > 3 and tracks.lengths().min() >= 2
    assert (
        np.median(away[others(tracks, scene)]) < 0.1 and np.percentile(away, 80) < 0.5
    )  # the rest lies on edges
    own = ~others(tracks, scene)
    assert (np.bincount(tracks.point[own], minlength=len(tracks)) == 1).all()
    np.testing.assert_allclose(tracks.xy[own] % 1, 0.5)


def test_what_is_measured_does_not_depend_on_the_cameras(scene):
    K = scene.K.copy()
    K[3, :2, 2] += (1.5, -1.0)
    wrong = dataclasses.replace(scene, K=K)
    tracks = measure_tracks(wrong)
    there = (tracks.frame == 3) & others(tracks, wrong)
    assert there.sum() > 100
    np.testing.assert_allclose(np.median(tracks.residual[there], axis=0), (-1.5, 1.0), atol=0.1)
    elsewhere = (
        others(tracks, wrong) & (tracks.frame != 3) & (tracks.pixel[tracks.point] // wrong.valid[0].size != 3)
    )
    np.testing.assert_allclose(np.median(tracks.residual[elsewhere], axis=0), 0, atol=0.1)


def test_exposure_does_not_matter_and_other_pictures_do(scene):
    colors = scene.colors.copy()
    colors[2] = np.rint(colors[2] * 0.8 + 20)
    brighter = measure_tracks(dataclasses.replace(scene, colors=colors))
    there = (brighter.frame == 2) & others(brighter, scene)
    assert there.sum() > 100 and np.median(np.linalg.norm(brighter.residual[there], axis=-1)) < 0.1
    colors[2] = np.random.default_rng(0).integers(100, 156, colors[2].shape)
    noise = measure_tracks(dataclasses.replace(scene, colors=colors))
    assert ((noise.frame == 2) & others(noise, scene)).sum() < 0.05 * there.sum()


def test_without_texture_nothing_is_followed(scene):
    flat = dataclasses.replace(scene, colors=np.full_like(scene.colors, 128))
    assert not len(measure_tracks(flat))
    half = scene.colors.copy()
    half[:, : half.shape[1] // 2] = 128
    tracks = measure_tracks(dataclasses.replace(scene, colors=half))
    height, width = scene.valid.shape[1:]
    rows = tracks.pixel % (height * width) // width
    assert len(tracks) and rows.min() >= height // 2 - 4


def test_masked_pixels_are_not_followed(scene):
    valid = scene.valid.copy()
    valid[:, :, :60] = False
    tracks = measure_tracks(dataclasses.replace(scene, valid=valid))
    assert len(tracks) and (tracks.pixel % scene.valid.shape[2] >= 60).all()
    assert tracks.xy[others(tracks, scene), 0].min() > 55


# ---- bundle adjustment


@pytest.fixture
def pycolmap():
    return pytest.importorskip("pycolmap")


@pytest.mark.parametrize("shared", [False, True])
def test_cameras_depth_and_points_come_back(pycolmap, scene, shared):
    off = disturbed(scene, zoom=1.03)
    found, done = bundle_adjust(off, shared_camera=shared)
    assert done.after < 0.2 < done.before and done.after < done.before / 3
    assert len(done.moved) == VIEWS and done.points > 300 and done.zoomed
    truth = scene.cam_from_world.astype(np.float64)
    before, after = (
        np.stack(metrics.pair_errors(s.cam_from_world.astype(np.float64), truth)) for s in (off, found)
    )
    assert np.median(after, axis=1)[0] < np.median(before, axis=1)[0] / 2
    assert np.median(after, axis=1)[1] < np.median(before, axis=1)[1] / 2
    zoom = found.K[:, [0, 1], [0, 1]] / scene.K[:, [0, 1], [0, 1]]
    assert np.abs(zoom - 1).max() < 0.02
    np.testing.assert_allclose(found.cam_from_world[0], off.cam_from_world[0], atol=1e-6)  # the world stays
    assert found.intrinsics == ("adjusted",) * VIEWS
    # Depth and points are those of the cameras, each point in its own pixel.
    height, width = scene.valid.shape[1:]
    v, u = np.mgrid[:height, :width] + 0.5
    for i in range(VIEWS):
        local = found.points[i] @ found.cam_from_world[i, :, :3].T + found.cam_from_world[i, :, 3]
        seen = local @ found.K[i].T
        np.testing.assert_allclose(seen[..., :2] / seen[..., 2:], np.stack([u, v], -1), atol=1e-2)
        np.testing.assert_allclose(local[..., 2], found.depth[i], rtol=1e-3)
    scale = np.median(found.depth / scene.depth)
    assert np.abs(found.depth / scene.depth / scale - 1).max() < 0.02
    assert abs(np.median(found.depth / off.depth) - 1) < 0.02  # and the unit stays


def test_the_unit_stays_where_the_model_has_a_camera_wrong(pycolmap, scene):
    """The second camera, of which one coordinate fixes the solver's unit, stands at 85 % of its way."""
    pose, centres = scene.cam_from_world.copy(), scene.world_from_cam[:, :3, 3]
    pose[1, :, 3] = -pose[1, :, :3] @ (0.15 * centres[0] + 0.85 * centres[1])
    off = dataclasses.replace(scene, cam_from_world=pose)
    found, _ = bundle_adjust(off)
    assert abs(np.median(found.depth / off.depth) - 1) < 0.02
    away = np.linalg.norm(found.world_from_cam[:, :3, 3] - centres, axis=-1)
    assert away.max() < 0.05 * np.ptp(centres, axis=0).max()


def test_a_photograph_that_sees_too_little_keeps_its_camera(pycolmap, scene):
    off = disturbed(scene, frames=(1, 2, 3, 4))
    colors = off.colors.copy()
    colors[5] = 128
    found, done = bundle_adjust(dataclasses.replace(off, colors=colors))
    assert done.moved == scene.names[:5]
    np.testing.assert_allclose(found.cam_from_world[5], off.cam_from_world[5], atol=1e-6)
    assert not np.allclose(found.cam_from_world[4], off.cam_from_world[4], atol=1e-3)


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(LEAST_POINTS=10**6), "too little for bundle_adjust: [0-9]+ points"),
        (dict(LARGEST_TURN=0.01), "turns the camera of [1-5].png by"),
        (dict(OUTLIER=0.0), "too little"),
    ],
)
def test_what_fails_leaves_the_scene_as_it_is_and_says_so(pycolmap, scene, change, why, monkeypatch):
    for name, value in change.items():
        monkeypatch.setattr(bundle, name, value)
    off = disturbed(scene)
    with pytest.raises(errors.FailedError, match=why):
        bundle_adjust(off)
    with pytest.warns(UserWarning, match="the cameras are left as the model has them"):
        kept, done = adjusted_or_as_it_is(off)
    assert kept is off and "bundle_adjust" in done["failed"]


def test_focal_lengths_that_run_away_stay(pycolmap, scene, monkeypatch):
    off = disturbed(scene, zoom=1.03)
    monkeypatch.setattr(bundle, "LARGEST_ZOOM", 1.0001)
    found, done = bundle_adjust(off)
    assert not done.zoomed and done.after < done.before
    np.testing.assert_allclose(found.K, off.K, rtol=1e-6)


def test_the_true_scene_stays(pycolmap, scene):
    found, done = adjusted_or_as_it_is(scene)
    if "failed" not in done:  # there may be nothing to gain
        errors_of = np.stack(metrics.pair_errors(*(s.cam_from_world.astype(float) for s in (found, scene))))
        assert np.median(errors_of[0]) < 0.1


def test_without_pycolmap_the_command_that_brings_it_is_said(scene, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ExtraError, match=r"pip install 'fastvggt_jax\[colmap\]'"):
        bundle_adjust(scene)
