"""Points that a model follows: which it is asked for, and what tracks its answers make."""

import dataclasses

import numpy as np
import pytest

from fastvggt_jax.export.base import Export, ExportOptions
from fastvggt_jax.export.colmap import write_colmap
from fastvggt_jax.export.lenses import with_shared_camera
from fastvggt_jax.export.tracks import Followed, followed_tracks
from fastvggt_jax.refine.queries import choose_queries
from tests.export.colmap_reader import read_colmap
from tests.export.truth import VIEWS, true_scene


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"), "pad", 112)


@pytest.fixture(scope="module")
def queries(true):
    return choose_queries(true.scene.colors, true.scene.valid, 600)


@pytest.fixture(scope="module")
def followed(true, queries):
    """What a perfect tracker says of them."""
    scene = true.scene
    points = scene.points.reshape(-1, 3)[queries.pixel].astype(np.float64)
    xy, seen = [], []
    for i, (K, pose) in enumerate(zip(scene.K, scene.cam_from_world, strict=True)):
        at = (points @ pose[:, :3].T + pose[:, 3]) @ K.T
        xy.append(at[:, :2] / at[:, 2:])
        seen.append(true.sees(i, points))
    return Followed(queries.pixel, np.float32(xy), np.where(seen, 0.9, 0.05).astype(np.float32))


# ---- which are asked for


