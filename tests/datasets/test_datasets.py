"""Data sets for evaluation: the registry, the renderer's test split, the stereo pair."""

from pathlib import Path

import numpy as np
import pytest

from fastvggt_jax import errors, geometry
from fastvggt_jax.datasets import stereo
from fastvggt_jax.datasets.base import METRICS, Options, load_dataset, names, registered
from fastvggt_jax.datasets.rendered import Rendered
from fastvggt_jax.datasets.synthetic import sample
from tests.toys.dataset import Walls


def test_a_data_set_is_registered_and_gone_again():
    with registered("walls", Walls.build):
        assert "walls" in names()
        found = load_dataset("walls", Options(scenes=4, views=2))
        assert len(found) == 4 and len(found[0].images) == 2
        with pytest.raises(errors.InputError, match="first cannot be chosen of the data set walls") as error:
            load_dataset("walls", Options(first=0))
        assert error.value.argument == "first"
    with pytest.raises(errors.InputError, match="no data set 'walls'; there are synthetic, stereo"):
        load_dataset("walls")


@pytest.mark.slow
def test_rendered_scenes_are_those_of_the_test_split():
    data = load_dataset("synthetic", Options(scenes=2, first=3, views=2, size=16))
    assert len(data) == 2 and data.size == 16 and set(data.metrics) <= set(METRICS)
    found, scene = data[1], sample("test", 4, frames=2, height=16, width=16)
    assert found.name == "test scene 4" and found.images.dtype == np.uint8
    np.testing.assert_allclose(found.images / 255, scene.images, atol=1e-6)
    truth = found.truth
    K = geometry.move_origin(truth.K, -0.5)
    points = np.asarray(geometry.unproject_depth(truth.depth[..., None], K, truth.cam_from_world))
    assert truth.valid.mean() > 0.3
    assert np.abs(points - truth.points)[truth.valid].max() < 1e-3 * truth.depth.max()
    np.testing.assert_array_equal(truth.valid, truth.depth > 0)
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize(
    "options, argument",
    [
        (dict(scenes=0), "scenes"),
        (dict(views=1), "views"),
        (dict(first=-1), "first"),
        (dict(first=2**31), "first"),
        (dict(size=0), "size"),
    ],
)
def test_options_of_rendered_scenes(options, argument):
    with pytest.raises(errors.InputError, match=f"{argument} must be at ") as error:
        Rendered(**options)
    assert error.value.argument == argument
    assert len(Rendered(scenes=1, first=2**31 - 1)) == 1
    with pytest.raises(errors.InputError, match="root cannot be chosen of the data set synthetic"):
        load_dataset("synthetic", Options(root=Path("scenes")))


def test_the_stereo_pair_has_depth_and_cameras_of_its_disparity():
    """A point of the left photograph is seen by the right camera as far to the left as its disparity says."""
    disparity = np.full((4, 6), 20.0)
    disparity[0, 0], disparity[1, 1], disparity[2, 2] = np.inf, np.nan, 0
    image = np.zeros((4, 6, 3), np.uint8)
    truth = stereo.Stereo(image, image, disparity)[0].truth
    assert truth.valid.sum() == 21 and not truth.valid[1].any() and np.isfinite(truth.depth).all()
    left = np.array([3.5, 1.5, 1.0])
    point = np.linalg.inv(truth.K[0]) @ left * truth.depth[0, 1, 3]
    right = truth.K[1] @ (point + truth.cam_from_world[1, :, 3])
    np.testing.assert_allclose(right[:2] / right[2], [3.5 - 20, 1.5], rtol=1e-9)


def test_the_real_pair_is_there():
    pytest.importorskip("skimage")
    data = load_dataset("stereo", Options(size=70))
    assert data.size == 70 and len(data) == 1
    (left, right), truth = data[0].images, data[0].truth
    assert left.shape == right.shape == (500, 741, 3)
    assert truth.depth.shape == (2, 500, 741) and truth.valid[0].mean() > 0.8
    with pytest.raises(errors.InputError, match="views cannot be chosen of the data set stereo"):
        load_dataset("stereo", Options(views=2))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.ExtraError, match=r"pip install 'fastvggt_jax\[evaluate\]'"):
        load_dataset("stereo")


@pytest.mark.parametrize("option", [dict(scenes="x"), dict(first=1.5), dict(views=True), dict(root=3)])
def test_an_option_of_another_type_is_named(option):
    (argument,) = option
    with pytest.raises(errors.InputError, match=f"^{argument} must be a ") as raised:
        Options(**option)
    assert raised.value.argument == argument
