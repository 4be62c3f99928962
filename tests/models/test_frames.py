"""How many frames count, known at run time: the same numbers as of these alone, from one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Conditions, Sparsity
from fastvggt_jax.errors import InputError
from fastvggt_jax.models import registry
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import tiny_model
from tests.train.runs import CAMERAS, MODEL, PI3

SMALL = {**{name: getattr(PI3, name) for name in PI3.config() if name not in ("heads", "num_heads")}}
PI3X = tiny_model(
    "pi3x",
    **SMALL,
    num_heads=2,
    conv_channels=(16, 16, 16),
    heads=("point", "conf", "camera", "metric"),
    dtype=jnp.float32,
)
PLAN = dict(block=(4, 4), frame_layers=(0,), layers=(1, 2))  # and a dense layer


@pytest.mark.parametrize(
    "model, sparsity",
    [
        pytest.param(CAMERAS, Sparsity(0.5, 0.7, **PLAN), id="a layer of each kind"),
        pytest.param(
            CAMERAS,
            Sparsity(0.6, block=(6, 4), special_keys="official", order="hilbert"),
            id="special keys as released",
        ),
        pytest.param(MODEL, None, id="dense", marks=pytest.mark.slow),
        pytest.param(PI3, Sparsity(cdf_threshold=0.8, block=(8, 4), pool="max"), id="π³"),
        pytest.param(PI3X, Sparsity(0.3, 0.6, block=(4, 4)), id="Pi3X", marks=pytest.mark.slow),
    ],
)
def test_a_prediction_is_that_of_the_frames_that_count(model, sparsity):
    """Six patches a frame, so that blocks hold patches of two; the others are noise, as bright as can be."""
    model = model.clone(sparsity=sparsity, remat=False)
    params, images = random_params(model), noise(5)
    images[:, 3:] = 255
    found = jax.jit(lambda params, images, count: model.apply(params, images, frames=count))(
        params, images, jnp.int32(3)
    )
    expected = jax.jit(model.apply)(params, images[:, :3])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        one = one[:, :3] if one.shape != other.shape else one
        assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()


def noise(frames):
    return np.random.default_rng(0).integers(0, 256, (2, frames, 42, 28, 3), np.uint8)


def test_what_cannot_be_is_one_sentence():
    images = np.zeros((2, 2, 140, 140, 3), np.uint8)

    def refused(words, model=CAMERAS, *asked, **how):
        with pytest.raises(InputError, match=words) as raised:
            params = model.abstract_params()
            jax.eval_shape(lambda params: model.apply(params, images, *asked, **how), params)
        assert raised.value.argument == "frames"

    for wrong in (0, 3):
        refused(f"one whole number from 1 to 2, .*, not {wrong}", frames=wrong)
    refused(r"not float32 of shape \[\]", frames=jnp.float32(2))
    refused(r"not int32 of shape \[2\]", frames=np.array([1, 2], np.int32))
    conditions = Conditions(K=np.tile(np.eye(3, dtype=np.float32), (2, 2, 1, 1)))
    with_them = PI3X.clone(heads=registry.find("pi3x").heads)
    refused("conditions were given with frames", with_them, conditions, frames=1)
    tracking = tiny_model("vggt", heads=("track",))
    refused("query_points were given with frames", tracking, np.ones((2, 1, 2), np.float32), frames=1)
