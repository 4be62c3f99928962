"""From a prediction to a scene, and from a scene to a point cloud."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import VGGT, Pi3, errors, geometry
from fastvggt_jax.io.scenes import all_finite
from fastvggt_jax.models.prediction import Prediction
from fastvggt_jax.scene import Scene, _hash, spread, to_scene
from fastvggt_jax.sources import Images, ImageTransform

F, H, W = 3, 28, 42
LEFT, RIGHT = 7, 35  # the photographs are 28 pixels wide, with 7 columns of padding on each side


def images_of(height=H, width=W, frames=F) -> Images:
    t = ImageTransform(56, 56, width, height, 0.5, height / 56, float(LEFT), 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    return Images(pixels, (t,) * frames, tuple(f"{i}.jpg" for i in range(frames)))


def prediction_of(**fields) -> Prediction:
    rng = np.random.default_rng(1)
    pose_enc = np.zeros((1, F, 9), np.float32)
    pose_enc[..., :3] = rng.normal(size=(F, 3))
    pose_enc[..., 3:7] = rng.normal(size=(F, 4))
    pose_enc[..., 7:] = 0.9, 1.1
    everything = dict(
        pose_enc=pose_enc,
        depth=rng.uniform(1, 3, (1, F, H, W, 1)),
        depth_conf=rng.uniform(1, 9, (1, F, H, W)),
        world_points=rng.normal(size=(1, F, H, W, 3)),
        world_points_conf=rng.uniform(1, 9, (1, F, H, W)),
    )
    everything |= fields
    return Prediction(
        made_by=VGGT, **{k: None if v is None else jnp.asarray(v, jnp.float32) for k, v in everything.items()}
    )


def in_cameras(scene: Scene) -> np.ndarray:
    """The points in their own cameras' coordinates."""
    R, t = scene.cam_from_world[:, :, :3], scene.cam_from_world[:, :, 3]
    return np.einsum("fij,fhwj->fhwi", R, scene.points) + t[:, None, None]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return to_scene(prediction_of(), images_of())


# ---- to_scene


def test_what_is_transparent_is_not_valid():
    images, masks = images_of(), np.ones((F, H, W), bool)
    masks[1, :, : W // 2] = False
    whole = to_scene(prediction_of(), images)
    cut = to_scene(prediction_of(), dataclasses.replace(images, masks=masks))
    np.testing.assert_array_equal(cut.valid, whole.valid & masks)
    assert not whole.valid.all() and len(cut.point_cloud()) == (whole.valid & masks).sum()


def test_points_come_from_depth_and_cameras(scene):
    prediction = prediction_of()
    cam_from_world, K = geometry.decode_pose(prediction.pose_enc[0], H, W)
    expected = geometry.unproject_depth(prediction.depth[0], K, cam_from_world)
    np.testing.assert_allclose(scene.points, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scene.points_conf, prediction.depth_conf[0])
    assert scene.intrinsics == ("predicted",) * F
    np.testing.assert_array_equal(scene.depth, prediction.depth[0, ..., 0])
    np.testing.assert_array_equal(scene.colors, images_of().pixels)
    assert all(
        isinstance(getattr(scene, f.name), np.ndarray | tuple | float | None)
        for f in dataclasses.fields(scene)
    )


def test_points_come_from_the_point_head_when_asked_or_alone():
    prediction = prediction_of()
    asked = to_scene(prediction, images_of(), points_from="point_head")
    alone = to_scene(prediction.replace(depth=None, depth_conf=None), images_of())
    for scene in (asked, alone):
        np.testing.assert_array_equal(scene.points, prediction.world_points[0])
        np.testing.assert_array_equal(scene.points_conf, prediction.world_points_conf[0])
    np.testing.assert_array_equal(asked.depth, prediction.depth[0, ..., 0])
    np.testing.assert_allclose(alone.depth, in_cameras(alone)[..., 2], atol=1e-5)


def test_without_depth_the_edge_filter_takes_the_depth_of_the_points():
    depth = np.ones((1, F, H, W, 1)) * (1 + 0.01 * np.arange(W))[:, None]
    depth[:, :, 10:20, 15:25] *= 3
    with_depth = to_scene(prediction_of(depth=depth), images_of())
    prediction = prediction_of(
        depth=None, world_points=with_depth.points[None], world_points_conf=depth[..., 0]
    )
    expected = with_depth.point_cloud(edge_filter=0.02).xyz
    assert len(expected) < with_depth.valid.sum()
    np.testing.assert_array_equal(
        to_scene(prediction, images_of()).point_cloud(edge_filter=0.02).xyz, expected
    )


def test_padding_and_non_finite_points_are_invalid():
    depth = np.ones((1, F, H, W, 1))
    depth[0, 1, 5, 10] = np.inf
    depth[0, 2, 6, 11] = np.nan
    valid = to_scene(prediction_of(depth=depth), images_of()).valid
    expected = np.zeros((F, H, W), bool)
    expected[:, :, LEFT:RIGHT] = True
    expected[1, 5, 10] = expected[2, 6, 11] = False
    np.testing.assert_array_equal(valid, expected)


def test_cameras_of_the_scene(scene):
    product = np.einsum("fij,fjk->fik", scene.cam_from_world, scene.world_from_cam)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(4)[:3], (F, 3, 4)), atol=1e-6)
    # the middle of the photograph, before and after
    assert scene.K[0, 0, 2] == W / 2 + 0.5  # upstream's W / 2 counts from the centre of the first pixel
    np.testing.assert_allclose(scene.K_original(0)[:2, 2], [29, 29])
    np.testing.assert_allclose(scene.K_original(0)[0, 0], scene.K[0, 0, 0] / 0.5)


