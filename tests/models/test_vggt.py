"""What the model must do whatever its weights: who sees whom, symmetries, chunks, heads, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import VGGT, Sparsity
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.base import to_unit
from fastvggt_jax.models.heads import dpt
from fastvggt_jax.models.prediction import Prediction
from tests.conftest import TOLERANCE, max_error
from tests.parity.goldens import load_model


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


def run(tiny, images, **fields):
    model, params = tiny
    return jitted(model.clone(**fields))(params, images)


def test_frames_attend_to_each_other_only_in_global_blocks(tiny, views):
    """A change in frame 2 reaches every frame's output; inside a frame block it stays in its frame."""
    model, params = tiny
    model = model.clone(heads=())
    images = views(3)[None]
    changed = images.copy()
    changed[0, 2, :14, :14] += 0.25

    def stages(x):
        _, state = model.apply(params, x, capture_intermediates=True, mutable=["intermediates"])
        aggregator = state["intermediates"]["aggregator"]
        return aggregator["frame_blocks"]["__call__"][0], aggregator["global_blocks"]["__call__"][0]

    stages = jax.jit(stages)
    (frame, glob), (frame2, glob2) = stages(images), stages(changed)
    first_frame_block = np.abs(frame[0] - frame2[0]).max((1, 2))  # [F]
    assert first_frame_block[2] > 1e-3 and (first_frame_block[:2] == 0).all()
    first_global = np.abs(glob[0] - glob2[0]).reshape(3, -1, glob.shape[-1]).max((1, 2))
    assert (first_global > 1e-5).all()


def test_heads_of_attention_do_not_mix(tiny):
    """Of one attention layer, the values of head n reach only the channels of head n: the layout BTNH is what
    is meant.
    """
    from fastvggt_jax.attention import dense_attention

    q, k, v = (jax.random.normal(key, (1, 7, 3, 8)) for key in jax.random.split(jax.random.key(0), 3))
    base, moved = dense_attention(q, k, v), dense_attention(q, k, v.at[:, 2, 1].add(1.0))
    change = np.abs(base - moved).max((0, 3))  # [T, N]
    assert (change[:, 1] > 1e-3).all() and (change[:, [0, 2]] == 0).all()


def test_frames_but_the_first_may_be_permuted(tiny, views):
    images = views(4)
    order = np.array([0, 3, 1, 2])
    base, permuted = run(tiny, images[None]), run(tiny, images[None, order])
    for name in ("pose_enc", "depth", "world_points"):
        assert (
            max_error(getattr(permuted, name), getattr(base, name)[:, order]) < 20 * TOLERANCE["float32"]
        ), name


def test_the_first_frame_is_special(tiny, views):
    images = views(3)
    base, swapped = (run(tiny, images[None, order], heads=("camera",)) for order in ([0, 1, 2], [1, 0, 2]))
    assert max_error(swapped.pose_enc, base.pose_enc[:, [1, 0, 2]]) > 1e-2


def test_batch_elements_are_independent(tiny, views):
    a, b = views(2), views(2)[::-1]
    both, alone = (run(tiny, x, heads=("camera",)) for x in (np.stack([a, b]), b[None]))
    assert max_error(both.pose_enc[1], alone.pose_enc[0]) < TOLERANCE["float32"]


def test_chunks_of_frames_change_nothing(tiny, views):
    images = np.stack([views(3), views(3)[::-1]])
    whole, chunked = (run(tiny, images, heads=("depth",), frames_chunk=n) for n in (10, 2))
    for name in ("depth", "depth_conf"):
        assert max_error(getattr(chunked, name), getattr(whole, name)) < TOLERANCE["float32"], name


def test_heads_can_be_left_out(tiny, views):
    pred = run(tiny, views(2)[None], heads=("depth",))
    assert pred.pose_enc is None and pred.world_points is None and pred.track is None
    assert max_error(pred.depth, run(tiny, views(2)[None]).depth) < TOLERANCE["float32"]


def test_one_view_works(tiny, views):
    pred = run(tiny, views(1)[None], heads=("camera", "depth"))
    assert pred.depth.shape == (1, 1, 56, 56, 1) and np.isfinite(pred.depth).all()
    assert pred.pose_enc.shape == (1, 1, 9) and np.isfinite(pred.pose_enc).all()


def test_bfloat16_backbone_stays_near_float32(tiny, views):
    images = views(2)[None]
    pred, reference = (run(tiny, images, heads=("depth",), dtype=d) for d in (jnp.bfloat16, jnp.float32))
    assert pred.depth.dtype == jnp.float32
    relative = np.abs(pred.depth / reference.depth - 1)
    assert 1e-5 < np.median(relative) < TOLERANCE["bfloat16"]


