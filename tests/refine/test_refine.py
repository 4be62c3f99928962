"""Measured tracks show where photographs have things, whatever the cameras say; bundle adjustment makes the
cameras say it too.
"""

import dataclasses
import importlib.util
import warnings

import numpy as np
import pytest

from fastvggt_jax import errors, export
from fastvggt_jax.evaluate import metrics
from fastvggt_jax.export.base import check_formats, write_formats
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
    assert tracks.xy[:, 0].min() > 60
    chequer = np.add.outer(*(np.arange(side) // 16 for side in scene.valid.shape[1:])) % 2 == 0
    tracks = measure_tracks(dataclasses.replace(scene, valid=scene.valid & chequer))
    u, v = tracks.xy.astype(int).T
    assert len(tracks) and chequer[v, u].all()


# ---- bundle adjustment


@pytest.fixture
def pycolmap():
    return pytest.importorskip("pycolmap")


@pytest.mark.parametrize("shared", [False, True])
def test_cameras_depth_and_points_come_back(pycolmap, scene, shared):
    off = disturbed(scene, zoom=1.03)
    found, _, done = bundle_adjust(off, shared_camera=shared)
    assert done.after < 0.2 < done.before and done.after < done.before / 3
    assert len(done.moved) == VIEWS and done.points > 300 and done.zoomed
    truth = scene.cam_from_world.astype(np.float64)
    before, after = (
        np.stack(metrics.pair_errors(s.cam_from_world.astype(np.float64), truth)) for s in (off, found)
    )
    assert np.median(after, axis=1)[0] < np.median(before, axis=1)[0] / 2
    assert np.median(after, axis=1)[1] < np.median(before, axis=1)[1] / 2
    zoom = found.K[:, [0, 1], [0, 1]] / scene.K[:, [0, 1], [0, 1]]
    assert np.abs(zoom - 1).max() < 0.03  # no more do six small views tell of fx and fy by themselves
    assert np.abs(np.log(zoom).mean()) < 0.02
    np.testing.assert_allclose(found.cam_from_world[0], off.cam_from_world[0], atol=1e-6)  # the world stays
    assert found.intrinsics == ("adjusted",) * VIEWS
    if shared:
        K = np.stack([found.K_original(i) for i in range(VIEWS)])
        for size in {(t.original_width, t.original_height) for t in found.transforms}:
            same = [(t.original_width, t.original_height) == size for t in found.transforms]
            assert np.ptp(K[same], axis=0).max() < 1e-3 and np.ptp(K[same][:, [0, 1], [0, 1]]) < 1e-3
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


def turned(scene, i):
    """The scene, whose images are square, with a photograph that lies on its side."""
    arrays = {}
    for name in ("colors", "valid", "points", "points_conf", "depth", "depth_conf"):
        arrays[name] = getattr(scene, name).copy()
        arrays[name][i] = np.rot90(arrays[name][i])
    side, t, K, pose = scene.valid.shape[1], scene.transforms[i], scene.K.copy(), scene.cam_from_world.copy()
    (fx, fy), (cx, cy) = K[i, [0, 1], [0, 1]], K[i, :2, 2]
    K[i] = [[fy, 0, cy], [0, fx, side - cx], [0, 0, 1]]
    pose[i] = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) @ pose[i]
    to = dataclasses.replace(
        t,
        original_width=t.original_height,
        original_height=t.original_width,
        scale_x=t.scale_y,
        scale_y=t.scale_x,
        offset_x=t.offset_y,
        offset_y=side - t.scale_x * t.original_width - t.offset_x,
    )
    transforms = (*scene.transforms[:i], to, *scene.transforms[i + 1 :])
    return dataclasses.replace(scene, **arrays, K=K, cam_from_world=pose, transforms=transforms)


def test_a_photograph_that_is_turned_has_the_same_focal_length(pycolmap, tmp_path):
    scene = turned(true_scene(tmp_path, "square", 140).scene, 5)
    off = disturbed(scene, zoom=1.03)
    found, tracks, done = bundle_adjust(off, shared_camera=True)
    K = np.stack([found.K_original(i) for i in range(VIEWS)])
    sides = {(t.original_width, t.original_height) for t in (found.transforms[0], found.transforms[5])}
    assert sides == {(160, 120), (120, 160)} and np.ptp(K[[0, 1, 5]][:, [0, 1], [0, 1]]) < 1e-3
    assert done.after < 0.2 and done.after < done.before / 3
    assert np.median(np.linalg.norm(tracks.residual, axis=-1)) < 0.1
    made = export.Export.of(found, export.ExportOptions(shared_camera=True))
    np.testing.assert_allclose(made.scene.K, found.K, rtol=1e-5)  # there is nothing left to share


def test_the_tracks_are_where_photographs_show_things_and_points_where_adjusted_cameras_see_them(
    pycolmap, scene, tmp_path
):
    found, tracks, done = bundle_adjust(disturbed(scene, zoom=1.03))
    assert (len(tracks), len(tracks.point)) == (done.points, done.observations)
    seen = np.einsum("nij,nj->ni", found.cam_from_world[tracks.frame, :, :3], tracks.xyz[tracks.point])
    seen = np.einsum("nij,nj->ni", found.K[tracks.frame], seen + found.cam_from_world[tracks.frame, :, 3])
    off = tracks.xy - seen[:, :2] / seen[:, 2:]
    np.testing.assert_allclose(tracks.residual, off, atol=1e-3)
    away = np.linalg.norm(off, axis=-1)
    assert 1e-3 < np.median(away) < 0.1  # measured, hence not 0
    # The true cameras, which have seen none of this, see the true points there too.
    true = np.einsum(
        "nij,nj->ni",
        scene.cam_from_world[:, :, :3][tracks.frame],
        scene.points.reshape(-1, 3)[tracks.pixel][tracks.point],
    )
    true = np.einsum("nij,nj->ni", scene.K[tracks.frame], true + scene.cam_from_world[tracks.frame, :, 3])
    assert np.median(np.linalg.norm(tracks.xy - true[:, :2] / true[:, 2:], axis=-1)) < 0.1
    # And so they reach COLMAP, whose own adjustment has something to go by.
    made = export.Export.of(found, export.ExportOptions(), measured=tracks)
    write_formats(made, tmp_path, check_formats("colmap"))
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    model.update_point_3d_errors()
    assert model.num_points3D() == len(tracks)
    mean = model.compute_mean_reprojection_error()
    _, residuals = tracks.in_pixels(found)
    assert mean == pytest.approx(tracks.errors(residuals).mean(), rel=1e-3) and mean > 1e-3
    moved = model.images[3].cam_from_world()
    moved.translation += 0.02
    model.frames[3].rig_from_world = moved
    model.update_point_3d_errors()
    worse = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model, pycolmap.BundleAdjustmentOptions(print_summary=False))
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < worse / 2


