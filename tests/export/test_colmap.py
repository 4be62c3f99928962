"""COLMAP models and tracks: the truth goes through them, and other readers find it there."""

import dataclasses
import os
import warnings

import numpy as np
import pytest

from fastvggt_jax import Scene, errors, export
from fastvggt_jax.export import Export, ExportOptions, tracks
from fastvggt_jax.export.lenses import with_K, with_shared_camera, with_square_pixels
from fastvggt_jax.export.tracks import find_tracks
from fastvggt_jax.sources import ImageTransform
from tests.export.colmap_reader import read_colmap
from tests.export.truth import CROPS, VIEWS, true_scene

MODES = ["crop", "pad", "square", "area"]
POINTS = ExportOptions(track_points=3000)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    made = {}

    def of(mode="crop"):
        if mode not in made:
            made[mode] = true_scene(tmp_path_factory.mktemp(mode), mode)
        return made[mode]

    return of


def write(scene, folder, options=POINTS, formats=("colmap",)):
    export.write(scene, folder, formats, options)
    return folder / "sparse" / "0"


# ---- the truth goes through


@pytest.mark.parametrize("mode", MODES)
def test_cameras_and_points_are_the_true_ones(truth, mode, tmp_path):
    true = truth(mode)
    model = read_colmap(write(true.scene, tmp_path))
    assert len(model.images) == len(model.cameras) == VIEWS and len(model.points) == 3000
    for i in range(VIEWS):
        image = model.images[i + 1]
        assert image.name.decode() == true.scene.names[i]
        np.testing.assert_allclose(image.cam_from_world(), true.scene.cam_from_world[i], atol=1e-6)
        kind, width, height, (fx, fy, cx, cy) = model.cameras[image.camera]
        left, top, right, bottom = CROPS[i]
        assert (kind, width, height) == (1, right - left, bottom - top)  # upright, whatever EXIF says
        np.testing.assert_allclose([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], true.K[i], atol=1e-4)
        shown = true.points_at(i, image.xy)
        points = np.array([model.points[number].xyz for number in image.points])
        wrong = np.linalg.norm(shown - points, axis=-1) > 1e-4
        # but where a pixel of the model's lies across an edge that the photograph's ray does not
        assert wrong.mean() < 0.03
        own = np.isin(np.round(true.scene.transforms[i].to_model(image.xy) - 0.5, 3) % 1, (0, 1)).all(-1)
        assert own.sum() > 200 and not wrong[own].any()


def test_every_observation_is_where_the_cameras_see_its_point(truth, tmp_path):
    true = truth()
    model = read_colmap(write(true.scene, tmp_path))
    seen = 0
    for number, point in model.points.items():
        assert len(point.track) >= 2 and len({image for image, _ in point.track}) == len(point.track)
        off = []
        for image, place in point.track:
            assert model.images[image].points[place] == number
            pose = model.images[image].cam_from_world()
            at = true.K[image - 1] @ (pose[:, :3] @ point.xyz + pose[:, 3])
            off.append(np.linalg.norm(at[:2] / at[2] - model.images[image].xy[place]))
        np.testing.assert_allclose(point.error, np.mean(off), atol=1e-4)
        assert max(off) < 1e-3
        seen += len(point.track)
    assert seen == sum(len(image.points) for image in model.images.values())
    assert seen / len(model.points) > 4


def test_a_view_observes_what_it_shows_and_nothing_that_is_hidden(truth):
    true = truth()
    found = find_tracks(true.scene, 3000)
    for i, t in enumerate(true.scene.transforms):
        observes = np.zeros(len(found), bool)
        observes[found.point[found.frame == i]] = True
        shown = true.sees(i, found.xyz)
        pose = true.scene.cam_from_world[i].astype(np.float64)
        at = (found.xyz @ pose[:, :3].T + pose[:, 3]) @ true.scene.K[i].T.astype(np.float64)
        left, top, right, bottom = t.valid  # the crop has cut some off
        uv = at[:, :2] / at[:, 2:]
        shown &= ((uv > (left, top)) & (uv < (right, bottom))).all(-1)
        assert (observes & ~shown).mean() < 0.02 and (shown & ~observes).mean() < 0.05
        assert 0.2 < shown.mean() < 0.95


