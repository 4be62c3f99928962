"""π³'s training loss: the scale it finds, what it does not depend on, what it is least for, and what each of
its parts is of.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import geometry
from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.losses import pi3 as losses
from fastvggt_jax.models.losses.parts import normalise
from fastvggt_jax.models.prediction import Prediction

B, F, H, W = 2, 3, 16, 24
STEP = 16  # the column from which on everything is farther
value_and_grad = jax.jit(jax.value_and_grad(losses.loss, has_aux=True))
align = jax.jit(losses.align_scale)


def scenes(valid=None) -> Truth:
    """Smooth surfaces with a step, and a hole in every view."""
    rng = np.random.default_rng(0)
    pose = np.concatenate([rng.normal(0, 0.3, (B, F, 6)), np.full((B, F, 3), 1.0)], -1)
    cam_from_world, K = geometry.decode_pose(pose, H, W)
    u, v = np.meshgrid(np.linspace(-1, 1, W), np.linspace(-1, 1, H))
    a, b = rng.uniform(-0.1, 0.1, (2, B, F, 1, 1))
    depth = (3 + a * u + b * v + 0.05 * u * v + (np.arange(W) >= STEP))[..., None].astype(np.float32)
    points = geometry.unproject_depth(depth, K, cam_from_world)
    if valid is None:
        valid = np.ones((B, F, H, W), bool)
        valid[:, :, 3:6, 2:7] = False
    truth = Truth(cam_from_world, K, jnp.asarray(depth[..., 0]), points, jnp.asarray(valid))
    return jax.jit(normalise)(truth)


@pytest.fixture(scope="module")
def truth():
    return scenes()


def perfect(truth: Truth, logit: float = 0.0) -> Prediction:
    """In units and a world of its own; wrong where the truth does not say."""
    cam_from_world = truth.cam_from_world
    local = (
        np.einsum("bfij,bfhwj->bfhwi", cam_from_world[..., :3], truth.points)
        + cam_from_world[:, :, None, None, :, 3]
    )
    local = np.where(truth.valid[..., None], local, 0.7)
    return Prediction(
        local_points=jnp.asarray(local),
        conf=jnp.full((B, F, H, W, 1), logit),
        camera_poses=geometry.invert_se3(cam_from_world),
    )


def parts_of(prediction: Prediction, truth: Truth) -> dict[str, float]:
    (total, parts), _ = value_and_grad(prediction, truth)
    return {"loss": float(total)} | {name: float(value) for name, value in parts.items()}


def noisy(truth: Truth) -> Prediction:
    rng = np.random.default_rng(5)
    p = perfect(truth)
    turns = geometry.quat_xyzw_to_rotation(
        np.concatenate([rng.normal(0, 0.1, (B, F, 3)), np.ones((B, F, 1))], -1)
    )
    poses = (
        p.camera_poses.at[..., :3, :3]
        .set(turns @ p.camera_poses[..., :3, :3])
        .at[..., :3, 3]
        .add(rng.normal(0, 0.1, (B, F, 3)))
    )
    local = p.local_points * (1 + 0.05 * rng.normal(size=(B, F, H, W, 1)))
    return p.replace(
        local_points=local,
        conf=jnp.asarray(rng.normal(size=(B, F, H, W, 1)), jnp.float32),
        camera_poses=poses,
    )


# ---- the scale


def cost(s, points, target, weight):
    return (weight[:, None] * np.abs(np.asarray(s)[..., None, None] * points - target)).sum((-2, -1))


@pytest.mark.parametrize("seed", range(5))
def test_no_other_scale_is_better_whatever_the_outliers(seed):
    rng = np.random.default_rng(seed)
    points, weight, valid = rng.normal(size=(60, 3)), rng.uniform(0.1, 10, 60), rng.random(60) < 0.8
    points[rng.random((60, 3)) < 0.1] = 0
    target = 2.5 * points + 0.01 * rng.normal(size=(60, 3))
    target[rng.random(60) < 0.3] *= rng.uniform(-20, 20)
    garbage = lambda x: np.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 1e6).astype(np.float32)
    found = float(align(garbage(points), garbage(target), garbage(weight), valid))
    kept = points[valid], target[valid], weight[valid]
    ratios = (
        kept[1] / np.where(kept[0] == 0, np.nan, kept[0])
    ).ravel()  # the sum's corners: one of them is its minimum
    assert cost(found, *kept) <= cost(ratios[np.isfinite(ratios)], *kept).min() * (1 + 1e-6)
    assert abs(found - 2.5) < 0.1


def test_many_points_are_thinned_out_evenly():
    rng = np.random.default_rng(0)
    n = 600_000  # 4095 n is beyond 32 bits
    points, valid = rng.uniform(1, 2, (n, 3)).astype(np.float32), rng.random(n) < 0.95
    target = points * (2 + np.linspace(0, 1, n)[:, None] + rng.normal(0, 0.3, (n, 3))).astype(np.float32)
    weight = np.ones(n, np.float32)
    found = float(align(points, target, weight, valid))
    rank = np.arange(losses.ALIGNED) * int(valid.sum()) // losses.ALIGNED
    kept = [x[np.flatnonzero(valid)[rank]].astype(np.float64) for x in (points, target, weight)]
    assert cost(found, *kept) <= cost(found * np.linspace(0.95, 1.05, 201), *kept).min() * (1 + 1e-6)


def test_a_scale_is_positive_and_1_where_there_is_no_point():
    points = np.ones((4, 3), np.float32)
    assert align(points, -3 * points, points[:, 0], np.ones(4, bool)) == 3
    assert align(points, -3 * points, points[:, 0], np.zeros(4, bool)) == 1


# ---- the whole


def test_what_a_perfect_prediction_costs(truth):
    counted = 0
    valid, depth = np.asarray(truth.valid), np.asarray(truth.depth)
    good = valid & (np.arange(W) != STEP - 1) & (np.arange(W) != STEP)  # beside the step
    around = np.pad(valid, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=True)
    for y, x in np.ndindex(3, 3):
        good &= around[:, :, y : y + H, x : x + W]  # beside the hole, whose depth is 0
    assert (depth > 0)[good].all()
    for b, f, y, x in np.ndindex(B, F, H - 1, W - 1):
        corners = good[b, f, y : y + 2, x : x + 2].sum()  # three of the four make a normal
        counted += {4: 4, 3: 1}.get(int(corners), 0)
    smallest = np.radians(1) ** 2 / (2 * np.radians(3))
    expected = {"point error": 0, "rotation": 0, "translation": 0, "confidence": np.log(2)}
    expected["normal"] = counted * smallest / (B * F * (H - 1) * (W - 1)) / (4 * W)
    parts = parts_of(perfect(truth), truth)
    assert expected["normal"] > 1e-5
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_the_whole_is_the_weighted_sum_of_its_parts(truth):
    parts = parts_of(noisy(truth), truth)
    whole = (
        parts["point error"]
        + parts["normal"]
        + 0.05 * parts["confidence"]
        + 0.1 * (parts["rotation"] + 100 * parts["translation"])
    )
    np.testing.assert_allclose(parts["loss"], whole, rtol=1e-5)


def test_neither_scale_nor_world_nor_the_order_of_frames_matters(truth, monkeypatch):
    p = noisy(truth)
    base = parts_of(p, truth)
    assert min(base["point error"], base["rotation"], 100 * base["translation"], 100 * base["normal"]) > 0.02
    scaled = p.replace(
        local_points=7 * p.local_points, camera_poses=p.camera_poses.at[..., :3, 3].multiply(7)
    )
    world = geometry.invert_se3(
        geometry.decode_pose(np.array([3.0, -2, 5, 0.3, -0.5, 0.1, 0.8, 1, 1]), H, W)[0]
    )
    moved = p.replace(camera_poses=world @ p.camera_poses)
    order = np.array([2, 0, 1])
    turned = jax.tree.map(lambda x: x[:, order], p)
    permuted = truth.replace(
        **{
            name: getattr(truth, name)[:, order]
            for name in ("cam_from_world", "K", "depth", "points", "valid")
        }
    )
    # The unit is the mean distance from the first camera, whichever that is: here it stays what it was.
    monkeypatch.setattr(losses, "normalise", lambda truth: truth)
    total, parts = jax.jit(lambda p, t: losses.loss(p, t))(turned, permuted)
    for what, found in (
        ("scale", parts_of(scaled, truth)),
        ("world", parts_of(moved, truth)),
        ("order", {"loss": total, **parts}),
    ):
        for name, value in base.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=f"{name} {what}")


def test_a_gradient_leaves_scale_and_world_alone(truth):
    p = noisy(truth)
    gradient = value_and_grad(p, truth)[1]
    longer = (
        (gradient.local_points * p.local_points).sum((1, 2, 3, 4)),
        (gradient.camera_poses * p.camera_poses)[..., :3, 3].sum((1, 2)),
    )
    assert np.abs(longer[1]).min() > 1e-3  # cameras farther apart for the same points are another scene
    np.testing.assert_allclose(longer[0] + longer[1], 0, atol=2e-5)
    np.testing.assert_allclose(gradient.camera_poses[..., :3, 3].sum(1), 0, atol=1e-5)


# ---- its parts: what is wrong changes its part alone, by as much as it is wrong


def changed(prediction: Prediction, truth: Truth) -> dict[str, float]:
    base = parts_of(perfect(truth), truth)
    return {
        name: value
        for name, value in parts_of(prediction, truth).items()
        if abs(value - base[name]) > 2e-6 and name != "loss"
    }


def test_points_that_are_too_far_cost_their_relative_error(truth):
    p, valid = perfect(truth, 3.0), np.asarray(truth.valid)
    wrong = np.zeros((B, F, H, W), bool)
    wrong[:, 0] = valid[:, 0]
    found = parts_of(p.replace(local_points=jnp.where(wrong[..., None], 1.05, 1) * p.local_points), truth)
    local = np.asarray(p.local_points)
    error = 0.05 * np.abs(local).mean(-1) / local[..., 2]
    np.testing.assert_allclose(found["point error"], error[wrong].sum() / valid.sum(), rtol=1e-3)
    wrong &= error > 0.02  # not so wrong as to be no point to be confident of
    assert 0 < wrong.sum() < valid[:, 0].sum()
    softplus = lambda x: np.log1p(np.exp(x))
    confidence = (softplus(3) * wrong.sum() + softplus(-3) * (valid & ~wrong).sum()) / valid.sum()
    np.testing.assert_allclose(found["confidence"], confidence, rtol=1e-5)
    assert max(found["rotation"], found["translation"]) < 2e-6


@pytest.mark.parametrize("logit, loss", [(200.0, 0), (-200.0, 200), (0.0, np.log(2))])
def test_confidence_is_a_logit(truth, logit, loss):
    np.testing.assert_allclose(
        parts_of(perfect(truth, logit), truth)["confidence"], loss, rtol=1e-5, atol=1e-6
    )


def test_nearness_weighs_but_only_to_a_tenth_of_the_mean_depth(truth):
    p, pixel = perfect(truth), (0, 0, 1, 12)
    camera, mean = np.asarray(truth.cam_from_world)[0, 0], truth.depth[0, 0].mean(where=truth.valid[0, 0])
    # a point of depth z in the centre of the first view
    near = lambda z: truth.points.at[pixel].set(camera[:, :3].T @ (np.array([0, 0, z]) - camera[:, 3]))
    costs = []
    for z in mean * np.array([0.24, 0.12, 0.08, 0.04]):
        wrong = p.replace(local_points=p.local_points.at[pixel].set(jnp.array([0.01, 0, z])))
        costs.append(parts_of(wrong, truth.replace(points=near(z)))["point error"])
    np.testing.assert_allclose(costs[1] / costs[0], 2, rtol=1e-2)
    np.testing.assert_allclose(costs[3] / costs[2], 1, rtol=1e-2)


def test_normals_that_are_tilted_cost_the_angle(truth):
    p = perfect(truth)
    # About x, which lies nearly in the surface.
    tilt = geometry.quat_xyzw_to_rotation(np.array([np.sin(np.radians(5)), 0, 0, np.cos(np.radians(5))]))
    found = (
        parts_of(p.replace(local_points=p.local_points @ tilt.T), truth)["normal"]
        / parts_of(p, truth)["normal"]
    )
    np.testing.assert_allclose(found, np.radians(10 - 1.5) / (np.radians(1) ** 2 / np.radians(6)), rtol=0.02)


def test_ripples_change_normals_alone_and_not_across_a_step(truth):
    p = perfect(truth)
    ripple = 1 + 0.005 * (-1.0) ** np.arange(W)[:, None]
    assert set(changed(p.replace(local_points=p.local_points * ripple), truth)) == {"normal", "point error"}
    beside = np.isin(np.arange(W), (STEP - 1, STEP))[:, None]
    found = changed(p.replace(local_points=jnp.where(beside, ripple, 1) * p.local_points), truth)
    assert set(found) == {"point error"} and found["point error"] < 1e-3


def test_a_turned_camera_costs_its_angle_in_the_pairs_it_is_in(truth):
    p = perfect(truth)
    turn = geometry.quat_xyzw_to_rotation(np.array([0, np.sin(0.15), 0, np.cos(0.15)]))  # 0.3 rad
    still = p.camera_poses.at[..., :3, 3].set(0)  # so that no translation depends on it
    base = parts_of(p.replace(camera_poses=still), truth)
    found = parts_of(p.replace(camera_poses=still.at[:, 1, :3, :3].set(still[:, 1, :3, :3] @ turn)), truth)
    np.testing.assert_allclose(found["rotation"], 4 / 6 * 0.3, rtol=1e-4)
    assert {name for name in base if abs(found[name] - base[name]) > 2e-6} == {"loss", "rotation"}


def test_a_moved_camera_costs_hubers_loss_in_the_pairs_it_is_in(truth):
    p = perfect(truth)
    move = lambda d: changed(
        p.replace(camera_poses=p.camera_poses.at[:, 1, :3, 3].add(jnp.array([d, 0, 0]))), truth
    )
    near = move(0.05)
    assert set(near) == {"translation"}
    np.testing.assert_allclose(near["translation"], 4 / 6 * 0.05**2 / 2 / 3, rtol=1e-3)
    far = [move(d)["translation"] for d in (5.0, 10.0, 15.0)]
    np.testing.assert_allclose(far[2] - far[1], far[1] - far[0], rtol=1e-3)
    assert (far[2] - far[1]) / 5 < 0.1


# ---- where nothing is true


def test_what_is_not_valid_has_no_influence(truth):
    p = noisy(truth)
    bad = ~truth.valid[..., None]
    spoilt = p.replace(
        local_points=jnp.where(bad, jnp.inf, p.local_points), conf=jnp.where(bad, 77.0, p.conf)
    )
    assert parts_of(spoilt, truth) == parts_of(p, truth)
    gradient = value_and_grad(spoilt, truth)[1]
    for x in (gradient.local_points, gradient.conf):
        assert np.isfinite(x).all() and not np.asarray(x)[np.broadcast_to(bad, x.shape)].any()


def test_confidence_in_the_sky_costs_where_that_is_asked_for(truth):
    sky = perfect(truth).replace(conf=jnp.where(truth.valid[..., None], -1.0, 2.0))
    total, parts = jax.jit(losses.loss, static_argnums=2)(sky, truth, 0.5)
    np.testing.assert_allclose(parts["background"], 0.5 * np.log1p(np.exp(2)), rtol=1e-5)
    np.testing.assert_allclose(total - parts_of(sky, truth)["loss"], 0.05 * parts["background"], rtol=1e-3)


def test_the_loss_is_of_all_heads_together(truth):
    with pytest.raises(InputError, match="π³'s loss needs the heads point, conf, camera"):
        losses.loss(perfect(truth).replace(camera_poses=None), truth)


def test_a_scene_without_a_point_teaches_rotations_alone_and_spoils_nothing(truth):
    empty = scenes(np.zeros((B, F, H, W), bool))
    half = scenes(np.asarray(truth.valid) & (np.arange(B) == 0)[:, None, None, None])
    for t in (truth, half, empty):
        for p in (
            perfect(t),
            noisy(t),
            perfect(t).replace(local_points=jnp.ones((B, F, H, W, 3))),
        ):  # all in one point
            (total, parts), gradient = value_and_grad(p, t)
            assert np.isfinite(total) and all(
                np.isfinite(x).all() for x in jax.tree.leaves((parts, gradient))
            )
    (_, parts), gradient = value_and_grad(noisy(half), half)
    assert not gradient.local_points[1].any() and not gradient.camera_poses[1, :, :, 3].any()
    assert np.abs(gradient.camera_poses[1, :, :3, :3]).max() > 1e-3
    (_, parts), _ = value_and_grad(noisy(empty), empty)
    assert parts["rotation"] > 0.01 and not any(
        parts[name] for name in ("point error", "normal", "confidence", "translation")
    )
