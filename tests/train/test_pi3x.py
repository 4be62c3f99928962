"""Pi3X in training: what of the truth it is told, its loss, and that it uses what it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Conditions, Pi3X, Prediction, geometry
from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.models.conditions import drawn
from fastvggt_jax.testing.tiny import tiny_model
from fastvggt_jax.train import Shape
from fastvggt_jax.train.optimizer import learning_rates
from fastvggt_jax.train.state import make_mesh, make_step, start, state_sharding
from tests.train.runs import config, planes, start_once

SHAPE = Shape(scenes=2, frames=3, height=14, width=28)
MODEL = Pi3X(
    **dict(img_size=28, embed_dim=64, encoder_depth=1, encoder_num_heads=1, num_heads=2, depth=2),
    **dict(head_embed_dim=32, head_depth=1, head_num_heads=1, head_out_dim=32, camera_out_dim=16),
    **dict(metric_embed_dim=32, metric_depth=1, metric_num_heads=1, metric_out_dim=16),
    **dict(inject_after=(1,), conv_channels=(16, 16, 16), dtype=jnp.float32),
)


def test_what_is_true_is_told_of_some_views():
    truth = planes(0, Shape(scenes=4, frames=3, height=14, width=28)).truth
    keys = jax.random.split(jax.random.key(0), 200)
    given = jax.vmap(lambda key: drawn(key, truth))(keys)
    masks = np.stack([given.depth_mask, given.ray_mask, given.pose_mask])  # [3, draws, B, F]
    assert masks.dtype == bool and masks.shape == (3, 200, 4, 3)
    assert 0.32 < masks.mean() < 0.43  # a half, of which three quarters
    assert 0.08 < (~masks).all((0, 3)).mean() < 0.17  # of scenes that are told nothing
    assert 0.22 < masks.all(3).mean() < 0.34
    one = jax.tree.map(lambda x: x[0], given)
    one.check((4, 3, 14, 28, 3))
    np.testing.assert_allclose(
        geometry.invert_se3(one.world_from_cam)[..., :3, :], truth.cam_from_world, atol=1e-5
    )
    model = tiny_model("pi3x")
    assert isinstance(model.training_inputs(truth, None, keys[0])[0], Conditions)
    assert model.clone(heads=Pi3X.heads_for(None)).training_inputs(truth, None, keys[0]) == (None,)


@pytest.mark.slow
def test_the_metric_factor_is_held_to_the_truths_unit_and_nothing_else_is():
    truth = planes(1, Shape(scenes=2, frames=2, height=14, width=28)).truth
    local = geometry.transform(truth.cam_from_world, truth.points)
    pose = geometry.invert_se3(truth.cam_from_world)

    def parts(metric, unit=1.0):
        """Of the true scene, which the network has in a unit of its own: 1/4 of the truth's."""
        metric = jnp.full(2, metric)
        scaled = (metric / 4)[:, None, None]
        prediction = Prediction(
            local_points=local * scaled[..., None, None],
            camera_poses=pose.at[..., :3, 3].multiply(scaled),
            conf=jnp.ones((*local.shape[:-1], 1)),
            metric=metric,
            made_by=Pi3X,
        )
        longer = truth.cam_from_world.at[..., 3].multiply(unit)
        there = Truth(longer, truth.K, unit * truth.depth, unit * truth.points, truth.valid)
        return Pi3X.loss(prediction, there)

    right, off = parts(4.0), parts(8.0)
    np.testing.assert_allclose(right[1]["metric"], 0, atol=1e-5)
    np.testing.assert_allclose(off[1]["metric"], np.log(2), rtol=1e-4)
    np.testing.assert_allclose(parts(4.0, unit=3.0)[1]["metric"], np.log(3), rtol=1e-4)
    np.testing.assert_allclose(off[0] - right[0], 0.1 * np.log(2), rtol=1e-3)  # its weight


def relative(pose):
    return np.asarray(geometry.compose(geometry.invert_se3(pose[:, :1]), pose))[:, 1:]


def pose_errors(found, wanted):
    """Of scenes [B, F, 4, 4]: mean degrees of relative rotations, and of translations, once scaled, the mean
    error in their mean length.
    """
    mine, true = relative(found), relative(wanted)
    turn = np.einsum("bfji,bfjk->bfik", mine[..., :3, :3], true[..., :3, :3])
    degrees = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=-2, axis2=-1) - 1) / 2, -1, 1)))
    a, b = mine[..., :3, 3], true[..., :3, 3]
    scale = (a * b).sum((1, 2)) / (a * a).sum((1, 2))
    error = (
        np.linalg.norm(scale[:, None, None] * a - b, axis=-1) / np.linalg.norm(b, axis=-1).mean(1)[:, None]
    )
    return float(degrees.mean()), float(error.mean())


@pytest.fixture(scope="module")
def learnt():
    """(batch, parameters at the start, after 400 steps) of two scenes with the same photographs, which only
    what is given tells apart.
    """
    batch = planes(0, SHAPE)
    batch = batch.replace(images=jnp.broadcast_to(batch.images[:1], batch.images.shape))
    of = config(model=MODEL, shapes=(SHAPE,), steps=400, warmup_steps=40, validation_scenes=0)
    mesh = make_mesh()
    step, rates = make_step(of, mesh), np.asarray(learning_rates(of), np.float32)
    state = jax.device_put(start(of, start_once(MODEL)), state_sharding(of, mesh))
    for rate in rates:
        state, _ = step(state, batch, rate)
    return batch, start_once(MODEL), state.params


@pytest.mark.slow
def test_a_batch_is_learnt_by_heart_and_true_cameras_are_followed(learnt):
    batch, before, after = learnt
    run, true = jax.jit(MODEL.apply), geometry.invert_se3(batch.truth.cam_from_world)
    cameras = Conditions(world_from_cam=true)
    every = cameras.replace(K=batch.truth.K, depth=jnp.where(batch.truth.valid, batch.truth.depth, 0))
    given = {
        "none": None,
        "cameras": cameras,
        "all": every,
        "swapped": cameras.replace(world_from_cam=true[::-1]),
    }
    pose = {name: run({"params": after}, batch.images, one).camera_poses for name, one in given.items()}
    first = np.array(pose_errors(run({"params": before}, batch.images, None).camera_poses, true))
    error = {name: np.array(pose_errors(found, true)) for name, found in pose.items()}
    assert error["none"][0] < first[0] / 3 and error["all"][0] < first[0] / 6, (first, error)
    for name in ("cameras", "all"):
        assert (error[name] < 0.75 * error["none"]).all(), error
    followed = np.array(pose_errors(pose["swapped"], true[::-1]))
    assert (followed < 0.75 * error["swapped"]).all(), (followed, error)
