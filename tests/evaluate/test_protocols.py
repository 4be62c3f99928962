"""CUT3R's and MapAnything's protocols: their definitions by hand, and the truth as prediction."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvggt_jax import errors
from fastvggt_jax.datasets import nrgbd, seven_scenes
from fastvggt_jax.datasets.base import Options, load_dataset
from fastvggt_jax.evaluate import clouds, normalised
from fastvggt_jax.evaluate.measures import Reference, measure
from fastvggt_jax.evaluate.protocols import rules_for
from fastvggt_jax.sources import ImagePolicy, load_images
from tests.datasets import layouts, test_layouts
from tests.datasets.test_layouts import HEIGHT, HERE, found, scene

ELSEWHERE = (3.7, Rotation.from_rotvec([0.5, -2, 1]).as_matrix(), np.array([3.0, -20, 7]))
NORMALISED = {
    "points AbsRel": 0,
    "points within 3 %": 100,
    "z AbsRel": 0,
    "z within 3 %": 100,
    "rigid ATE": 0,
    "ray error": 0,
    "AUC@5": 100,
}


def reference(name, protocol, root, policy):
    sample = (data := load_dataset(name, Options(root=root, stride=1, protocol=protocol)))[0]
    rules = rules_for(data, protocol)
    transforms = load_images(sample.images, rules.policy(policy)).transforms
    return Reference(sample, transforms, rules.wanted, rules.field, rules.order), rules


@pytest.mark.parametrize("name, module", [("7scenes", seven_scenes), ("nrgbd", nrgbd)])
def test_cut3rs_clouds_forget_world_and_scale_but_not_a_mirror(name, module, tmp_path, monkeypatch):
    monkeypatch.setattr(test_layouts, "WIDTH", 512)
    monkeypatch.setattr(module, "SIZE", (512, HEIGHT))
    true = scene(2, module.K)
    test_layouts.LAYOUTS[name][0](tmp_path, true)
    truth, rules = reference(name, "cut3r", tmp_path, ImagePolicy("crop", 518, 14))
    assert rules.policy(ImagePolicy("crop", 518, 14))[:2] == ("wide", 512)
    assert truth.kept.sum() == 2 * 224 * HEIGHT, "the middle; what is not known lies in a corner"
    for similarity in (HERE, ELSEWHERE):
        values = measure(found(true, similarity), truth)[1]
        assert max(values["Acc mean"], values["Comp mean"]) < 3e-5 and values["NC mean"] > 0.999
    assert measure(found(true, ELSEWHERE, mirror=1), truth)[1]["Acc mean"] > 0.02
    said = rules.describe()
    assert (said["clouds_aligned_by"], said["clouds_cropped_to"], said["mean_over"]) == (
        "medians",
        224,
        "scenes",
    )


def test_a_cloud_is_seen_from_its_first_camera_and_measured_by_medians():
    world = np.array([[1.0, 2, 3], [4, 0, 5], [-2, 1, 9], [0, 0, 40]])
    camera = np.array([[0, -1.0, 0, 0.5], [1, 0, 0, -1], [0, 0, 1, 2]])
    seen, size = clouds.from_median(world, camera)
    there = np.array([[-1.5, 0, 5], [0.5, 3, 7], [-0.5, -3, 11], [0.5, -1, 42]])  # lower median: 7
    np.testing.assert_allclose(seen, there - [0, 0, 7])
    middle = np.array([-0.5, -1, 0])
    assert size == pytest.approx(np.sort(np.linalg.norm(there - [0, 0, 7] - middle, axis=1))[1])
    assert clouds.from_median(3 * world, camera * [1, 1, 1, 3])[1] == pytest.approx(3 * size)


def test_cut3rs_frames_of_nrgbd(tmp_path):
    """Every 500th, or every n/2-th; without those whose camera is NaN."""
    layouts.nrgbd(tmp_path, scene(6, nrgbd.K))
    own = lambda **options: load_dataset("nrgbd", Options(root=tmp_path, protocol="cut3r", **options))
    assert own().frames["breakfast_room"] == [0, 3] and own(stride=2).frames["breakfast_room"] == [0, 2, 4]
    assert load_dataset("nrgbd", Options(root=tmp_path)).frames["breakfast_room"] == [0]
    lines = (tmp_path / "breakfast_room/poses.txt").read_text().splitlines()
    lines[:4] = ["nan nan nan nan"] * 4
    (tmp_path / "breakfast_room/poses.txt").write_text("\n".join(lines))
    nrgbd_size = (test_layouts.WIDTH, HEIGHT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nrgbd, "SIZE", nrgbd_size)
        assert [frame.path.stem for frame in own(stride=2)[0].images] == ["img2", "img4"]
        with pytest.raises(errors.SceneError, match="it has 1 view, and 2 are compared"):
            own()[0]
        with pytest.raises(errors.SceneError, match="view 0 is not finite"):
            load_dataset("nrgbd", Options(root=tmp_path, stride=2))[0]


def test_mapanythings_views_forget_the_world_and_the_scale_but_that_of_metres(tmp_path):
    true = scene(6)
    layouts.eth3d(tmp_path, true)
    policy = ImagePolicy("crop", 518, 14)
    truth, rules = reference("eth3d", "mapanything", tmp_path, policy)
    assert rules.policy(policy) == policy and rules.wanted == ("cameras", "normalised views")
    K = np.tile(true.K, (6, 1, 1))
    for (scale, *world), metres in ((HERE, None), (ELSEWHERE, 1 / 3.7), (ELSEWHERE, None)):
        one = found(true, (scale, *world)).replace(K=K, metric_scale=metres)
        values = measure(one, truth)[1]
        for metric, best in NORMALISED.items():
            assert values[metric] == pytest.approx(best, abs=1e-4), metric
        assert values["scale AbsRel"] == pytest.approx(0 if metres or scale == 1 else 2.7, abs=1e-4)
    wrong = measure(found(true, ELSEWHERE, mirror=1).replace(K=K), truth)[1]
    assert wrong["points AbsRel"] > 0.1 and wrong["rigid ATE"] > 0.01 and wrong["AUC@5"] < 60
    layouts.eth3d(tmp_path / "empty", true._replace(depth=0 * true.depth))
    with pytest.raises(errors.SceneError, match="hardly a pixel has a known depth"):
        reference("eth3d", "mapanything", tmp_path / "empty", policy)


def views(*lengths, focal=1.0, centre=0.0):
    """Two views of three pixels in a row, whose points lie at these distances from the first one."""
    at = np.array([[[-0.6, 0, 0.8], [0, 0, 1], [0.6, 0, 0.8]]])
    poses = np.tile(np.eye(3, 4), (2, 1, 1))
    poses[1, 0, 3] = -centre
    points = np.stack([length * at for length in lengths])
    K = np.array([[focal, 0, 1.5], [0, focal, 0.5], [0, 0, 1]])
    return normalised.Views(poses, points, points[..., 2], normalised.rays_of(np.tile(K, (2, 1, 1)), 1, 3))


@pytest.mark.parametrize(
    "lengths, points, within",
    [((1, 1), 0, 100), ((5, 5), 0, 100), ((1, 3), 0.5, 0), ((1, 1.02), 1 / 101, 100)],
)
def test_normalised_errors_by_hand(lengths, points, within):
    valid = np.ones((2, 1, 3), bool)
    values = normalised.normalised_errors(views(*lengths), views(1, 1), valid)
    for name in ("points", "z"):
        assert values[f"{name} AbsRel"] == pytest.approx(points) and values[f"{name} within 3 %"] == within
    assert values["scale AbsRel"] == pytest.approx(sum(lengths) / 2 - 1)
    half = normalised.normalised_errors(views(*lengths), views(1, 1), valid, metric_scale=0.5)
    assert half["scale AbsRel"] == pytest.approx(abs(sum(lengths) / 4 - 1))


def test_a_view_without_depth_does_not_count_and_rays_are_of_all_pixels():
    valid = np.ones((2, 1, 3), bool)
    valid[1] = False
    values = normalised.normalised_errors(views(1, 9, focal=2.0), views(1, 1), valid)
    assert values["points AbsRel"] == values["scale AbsRel"] == 0
    assert values["ray error"] == pytest.approx(2 / 3 * np.rad2deg(np.arctan(1) - np.arctan(0.5)))


def test_camera_centres_are_aligned_without_a_scale():
    truth, far = views(1, 1, centre=1.0), views(1, 1, centre=2.0)
    assert normalised.normalised_errors(far, truth, np.ones((2, 1, 3), bool))["rigid ATE"] == pytest.approx(
        0.5
    )
    assert normalised.rigid_ate(np.eye(3), np.eye(3)[[1, 0, 2]] * [1, 1, -1] + 4) < 1  # no mirror is needed
    line = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    assert (
        normalised.rigid_ate(line @ ELSEWHERE[1] + 7, line) < 1e-9 < 0.1 < normalised.rigid_ate(-line, line)
    )


@pytest.mark.parametrize("name, fits", [("cut3r", "7scenes, nrgbd"), ("mapanything", "eth3d")])
def test_a_protocol_is_for_its_data_sets(name, fits, tmp_path):
    layouts.sintel(tmp_path, scene(2))
    data = load_dataset("sintel", Options(root=tmp_path))
    with pytest.raises(errors.InputError, match=f"protocol {name} is for {fits}, not for sintel: take pi3"):
        rules_for(data, name)