def test_a_field_of_view_without_K_is_clipped_and_said():
    pose_enc = np.array(prediction_of().pose_enc)
    pose_enc[0, 1, 7] = 0
    pose_enc[0, 2, 8] = 4
    with pytest.warns(UserWarning, match="2 of 3 cameras a field of view that has no K"):
        scene = to_scene(prediction_of(pose_enc=pose_enc), images_of())
    assert np.isfinite(scene.K).all() and (scene.K[:, [0, 1], [0, 1]] > 0).all() and scene.valid[1:].any()


def test_what_cannot_become_a_scene():
    images = images_of()
    for fields, match in [
        (dict(pose_enc=None), "needs pose_enc: run the model with its camera head on"),
        (dict(depth=None, world_points=None), "needs world_points: run the model with its point head on"),
        (dict(pose_enc=np.full((1, F, 9), np.nan)), r"camera for 0\.jpg is not finite"),
        (dict(pose_enc=np.zeros((1, F, 9))), r"camera for 0\.jpg is not finite"),
        (dict(depth=np.full((1, F, H, W, 1), np.nan)), r"points of 0\.jpg has no finite number"),
        (dict(depth_conf=np.full((1, F, H, W), np.nan)), r"confidence of 0\.jpg has no finite number"),
    ]:
        with pytest.raises(ValueError, match=match):
            to_scene(prediction_of(**fields), images)
    with pytest.raises(ValueError, match="needs world_points: run the model with its point head on"):
        to_scene(prediction_of(world_points=None), images, points_from="point_head")
    with pytest.raises(ValueError, match="'depth' or 'point_head' for a VGGT, not 'points'"):
        to_scene(prediction_of(), images, points_from="points")
    with pytest.raises(
        ValueError, match="the prediction is of 3 images of 42x28 pixels, but 2 of 42x28 were given"
    ):
        to_scene(prediction_of(), images_of(frames=2))


# ---- point_cloud


def test_without_options_every_valid_pixel_is_a_point(scene):
    cloud = scene.point_cloud()
    np.testing.assert_array_equal(cloud.xyz, scene.points[scene.valid])
    np.testing.assert_array_equal(cloud.rgb, scene.colors[scene.valid])
    np.testing.assert_array_equal(cloud.conf, scene.points_conf[scene.valid])
    assert (cloud.xyz.dtype, cloud.rgb.dtype, cloud.conf.dtype) == (np.float32, np.uint8, np.float32)
    assert len(cloud) == F * H * (RIGHT - LEFT)


