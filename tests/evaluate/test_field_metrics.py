"""The field's metrics: the analytic values of their definitions, and independent implementations.

The numbers of evo 1.38.1 and Open3D 0.20.0 on seeded input stand here, for whoever has neither installed.
"""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvggt_jax import errors
from fastvggt_jax.evaluate import clouds, depths, metrics, trajectories
from tests.evaluate.test_metrics import ELSEWHERE, camera, moved, some_cameras, turn


@pytest.mark.parametrize(
    "errors_, expected",
    [
        ([0.5] * 7, {5: 1, 15: 1, 30: 1}),
        ([5.0] * 7, {5: 0.2, 15: 2 / 3, 30: 5 / 6}),
        ([30.0] * 7, {30: 1 / 30}),
        ((np.arange(30_000) + 0.5) / 1000, {5: 0.1, 15: 4 / 15, 30: 31 / 60}),  # uniform on [0°, 30°)
        ([1.2, 3.7, 8, 40], {5: 0.3, 15: 0.55, 30: 0.65}),
    ],
)
def test_auc_of_known_errors(errors_, expected):
    m = np.asarray(errors_, float)
    for limit, value in expected.items():
        assert metrics.auc(m, 0 * m, limit) == pytest.approx(100 * value)
        assert metrics.auc(0 * m, m, limit) == pytest.approx(100 * value), "the larger of the two counts"
    assert metrics.accuracy_at(np.array([5.0]), 5) == 0


@pytest.mark.parametrize("order", metrics.ORDERS)
def test_every_order_of_a_relative_pose_forgets_the_world_and_the_sign(order):
    cameras = some_cameras(6)
    for error in metrics.pair_errors(moved(cameras, *ELSEWHERE), cameras, order):
        assert len(error) == 15 and error.max() < 1e-4
    mirrored = moved(cameras, np.eye(3), np.zeros(3), -1.0)  # every translation is turned round
    for error in metrics.pair_errors(mirrored, cameras, order):
        assert error.max() < 1e-4


def test_the_orders_are_what_they_say():
    """By 4 × 4 matrices, and their rotation errors: two are the same, the third is another."""
    cameras, wrong = some_cameras(5), some_cameras(5, seed=1)
    whole = lambda poses: np.concatenate([poses, np.tile([[[0, 0, 0, 1.0]]], (len(poses), 1, 1))], 1)
    found = {order: metrics.pair_errors(wrong, cameras, order) for order in metrics.ORDERS}
    pairs = list(zip(*np.triu_indices(5, 1), strict=True))
    for order, relative in (
        (metrics.I_FROM_J, lambda T, i, j: T[i] @ np.linalg.inv(T[j])),
        (metrics.J_FROM_I, lambda T, i, j: T[j] @ np.linalg.inv(T[i])),
        (
            metrics.IN_WORLD,
            lambda T, i, j: np.linalg.inv(T[i] @ np.linalg.inv(T[0])) @ T[j] @ np.linalg.inv(T[0]),
        ),
    ):
        for number, (i, j) in enumerate(pairs):
            A, B = relative(whole(wrong), i, j), relative(whole(cameras), i, j)
            q, p = (Rotation.from_matrix(x[:3, :3]).as_quat() for x in (A, B))
            rotation = np.rad2deg(np.arccos(1 - 2 * max(1 - (q @ p) ** 2, 1e-15)))
            t, s = (x[:3, 3] / (np.linalg.norm(x[:3, 3]) + 1e-15) for x in (A, B))
            translation = np.rad2deg(np.arccos(np.sqrt(1 - max(1 - (t @ s) ** 2, 1e-15))))
            assert found[order][0][number] == pytest.approx(rotation, abs=1e-5)
            assert found[order][1][number] == pytest.approx(translation, abs=1e-5)
    np.testing.assert_allclose(found[metrics.I_FROM_J][0], found[metrics.J_FROM_I][0], atol=1e-9)
    assert np.abs(found[metrics.I_FROM_J][0] - found[metrics.IN_WORLD][0]).max() > 1
    assert np.abs(found[metrics.I_FROM_J][1] - found[metrics.J_FROM_I][1]).max() > 1
    with pytest.raises(errors.InputError, match="order must be one of i from j, j from i"):
        metrics.pair_errors(wrong, cameras, "backwards")


def paths(frames=12):
    """A predicted and a true path, f64[frames, 3, 4]."""
    rng = np.random.default_rng(7)
    true = np.stack(
        [camera(turn([0, 1, 0.1], 6.0 * i), [np.sin(i / 3), 0.1 * i, np.cos(i / 3)]) for i in range(frames)]
    )
    wrong = [
        camera(turn(rng.normal(size=3), rng.uniform(0, 8)) @ c[:, :3], -c[:, :3].T @ c[:, 3] + s)
        for c, s in zip(true, 0.05 * rng.normal(size=(frames, 3)), strict=True)
    ]
    return moved(np.stack(wrong), *ELSEWHERE), true


EVO = {"ATE": 0.06213033366683, "RPE translation": 0.10531353703753646, "RPE rotation": 6.488630950836366}


