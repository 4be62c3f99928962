"""What all models share."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import tiny_model


@pytest.mark.parametrize("name", ["vggt", "pi3"])
def test_parameters_stored_as_they_are_read_give_the_same_numbers(name):
    model = tiny_model(name).clone(dtype=jnp.bfloat16)
    full = random_params(model)["params"]
    flat = flax.traverse_util.flatten_dict(full, sep="/")
    less = {key: array.astype(model.storage(key)) for key, array in flat.items()}
    size = lambda arrays: sum(array.nbytes for array in arrays.values())
    assert size(less) < 0.8 * size(flat)
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 56, 42, 3), np.uint8)
    apply = jax.jit(model.apply)
    expected = apply({"params": full}, images)
    found = apply({"params": flax.traverse_util.unflatten_dict(less, sep="/")}, images)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    # In float32 all of them stay.
    assert {model.clone(dtype=jnp.float32).storage(key) for key in flat} == {jnp.dtype(jnp.float32)}
