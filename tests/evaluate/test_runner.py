"""A perfect model gets perfect scores, what is spoilt is what gets worse, and every scene is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import VGGT, Pi3, errors, geometry
from fastvggt_jax.datasets.base import Sample, Truth
from fastvggt_jax.datasets.stereo import Stereo
from fastvggt_jax.evaluate import runner
from fastvggt_jax.evaluate.measures import DEFINITIONS, Reference
from fastvggt_jax.evaluate.runner import BASELINES, evaluate, whole_batch
from fastvggt_jax.evaluate.truth import in_model_pixels
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.sources import ImagePolicy, load_images
from fastvggt_jax.testing.random_weights import random_params
from tests.toys.dataset import Walls
from tests.toys.model import Toy

POLICY = ImagePolicy("crop", 40, 8)
DATA = Walls()
BEST = {
    "rotation error": 0,
    "translation error": 0,
    "RRA@5": 100,
    "RTA@15": 100,
    "AUC@5": 100,
    "AUC@30": 100,
    "ATE": 0,
    "AbsRel": 0,
    "delta": 100,
    "point error": 0,
    "accuracy": 0,
    "completeness": 0,
    "Chamfer": 0,
    "normal consistency": 1,
}


def truths() -> Truth:
    """Of all scenes of DATA, [B, F, ...] in the model's pixels, which are the photographs' own."""
    images = [load_images(sample.images, POLICY) for sample in DATA]
    found = [in_model_pixels(sample.truth, one.transforms) for sample, one in zip(DATA, images, strict=True)]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def as_vggt(truth: Truth) -> Reconstruction:
    """With sizes and fields of view as upstream has them."""
    K = geometry.move_origin(truth.K, -0.5)
    depth = truth.depth[..., None]
    pose_enc = geometry.encode_pose(truth.cam_from_world, K, *depth.shape[2:4])
    return VGGT.reconstruction(
        Prediction(pose_enc=pose_enc, depth=depth, depth_conf=jnp.ones_like(truth.depth))
    )


def as_pi3(truth: Truth) -> Reconstruction:
    """In another world and unit."""
    scale, turned = 7.0, geometry.quat_xyzw_to_rotation(jnp.array([0.3, -0.5, 0.1, 0.8]))
    world = jnp.eye(4).at[:3, :3].set(turned).at[:3, 3].set(jnp.array([3.0, -1, 5]))
    world_from_cam = geometry.invert_se3(truth.cam_from_world)
    poses = world @ world_from_cam.at[..., :3, 3].multiply(scale)
    local = scale * geometry.transform(truth.cam_from_world, truth.points)
    return Pi3.reconstruction(
        Prediction(local_points=local, conf=jnp.zeros((*local.shape[:-1], 1)), camera_poses=poses)
    )


@pytest.fixture(scope="module")
def truth():
    return truths()


@pytest.fixture(scope="module")
def good(truth):
    return as_vggt(truth)


def run(found, density=None, **options):
    return evaluate({"x": lambda _: (found, density)}, POLICY, DATA, **options)["x"]


@pytest.mark.parametrize("model", [as_vggt, as_pi3])
def test_a_perfect_model_has_perfect_scores(truth, model):
    counted, seen = [], []

    def predict(images):
        seen.append(np.asarray(images))
        return model(truth), None

    result = evaluate({"perfect": predict}, POLICY, DATA, advance=counted.append)["perfect"]
    np.testing.assert_array_equal(seen[0], np.stack([sample.images for sample in DATA]))
    summary = result.summary()
    thresholds = {"RRA@15", "RRA@30", "RTA@5", "RTA@30", "AUC@15"}
    assert set(summary) == {*BEST, *thresholds, "effective sparsity"} <= set(DEFINITIONS)
    assert summary["effective sparsity"] == 0 and counted == [2]
    for name, best in BEST.items():
        assert summary[name] == pytest.approx(best, abs=0.02), name
    assert len(result.report()["scenes"]["AUC@30"]) == 2 and result.scenes == ["wall 0", "wall 1"]


def test_what_is_spoilt_is_what_gets_worse(good):
    """One camera's pose, then the depth alone: each shows in its own metrics and not in the other's."""
    turned = (
        geometry.quat_xyzw_to_rotation(jnp.array([np.sin(np.deg2rad(5)), 0, 0, np.cos(np.deg2rad(5))]))
        @ good.cam_from_world[:, 2]
    )
    of_camera = good.replace(cam_from_world=good.cam_from_world.at[:, 2].set(turned))
    noise = jnp.exp(0.5 * jax.random.normal(jax.random.key(0), good.depth.shape))
    of_depth = good.replace(depth=good.depth * noise)
    density = jnp.array([0.25, 0.75])
    predictors = {"camera": lambda _: (of_camera, density), "depth": lambda _: (of_depth, None)}
    found = evaluate(predictors, POLICY, DATA, together=True)
    results = {name: result.summary() for name, result in found.items()}
    assert results["camera"]["RRA@5"] == pytest.approx(100 / 3)
    assert results["camera"]["rotation error"] == pytest.approx(10, abs=0.01)
    assert results["camera"]["AbsRel"] < 1e-4
    assert results["camera"]["effective sparsity"] == pytest.approx(0.5)
    assert results["depth"]["AUC@30"] == 100
    assert results["depth"]["AbsRel"] > 0.2 and results["depth"]["delta"] < 60


def turned_second_scene(good):
    wrong = jnp.stack(
        [
            geometry.quat_xyzw_to_rotation(jnp.array([0, np.sin(a), 0, np.cos(a)]))
            for a in np.deg2rad([0.0, 20, 45])
        ]
    )
    return good.replace(cam_from_world=good.cam_from_world.at[1].set(wrong @ good.cam_from_world[1]))


def test_the_medians_are_over_the_pairs_of_all_scenes(good):
    """Of two scenes with three pairs each, one wrong in all of them: the median lies between the two."""
    summary = run(turned_second_scene(good)).summary()
    assert 1 < summary["rotation error"] == pytest.approx((0 + 40) / 2, abs=0.1)


def references():
    return [Reference(sample, load_images(sample.images, POLICY).transforms, DATA.metrics) for sample in DATA]


def test_pairs_are_told_apart_by_the_distance_of_their_cameras(good):
    """Of the second scene all rotations are wrong; each pair is counted where its baseline lies."""
    found = run(turned_second_scene(good)).by_baseline()
    share = []
    for sample, reference in zip(DATA, references(), strict=True):
        c = np.asarray(geometry.invert_se3(sample.truth.cam_from_world))[:, :3, 3]
        share.append([np.linalg.norm(c[i] - c[j]) / reference.size for i, j in ((0, 1), (0, 2), (1, 2))])
    share = 100 * np.array(share)
    assert len(found) > 1 and sum(bin["share"] for bin in found) == pytest.approx(100)
    assert all(bin["from"] in BASELINES for bin in found)
    for bin in found:
        inside = (share >= bin["from"]) & (share < (bin["to"] or np.inf))
        assert bin["share"] == pytest.approx(100 * inside.mean())
        assert bin["RRA@5"] == pytest.approx(100 * inside[0].sum() / inside.sum())


def test_the_size_of_a_scene_is_its_mean_distance_from_the_first_camera(truth):
    for b, reference in enumerate(references()):
        centre = np.asarray(geometry.invert_se3(truth.cam_from_world))[b, 0, :3, 3]
        distances = np.linalg.norm(np.asarray(truth.points)[b] - centre, axis=-1)
        assert reference.size == pytest.approx(distances.mean(), rel=1e-5)


def test_a_prediction_that_is_not_finite_is_named(good):
    bad = good.replace(depth=good.depth.at[1, 0, 0, 0].set(jnp.nan))
    with pytest.raises(
        errors.FailedError, match="x: the model's cameras or points of wall 1 are not finite: damaged weights"
    ):
        run(bad)


def test_an_interruption_keeps_what_was_measured(good):
    calls = []

    def predict(images):
        calls.append(images)
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        return jax.tree.map(lambda x: x[:1], good), None  # of scene 0

    both = {"a": predict, "b": predict}
    interrupted = 4  # the first predictor has seen both scenes, the second one only the first
    results = evaluate(both, POLICY, DATA, batch=1)
    assert [result.scenes for result in results.values()] == [["wall 0"], ["wall 0"]]
    assert [result.summary()["AUC@30"] for result in results.values()] == pytest.approx([100, 100])
    np.testing.assert_array_equal(
        np.concatenate(calls[1:3]), np.stack([sample.images for sample in DATA])
    )  # batch after batch, each to both
    calls.clear()
    interrupted = 2  # nothing is whole
    with pytest.raises(KeyboardInterrupt):
        evaluate(both, POLICY, DATA, batch=1)


def test_batches_are_whole():
    assert (whole_batch(200, 8), whole_batch(9, 4), whole_batch(2, 4)) == (8, 3, 2)
    assert [whole_batch(n, 20, devices=8) for n in (2506, 41, 9, 4)] == [16, 16, 16, 8]
    assert whole_batch(9, 4, devices=8) == 3, "fewer than devices"
    with pytest.raises(errors.InputError, match="batch must be at least 1, not 0"):
        whole_batch(2, 0)


class Several(Walls):
    """Photographs of two sizes; cameras alone, depth alone, cameras and depth, and nothing by turns."""

    def __getitem__(self, number):
        self.shape = ((32, 40), (40, 32))[number % 2]
        name, images, truth = super().__getitem__(number)
        parts = (("cam_from_world",), ("depth",), ("cam_from_world", "depth", "K"), ())[number]
        return Sample(name, images, Truth(**{part: getattr(truth, part) for part in parts}))


def test_scenes_of_several_sizes_with_some_truth_each():
    """Whatever the model says: metrics are there for what is known, and those of equal pixels go together."""
    model = Toy()
    params = random_params(model)
    shapes, order = [], []

    def predict(images):
        shapes.append(images.shape)
        prediction = model.apply(params, images)
        return model.reconstruction(prediction), None

    result = evaluate({"toy": predict}, model.image_policy, Several(scenes=4), batch=4, advance=order.append)[
        "toy"
    ]
    assert shapes == [(2, 3, 12, 16, 3), (2, 3, 16, 16, 3)] and order == [2, 2]
    assert result.scenes == ["wall 0", "wall 2", "wall 1", "wall 3"]
    found = {
        name: [value is not None for value in values] for name, values in result.report()["scenes"].items()
    }
    assert found["AUC@30"] == found["ATE"] == [True, True, False, False]
    assert found["AbsRel"] == [False, True, True, False] and found["point error"] == [
        False,
        True,
        False,
        False,
    ]
    assert np.isfinite(list(result.summary().values())).all()


def test_the_density_is_the_mean_over_scenes_however_they_are_batched():
    """Three scenes of one size and one of another, which differ in density."""
    shapes = [(40, 32), (32, 40), (32, 40), (32, 40)]

    class Mixed(Walls):
        def __getitem__(self, number):
            self.shape = shapes[number]
            return super().__getitem__(number)

    data, model = Mixed(scenes=4), Toy()
    params = random_params(model)

    def predict(images):
        found = model.reconstruction(model.apply(params, images))
        return found, jnp.full(3, 0.8 if len(images) == 1 else 0.4)

    assert evaluate({"x": predict}, model.image_policy, data, batch=4)["x"].summary()[
        "effective sparsity"
    ] == pytest.approx(0.5)


class OnePlace(Walls):
    """Cameras that all stand in one place, and hardly a pixel whose depth is known."""

    metrics = ("cameras", "depth", "points")
    known = 2

    def __getitem__(self, number):
        name, images, truth = super().__getitem__(number)
        poses = truth.cam_from_world.copy()
        poses[:, :, 3] = 0
        valid = np.zeros(truth.depth.shape, bool)
        valid.flat[: self.known] = True
        return Sample(name, images, truth.replace(cam_from_world=poses, valid=valid))


@pytest.mark.parametrize("known", [0, 2, 3])
def test_what_has_no_size_or_no_surface_is_not_measured(known):
    data, model = OnePlace(scenes=1), Toy()
    data.known = known
    params = random_params(model)
    found = evaluate(
        {"x": lambda images: (model.reconstruction(model.apply(params, images)), None)},
        ImagePolicy("crop", 40, 4),  # the photographs' own pixels
        data,
    )["x"].summary()
    assert ("AbsRel" in found, "point error" in found) == (known > 0, known > 2)
    assert ("ATE" in found) == (known > 2), "the points give the scene its size, not the cameras"
    assert "RRA@5" in found and np.isfinite(list(found.values())).all()


def test_a_data_set_without_scenes_is_refused():
    with pytest.raises(errors.InputError, match="the data set walls has no scenes"):
        evaluate({}, POLICY, Walls(scenes=0))


class Ranked(Walls):
    metrics = ("rank correlation",)


def test_ranks_are_of_the_photographs_own_pixels_and_of_what_the_model_has_seen():
    """A model of half as many pixels that crops: the truth is measured where it is, in whatever unit."""
    data = Ranked(scenes=1, shape=(80, 40), size=20)

    def predict(images):
        red = jnp.asarray(images[..., 0], jnp.float32)
        return Reconstruction(None, None, red, red, red, red), None

    assert data.shape[0] * 20 // 40 > 20, "the crop cuts off above and below"
    policy = ImagePolicy("crop", 40, 4)
    summary = evaluate({"x": predict}, policy, data)["x"].summary()
    assert set(summary) == {"effective sparsity", "rank correlation", "ranked pixels", "ranked share"}
    assert summary["rank correlation"] > 0.97
    assert summary["ranked pixels"] == 3 * 40 * 40 and summary["ranked share"] == pytest.approx(50)
    with pytest.raises(errors.FailedError, match="hardly any pixel of wall 0"):
        evaluate({"x": lambda images: jax.tree.map(lambda x: -x, predict(images))}, policy, data)


def test_seconds_are_those_of_predicting_alone(monkeypatch):
    now = [0.0]

    def takes(seconds, found):
        now[0] += seconds
        return found

    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(jax, "device_get", lambda found: takes(10, found))
    _, seconds = runner._timed(lambda images: takes(1, images), jnp.zeros(3))
    assert seconds == 1


def test_a_size_that_is_no_whole_number_of_patches_is_refused_before_anything_is_loaded():
    with pytest.raises(errors.InputError, match="size must be a positive multiple .* not 20"):
        evaluate({}, POLICY, Walls(size=20))


def stereo_pair():
    """A slanted, wavy surface whose left photograph is red where it is near; the right one is not."""
    y, x = np.mgrid[:60, :100]
    disparity = 10 + 0.3 * x + 4 * np.sin(y / 9)
    left = np.repeat(np.rint(4 * disparity)[..., None], 3, -1).astype(np.uint8)
    disparity[:, :10] = np.inf
    return left, 255 - left, disparity


@pytest.mark.parametrize("size, seen", [(None, (24, 40)), (80, (48, 80))])
def test_the_stereo_pair_is_seen_at_the_models_size_or_the_chosen_one(size, seen):
    shapes = []

    def predict(images):
        shapes.append(images.shape)
        depth = 1 / (0.1 + images[..., 0].astype(jnp.float32))
        return Reconstruction(None, None, depth, depth, depth, depth), None

    result = evaluate({"x": predict}, POLICY, Stereo(*stereo_pair(), size))["x"]
    summary = result.summary()
    assert shapes == [(1, 2, *seen, 3)] and result.scenes == ["motorcycle"]
    assert summary["rank correlation"] > 0.99 and summary["ranked pixels"] == 60 * 90
    assert summary["ranked share"] == pytest.approx(90)
