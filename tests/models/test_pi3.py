"""What π³ must do whatever its weights: no frame is special, rotations are rotations, chunks change nothing,
bad input.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Pi3, Sparsity
from fastvggt_jax.errors import InputError
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models.heads.pi3 import decode_rotation
from fastvggt_jax.pretrained import from_pretrained
from tests.conftest import TOLERANCE, max_error
from tests.parity.goldens import load_model

FIELDS = ("points", "local_points", "conf", "camera_poses")


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def tiny():
    return load_model("pi3_tiny")


@pytest.mark.parametrize("sparsity", [None, Sparsity(sparse_ratio=0.0, block=(16, 8))])
def test_permuting_the_frames_permutes_the_output(tiny, views, sparsity):
    model, params = tiny
    model, images, order = model.clone(sparsity=sparsity), views(4), np.array([2, 0, 3, 1])
    base, permuted = (jitted(model)(params, x[None]) for x in (images, images[order]))
    for name in FIELDS:
        assert max_error(getattr(permuted, name), getattr(base, name)[:, order]) < 1e-5, name


def test_frames_see_each_other(tiny, views):
    model, params = tiny
    images = views(3)
    changed = images.copy()
    changed[2, :14, :14] += 0.25
    base, moved = (jitted(model)(params, x[None]) for x in (images, changed))
    assert (np.abs(moved.local_points - base.local_points)[0].max((1, 2, 3)) > 1e-5).all()


def test_batch_elements_are_independent(tiny, views):
    model, params = tiny
    a, b = views(2), views(2)[::-1]
    both, alone = jitted(model)(params, np.stack([a, b])), jitted(model)(params, b[None])
    for name in FIELDS:
        assert max_error(getattr(both, name)[1], getattr(alone, name)[0]) < TOLERANCE["float32"], name


def test_chunks_of_frames_change_nothing(tiny, views):
    model, params = tiny
    images = views(5)[None]
    whole, chunked = (jitted(model.clone(frames_chunk=n))(params, images) for n in (8, 2))
    for name in FIELDS:
        assert max_error(getattr(chunked, name), getattr(whole, name)) < TOLERANCE["float32"], name


def test_points_are_the_local_ones_seen_from_the_world(tiny, views):
    model, params = tiny
    out = jax.tree.map(np.asarray, jitted(model)(params, views(2)[None]))
    rotation, translation = out.camera_poses[0, :, :3, :3], out.camera_poses[0, :, :3, 3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (2, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    np.testing.assert_array_equal(out.camera_poses[0, :, 3], [[0, 0, 0, 1]] * 2)
    world = np.einsum("fij,fhwj->fhwi", rotation, out.local_points[0]) + translation[:, None, None]
    assert max_error(out.points[0], world) < TOLERANCE["float32"]
    assert (out.local_points[..., 2] > 0).all()


def test_the_rotation_ignores_the_length_of_rows():
    """... and flips the least certain axis of a reflection; a row of zeros is no NaN."""
    angle = np.float32(0.3)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], np.float32
    )
    assert max_error(decode_rotation(turn * np.array([[1e-3], [5], [1e4]], np.float32)), turn) < 1e-5
    found = np.asarray(decode_rotation(turn * np.array([1, 1, -1], np.float32)))
    assert abs(np.linalg.det(found) - 1) < 1e-5
    flat = jnp.asarray(turn).at[2].set(0)
    assert np.isfinite(decode_rotation(flat)).all()
    assert np.isfinite(jax.grad(lambda m: decode_rotation(m)[0, 1])(flat)).all()


def test_config_round_trips():
    assert Pi3.from_config(Pi3(depth=3).config()) == Pi3(depth=3)


def test_heads_can_be_left_out_and_are_not_read(tiny, views, tmp_path):
    model, params = tiny
    path = tmp_path / "pi3.safetensors"
    save_params(path, params, model)
    loaded, again = from_pretrained(path)
    assert loaded.config() == model.config()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    camera, few = from_pretrained(path, heads=("camera",), dtype="float32")
    assert set(few["params"]) == {"encoder", "register_token", "decoder", "camera_decoder", "camera_head"}
    out, whole = (jitted(m)(p, views(2)[None]) for m, p in ((camera, few), tiny))
    assert out.points is None and out.local_points is None and out.conf is None
    assert max_error(out.camera_poses, whole.camera_poses) < TOLERANCE["float32"]
    with pytest.raises(InputError, match="needs local_points: run the model with its point head on"):
        camera.reconstruction(out)


def test_bad_input_gets_one_sentence(tiny, views):
    model, params = tiny
    with pytest.raises(InputError, match="query_points were given, but π³ has no track head"):
        model.apply(params, views(1)[None], jnp.zeros((1, 2, 2)))
    with pytest.raises(InputError, match="W must be a positive multiple of .* 14 pixels, not 57"):
        model.apply(params, np.zeros((1, 1, 56, 57, 3), np.float32))
    with pytest.raises(InputError, match="frames_chunk=0 must be at least 1"):
        model.clone(frames_chunk=0).apply(params, views(1)[None])
    with pytest.raises(InputError, match="heads=.'pose',.: .'pose'. is none of"):
        model.clone(heads=("pose",)).apply(params, views(1)[None])