def test_density_is_reported_for_each_layer(tiny, views):
    sparsity = Sparsity(sparse_ratio=0.5, block=(16, 8), layers=(1, 3))
    density = run(tiny, views(3)[None], heads=("camera",), sparsity=sparsity).density
    patches, special = 3 * 16, 3 * 5
    expected = (patches // 8 // 2 + 2) / (patches // 8 + 2)  # half of the patch blocks and both special ones
    np.testing.assert_allclose(density, [1, expected, 1, expected], rtol=1e-6)
    assert special == 15
    assert run(tiny, views(3)[None], heads=("camera",)).density is None


@pytest.mark.parametrize("special_keys", ["dense", "official"])
def test_nothing_dropped_is_dense(tiny, views, special_keys):
    images = views(3)[None]
    nothing = Sparsity(sparse_ratio=0.0, block=(16, 8), special_keys=special_keys)
    sparse, dense = (run(tiny, images, heads=("camera",), sparsity=s) for s in (nothing, None))
    assert max_error(sparse.pose_enc, dense.pose_enc) < 5 * TOLERANCE["float32"]


def test_values_a_layer_are_taken_layer_by_layer(tiny, views):
    images = views(3)[None]
    one_layer = Sparsity(sparse_ratio=(0.0, 0.75, 0.0, 0.0), block=(16, 8))
    same = Sparsity(sparse_ratio=0.75, block=(16, 8), layers=(1,))
    one, other = (run(tiny, images, heads=("camera",), sparsity=s).pose_enc for s in (one_layer, same))
    assert max_error(one, other) < 1e-4


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((1, 2, 56, 50, 3), np.float32), "W must be a positive multiple of .* 14 pixels, not 50"),
        (np.zeros((1, 2, 0, 56, 3), np.float32), "H must be a positive multiple .*, not 0"),
        (np.zeros((1, 2, 56, 56, 3), np.int32), "int32, they must be uint8, or floating point"),
        (np.zeros((1, 2, 3, 56, 56), np.float32), "channels-first"),
        (np.zeros((2, 56, 56, 3), np.float32), r"must be \[B, F, H, W, 3\]"),
        (np.zeros((1, 0, 56, 56, 3), np.float32), "hold no frame"),
    ],
)
def test_bad_images_get_one_sentence(tiny, images, message):
    with pytest.raises(InputError, match=message):
        run(tiny, images)


def test_8_bit_images_are_those_in_the_unit_interval():
    """... to the last bit: the official loaders divide, and XLA would multiply by 1/255."""
    values = np.random.default_rng(0).permutation(np.arange(256)).astype(np.uint8)
    np.testing.assert_array_equal(jax.jit(to_unit)(values), values.astype(np.float32) / np.float32(255))


