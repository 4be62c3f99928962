"""What all models share."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Sparsity
from fastvggt_jax.models import alternating, base
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import tiny_model
from pallas_kernels import to_float8


@pytest.mark.parametrize("name", [pytest.param("vggt", marks=pytest.mark.slow), "pi3"])
def test_parameters_stored_as_they_are_read_give_the_same_numbers(name):
    model = tiny_model(name).clone(dtype=jnp.bfloat16, heads=("camera",))
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


@pytest.mark.parametrize(
    "name, output, sparsity",
    [
        pytest.param("vggt", "pose_enc", None, marks=pytest.mark.slow),
        ("pi3", "camera_poses", Sparsity(sparse_ratio=0.5, block=(16, 16))),
    ],
)
def test_scores_of_8_bits_are_those_of_global_attention(name, output, sparsity, monkeypatch):
    """Rounding changes the answer a little, and only in the global layers' queries and keys."""
    rounded = []
    monkeypatch.setattr(alternating, "to_float8", lambda x: rounded.append(x.shape) or to_float8(x))
    model = tiny_model(name).clone(dtype=jnp.float32, sparsity=sparsity, heads=("camera",))
    params = random_params(model)
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 56, 42, 3), np.uint8)
    exact = getattr(jax.jit(model.apply)(params, images), output)
    assert not rounded
    found = getattr(jax.jit(model.clone(float8_scores=True).apply)(params, images), output)
    assert set(rounded) == {(1, 3 * 17, model.num_heads, model.embed_dim // model.num_heads)}
    assert 1e-5 < np.abs(found - exact).max() < 0.1


@pytest.mark.parametrize(
    "name, sparsity",
    [
        ("vggt", Sparsity(sparse_ratio=0.5, block=(16, 16), order="hilbert")),
        pytest.param("pi3", None, marks=pytest.mark.slow),
    ],
)
def test_less_memory_gives_the_same_numbers(name, sparsity, monkeypatch):
    monkeypatch.setattr(base, "ROWS", 7)  # tokens, of 72 and more
    monkeypatch.setattr(base, "BLOCKS_CHUNK", 4)  # frames, 2 of the 3 of each scene
    heads = ("camera", "depth") if name == "vggt" else ("camera", "point", "conf")
    model = tiny_model(name).clone(dtype=jnp.float32, sparsity=sparsity, frames_chunk=2, heads=heads)
    params = random_params(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 56, 42, 3), np.uint8)
    expected = jax.jit(model.apply)(params, images)
    less = model.clone(low_memory=True)
    assert (less.rows, less.blocks_chunk) == (7, 4) and model.rows is model.blocks_chunk is None
    found = jax.jit(less.apply)(params, images)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