def test_colours_are_those_of_the_points(truth):
    true = truth()
    found = find_tracks(true.scene, 500)
    own = found.residual.any(-1) == 0
    assert own.any()
    for i in range(VIEWS):
        at = (found.frame == i) & (np.abs(found.xy % 1 - 0.5) < 1e-9).all(-1)
        u, v = found.xy[at].astype(int).T
        np.testing.assert_array_equal(found.rgb[found.point[at]], true.scene.colors[i, v, u])


# ---- real pycolmap


@pytest.fixture
def pycolmap():
    return pytest.importorskip("pycolmap")


@pytest.mark.parametrize("format", ["colmap", "colmap-text"])
def test_pycolmap_reads_the_same(pycolmap, truth, format, tmp_path):
    true = truth()
    folder = write(true.scene, tmp_path, formats=(format,))
    model = pycolmap.Reconstruction(folder)
    assert model.num_reg_images() == model.num_cameras() == model.num_rigs() == model.num_frames() == VIEWS
    assert model.num_points3D() == 3000 and model.is_valid()
    for i in range(VIEWS):
        image = model.images[i + 1]
        np.testing.assert_allclose(image.cam_from_world().matrix(), true.scene.cam_from_world[i], atol=1e-6)
        np.testing.assert_allclose(model.cameras[image.camera_id].calibration_matrix(), true.K[i], atol=1e-4)
    stored = model.compute_mean_reprojection_error()
    model.update_point_3d_errors()
    assert stored < 1e-4 and model.compute_mean_reprojection_error() < 1e-4
    assert model.compute_mean_track_length() > 4
    found = find_tracks(true.scene, 3000)
    read = np.array([model.points3D[k + 1].xyz for k in range(3000)])
    np.testing.assert_allclose(read, found.xyz, atol=1e-6)


def test_pycolmap_triangulates_the_points_again(pycolmap, truth, tmp_path):
    model = pycolmap.Reconstruction(write(truth().scene, tmp_path))
    checked = 0
    for point in list(model.points3D.values())[::50]:
        elements = point.track.elements
        images = [model.images[element.image_id] for element in elements]
        xy = np.array([image.points2D[e.point2D_idx].xy for image, e in zip(images, elements, strict=True)])
        found = pycolmap.estimate_triangulation(
            xy,
            [image.cam_from_world() for image in images],
            [model.cameras[image.camera_id] for image in images],
        )
        if found is not None:
            np.testing.assert_allclose(found["xyz"], point.xyz, atol=1e-4)
            checked += 1
    assert checked > 50


# ---- options