def test_bad_query_points_and_heads(tiny, views):
    model, params = tiny
    with pytest.raises(ValueError, match="no track head"):
        model.apply(params, views(2)[None], np.zeros((1, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"must be \[B=1, Q, 2\]"):
        VGGT().apply({"params": {}}, views(2)[None], np.zeros((1, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"must be \[B=1, Q, 2\]"):
        VGGT().apply({"params": {}}, views(2)[None], np.zeros((2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="depht"):
        model.clone(heads=("depht",)).apply(params, views(2)[None])
    with pytest.raises(ValueError, match="too small to track"):
        VGGT().apply(
            {"params": {}}, np.zeros((1, 1, 126, 56, 3), np.float32), np.zeros((1, 1, 2), np.float32)
        )
    VGGT().check_query_points(
        np.zeros((1, 1, 128, 128, 3)), np.zeros((1, 1, 2))
    )  # the smallest: one pixel at the coarsest level


def test_config_round_trips_and_refuses_what_it_does_not_know():
    model = VGGT(depth=4, taps=(0, 1, 2, 3), heads=("depth",), dtype=jnp.float32)
    assert VGGT.from_config(model.config(), dtype=jnp.float32) == model
    with pytest.raises(InputError, match="dtype is no field of it"):
        VGGT.from_config({"dtype": "float32"})
    with pytest.raises(InputError, match="depth='four' is wrong"):
        VGGT.from_config({"depth": "four"})


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 30},
        {"depth": 4, "taps": (2, 0, 1, 3)},
        {"depth": 4, "taps": (3, 1, 2, 3)},
        {"taps": (4, 11, 23)},
    ],
)
def test_taps_must_ascend_to_the_last_layer(fields):
    with pytest.raises(ValueError, match="taps="):
        VGGT(**fields).abstract_params()


def test_a_small_position_table_still_has_a_tracker():
    params = VGGT(img_size=98).abstract_params()["params"]
    assert params["aggregator"]["patch_embed"]["pos_embed"].shape == (1, 50, 1024) and "track_head" in params


def test_query_points_may_be_of_any_float_type():
    model, params = load_model("vggt_tiny")
    images, points = (jax.ShapeDtypeStruct(shape, jnp.float16) for shape in ((1, 2, 56, 56, 3), (1, 4, 2)))
    assert jax.eval_shape(model.apply, params, images, points).track.dtype == jnp.float32


def test_tracker_fixed_adds_a_position_embedding_to_the_track_features():
    model, params = load_model("vggt_tiny")
    taps = jax.random.normal(jax.random.key(0), (4, 1, 16, 256))
    maps = []
    for uv in (False, True):
        extractor = model.clone(track_pos_embed=uv).bind(params).track_head.feature_extractor
        maps.append(extractor(taps, (56, 56), 14))
    assert max_error(*maps) > 1e-2


def test_uv_embedding_enters_the_program_as_small_tables():
    """At full size a whole embedding would be a constant of 137 MB a head."""
    jaxpr = jax.make_jaxpr(lambda: dpt.uv_embedding(64, 64, 32, 1.0))()
    assert max((np.size(c) for c in jaxpr.consts), default=0) <= 64 * 16


@pytest.fixture(scope="module")
def heads_in_both(tiny):
    """(model with depth alone, in float32 and in float16; params; images)."""
    model, params = tiny
    images = np.asarray(jax.random.uniform(jax.random.key(0), (1, 2, 28, 28, 3)), np.float32)
    full = model.clone(heads=("depth",))
    params = {"params": {k: params["params"][k] for k in ("aggregator", "depth_head")}}
    return full, full.clone(heads_dtype=jnp.float16), params, images


def larger_inside(params, factor):
    """The numbers between the last convolutions are larger by a factor, the result stays."""
    head = params["params"]["depth_head"]
    scratch = dict(head["scratch"])
    scratch["output_conv1"] = jax.tree.map(lambda x: x * factor, scratch["output_conv1"])
    last = scratch["output_conv2_2"]
    scratch["output_conv2_2"] = last | {"kernel": last["kernel"] / factor}
    return {"params": params["params"] | {"depth_head": head | {"scratch": scratch}}}


@pytest.mark.slow
def test_heads_in_half_precision_have_the_same_numbers_and_derivatives(heads_in_both):
    full, half, params, images = heads_in_both
    depths = [jax.jit(model.apply)(params, images).depth for model in (full, half)]
    assert 0 < max_error(*depths[::-1]) < 3e-3
    log_depth = lambda model: lambda p: jnp.log(model.apply(p, images).depth).mean()
    gradients = [jax.jit(jax.grad(log_depth(model)))(params) for model in (full, half)]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6 * max(np.abs(one).max(), 1e-3))


def test_heads_beyond_float16_are_computed_in_float32(heads_in_both):
    full, half, params, images = heads_in_both
    apply = [jax.jit(model.apply) for model in (full, half)]
    for factor in (1e7, 2e4):  # of all pixels, of some of one frame
        large = larger_inside(params, factor)
        depths = [one(large, images).depth for one in apply]
        assert np.isfinite(depths[0]).all()
        np.testing.assert_allclose(depths[1], depths[0], rtol=1e-5)


def test_tracks_are_said_in_our_pixels_and_as_sure_as_visible_and_right():
    pose = jnp.zeros((1, 2, 9)).at[..., 6:].set(1)
    depth, track = jnp.ones((1, 2, 4, 4, 1)), jnp.arange(12.0).reshape(1, 2, 3, 2)
    vis, conf = jnp.full((1, 2, 3), 0.5), jnp.full((1, 2, 3), 0.8)
    heads = dict(pose_enc=pose, depth=depth, depth_conf=depth[..., 0])
    found = VGGT.reconstruction(Prediction(**heads, track=track, vis=vis, conf=conf))
    np.testing.assert_allclose(found.track, track + 0.5)  # a first pixel's centre is at (0.5, 0.5)
    np.testing.assert_allclose(found.track_conf, 0.4, rtol=1e-6)
    without = VGGT.reconstruction(Prediction(**heads))
    assert without.track is None and without.track_conf is None


def test_what_is_no_array_is_said(tiny):
    model, params = tiny
    with pytest.raises(InputError, match="images must be an array .*, not a list"):
        model.apply(params, [1, 2])
