"""VGGT's training loss: what it does not depend on, what it is zero for, and what it prefers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import geometry
from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.models.losses import vggt as losses
from fastvggt_jax.models.losses.parts import normalise
from fastvggt_jax.models.prediction import Prediction

B, F, H, W = 2, 3, 16, 24
loss, dense_loss, track_loss = jax.jit(losses.loss), jax.jit(losses.dense_loss), jax.jit(losses.track_loss)


def scenes(rotation=None, translation=0.0, scale=1.0) -> Truth:
    """The same scenes in a world that is turned, moved and scaled."""
    rng = np.random.default_rng(0)
    pose = np.concatenate([rng.normal(size=(B, F, 7)), np.full((B, F, 2), 1.0)], -1)
    cam_from_world, K = geometry.decode_pose(pose, H, W)
    depth = rng.uniform(1, 4, (B, F, H, W)).astype(np.float32)
    points = np.asarray(geometry.unproject_depth(depth[..., None], K, cam_from_world))
    valid = rng.random((B, F, H, W)) < 0.8
    cam_from_world = np.asarray(cam_from_world, np.float64)
    R = np.eye(3) if rotation is None else rotation
    moved = (
        scale * points @ R.T + translation
    )  # x' = s R x + t, so R_i x + t_i = (R_i Rᵀ x' - R_i Rᵀ t) / s + t_i
    turned = cam_from_world[..., :3] @ R.T
    shift = scale * cam_from_world[..., 3] - turned @ np.broadcast_to(translation, 3)
    cameras = np.concatenate([turned, shift[..., None]], -1)
    return Truth(
        *(jnp.asarray(x, jnp.float32) for x in (cameras, K, scale * depth, moved)), jnp.asarray(valid)
    )


@jax.jit
def pose_of(truth: Truth) -> jax.Array:
    """f32[B, F, 9], as the model says it."""
    return geometry.encode_pose(truth.cam_from_world, truth.K, H, W)


@pytest.fixture(scope="module")
def truth():
    """As `normalise` makes it, which `loss` does once more."""
    return normalise(scenes())


def perfect(truth, conf=2.0) -> Prediction:
    confidence = jnp.full((B, F, H, W), conf)
    return Prediction(
        pose_enc_list=(pose_of(truth),) * 4,
        depth=truth.depth[..., None],
        depth_conf=confidence,
        world_points=truth.points,
        world_points_conf=confidence,
    )


def test_truth_does_not_depend_on_the_world_it_came_in(truth):
    rotation = np.asarray(geometry.quat_xyzw_to_rotation(np.array([0.3, -0.5, 0.1, 0.8])), np.float64)
    moved = normalise(scenes(rotation, np.array([3.0, -2, 5]), 7.0))
    for name in ("cam_from_world", "depth", "points"):
        np.testing.assert_allclose(getattr(moved, name), getattr(truth, name), atol=2e-5, err_msg=name)
    np.testing.assert_allclose(pose_of(moved), pose_of(truth), atol=2e-5)


def test_the_loss_takes_the_truth_in_any_world(truth):
    """What is learnt is in the first camera, in units of the mean distance, however the truth was given."""
    rotation = np.asarray(geometry.quat_xyzw_to_rotation(np.array([0.3, -0.5, 0.1, 0.8])), np.float64)
    wrong = perfect(truth).replace(depth=1.1 * truth.depth[..., None])
    base, moved = (loss(wrong, t)[1] for t in (truth, scenes(rotation, np.array([3.0, -2, 5]), 7.0)))
    for name, value in base.items():
        np.testing.assert_allclose(moved[name], value, atol=1e-4, err_msg=name)
    assert base["depth error"] > 0.05


def test_truth_is_in_the_first_camera_and_in_units_of_its_mean_distance(truth):
    np.testing.assert_allclose(pose_of(truth)[:, 0, :7], np.tile([0, 0, 0, 0, 0, 0, 1], (B, 1)), atol=1e-6)
    distance = np.linalg.norm(truth.points, axis=-1)
    for b in range(B):
        assert abs(distance[b][np.asarray(truth.valid)[b]].mean() - 1) < 1e-5
    cam_from_world, K = geometry.decode_pose(pose_of(truth), H, W)
    points = np.asarray(geometry.unproject_depth(truth.depth[..., None], K, cam_from_world))
    valid = np.asarray(truth.valid)
    np.testing.assert_allclose(points[valid], np.asarray(truth.points)[valid], atol=1e-5)


def test_a_perfect_prediction_has_only_the_reward_for_confidence(truth):
    _, parts = loss(perfect(truth), truth)
    for name, value in parts.items():
        expected = -losses.LOG_CONFIDENCE * np.log(2) if name.endswith("confidence") else 0
        if not name.endswith("gradient"):
            assert abs(value - expected) < 1e-5, name
    assert set(parts) == {
        *("translation", "rotation", "field of view"),
        *(f"{head} {part}" for head in ("depth", "point") for part in ("confidence", "error", "gradient")),
    }


def test_what_is_not_valid_has_no_influence(truth):
    spoilt = perfect(truth)
    bad = ~truth.valid
    spoilt = spoilt.replace(
        depth=jnp.where(bad[..., None], 1e6, spoilt.depth), depth_conf=jnp.where(bad, 77.0, spoilt.depth_conf)
    )
    value = lambda p: loss(p, truth)[1]
    clean, dirty = value(perfect(truth)), value(spoilt)
    for name in ("depth confidence", "depth error"):
        np.testing.assert_allclose(dirty[name], clean[name], atol=1e-6)
    gradient = jax.grad(lambda d: loss(spoilt.replace(depth=d), truth)[0])(spoilt.depth)
    assert not np.asarray(gradient)[np.asarray(bad)].any()


def test_confidence_in_the_sky_costs_where_that_is_asked_for(truth):
    sky = jnp.where(truth.valid, 5.0, 9.0)
    parts = jax.jit(partial(losses.loss, background=0.05))(perfect(truth).replace(depth_conf=sky), truth)[1]
    np.testing.assert_allclose(parts["depth background"], 0.05 * np.log(9), rtol=1e-5)
    assert "depth background" not in loss(perfect(truth), truth)[1]


@pytest.mark.parametrize("error", [0.02, 0.5])
def test_the_best_confidence_is_inverse_to_the_error(truth, error):
    wrong = perfect(truth).replace(depth=truth.depth[..., None] + error)
    confs = np.geomspace(0.1, 100, 200)
    values = jax.vmap(
        lambda c: loss(wrong.replace(depth_conf=jnp.full((B, F, H, W), c)), truth)[1]["depth confidence"]
    )(confs)
    assert abs(confs[np.argmin(values)] / (losses.LOG_CONFIDENCE / error) - 1) < 0.05


def test_steps_in_the_error_cost_more_than_a_constant_one(truth):
    stripes = jnp.where(jnp.arange(W) % 2 == 0, 0.1, -0.1)[:, None]
    smooth, rough = (
        loss(perfect(truth).replace(depth=truth.depth[..., None] + e), truth)[1]
        for e in (jnp.float32(0.1), stripes)
    )
    np.testing.assert_allclose(smooth["depth error"], rough["depth error"], rtol=1e-4)
    assert rough["depth gradient"] > smooth["depth gradient"] + 0.02


def test_the_dense_loss_by_hand():
    """An error that grows by 0.1 a column: at scale 1 there are 12 steps of 0.1 and 12 of none, at scale 2
    two of 0.2 and two of none.
    """
    error = jnp.broadcast_to(0.1 * jnp.arange(4)[:, None], (1, 1, 4, 4, 1))
    conf, target, valid = jnp.full((1, 1, 4, 4), 2.0), jnp.zeros_like(error), jnp.ones((1, 1, 4, 4), bool)
    parts, turned = (dense_loss(e, conf, target, valid) for e in (error, error.swapaxes(2, 3)))
    reward = 0.2 * np.log(2)
    expected = {"error": 0.15, "confidence": 0.3 - reward}
    expected["gradient"] = ((12 * 0.1 * 2 - 24 * reward) / 16 + (2 * 0.2 * 2 - 4 * reward) / 4) / 4
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(turned["gradient"], parts["gradient"], rtol=1e-5)


def test_the_parts_are_weighed_as_published(truth):
    wrong = perfect(truth).replace(depth=truth.depth[..., None] + 0.3, world_points=truth.points - 0.2)
    total, parts = loss(wrong.replace(pose_enc_list=(pose_of(truth) + 0.1,) * 4), truth)
    sums = {
        head: sum(value for name, value in parts.items() if name.startswith(head))
        for head in ("depth", "point")
    }
    camera = parts["translation"] + parts["rotation"] + 0.5 * parts["field of view"]
    np.testing.assert_allclose(total, 5 * camera + sums["depth"] + sums["point"], rtol=1e-5)
    assert abs(sums["depth"] - sums["point"]) > 0.01


def test_later_iterations_of_the_camera_head_weigh_more(truth):
    def wrong_in(iteration):
        poses = [pose_of(truth) + (0.1 if i == iteration else 0.0) for i in range(4)]
        return loss(perfect(truth).replace(pose_enc_list=tuple(poses)), truth)[0]

    base = loss(perfect(truth), truth)[0]
    costs = [wrong_in(i) - base for i in range(4)]
    np.testing.assert_allclose(np.array(costs[1:]) / np.array(costs[:-1]), 1 / 0.6, rtol=1e-2)
    np.testing.assert_allclose(costs[3], 5.0 * (0.1 + 0.1 + 0.5 * 0.1) / 4, rtol=1e-3)


def test_pairs_cost_what_their_translations_are_off_in_units_of_their_distance(truth):
    true = pose_of(truth)
    pair_loss = jax.jit(losses.pair_loss)
    cost = lambda pose: float(pair_loss((pose,) * 4, true))
    assert cost(true) < 1e-5
    # a camera that is off by d is so in its pairs with the F - 1 others, twice each
    d, pose = 1e-3, np.asarray(true, np.float64)
    cam_from_world, _ = geometry.decode_pose(pose, H, W)
    centre = np.asarray(geometry.invert_se3(cam_from_world), np.float64)[..., 3]
    distance = np.linalg.norm(
        centre[:, 1:] - centre[:, :1], axis=-1
    )  # [B, F - 1], from the first camera to the others
    pose[:, 0, :3] += [0, d, 0]
    decay = (losses.STAGE_DECAY ** np.arange(4)).mean()
    np.testing.assert_allclose(
        cost(pose), decay * (2 * d / (distance + losses.NEAR)).sum(1).mean() / (F * (F - 1)), rtol=1e-2
    )
    # nor is the world's choice an error: turning and moving it leaves pairs as they are
    world = np.asarray(geometry.quat_xyzw_to_rotation(np.array([0.3, -0.5, 0.1, 0.8])), np.float64)
    R = np.asarray(cam_from_world)[..., :3] @ world.T
    t = np.asarray(cam_from_world)[..., 3] - R @ np.array([3.0, -2, 5])
    assert (
        cost(
            pose_of(
                truth.replace(cam_from_world=jnp.asarray(np.concatenate([R, t[..., None]], -1), jnp.float32))
            )
        )
        < 1e-4
    )
    wrong = perfect(truth).replace(pose_enc_list=(jnp.asarray(pose, jnp.float32),) * 4)
    total, parts = jax.jit(partial(losses.loss, pairs=2.0))(wrong, truth)
    np.testing.assert_allclose(total - loss(wrong, truth)[0], 2 * parts["pairs"], rtol=1e-3)


def test_gradients_are_finite_where_the_prediction_is_perfect_and_where_nothing_is_valid(truth):
    gradient_of = jax.jit(jax.grad(lambda p, t: losses.loss(p, t, background=0.1, pairs=1.0)[0]))
    for t in (truth, normalise(scenes().replace(valid=jnp.zeros((B, F, H, W), bool)))):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient_of(perfect(t), t)))


# ---- tracks

Q = 7


def tracked(shift=0.0, iteration=-1, vis=None, conf=1.0):
    """Arguments of `track_loss`: true but for one iteration, which is off by `shift` pixels in x and y."""
    rng = np.random.default_rng(1)
    tracks, visible = (
        jnp.asarray(rng.uniform(0, 20, (B, F, Q, 2)), jnp.float32),
        jnp.asarray(rng.random((B, F, Q)) < 0.6),
    )
    track_list = jnp.stack([tracks] * 4).at[iteration].add(shift)
    vis = visible.astype(jnp.float32) if vis is None else jnp.full((B, F, Q), vis)
    return track_list, vis, jnp.full((B, F, Q), conf), tracks, visible


def test_perfect_tracks_cost_nothing_and_wrong_ones_what_they_are_off():
    assert max(abs(v) for v in track_loss(*tracked()).values()) < 1e-6
    parts = [track_loss(*tracked(2.0, iteration)) for iteration in range(4)]
    np.testing.assert_allclose([p["track"] for p in parts], 2.0 / 4 * 0.8 ** np.arange(4)[::-1], rtol=1e-5)


def test_a_track_counts_only_where_its_point_is_seen():
    track_list, *others, tracks, visible = tracked()
    moved = jnp.where(visible[..., None], track_list, track_list + 50)
    assert abs(track_loss(moved, *others, tracks, visible)["track"]) < 1e-6


def test_visibility_and_confidence_are_probabilities():
    np.testing.assert_allclose(track_loss(*tracked(vis=0.5))["visibility"], np.log(2), rtol=1e-5)
    confident = lambda shift, conf: track_loss(*tracked(shift, conf=conf))["track confidence"]
    assert confident(1.0, 0.9) < 0.2 < 2 < confident(30.0, 0.9)  # 30 pixels off is not right, 1 is
    np.testing.assert_allclose(confident(30.0, 0.9), -np.log(0.1), rtol=1e-4)


def test_tracks_are_part_of_the_loss_where_the_model_tracks(truth):
    track_list, vis, conf, tracks, visible = tracked(3.0)
    with_tracks = perfect(truth).replace(track_list=track_list, vis=vis, conf=conf)
    whole, parts = loss(with_tracks, truth.replace(tracks=tracks, visible=visible))
    base, _ = loss(perfect(truth), truth)
    np.testing.assert_allclose(whole - base, 0.05 * 3.0 / 4, rtol=1e-3)
    assert {"track", "visibility", "track confidence"} < set(parts)
