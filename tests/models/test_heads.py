"""What golden numbers do not pin down in the heads: epsilons, what the tracker is told, chunks of frames,
where iterations send no gradient, and where training starts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import VGGT
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.heads.camera import CameraHead
from fastvggt_jax.models.heads.track import Tracker, embed_flow
from fastvggt_jax.models.vit import HeadNorm
from tests.conftest import TOLERANCE, max_error


def test_layer_norms_have_upstreams_epsilons():
    """Trained weights live with them, but activations of unit variance hardly show a wrong one."""
    norms = {}

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, (nn.LayerNorm, HeadNorm)):
            norms["/".join(context.module.path)] = context.module
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        VGGT(encoder_depth=2, depth=4, taps=(0, 1, 2, 3)).abstract_params()
    small = {path for path, norm in norms.items() if norm.epsilon == 1e-6}
    assert {path for path, norm in norms.items() if norm.epsilon == 1e-5} == norms.keys() - small
    encoder = {f"aggregator/patch_embed/{x}" for x in ("blocks/norm1", "blocks/norm2", "norm")}
    assert small == encoder | {"camera_head/adaln_norm"}
    names = {path.split("/", 1)[1] for path in norms if path.startswith(("aggregator", "track_head"))}
    assert {
        "frame_blocks/attn/q_norm",
        "global_blocks/norm2",
        "tracker/fmap_norm",
        "tracker/updateformer/time_blocks/norm1",
    } <= names
    # The fast variance cancels; a norm in bfloat16 would lose what its float32 input holds. HeadNorm has a
    # test of its own.
    layer_norms = {path: norm for path, norm in norms.items() if isinstance(norm, nn.LayerNorm)}
    assert not any(norm.use_fast_variance for norm in layer_norms.values())
    aggregator = [norm for path, norm in layer_norms.items() if path.startswith("aggregator")]
    assert aggregator and all(norm.dtype == jnp.float32 for norm in aggregator)


def test_the_tracker_is_told_the_flow_in_feature_pixels_and_twice_in_units_of_max_scale():
    C, scale, stride = 8, 5, 2
    tracker = Tracker(2, stride, 2, 1, 16, 1, 2, 2, scale, C)
    maps = jax.random.normal(jax.random.key(0), (1, 3, 6, 7, C))
    points = jnp.array([[[3.0, 4.0], [9.5, 1.25]]])
    (tracks, _, _), state = jax.jit(
        lambda: tracker.init_with_output(jax.random.key(1), points, maps, mutable=True)
    )()
    first, second = state["intermediates"]["updateformer"]["update_in"][0]  # [B, Q, F, 3C + 4]
    told = (second - first)[
        ..., : C + 4
    ]  # in the first iteration the flow is 0; position and frame embeddings cancel
    flow = ((tracks[0] - tracks[0][:, :1]) / stride).transpose(0, 2, 1, 3)  # [B, Q, F, 2]
    assert np.abs(flow).max() > 0.1
    expected = jnp.concatenate(
        [embed_flow(flow, C // 2) - embed_flow(0 * flow, C // 2), flow / scale, flow / scale], -1
    )
    assert max_error(told[..., C:], expected[..., C:]) < 20 * TOLERANCE["float32"]
    assert max_error(told, expected) < 1e-2  # up to 1000 radians a pixel


@pytest.mark.slow
def test_an_iteration_of_the_tracker_sends_no_gradient_to_where_the_last_one_has_moved():
    """A bias of the last layer moves the tracks in every iteration; each feels its own move alone."""
    stride, F, Q = 2, 3, 2
    tracker = Tracker(2, stride, 2, 1, 16, 1, 2, 2, 5, 8)
    maps = jax.random.normal(jax.random.key(0), (1, F, 6, 7, 8))
    points = jnp.array([[[3.0, 4.0], [9.5, 1.25]]])
    params = jax.jit(tracker.init)(jax.random.key(1), points, maps)

    def moved(bias):
        flow_head = params["params"]["updateformer"]["flow_head"] | {"bias": bias}
        updateformer = params["params"]["updateformer"] | {"flow_head": flow_head}
        tracks, _, _ = tracker.apply(
            {"params": params["params"] | {"updateformer": updateformer}}, points, maps
        )
        return tracks[-1].sum((0, 1, 2))  # [2], x and y

    jacobian = jax.jit(jax.jacrev(moved))(params["params"]["updateformer"]["flow_head"]["bias"])
    np.testing.assert_allclose(jacobian[:, :2], stride * (F - 1) * Q * np.eye(2), rtol=1e-5)


@pytest.fixture(scope="module")
def camera_head():
    """(CameraHead of three iterations, params as training starts, tokens f32[2, 3, 16])."""
    head, tokens = CameraHead(16, 1, 2, num_iterations=3), jax.random.normal(jax.random.key(0), (2, 3, 16))
    return head, jax.jit(head.init)(jax.random.key(1), tokens), tokens


def test_an_iteration_of_the_camera_head_sends_no_gradient_through_the_pose_it_starts_from(camera_head):
    head, params, tokens = camera_head
    poses = lambda p: jnp.stack([pose.sum() for pose in head.apply(p, tokens)])
    through_the_first = jax.jit(jax.jacrev(poses))(params)["params"]["empty_pose_tokens"]
    largest = np.abs(through_the_first).max((1, 2, 3))  # [iterations]; the first alone sees the empty pose
    assert largest[0] > 1e-3 and not largest[1:].any()


def test_cameras_start_at_the_identity_with_a_field_of_view_of_1_rad(camera_head):
    """... which relu lets a gradient through to; the random last layer turns and moves them a little."""
    head, params, tokens = camera_head
    branch = params["params"]["pose_branch"]
    last = branch["fc2"] | {"kernel": jnp.zeros_like(branch["fc2"]["kernel"])}
    still = {"params": params["params"] | {"pose_branch": branch | {"fc2": last}}}
    poses = head.apply(still, tokens)
    start = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    for i, pose in enumerate(poses):
        np.testing.assert_allclose(pose, np.tile(start * (i + 1) / 3, (2, 3, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "frames, chunk, chunks", [(8, 8, None), (9, 8, (2, 5)), (12, 8, (2, 6)), (5, 4, (2, 3)), (5, 1, (5, 1))]
)
def test_chunks_are_as_equal_as_they_can_be(tiny, frames, chunk, chunks):
    """9 frames, 8 at a time at most: 5 and 5, which computes one frame twice, rather than 8 and 8."""
    model, params = tiny
    model = model.clone(heads=("depth",), frames_chunk=chunk)
    images = jax.ShapeDtypeStruct((1, frames, 28, 28, 3), jnp.float32)
    forward = lambda p, x: model.apply(p, x, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(forward, params, images)
    logits = state["intermediates"]["depth_head"]["__call__"][0]
    assert logits.shape[:-3] == (chunks or (frames,))


@pytest.fixture(scope="module")
def tracker():
    """(Tracker, random params, maps f32[1, 4, 6, 7, 8], points f32[1, 6, 2]) of two iterations."""
    tracker = Tracker(2, 2, 2, 1, 16, 1, 2, 2, 5, 8)
    maps = jax.random.normal(jax.random.key(0), (1, 4, 6, 7, 8))
    points = jax.random.uniform(jax.random.key(1), (1, 6, 2), minval=1.0, maxval=10.0)
    params = jax.jit(tracker.init)(jax.random.key(2), points, maps)
    return tracker, params, maps, points


def test_points_of_several_frames_are_followed_as_if_each_frame_were_the_first(tracker):
    module, params, maps, points = tracker
    several = jax.jit(lambda: module.apply(params, points, maps, (2, 0, 3)))()
    alone = jax.jit(module.apply)
    for k, frame in enumerate((2, 0, 3)):
        order = np.array([frame, *(f for f in range(4) if f != frame)])
        mine = slice(2 * k, 2 * k + 2)
        tracks, vis, conf = alone(params, points[:, mine], maps[:, order])
        # Chaotic: the second iteration starts from what the first one rounds.
        np.testing.assert_allclose(several[0][0][:, order, mine], tracks[0], atol=1e-4)
        np.testing.assert_allclose(several[0][1][:, order, mine], tracks[1], atol=0.02)
        for found, expected in zip(several[1:], (vis, conf), strict=True):
            np.testing.assert_allclose(found[:, order, mine], expected, atol=0.01)
        np.testing.assert_array_equal(several[0][:, 0, frame, mine], np.stack([points[0, mine]] * 2))
    others = several[0][-1][0, 1] - points[0]
    assert np.abs(others).min() > 1e-3  # in a frame that is no query's, all have moved


@pytest.mark.parametrize(
    "frames, match",
    [((), "numbers of frames"), ((0, 3), "from 0 to 2"), ((-1,), "from 0 to 2"), ((0, 1), "as many of each")],
)
def test_bad_query_frames(frames, match):
    images, points = jnp.zeros((1, 3, 128, 128, 3)), jnp.zeros((1, 5, 2))
    with pytest.raises(InputError, match=match):
        VGGT().check_query_points(images, points, frames)