def test_the_same_scene_gives_the_same_tracks_whatever_the_chunk(truth, monkeypatch):
    scene, every = truth().scene, 10**6
    whole = find_tracks(scene, every)
    again = find_tracks(scene, every)
    monkeypatch.setattr(tracks, "CHUNK", 1000)
    parts = find_tracks(scene, every)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(again, field.name))
        np.testing.assert_allclose(getattr(whole, field.name), getattr(parts, field.name), atol=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_of_many_views_every_so_manieth_counts(share):
    """Of those that see the point, and the one that it is of."""
    rng, views, points = np.random.default_rng(0), 200, 60
    seen, source = rng.random((views, points)) < share, rng.integers(views, size=points)
    seen[source, np.arange(points)] = True
    seen[:, 0] = np.arange(views) == source[0]  # by one view
    chosen = tracks._evenly(seen, source)
    for k in range(points):
        length, own = seen[:, k].sum(), np.cumsum(seen[:, k])[source[k]] - 1
        ranks = np.flatnonzero(chosen[seen[:, k], k])
        if length < 2:
            assert not chosen[:, k].any()
            continue
        assert own in ranks and not (chosen[:, k] & ~seen[:, k]).any()
        step = min(1.0, tracks.MAX_TRACK / length)
        even = np.flatnonzero(np.diff(np.floor(np.arange(-1, length) * step)))
        assert len(even) == min(length, tracks.MAX_TRACK)
        np.testing.assert_array_equal(ranks, np.union1d(even, own))


def test_long_tracks_are_thinned_evenly_and_keep_their_own_view(truth, monkeypatch):
    scene = truth().scene
    whole = find_tracks(scene, 3000)
    monkeypatch.setattr(tracks, "MAX_TRACK", 3)
    some = find_tracks(scene, 3000)
    np.testing.assert_array_equal(whole.xyz, some.xyz)
    assert whole.lengths().max() == VIEWS and 3 <= some.lengths().max() <= 4
    short = whole.lengths() <= 3
    np.testing.assert_array_equal(whole.lengths()[short], some.lengths()[short])
    at_centre = (np.abs(some.xy % 1 - 0.5) < 1e-9).all(-1)
    assert np.bincount(some.point, at_centre).min() >= 1


def test_filters_and_limits_reach_the_tracks(truth):
    scene = truth().scene
    assert len(find_tracks(scene, 100)) == 100
    loose, thinned = find_tracks(scene, 10**6), find_tracks(scene, 10**6, voxel=0.2)
    assert 0 < len(thinned) < len(loose) / 10
    cubes = np.floor(thinned.xyz / 0.2)
    assert len(np.unique(cubes, axis=0)) == len(thinned)
    upper = dataclasses.replace(scene, points_conf=scene.points[..., 2] + 10)
    middle = np.percentile(scene.points[scene.valid][:, 2], 50)
    assert find_tracks(upper, 1000, conf_percentile=50).xyz[:, 2].min() >= middle - 1e-5


def two_views(**changes) -> Scene:
    """Two cameras side by side before a wall at z = 4; a square at z = 2 hides some of it."""
    H, W = 40, 60
    t = ImageTransform(W, H, W, H, 1.0, 1.0, 0.0, 0.0)
    K = np.array([[50, 0, 30], [0, 50, 20], [0, 0, 1]], np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32)[:3], (2, 1, 1))
    poses[1, 0, 3] = -0.5
    v, u = np.mgrid[:H, :W] + 0.5
    rays = np.stack([(u - 30) / 50, (v - 20) / 50, np.ones((H, W))], -1)
    depth = []
    for pose in poses:
        x, y = (rays[..., :2] * 2 - pose[:2, 3]).transpose(2, 0, 1)  # where z = 2
        depth.append(np.where((np.abs(x) < 0.5) & (np.abs(y) < 0.5), 2.0, 4.0))
    depth = np.stack(depth).astype(np.float32)
    points = rays * depth[..., None] - poses[:, None, None, :, 3]
    rgb = np.where(depth[..., None] == 2, (200, 30, 30), (40, 80, 160)).astype(np.uint8)
    fields = dict(
        names=("l.png", "r.png"),
        transforms=(t, t),
        colors=rgb,
        valid=np.ones((2, H, W), bool),
        K=np.stack([K, K]),
        cam_from_world=poses,
        points=points.astype(np.float32),
        points_conf=np.ones((2, H, W), np.float32),
        depth=depth,
        depth_conf=np.ones((2, H, W), np.float32),
        intrinsics=("predicted",) * 2,
    )
    return Scene(**(fields | changes))


def test_what_is_nearer_hides_what_is_farther():
    found = find_tracks(two_views(), 10**6)
    assert (found.lengths() == 2).all()
    wall = found.xyz[:, 2] > 3
    assert wall.any() and (~wall).any()
    # From each eye the square hides another part of the wall, and of neither is there a track.
    x, y = found.xyz[wall, :2].T
    hidden = [(np.abs((x - eye) / 2 + eye) < 0.45) & (np.abs(y / 2) < 0.45) for eye in (0.0, 0.5)]
    assert not hidden[0].any() and not hidden[1].any()


def test_another_colour_is_another_thing():
    scene = two_views()
    colors = scene.colors.copy()
    colors[1, :20] = 255 - colors[1, :20]
    assert 0 < len(find_tracks(scene, 10**6)) > len(find_tracks(two_views(colors=colors), 10**6)) > 0
    upper = find_tracks(two_views(colors=colors), 10**6).xyz[:, 1] < -0.2
    assert not upper.any()


