"""Metrics on cases whose answer is known by hand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvggt_jax.evaluate import metrics
from fastvggt_jax.geometry.alignment import Similarity


def turn(axis, degrees) -> np.ndarray:
    """f64[3, 3], about an axis."""
    return Rotation.from_rotvec(np.deg2rad(degrees) * np.asarray(axis) / np.linalg.norm(axis)).as_matrix()


def camera(rotation, centre) -> np.ndarray:
    return np.concatenate([rotation, -rotation @ np.asarray(centre, float)[:, None]], 1)


def some_cameras(frames=4, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [camera(turn(rng.normal(size=3), rng.uniform(0, 170)), rng.normal(size=3)) for _ in range(frames)]
    )


def moved(cameras, rotation, translation, scale) -> np.ndarray:
    """The same cameras in the world x' = scale · rotation · x + translation."""
    centres = -np.einsum("fji,fj->fi", cameras[:, :, :3], cameras[:, :, 3])
    return np.stack(
        [
            camera(c[:, :3] @ rotation.T, scale * rotation @ x + translation)
            for c, x in zip(cameras, centres, strict=True)
        ]
    )


ELSEWHERE = (turn([1, -2, 0.5], 77), np.array([3.0, -1, 8]), 4.5)


def test_equal_cameras_are_perfect_in_whatever_world():
    cameras = some_cameras()
    rotation, translation = metrics.pair_errors(moved(cameras, *ELSEWHERE), cameras)
    assert len(rotation) == len(translation) == 6 and max(rotation.max(), translation.max()) < 1e-4
    assert metrics.auc(rotation, translation, 30) == metrics.auc(rotation, translation, 5) == 100
    assert metrics.accuracy_at(rotation, 5) == metrics.accuracy_at(translation, 5) == 100
    assert metrics.ate(moved(cameras, *ELSEWHERE), cameras) < 1e-5


def test_one_camera_turned_by_ten_degrees():
    """Turned about its own axes, camera 0 is wrong by 10° with each of the other two: 2 of the 3 pairs."""
    true = np.stack([camera(np.eye(3), centre) for centre in ([0, 0, 0], [1, 0, 0], [0, 1, 0])])
    cameras = true.copy()
    cameras[0] = turn([1, 0, 0], 10) @ true[0]
    rotation, translation = metrics.pair_errors(cameras, true)
    np.testing.assert_allclose(rotation, [10, 10, 0], atol=1e-4)
    # cam_0_from_cam_j has cam_j's centre as its translation: along the axis it stays, across it turns by 10°
    # as well.
    np.testing.assert_allclose(translation, [0, 10, 0], atol=1e-4)
    assert (
        metrics.accuracy_at(rotation, 5) == pytest.approx(100 / 3)
        and metrics.accuracy_at(rotation, 15) == 100
    )
    # At 1° to 10° a third of the pairs passes, from 11° on all do.
    errors = np.array([10.5, 10.5, 0])
    assert metrics.auc(errors, np.zeros(3), 30) == pytest.approx(100 * (10 / 3 + 20) / 30)
    assert metrics.auc(np.zeros(3), errors, 5) == pytest.approx(100 / 3)


def test_a_translation_counts_up_to_sign_and_none_at_all_is_as_wrong_as_can_be():
    true = np.stack([camera(np.eye(3), [0, 0, 0]), camera(np.eye(3), [1, 0, 0])])
    cases = ([-2, 0, 0], [0, 1, 0], [0, 0, 0], [1, 3**0.5, 0])
    angles = [metrics.pair_errors(np.stack([true[0], camera(np.eye(3), c)]), true)[1][0] for c in cases]
    np.testing.assert_allclose(angles, [0, 90, 90, 60], atol=1e-6)


@pytest.mark.parametrize("order", metrics.ORDERS)
def test_cameras_that_are_all_the_same_have_no_direction(order):
    """Also where their rotation is none to the last bit, as of float32."""
    true, one = some_cameras(5), some_cameras(1, seed=3).astype(np.float32)
    for pair in ((np.repeat(one, 5, 0), true), (true, np.repeat(one, 5, 0)), (np.repeat(one, 5, 0),) * 2):
        np.testing.assert_array_equal(metrics.pair_errors(*pair, order)[1], 90)
    assert not metrics.baselines(np.repeat(one, 5, 0)).any()


def test_accuracy_is_the_share_below_the_threshold():
    assert metrics.accuracy_at(np.array([4.0, 5, 6, 9]), 5) == 25


def test_a_half_turn_is_180_degrees():
    true = some_cameras(2)
    wrong = np.stack([1.0001 * turn([0, 1, 0], 180) @ true[0], true[1]])  # a rotation but for rounding
    np.testing.assert_allclose(metrics.pair_errors(wrong, true)[0], 180, atol=0.1)


def test_alignment_recovers_a_similarity():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3)) * [1, 2, 0.3]
    rotation, translation, scale = ELSEWHERE
    found = metrics.align(points, scale * points @ rotation.T + translation)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-6)
    np.testing.assert_allclose(found.translation, translation, atol=1e-5)
    mirrored = metrics.align(points, points * [-1, 1, 1])
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1)
    assert np.abs(mirrored(points) - points * [-1, 1, 1]).max() > 0.1


