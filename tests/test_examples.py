"""The examples do what they say."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from fastvggt_jax.testing.random_weights import random_params
from tests.toys.model import Toy

pytestmark = pytest.mark.every_jax
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def reconstructor():
    return runpy.run_path(str(EXAMPLES / "nnx.py"))["Reconstructor"]


def test_a_model_inside_an_nnx_program_predicts_the_same_and_can_be_trained(reconstructor):
    model = Toy()
    params = random_params(model)
    module = reconstructor(model, params)
    images = np.random.default_rng(0).random((1, 2, 16, 16, 3), np.float32)
    expected = model.apply(params, images)
    found = nnx.jit(lambda module, images: module(images))(module, images)
    np.testing.assert_allclose(found.depth, expected.depth, rtol=1e-6)
    gradient = nnx.grad(lambda module: module(images).depth.sum())(module)
    wanted = jax.grad(lambda params: model.apply(params, images).depth.sum())(params)
    ours, theirs = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(gradient)))), jax.tree.leaves(wanted)
    assert len(ours) == len(theirs) == 4
    for one in theirs:
        assert any(one.shape == other.shape and np.allclose(one, other, rtol=1e-5) for other in ours)