@pytest.mark.parametrize("what", ["valid", "conf"])
def test_a_pixel_that_shows_nothing_observes_nothing(what):
    scene = two_views()
    nothing = np.zeros(scene.valid.shape, bool)
    nothing[1, :20] = True
    changed = {
        "valid": dict(valid=~nothing),
        "conf": dict(points_conf=np.where(nothing, 0, scene.points_conf), conf_floor=0.5),
    }[what]
    found = find_tracks(two_views(**changed), 10**6, conf_percentile=1)
    assert len(found) and not (found.xy[found.frame == 1][:, 1] < 20).any()


def test_without_a_point_the_files_are_written_empty_and_it_is_said(tmp_path):
    scene = two_views(valid=np.zeros((2, 40, 60), bool))
    with pytest.warns(UserWarning, match="no point is seen by two photographs or more"):
        folder = write(scene, tmp_path)
    model = read_colmap(folder)
    assert len(model.images) == 2 and not model.points and not len(model.images[1].points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(scene, tmp_path / "text", formats=("colmap-text",))
    pycolmap = pytest.importorskip("pycolmap")
    for read in (folder, tmp_path / "text" / "sparse" / "0"):
        assert pycolmap.Reconstruction(read).num_points3D() == 0


def test_one_photograph_has_cameras_and_no_tracks(tmp_path):
    scene = two_views()
    arrays = ("colors", "valid", "K", "cam_from_world", "points", "points_conf", "depth", "depth_conf")
    one = {name: getattr(scene, name)[:1] for name in (*arrays, "names", "transforms", "intrinsics")}
    with pytest.warns(UserWarning, match="no point"):
        model = read_colmap(write(dataclasses.replace(scene, **one), tmp_path))
    assert len(model.images) == 1 and not model.points


# ---- one camera


def test_a_shared_camera_is_the_median_and_stands_in_every_file(truth, tmp_path):
    true = truth()
    factors = np.array([0.98, 1.0, 1.01, 1.0, 3.0, 1.02])[:, None, None]  # one is far off
    K = true.scene.K.copy()
    K[:, :2, :2] *= factors
    # Photographs of other sizes were cropped here, but look scaled: of one size all.
    same = (true.scene.transforms[0],) * VIEWS
    scene = dataclasses.replace(true.scene, K=K, transforms=same)
    options = dataclasses.replace(POINTS, shared_camera=True)
    folder = write(scene, tmp_path, options, ("colmap", "cameras", "scene"))
    model = read_colmap(folder)
    assert len(model.cameras) == len(model.rigs) == 1
    _, width, height, (fx, fy, cx, cy) = model.cameras[1]
    assert (width, height) == (160, 120) and fx == pytest.approx(fy, abs=1e-4)
    focal = np.stack([scene.K_original(i) for i in range(VIEWS)])[:, [0, 1], [0, 1]]
    assert fx == pytest.approx(np.median(focal), rel=1e-4) and focal.max() > 2 * fx
    shared = Scene.load(tmp_path)
    assert shared.intrinsics == ("shared",) * VIEWS
    for i in range(VIEWS):
        np.testing.assert_allclose(shared.K_original(i), [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], atol=1e-3)
    np.testing.assert_array_equal(shared.depth, scene.depth)


def test_points_follow_another_K_in_their_own_pixels():
    scene = two_views(K=two_views().K * np.array([1.1, 0.95, 1])[:, None], names=("a", "b"))
    for changed in (with_shared_camera(scene), with_square_pixels(scene)):
        assert not np.allclose(changed.K, scene.K)
        for i in range(2):
            before, after = (
                s.points[i] @ s.cam_from_world[i, :, :3].T + s.cam_from_world[i, :, 3]
                for s in (scene, changed)
            )
            np.testing.assert_allclose(after[..., 2], before[..., 2], rtol=1e-5)
            seen = [x @ k.T / x[..., 2:] for x, k in ((before, scene.K[i]), (after, changed.K[i]))]
            np.testing.assert_allclose(seen[0], seen[1], atol=1e-3)


def test_sizes_and_guesses_of_a_shared_camera():
    t = ImageTransform(60, 40, 60, 40, 1.0, 1.0, 0.0, 0.0)
    turned, other = (
        dataclasses.replace(t, original_width=40, original_height=60),
        dataclasses.replace(t, original_width=30, original_height=20, scale_x=2.0, scale_y=2.0),
    )
    focal = np.array([50, 52, 200, 25, 54, 90.0])
    K = np.tile(np.eye(3), (6, 1, 1))
    K[:, 0, 0] = K[:, 1, 1] = focal * [1, 1, 1, 2, 1, 1]  # the fourth in its original pixels 25
    K[:, :2, 2] = 5
    arrays = {
        name: np.repeat(getattr(two_views(), name)[:1], 6, 0)
        for name in ("colors", "valid", "cam_from_world", "points", "points_conf", "depth", "depth_conf")
    }
    scene = two_views(
        **arrays,
        names=tuple("abcdef"),
        transforms=(t, turned, t, other, t, t),
        K=K.astype(np.float32),
        intrinsics=("predicted", "predicted", "guessed", "guessed", "predicted", "predicted"),
    )
    shared = with_shared_camera(scene)
    found = [shared.K_original(i)[0, 0] for i in range(6)]
    # 50, 52, 54, 90 have a voice among the first size, turned or not; the fourth has its own.
    np.testing.assert_allclose(found, [53, 53, 53, 25, 53, 53], rtol=1e-5)


def test_simple_radial_has_one_focal_length_in_every_file(truth, tmp_path):
    scene = truth("area").scene  # its model pixels are no squares
    wider = truth("area").K * np.array([1.02, 1, 1])[:, None]
    stretched = with_K(scene, wider, scene.intrinsics)
    folder = write(stretched, tmp_path, dataclasses.replace(POINTS, camera_model="SIMPLE_RADIAL"))
    model = read_colmap(folder)
    for kind, _, _, (f, _, _, k) in model.cameras.values():
        assert kind == 2 and k == 0 and f == pytest.approx(150 * 1.02**0.5, rel=1e-4)
    assert np.mean([point.error for point in model.points.values()]) < 1e-3


@pytest.mark.parametrize(
    "options", [dict(camera_model="FISHEYE"), dict(track_points=0), dict(track_points=1.5)]
)
def test_wrong_options_are_named(options):
    with pytest.raises(errors.InputError, match=next(iter(options))) as raised:
        ExportOptions(**options)
    assert raised.value.argument == next(iter(options))


# ---- names


def test_names_of_all_kinds(tmp_path):
    names = ("IMG 1 \u2603.jpg", "sub/b\n\udcff.jpg")
    model = read_colmap(write(two_views(names=names), tmp_path))
    assert [os.fsdecode(image.name) for image in model.images.values()] == list(names)
    with pytest.warns(UserWarning, match="_ stands for them, as in 'IMG 1"):
        write(two_views(names=names), tmp_path, formats=("colmap-text",))
    lines = (tmp_path / "sparse" / "0" / "images.txt").read_bytes().decode().splitlines()
    assert [line.split()[9] for line in lines[1::2]] == ["IMG_1_\u2603.jpg", "sub/b__.jpg"]
    if pycolmap := pytest.importorskip("pycolmap"):
        assert pycolmap.Reconstruction(tmp_path / "sparse" / "0").images[1].name == names[0]


@pytest.mark.parametrize("option", [dict(edge_filter=0.02), dict(voxel=0.3), dict(conf_percentile=60.0)])
def test_points_with_tracks_are_filtered_as_the_others_are(truth, option):
    scene = truth().scene
    rng = np.random.default_rng(0)
    conf = rng.uniform(2, 5, scene.points_conf.shape).astype(np.float32)
    scene = dataclasses.replace(scene, points_conf=conf, depth_conf=conf)
    count = lambda **options: len(Export.of(scene, ExportOptions(track_points=10**6, **options)).tracks)
    assert 0 < count(**option) < 0.95 * count()