@pytest.mark.parametrize("mirror", [1, -1])
def test_alignment_is_the_best_there_is(mirror):
    """No similarity nearby is nearer: neither the scale nor the rotation is only about right, also of a
    mirror image.
    """
    rng = np.random.default_rng(1)
    points, noise = rng.normal(size=(2, 40, 3)) * [3, 2, 1]
    truth = points * [1, 1, mirror] + 0.5 * noise
    found = metrics.align(points, truth)
    cost = lambda s: np.square(s(points) - truth).sum()
    for scale, axis, shift in (
        (1.02, None, 0),
        (0.98, None, 0),
        (1, [1, 0, 0], 0),
        (1, [0, 1, 1], 0),
        (1, None, 0.02),
    ):
        rotation = found.rotation if axis is None else turn(axis, 2) @ found.rotation
        assert cost(Similarity(scale * found.scale, rotation, found.translation + shift)) > cost(found)


def test_points_that_coincide_can_be_aligned():
    truth = np.random.default_rng(2).normal(size=(5, 3))
    np.testing.assert_allclose(metrics.align(np.ones((5, 3)), truth)(np.ones(3)), truth.mean(0), atol=1e-12)


def test_trajectory_error_of_one_camera_out_of_place():
    """Four centres on a square of side 2; those of a rectangle 2 × 4 fit best at scale s = Σ|p||q|cos /
    Σ|p|², by hand.
    """
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]])
    cameras = lambda centres: np.stack([camera(np.eye(3), c) for c in centres])
    rectangle = square * [1, 2, 1]
    scale = (rectangle * square).sum() / (rectangle**2).sum()  # 12 / 20
    expected = np.sqrt((1 - scale) ** 2 + (1 - 2 * scale) ** 2)
    assert metrics.ate(cameras(rectangle), cameras(square)) == pytest.approx(expected)


def test_depth_that_is_a_tenth_too_far():
    truth = np.random.default_rng(3).uniform(1, 5, 1000)
    assert metrics.abs_rel(1.1 * truth, truth) == pytest.approx(0.1)
    assert (
        metrics.delta(1.1 * truth, truth) == 100
        and metrics.delta(1.3 * truth, truth) == 0
        and metrics.delta(0.7 * truth, truth) == 0
    )
    scale = metrics.depth_scale(1.1 * truth, truth)
    assert scale == pytest.approx(1 / 1.1) and metrics.abs_rel(scale * 1.1 * truth, truth) < 1e-12


def test_depth_scale_makes_the_sum_of_errors_smallest_and_outliers_count_little():
    rng = np.random.default_rng(4)
    truth = rng.uniform(1, 5, 200)
    depth = truth * rng.uniform(0.5, 2, 200)
    scale = metrics.depth_scale(depth, truth)
    cost = lambda s: np.abs(s * depth - truth).sum()
    assert cost(scale) <= min(cost(s) for s in np.linspace(0.2, 3, 2000)) + 1e-9
    spoilt = truth.copy()
    spoilt[:20] *= 50
    assert metrics.depth_scale(truth, spoilt) == 1


def plane(z=0.0, side=40) -> np.ndarray:
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return np.stack([x.ravel() / side, y.ravel() / side, np.full(side * side, z)], -1)


def test_a_shifted_plane_is_as_far_as_it_is_shifted():
    found = metrics.surface_errors(metrics.Surface(plane(0.03)), metrics.Surface(plane()))
    for name in ("accuracy", "completeness", "Chamfer"):
        assert found[name] == pytest.approx(0.03)
    assert found["normal consistency"] == pytest.approx(1)
    same = metrics.surface_errors(metrics.Surface(plane()), metrics.Surface(plane()))
    assert same["Chamfer"] == 0


def test_half_of_a_plane_is_accurate_but_not_complete():
    half = plane()[:800]  # y below a half: of the other half a point at y lies y - 19/40 away
    found = metrics.surface_errors(metrics.Surface(half), metrics.Surface(plane()))
    assert found["accuracy"] == 0
    assert found["completeness"] == pytest.approx(np.arange(1, 21).sum() / 40 / 40)
    assert found["Chamfer"] == pytest.approx(found["completeness"] / 2)


def test_normals_of_planes_at_sixty_degrees():
    tilted = metrics.Surface(plane() @ turn([1, 0, 0], 60).T)
    normals = metrics.Surface(plane()).normals(plane()[:9])
    np.testing.assert_allclose(np.abs(normals), np.tile([0, 0, 1.0], (9, 1)), atol=1e-6)
    found = metrics.surface_errors(tilted, metrics.Surface(plane()))
    assert found["normal consistency"] == pytest.approx(0.5, abs=1e-5)
    some = metrics.surface_errors(
        tilted, metrics.Surface(plane()), slice(0, 40)
    )  # the row along the axis, which both planes share
    assert some["accuracy"] < 1e-9 < found["accuracy"]