def test_as_many_points_of_each_frame_as_the_pixels_that_they_are(true, queries):
    frames, height, width = true.scene.valid.shape
    assert queries.frames == tuple(range(VIEWS)) and queries.xy.shape == (600, 2)
    of, rest = np.divmod(queries.pixel, height * width)
    np.testing.assert_array_equal(of, np.repeat(queries.frames, 100))
    np.testing.assert_array_equal(queries.xy, np.stack([rest % width, rest // width], -1))
    assert true.scene.valid.reshape(-1)[queries.pixel].all()
    assert len(np.unique(queries.pixel)) == 600


def test_textured_pixels_come_first_and_frames_that_show_nothing_do_not():
    rng = np.random.default_rng(0)
    pixels = np.full((12, 56, 56, 3), 128, np.uint8)
    pixels[:, :28] = rng.integers(0, 256, (12, 28, 56, 3))
    shown = np.ones((12, 56, 56), bool)
    shown[5:] = False
    shown[6, :2, :2] = shown[11] = True
    few = choose_queries(pixels, shown, 60)
    assert few.frames == (0, 1, 2, 3, 4, 6, 11)
    textured = few.xy.reshape(7, -1, 2)[[0, 1, 2, 3, 4, 6]]
    assert (textured[..., 1] < 32).all()  # of the upper half, and the border of the lower
    inside = few.xy.reshape(7, -1, 2)[5]  # of four pixels, some twice
    assert (inside < 2).all() and len(inside) == 60 // 7
    many = choose_queries(pixels, shown, 7 * 200)
    assert (many.xy.reshape(7, -1, 2)[0][:, 1] > 32).any()  # more than there are corners
    again = choose_queries(pixels, shown, 60)
    np.testing.assert_array_equal(few.pixel, again.pixel)
    assert choose_queries(pixels, np.zeros_like(shown), 60) is None
    assert choose_queries(pixels, shown, 1).xy.shape == (1, 2)


def test_at_most_eight_frames_evenly_spread():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 28, 28, 3), np.uint8)
    frames = choose_queries(pixels, np.ones((50, 28, 28), bool), 64).frames
    assert len(frames) == 8 and frames[0] == 0 and frames[-1] == 49
    assert set(np.diff(frames)) <= {7}


# ---- what is made of the answers


def test_the_truth_goes_through_to_another_reader(true, followed, tmp_path):
    tracks = followed_tracks(true.scene, followed, 10**6)
    assert len(tracks) > 500 and tracks.lengths().min() >= 2 and tracks.lengths().mean() > 4
    assert np.abs(tracks.residual).max() < 1e-3
    write_colmap(true.scene, tracks, tmp_path)
    model = read_colmap(tmp_path)
    assert len(model.points) == len(tracks)
    for point in model.points.values():
        assert len(point.track) == len({image for image, _ in point.track}) >= 2
        for number, place in point.track:
            at = true.K[number - 1] @ model.images[number].cam_from_world() @ [*point.xyz, 1]
            np.testing.assert_allclose(model.images[number].xy[place], at[:2] / at[2], atol=1e-2)


def test_pycolmap_finds_the_points_again(true, followed, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    tracks = followed_tracks(true.scene, followed, 10**6)
    write_colmap(true.scene, tracks, tmp_path)
    model = pycolmap.Reconstruction(tmp_path)
    assert model.num_points3D() == len(tracks) and model.compute_mean_reprojection_error() < 0.01


def change(followed, frame, points, move=0.0, conf=None):
    xy, sure = followed.xy.copy(), followed.conf.copy()
    xy[frame, points] += move
    if conf is not None:
        sure[frame, points] = conf
    return Followed(followed.pixel, xy, sure)


def observed(tracks, followed, frame):
    """bool[Q]: whether a followed point is observed in a frame."""
    return np.isin(followed.pixel, tracks.pixel[tracks.point[tracks.frame == frame]])


@pytest.mark.parametrize(
    "changed", [dict(move=30.0), dict(conf=0.2), dict(move=np.nan), dict(move=1e9), dict(move=-np.inf)]
)
def test_where_a_point_is_not_seen_is_no_observation(true, followed, changed):
    before = followed_tracks(true.scene, followed, 10**6)
    other = np.arange(len(followed.pixel)) >= 100  # those of frame 0 are in their own pixels there
    assert observed(before, followed, 0)[other].sum() > 50
    after = followed_tracks(true.scene, change(followed, 0, other, **changed), 10**6)
    assert not observed(after, followed, 0)[other].any()
    own = observed(after, followed, 0)[~other]
    assert own.sum() == observed(before, followed, 0)[~other].sum()
    assert np.isfinite(after.xy).all() and np.isfinite(after.residual).all()


def test_a_camera_does_not_see_what_lies_behind_it(true, followed):
    poses = true.scene.cam_from_world.copy()
    poses[0] *= -1  # all of it is seen in the same pixels, but behind
    turned = followed_tracks(dataclasses.replace(true.scene, cam_from_world=poses), followed, 10**6)
    other = np.arange(len(followed.pixel)) >= 100
    assert len(turned) > 300 and not observed(turned, followed, 0)[other].any()


def test_a_shift_of_less_than_the_tolerance_is_kept_as_it_is_measured(true, followed):
    other = np.arange(len(followed.pixel)) >= 100
    after = followed_tracks(true.scene, change(followed, 0, other, move=0.5), 10**6)
    of_other = (after.frame == 0) & (after.pixel[after.point] >= true.scene.valid[0].size)
    assert of_other.sum() > 50
    np.testing.assert_allclose(after.residual[of_other], 0.5, atol=1e-3)
    np.testing.assert_allclose(after.residual[(after.frame == 0) & ~of_other], 0, atol=1e-3)


def test_what_is_masked_is_in_no_track(true, followed):
    valid = true.scene.valid.copy()
    valid[:, :, :56] = False
    masked = followed_tracks(dataclasses.replace(true.scene, valid=valid), followed, 10**6)
    whole = followed_tracks(true.scene, followed, 10**6)
    assert 0 < len(masked) < len(whole) and whole.xy[:, 0].min() < 50 and masked.xy[:, 0].min() >= 56


def test_filters_limits_and_repeated_points(true, followed):
    scene = true.scene
    conf = np.arange(scene.valid.size, dtype=np.float32).reshape(scene.valid.shape)
    sure = dataclasses.replace(scene, points_conf=conf)
    half = followed_tracks(sure, followed, 10**6, conf_percentile=50)
    assert half.pixel.min() >= np.percentile(conf[scene.valid], 50)
    assert len(followed_tracks(scene, followed, 30)) == 30
    whole = followed_tracks(scene, followed, 10**6)
    twice = Followed(*(np.concatenate([x, x], -2 if x.ndim == 3 else -1) for x in vars(followed).values()))
    again = followed_tracks(scene, twice, 10**6)
    np.testing.assert_array_equal(again.pixel, whole.pixel)
    np.testing.assert_array_equal(again.xy, whole.xy)


def test_an_export_has_the_tracks_of_the_cameras_that_it_writes(true, followed):
    plain = Export.of(true.scene, ExportOptions(), (), followed)
    assert plain.tracks_report() is None and len(plain.tracks) > 500
    shared = Export.of(true.scene, ExportOptions(shared_camera=True), (), followed)
    expected = followed_tracks(with_shared_camera(true.scene), followed, 10**6)
    np.testing.assert_array_equal(shared.tracks.residual, expected.residual)
    assert len(Export.of(true.scene, ExportOptions()).tracks) > 2000  # without: those of the depth