def test_trajectories_as_evo_measures_them():
    found = trajectories.trajectory_errors(*paths())
    assert found == pytest.approx(EVO, rel=1e-9)
    perfect = trajectories.trajectory_errors(moved(paths()[1], *ELSEWHERE), paths()[1])
    assert perfect == pytest.approx(dict.fromkeys(EVO, 0), abs=1e-5)


def test_evo_itself():
    pytest.importorskip("evo")
    from evo.core import metrics as evo_metrics
    from evo.core import trajectory
    from evo.main_ape import ape
    from evo.main_rpe import rpe

    def path(poses):
        whole = np.tile(np.eye(4), (len(poses), 1, 1))
        whole[:, :3] = poses
        return trajectory.PoseTrajectory3D(
            poses_se3=list(np.linalg.inv(whole)), timestamps=np.arange(len(poses), dtype=float)
        )

    cameras, truth = paths()
    kinds = evo_metrics.PoseRelation
    rmse = lambda result: result.stats["rmse"]
    steps = dict(delta=1, delta_unit=evo_metrics.Unit.frames, rel_delta_tol=0.01, all_pairs=True)
    how = dict(align=True, correct_scale=True)
    each = lambda run, kind, **more: rmse(run(path(truth), path(cameras), kind, **how, **more))
    found = {
        "ATE": each(ape, kinds.translation_part),
        "RPE translation": each(rpe, kinds.translation_part, **steps),
        "RPE rotation": each(rpe, kinds.rotation_angle_deg, **steps),
    }
    assert found == pytest.approx(EVO, rel=1e-6)


def corner(last):
    """f64[4, 3, 4], cameras at the origin, at x, y and `last` of z."""
    return np.stack([camera(np.eye(3), c) for c in ([0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, last])])


def test_trajectory_errors_of_one_camera_too_far():
    cameras, truth = corner(2), corner(1)
    assert trajectories.procrustes_ate(cameras, truth) == pytest.approx(0.0878636, abs=5e-8)
    assert trajectories.trajectory_errors(cameras, truth)["ATE"] == pytest.approx(0.228276, abs=5e-7)
    centres = lambda poses: -np.einsum("fji,fj->fi", poses[:, :, :3], poses[:, :, 3])
    assert metrics.align(centres(cameras), centres(truth)).scale == pytest.approx(0.673558, abs=5e-7)


def test_procrustes_forgets_mirrors_and_falls_with_the_number_of_views():
    cameras, truth = paths()
    mirror = np.diag([1, 1, -1.0])
    reflected = np.stack([camera(np.eye(3), mirror @ (-c[:, :3].T @ c[:, 3])) for c in truth])
    assert trajectories.procrustes_ate(reflected, truth) < 1e-7
    twice = lambda poses: np.concatenate([poses, poses])
    once = trajectories.procrustes_ate(cameras, truth)
    assert trajectories.procrustes_ate(twice(cameras), twice(truth)) == pytest.approx(once / 2**0.5)
    same = np.stack([camera(np.eye(3), [1, 2, 3])] * 4)
    assert trajectories.procrustes_ate(same, truth[:4]) == pytest.approx(1 / 12**0.5)


def surface(seed, count=2000):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, (2, count))
    return np.stack([x, y, 0.3 * np.sin(3 * x) * np.cos(2 * y)], -1)


def shifted(points):
    rng = np.random.default_rng(3)
    return points @ turn([1, 2, 3], 1.5).T + [0.02, -0.01, 0.015] + 0.004 * rng.normal(size=points.shape)


OPEN3D = {
    "Acc mean": 0.024312329,
    "Acc median": 0.023049667,
    "Comp mean": 0.024581376,
    "Comp median": 0.022951624,
    "NC1 mean": 0.999012563,
    "NC1 median": 0.999479973,
    "NC2 mean": 0.999016171,
    "NC2 median": 0.999519423,
    "NC mean": 0.999014367,
    "NC median": 0.999499698,
}


def test_clouds_as_open3d_compares_them():
    found = clouds.cloud_errors(shifted(surface(0)), surface(1), reach=0.1, by="scipy")
    assert found == pytest.approx(OPEN3D, rel=1e-3)
    unmoved = clouds.cloud_errors(shifted(surface(0)), surface(1), reach=1e-6, by="scipy")
    assert unmoved["Acc mean"] > 1.05 * found["Acc mean"], "ICP has brought it nearer"


def test_open3d_itself():
    pytest.importorskip("open3d", exc_type=ImportError)
    found = clouds.cloud_errors(shifted(surface(0)), surface(1), reach=0.1, by="open3d")
    assert found == pytest.approx(OPEN3D, rel=1e-3)
    assert clouds.library() == "open3d"