def test_conf_percentile_keeps_the_surest(scene):
    everything = scene.point_cloud()
    cloud = scene.point_cloud(conf_percentile=75)
    assert abs(len(cloud) - len(everything) / 4) <= 1
    assert cloud.conf.min() >= np.sort(everything.conf)[-len(cloud)]
    assert len(scene.point_cloud(conf_percentile=100)) == 1


def test_conf_percentile_drops_what_is_no_surface():
    conf = np.linspace(2, 3, F * H * W).reshape(1, F, H, W)
    conf[..., : H // 2, :] = 1  # half is sky: more than a percentile of 25 drops, and none of it is below it
    scene = to_scene(prediction_of(depth_conf=conf), images_of())
    cloud = scene.point_cloud(conf_percentile=25)
    assert len(cloud) == len(scene.point_cloud()) / 2 and cloud.conf.min() >= 2
    assert len(scene.point_cloud(conf_percentile=0)) == len(scene.point_cloud())


@pytest.mark.parametrize("unit", [0.01, 100])
def test_edge_filter_drops_the_rim_of_a_jump_and_not_the_slope(unit):
    depth = (
        np.ones((1, F, H, W, 1)) * unit * (1 + 0.01 * np.arange(W))[:, None]
    )  # a gentle slope, 1 % a pixel
    depth[:, :, 10:20, 15:25] *= 3
    depth[:, :, :, RIGHT:] = 1e4  # padding is no jump
    scene = to_scene(prediction_of(depth=depth), images_of())
    dropped = scene.valid & ~np.isin(scene.points, scene.point_cloud(edge_filter=0.1).xyz).all(-1)
    rim = np.zeros((H, W), bool)
    rim[9:21, 14:26] = True
    rim[11:19, 16:24] = False
    np.testing.assert_array_equal(dropped, np.broadcast_to(rim, (F, H, W)))


def test_voxel_keeps_the_surest_point_of_every_cube(scene):
    voxel = 0.5
    cloud, everything = scene.point_cloud(voxel=voxel), scene.point_cloud()
    cubes = [tuple(c) for c in np.floor(cloud.xyz / np.float64(voxel))]
    best = {}
    for cube, conf in zip(
        map(tuple, np.floor(everything.xyz / np.float64(voxel))), everything.conf, strict=True
    ):
        best[cube] = max(best.get(cube, 0), conf)
    assert len(cubes) == len(set(cubes)) == len(best) < len(everything)
    assert all(best[cube] == conf for cube, conf in zip(cubes, cloud.conf, strict=True))


def test_voxel_takes_the_first_of_equals_and_survives_far_points():
    points = np.zeros((1, F, H, W, 3))
    points[0, 1, 0, LEFT] = 1e30
    prediction = prediction_of(world_points=points, world_points_conf=np.ones((1, F, H, W)))
    scene = to_scene(prediction, images_of(), points_from="point_head")
    cloud = scene.point_cloud(voxel=1e-3)
    assert len(cloud) == 2
    np.testing.assert_array_equal(cloud.rgb[0], scene.colors[0, 0, LEFT])


def test_limit_is_met_evenly_and_always_alike(scene):
    everything = scene.point_cloud()
    cloud = scene.point_cloud(max_points=500)
    assert len(cloud) == 500 and len(scene.point_cloud(max_points=10**9)) == len(everything)
    np.testing.assert_array_equal(cloud.xyz, scene.point_cloud(max_points=500).xyz)
    index = np.flatnonzero(np.isin(everything.conf, cloud.conf))
    quarters = np.histogram(index, 4, (0, len(everything)))[0]
    assert quarters.min() > 90  # of 125
    columns = np.histogram(index % (RIGHT - LEFT), 7)[0]
    assert columns.min() > 40  # of 71: no stripes


def test_a_point_is_finite_if_all_of_it_is():
    points = np.random.default_rng(0).choice(np.float32([1, 2, 3, np.nan, np.inf]), (3, 5, 7, 3))
    for one in (points, points[:, ::2], np.asfortranarray(points)):
        np.testing.assert_array_equal(all_finite(one), np.isfinite(one).all(-1))


@pytest.mark.parametrize(("count", "limit"), [(5, 3), (200_000, 70_000), (200_000, 199_999), (70_000, 1)])
def test_a_spread_is_of_the_smallest_hashes(count, limit):
    wanted = np.sort(np.argsort(_hash(0, count))[:limit])
    np.testing.assert_array_equal(spread(count, limit), wanted)


def test_options_combine(scene):
    options = dict(conf_percentile=50, edge_filter=0.9, voxel=0.2)
    cloud = scene.point_cloud(**options)
    assert (cloud.conf >= np.percentile(scene.points_conf[scene.valid], 50)).all()
    for left_out in options:  # each of them takes something of its own away
        rest = {name: value for name, value in options.items() if name != left_out}
        assert len(scene.point_cloud(**rest)) > len(cloud) > 100, left_out
    assert len(scene.point_cloud(**options, max_points=100)) == 100


@pytest.mark.parametrize(
    "options",
    [
        dict(conf_percentile=101),
        dict(conf_percentile=-1),
        dict(edge_filter=0),
        dict(voxel=0),
        dict(voxel=np.inf),
    ]
    + [dict(max_points=0), dict(voxel=np.nan), dict(edge_filter=np.nan)],
)
def test_bad_options_are_named(scene, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* must be"):
        scene.point_cloud(**options)


def test_nothing_valid_gives_an_empty_cloud(scene):
    empty = dataclasses.replace(scene, valid=np.zeros_like(scene.valid))
    cloud = empty.point_cloud(conf_percentile=50, edge_filter=0.1, voxel=0.1, max_points=5)
    assert cloud.xyz.shape == (0, 3) and cloud.rgb.shape == (0, 3) and cloud.conf.shape == (0,)


# ---- from π³


def pi3_prediction_of(K, **fields) -> Prediction:
    """Points that K sees where their pixels are, and cameras in a world in which none is at the origin."""
    rng = np.random.default_rng(2)
    v, u = np.mgrid[:H, :W] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    local = rays * rng.uniform(1, 5, (F, H, W, 1))
    poses = np.tile(np.eye(4), (F, 1, 1))
    poses[:, :3, :3] = geometry.quat_xyzw_to_rotation(rng.normal(size=(F, 4)))
    poses[:, :3, 3] = rng.normal(size=(F, 3))
    points = np.einsum("fij,fhwj->fhwi", poses[:, :3, :3], local) + poses[:, None, None, :3, 3]
    everything = (
        dict(points=points, local_points=local, camera_poses=poses, conf=rng.normal(size=(F, H, W, 1)))
        | fields
    )
    return Prediction(made_by=Pi3, **{k: jnp.asarray(v, jnp.float32)[None] for k, v in everything.items()})


PI3_K = np.array([[40.0, 0, 20], [0, 50, 15], [0, 0, 1]])


def test_a_pi3_prediction_becomes_a_scene_like_any_other():
    prediction = pi3_prediction_of(PI3_K)
    scene = to_scene(prediction, images_of())
    assert scene.intrinsics == ("recovered",) * F
    np.testing.assert_allclose(scene.K, np.tile(PI3_K, (F, 1, 1)), rtol=1e-4)
    np.testing.assert_allclose(
        scene.cam_from_world[0], np.eye(4)[:3], atol=1e-6
    )  # the world is the first camera's frame
    first = np.asarray(prediction.camera_poses[0, 0], np.float64)
    expected = (np.asarray(prediction.points[0]) - first[:3, 3]) @ first[:3, :3]
    np.testing.assert_allclose(scene.points, expected, atol=1e-5)
    np.testing.assert_allclose(in_cameras(scene), prediction.local_points[0], atol=1e-5)
    np.testing.assert_array_equal(scene.depth, prediction.local_points[0, ..., 2])
    np.testing.assert_allclose(
        scene.points_conf, 1 / (1 + np.exp(-np.asarray(prediction.conf[0, ..., 0]))), rtol=1e-6
    )
    assert not scene.valid[:, :, :LEFT].any()


def test_confidence_below_a_tenth_is_no_surface_of_pi3():
    logits = np.full((F, H, W, 1), 2.0)
    logits[:, : H // 2] = np.log(0.09 / 0.91)
    scene = to_scene(pi3_prediction_of(PI3_K, conf=logits), images_of())
    kept = scene.point_cloud(conf_percentile=1)
    assert len(kept) == scene.valid.sum() / 2 and kept.conf.min() > 0.8


def test_padding_has_no_part_in_recovered_intrinsics():
    prediction = pi3_prediction_of(PI3_K)
    padded = prediction.local_points.at[..., :LEFT, 0].set(77)
    scene = to_scene(prediction.replace(local_points=padded), images_of())
    np.testing.assert_allclose(scene.K, np.tile(PI3_K, (F, 1, 1)), rtol=1e-4)


def test_points_that_no_camera_sees_get_a_guessed_k_and_a_warning():
    prediction = pi3_prediction_of(PI3_K)
    mirrored = prediction.local_points.at[:, 1, ..., 0].multiply(-1)
    with pytest.warns(
        UserWarning, match="no pinhole camera could be fitted to the points of 1.jpg: K is a guess there"
    ):
        scene = to_scene(prediction.replace(local_points=mirrored), images_of())
    assert scene.intrinsics == ("recovered", "guessed", "recovered")
    np.testing.assert_allclose(
        scene.K_original(1), [[56, 0, 28], [0, 56, 28], [0, 0, 1]]
    )  # square pixels in the photograph
    scattered = prediction.local_points.at[:, 2, ..., :2].add(
        np.random.default_rng(3).normal(size=(1, H, W, 2))
    )
    with pytest.warns(UserWarning, match="half of the points or more of 2.jpg lie more than 2%"):
        to_scene(prediction.replace(local_points=scattered), images_of())


@pytest.mark.parametrize(
    "lens", [(5000, 1, "guessed"), (1, 5000, "guessed"), (2000, 60, "recovered"), (40, 2000, "guessed")]
)
def test_a_field_of_view_that_no_lens_has_is_not_believed(lens):
    fx, fy, expected = lens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = to_scene(pi3_prediction_of(np.array([[fx, 0, 20], [0, fy, 15], [0, 0, 1]])), images_of())
    assert scene.intrinsics == (expected,) * F


@pytest.mark.filterwarnings("error")
def test_confidence_decides_which_points_recover_the_camera():
    prediction, other = pi3_prediction_of(PI3_K), pi3_prediction_of(PI3_K * np.array([[2], [1], [1]]))
    left = np.arange(W) < 2 * W // 3  # the larger part, but not trusted
    mixed = jnp.where(left[:, None], other.local_points, prediction.local_points)
    conf = jnp.broadcast_to(jnp.where(left, -120.0, 5.0)[:, None], prediction.conf.shape)
    scene = to_scene(prediction.replace(local_points=mixed, conf=conf), images_of())
    np.testing.assert_allclose(scene.K, np.tile(PI3_K, (F, 1, 1)), rtol=1e-3)


@pytest.mark.filterwarnings("error")
def test_a_few_points_near_the_camera_are_no_reason_to_warn():
    prediction = pi3_prediction_of(PI3_K)
    near = prediction.local_points.at[..., ::9, ::9, 2].multiply(1e-3)
    scene = to_scene(prediction.replace(local_points=near), images_of())
    np.testing.assert_allclose(scene.K, np.tile(PI3_K, (F, 1, 1)), rtol=1e-3)


def test_what_a_pi3_scene_cannot_be():
    prediction = pi3_prediction_of(PI3_K)
    with pytest.raises(ValueError, match="points_from must be 'point_head' for a Pi3, not 'depth'"):
        to_scene(prediction, images_of(), points_from="depth")
    with pytest.raises(ValueError, match="the prediction is of 3 images of 42x28 pixels, but 2"):
        to_scene(prediction, images_of(frames=2))
    with pytest.raises(ValueError, match="the model's camera for 1.jpg is not finite"):
        to_scene(
            prediction.replace(camera_poses=prediction.camera_poses.at[:, 1, 0, 0].set(jnp.nan)), images_of()
        )


@pytest.mark.parametrize("prediction, images, argument", [({}, None, "prediction"), (None, [], "images")])
def test_what_is_no_prediction_or_no_images_is_named(prediction, images, argument):
    given = Prediction() if prediction is None else prediction
    with pytest.raises(errors.InputError, match=f"{argument} must be what") as raised:
        to_scene(given, images)
    assert raised.value.argument == argument