@pytest.mark.parametrize("scale, shift", [(1.03, 0.0), (0.9, 0.5)])
def test_depth_follows_the_points_by_a_scale_and_a_shift(pycolmap, scene, scale, shift):
    depth, points = scene.depth.copy(), scene.points.copy()
    for i in (2, 4):
        depth[i] = scale * depth[i] + shift
        centre = scene.world_from_cam[i, :3, 3]
        points[i] = centre + (points[i] - centre) * (depth[i] / scene.depth[i])[..., None]
    off = disturbed(dataclasses.replace(scene, depth=depth, points=points))
    found, tracks, done = bundle_adjust(off)
    ratio = found.depth / scene.depth
    away = np.abs(ratio / np.median(ratio) - 1)
    assert np.median(away[2]) < 0.012 and np.median(away[4]) < 0.012 and done.depth_off < 0.03
    local = found.points[2] @ found.cam_from_world[2, :, :3].T + found.cam_from_world[2, :, 3]
    np.testing.assert_allclose(local[..., 2], found.depth[2], rtol=1e-3)


def test_a_point_that_comes_to_be_behind_a_camera_counts_as_far_off(pycolmap, scene):
    tracks = measure_tracks(scene)
    behind = scene.cam_from_world.copy()
    behind[3, :, :] = np.diag([-1, 1, -1]) @ behind[3]  # looks the other way
    error = bundle._error(dataclasses.replace(scene, cam_from_world=behind), tracks)
    assert np.isfinite(error.cost) and error.cost > bundle._error(scene, tracks).cost


def test_a_given_K_stays(pycolmap, scene):
    off = dataclasses.replace(disturbed(scene), intrinsics=("given",) * VIEWS)
    found, _, done = bundle_adjust(off)
    np.testing.assert_allclose(found.K, off.K, rtol=1e-6)
    assert found.intrinsics == off.intrinsics and not done.zoomed and done.after < done.before / 3


def test_one_focal_length_where_the_camera_has_one(pycolmap, scene):
    found, _, done = bundle_adjust(disturbed(scene, zoom=1.03), camera_model="SIMPLE_RADIAL")
    K = np.stack([found.K_original(i) for i in range(VIEWS)])
    np.testing.assert_allclose(K[:, 0, 0], K[:, 1, 1], rtol=1e-5)
    assert done.zoomed and np.ptp(K[:, 0, 0]) > 1e-3


def test_the_unit_stays_where_the_model_has_a_camera_wrong(pycolmap, scene):
    """The second camera, of which one coordinate fixes the solver's unit, stands at 85 % of its way."""
    pose, centres = scene.cam_from_world.copy(), scene.world_from_cam[:, :3, 3]
    pose[1, :, 3] = -pose[1, :, :3] @ (0.15 * centres[0] + 0.85 * centres[1])
    off = dataclasses.replace(scene, cam_from_world=pose)
    found, *_ = bundle_adjust(off)
    assert abs(np.median(found.depth / off.depth) - 1) < 0.02
    away = np.linalg.norm(found.world_from_cam[:, :3, 3] - centres, axis=-1)
    assert away.max() < 0.05 * np.ptp(centres, axis=0).max()


def test_a_photograph_that_sees_too_little_keeps_its_camera(pycolmap, scene):
    off = disturbed(scene, frames=(1, 2, 3, 4))
    colors = off.colors.copy()
    colors[5] = 128
    found, _, done = bundle_adjust(dataclasses.replace(off, colors=colors))
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
        kept, tracks, done = adjusted_or_as_it_is(off)
    assert kept is off and tracks is None and "bundle_adjust" in done["failed"]


def test_focal_lengths_that_run_away_stay(pycolmap, scene, monkeypatch):
    off = disturbed(scene, zoom=1.03)
    monkeypatch.setattr(bundle, "LARGEST_ZOOM", 1.0001)
    found, _, done = bundle_adjust(off)
    assert not done.zoomed and done.after < done.before
    np.testing.assert_allclose(found.K, off.K, rtol=1e-6)


def test_the_true_scene_stays(pycolmap, scene):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there may be nothing to gain
        found, _, _ = adjusted_or_as_it_is(scene)
    turned, _ = metrics.pair_errors(*(s.cam_from_world.astype(float) for s in (found, scene)))
    assert np.median(turned) < 0.1
    np.testing.assert_allclose(found.K, scene.K, rtol=0.01)


def test_without_pycolmap_the_command_that_brings_it_is_said(scene, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ExtraError, match=r"pip install 'fastvggt_jax\[colmap\]'"):
        bundle_adjust(scene)