def test_the_same_cloud_and_one_that_is_moved_back():
    points = surface(0)
    same = clouds.cloud_errors(points, points, reach=0.1, by="scipy")
    moved_ = clouds.cloud_errors(
        points @ turn([1, 2, 3], 0.5).T + [0.002, 0, 0.001], points, reach=0.1, by="scipy"
    )
    for found in (same, moved_):
        for kind in ("mean", "median"):
            assert found[f"Acc {kind}"] < 1e-6 and found[f"Comp {kind}"] < 1e-6
            assert found[f"NC {kind}"] == pytest.approx(1, abs=1e-6)
    flipped = clouds.cloud_errors(points * [1, 1, -1], points, reach=0.1, by="scipy")
    assert flipped["Acc mean"] > 0.02 and flipped["NC mean"] < 0.95


def test_clouds_that_cannot_be_compared(monkeypatch):
    with pytest.raises(errors.InputError, match="three points at least, not 2 and 9"):
        clouds.cloud_errors(np.zeros((2, 3)), np.zeros((9, 3)), reach=1)
    with pytest.raises(errors.InputError, match="by must be one of open3d, scipy, not 'torch'"):
        clouds.cloud_errors(surface(0), surface(1), reach=1, by="torch")
    monkeypatch.setattr(clouds, "library", lambda: "scipy")
    with pytest.raises(errors.ExtraError, match=r"pip install 'fastvggt_jax\[clouds\]'"):
        clouds.cloud_errors(surface(0), surface(1), reach=1, by="open3d")
    far = clouds.cloud_errors(surface(0) + 50, surface(1), reach=0.1, by="scipy")
    assert far["Acc mean"] > 50, "nothing to hold on to: it stays where it is"


def depth_pair():
    rng = np.random.default_rng(5)
    truth = rng.uniform(1, 8, 4000)
    return (truth * rng.uniform(0.8, 1.2, 4000) - 0.5) / 3, truth


def test_depth_is_aligned_by_scale_shift_or_median():
    depth, truth = depth_pair()
    assert depths.scale(truth / 7, truth) == pytest.approx(7)
    assert depths.scale(depth, truth) == pytest.approx(metrics.depth_scale(depth, truth), rel=0.02)
    assert depths.scale(-truth, truth) == 1e-3
    np.testing.assert_allclose(depths.aligned(truth / 7, truth), truth)
    np.testing.assert_allclose(np.median(depths.aligned(depth, truth, "median")), np.median(truth))
    np.testing.assert_array_equal(depths.aligned(depth, truth, "metric"), depth)
    cost = lambda d: np.abs(d - truth).sum()
    assert cost(depths.aligned(depth, truth, "scale&shift")) < cost(depths.aligned(depth, truth, "median"))
    with pytest.raises(errors.InputError, match="alignment must be one of scale, scale&shift, median"):
        depths.aligned(depth, truth, "shift")


def test_scale_and_shift_are_adams_steps_and_no_more():
    optax = pytest.importorskip("optax")
    import jax
    import jax.numpy as jnp

    depth, truth = (jnp.asarray(x, jnp.float32) for x in depth_pair())
    loss = lambda x: jnp.abs(x[0] * depth + x[1] - truth).sum()
    x = jnp.array([jnp.median(truth) / jnp.median(depth), 0.0], jnp.float32)
    adam = optax.adam(1e-4)

    def step(carry, _):
        x, state = carry
        updates, state = adam.update(jax.grad(loss)(x), state)
        return (x + updates, state), None

    (expected, _), _ = jax.lax.scan(step, (x, adam.init(x)), None, 1000)
    found = depths.scale_and_shift(*depth_pair())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert 0.05 < found[1] < 0.11, "a thousand steps of a ten-thousandth have not arrived at 0.5"


def test_depth_errors_by_hand():
    truth, depth = np.array([1.0, 2, 4, 8]), np.array([1.1, 3, 4, 2])
    found = depths.depth_errors(depth, truth)
    assert found["AbsRel"] == pytest.approx((0.1 + 0.5 + 0 + 0.75) / 4)
    assert found["SqRel"] == pytest.approx((0.01 + 0.5 + 0 + 4.5) / 4)
    assert found["RMSE"] == pytest.approx(np.sqrt((0.01 + 1 + 36) / 4))
    logs = np.log([1.1, 1.5, 1, 0.25])
    assert found["log RMSE"] == pytest.approx(np.sqrt((logs**2).mean()))
    assert (found["delta"], found["delta 2"], found["delta 3"]) == (50, 75, 75)
    assert depths.depth_errors(np.array([1.25, -1.0]), np.ones(2))["delta"] == 0, "strict; behind is wrong"


# cv2.resize(values, (7, 3), interpolation=cv2.INTER_CUBIC) of OpenCV 5.0.0, of the 4 x 5 below.
CUBIC = [-0.17413344, 0.63842094, 0.504817, -0.84854418, -0.63453879, -0.9653494, -1.61280715]


def test_cubic_resizing_is_opencvs():
    values = np.random.default_rng(0).normal(size=(4, 5))
    found = depths.cubic_resized(values, 3, 7)
    np.testing.assert_allclose(found[1], CUBIC, atol=1e-6)
    np.testing.assert_allclose(depths.cubic_resized(values, 4, 5), values, atol=1e-12)
    cv2 = pytest.importorskip("cv2")
    expected = cv2.resize(values, (7, 3), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(found, expected, atol=1e-6)
