"""Models inside programs of other people's making: 64-bit JAX, shard_map with its checks, explicit meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fastvggt_jax import Sparsity
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.base import check_images
from fastvggt_jax.testing.random_weights import random_params
from tests.train.runs import CAMERAS, PI3

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 2, 28, 28, 3), np.uint8)
SPARSE = CAMERAS.clone(sparsity=Sparsity(0.5, cdf_threshold=0.5, block=(4, 4)))
MODELS = {"vggt": SPARSE, "pi3": PI3}


def predicted(model, params):
    """The floating-point fields of a prediction."""
    found = jax.jit(model.apply)(params, IMAGES)
    return {key: value for key, value in vars(found).items() if isinstance(value, jax.Array)}


@pytest.mark.parametrize("name", MODELS)
def test_in_64_bit_jax_the_numbers_are_the_same_float32(name):
    model = MODELS[name]
    params = random_params(model)
    expected = predicted(model, params)
    with jax.enable_x64(True):
        found = predicted(model, params)
        specs = jax.tree.leaves(model.abstract_params())
    assert {spec.dtype for spec in specs} == {np.dtype("float32")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype == jnp.float32, key
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_shard_map_around_a_model_with_its_checks_on(name):
    model = MODELS[name]
    params = random_params(model)
    expected = predicted(model, params)
    mesh = jax.make_mesh((1,), ("scenes",), axis_types=(AxisType.Auto,))
    scenes = PartitionSpec("scenes")

    def run(params, images):
        found = vars(model.apply(params, images))
        return {key: found[key] for key in expected if key != "density"}  # which has no axis of scenes

    run = jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), scenes), out_specs=scenes)
    for key, value in jax.jit(run)(params, IMAGES).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)


def test_a_mesh_of_explicit_axes_is_said_to_be_one():
    mesh = jax.make_mesh((1,), ("scenes",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("scenes")))
        with pytest.raises(InputError, match=r"explicit axes.*axis_types=\(jax.sharding.AxisType.Auto"):
            jax.eval_shape(lambda images: check_images(images, CAMERAS.patch_size), images)
