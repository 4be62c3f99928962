"""Attention in the model: chunks of queries, who sees the special keys, which layers are sparse, what is
rounded to bfloat16.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import VGGT, Pi3, Sparsity, attention
from fastvggt_jax.models.heads.camera import CameraHead
from fastvggt_jax.models.rope import apply_rope, patch_positions, rope_tables
from fastvggt_jax.models.vggt import Aggregator
from fastvggt_jax.models.vit import Attention, HeadNorm, Mlp, gelu
from pallas_kernels import Implementation, block_sparse_attention, registered, to_float8, unused_float8
from pallas_kernels.implementation import ATTENTION
from pallas_kernels.triton import Triton
from tests.conftest import TOLERANCE, max_error


def rounds_to_itself(x) -> float:
    """Share of float32 values that bfloat16 holds exactly."""
    x = np.asarray(x)
    return float((x == x.astype(jnp.bfloat16).astype(np.float32)).mean())


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_dense_attention_in_chunks_of_queries_is_the_same(monkeypatch, rows):
    """At full size without cuDNN the logits of all queries do not fit, so a few rows are taken at a time."""
    q, k, v = (
        jax.random.normal(key, (2, n, 3, 8))
        for key, n in zip(jax.random.split(jax.random.key(0), 3), (13, 11, 11), strict=True)
    )
    whole = attention.dense_attention(q, k, v)
    logits_of_a_row = 4 * 2 * 3 * 11
    monkeypatch.setattr(attention, "LOGITS_BYTES", rows * logits_of_a_row)
    chunked = jax.make_jaxpr(attention.dense_attention)(q, k, v)
    assert "scan" in str(chunked)
    assert max_error(attention.dense_attention(q, k, v), whole) < TOLERANCE["float32"]


@pytest.mark.every_jax
def test_float16_is_attended_to_on_a_cpu_too():
    """JAX asks XLA for a product of float16 there that it does not have, and only compiling shows it."""
    q, k, v = (jax.random.normal(key, (1, 6, 2, 8)) for key in jax.random.split(jax.random.key(0), 3))
    half = [x.astype(jnp.float16) for x in (q, k, v)]
    four = attention.Lengths(jnp.int32(4), (jnp.int32(4),))
    for lengths, count in ((None, 6), (four, 4)):
        found = jax.jit(attention.dense_attention)(*half, lengths)
        assert found.dtype == jnp.float16
        expected = attention.dense_attention(q, k[:, :count], v[:, :count])
        assert max_error(found[:, :count], expected[:, :count]) < 3e-3


@pytest.mark.parametrize("special_keys, seen", [("dense", [True, True]), ("official", [False, True])])
def test_special_keys_in_the_last_patch_block_are_dropped_with_it_only_in_official_mode(special_keys, seen):
    """3 frames of 2 special tokens and 5 patches, blocks of 4 keys: patches fill 3¾ blocks, so one special
    key completes the last.
    """
    frames, special, patches = 3, 2, 5
    _, _, v = jnp.zeros((3, 1, frames * (special + patches), 1, 8)).at[2].add(1.0)
    q, k = jnp.ones_like(v), jnp.zeros_like(v)
    k = k.at[:, special : special + 4].set(
        1.0
    )  # the first four patches are the block that every patch query keeps
    sparsity = Sparsity(sparse_ratio=1.0, block=(4, 4), special_keys=special_keys)

    @jax.jit
    def attend(v):
        out, _ = attention.sparse_global_attention(
            q, k, v, frames=frames, num_special=special, sparsity=sparsity, keep_count=1, cdf_threshold=None
        )
        return attention.split_tokens(out, frames, special)

    base = attend(v)
    for token, expected in zip((0, 1), seen, strict=True):  # the special tokens of frame 0
        moved = attend(v.at[:, token].add(1.0))
        to_special, to_patch = (np.abs(a - b).max((0, 2, 3)) > 1e-3 for a, b in zip(moved, base, strict=True))
        assert to_special.all() and (to_patch == expected).all(), token
    to_special, to_patch = (
        np.abs(a - b).max((0, 2, 3)) > 1e-3 for a, b in zip(attend(v.at[:, -1].add(1.0)), base, strict=True)
    )
    assert to_special.all() and not to_patch.any()  # a patch of a dropped block


@pytest.fixture(scope="module")
def aggregator():
    """(Aggregator, params, images): 6 layers at random, of which 4 are tapped."""
    module = Aggregator(28, 14, 16, 1, 2, 6, 2, 2.0, 1, (1, 2, 4, 5), None, jnp.float32)
    images = jax.random.uniform(jax.random.key(0), (1, 2, 28, 28, 3))
    return module, jax.jit(module.init)(jax.random.key(1), images), images


def captured(module, params, images):
    return jax.jit(lambda p, x: module.apply(p, x, capture_intermediates=True, mutable=["intermediates"]))(
        params, images
    )


def density_of(module, params, images):
    """f32[depth], the share of blocks that each global layer computes."""
    return np.asarray(jax.jit(module.apply)(params, images)[2])


def test_taps_are_the_layers_they_name(aggregator):
    module, params, images = aggregator
    (taps, camera, density), state = captured(module, params, images)
    assert density is None
    frame, glob = (state["intermediates"][f"{kind}_blocks"]["__call__"][0] for kind in ("frame", "global"))
    layers = jnp.concatenate([frame.reshape(6, 1, 2, -1, 16), glob.reshape(6, 1, 2, -1, 16)], -1)
    np.testing.assert_array_equal(taps, layers[jnp.array(module.taps)])
    np.testing.assert_array_equal(camera, layers[-1, :, :, 0])


def test_layers_that_are_not_named_are_dense(aggregator):
    module, params, images = aggregator
    densities = {}
    for layers in ((), (0, 4)):
        sparse = module.clone(sparsity=Sparsity(sparse_ratio=1.0, block=(4, 1), layers=layers))
        densities[layers] = density_of(sparse, params, images)
    few = (1 + 4) / (8 + 4)  # one of 8 patch blocks and the 4 special ones
    np.testing.assert_allclose(densities[()], [1] * 6)
    np.testing.assert_allclose(densities[0, 4], [few, 1, 1, 1, few, 1], rtol=1e-6)


def test_a_later_layer_may_keep_more_than_the_first(aggregator):
    module, params, images = aggregator
    ratios = (1.0, 0.5, 0.0, 1.0, 0.75, 0.25)
    sparse = module.clone(sparsity=Sparsity(sparse_ratio=ratios, block=(4, 1)))
    kept = np.array([1, 4, 8, 1, 2, 6])
    np.testing.assert_allclose(density_of(sparse, params, images), (kept + 4) / 12, rtol=1e-6)
    assert sparse.sparsity.keep_counts(8, 6) == [0, 4, 8, 0, 2, 6]


def test_tau_may_differ_from_layer_to_layer(aggregator):
    module, params, images = aggregator
    sparse = module.clone(sparsity=Sparsity(cdf_threshold=(0.0, 1.0, 0.0, 1.0, 0.0, 0.0), block=(4, 1)))
    few = 5 / 12
    np.testing.assert_allclose(density_of(sparse, params, images), [few, 1, few, 1, few, few], rtol=1e-6)


def test_a_sparsity_that_does_not_fit_the_depth_is_refused(aggregator):
    module, params, images = aggregator
    with pytest.raises(ValueError, match="names layer 6"):
        jax.eval_shape(module.clone(sparsity=Sparsity(sparse_ratio=0.5, layers=(6,))).apply, params, images)


def test_bfloat16_is_for_matrix_products_only(tiny, views):
    """Residual stream, norms, layer scale and the heads stay float32 to the last bit: nothing of them passes
    through bfloat16.
    """
    model, params = tiny
    model = model.clone(dtype=jnp.bfloat16, heads=("camera",))
    params = {"params": {k: params["params"][k] for k in ("aggregator", "camera_head")}}
    _, state = captured(model, params, views(2)[None])
    products = {"qkv", "proj", "fc1", "fc2", "attn", "mlp"}
    seen = set()
    for path, x in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        names = [p.key for p in path if isinstance(p, jax.tree_util.DictKey)]
        name = names[-2] if names[-1] == "__call__" and len(names) > 1 else names[-1]
        if names[0] == "aggregator" and (name in products or names[1:-1] == ["patch_embed", "patch_embed"]):
            assert x.dtype == jnp.bfloat16, names
        elif x.dtype == jnp.bfloat16:
            assert names == ["aggregator", "__call__"], (
                names
            )  # the taps; the camera tokens beside them are float32
        else:
            assert x.dtype == jnp.float32 and rounds_to_itself(x) < 0.5, names
        seen.add(name)
    head, norm = state["intermediates"]["camera_head"], params["params"]["camera_head"]["token_norm"]
    tokens = np.asarray(state["intermediates"]["aggregator"]["__call__"][0][1], np.float64)
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
    assert (
        max_error(head["token_norm"]["__call__"][0], tokens * norm["scale"] + norm["bias"])
        < TOLERANCE["float32"]
    )
    assert products | {"norm1", "q_norm", "ls1", "frame_blocks", "global_blocks", "token_norm"} <= seen
    # An iteration of the camera head, which scans them.
    module = CameraHead(2 * model.embed_dim, model.camera_trunk_depth, model.camera_num_heads)
    normed, pose = (head[name][where][0] for name, where in (("adaln_norm", "__call__"), ("pose_raw", 0)))
    arguments = (jnp.asarray(pose), head["token_norm"]["__call__"][0], normed)
    _, inside = module.apply(
        {"params": params["params"]["camera_head"]},
        *arguments,
        method="change",
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    assert "trunk" in inside["intermediates"]
    for x in jax.tree.leaves(inside["intermediates"]):
        assert x.dtype == jnp.float32 and rounds_to_itself(x) < 0.5


def test_queries_and_keys_are_rounded_only_after_rope():
    given = {}

    def attend(q, k, v):
        given.update(q=q, k=k, v=v)
        return v

    module = Attention(2, qk_norm=True, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 9, 32))
    params = module.init(jax.random.key(1), x)
    rope = rope_tables(patch_positions(3, 3, 0), 16)
    _, state = module.apply(
        params,
        x,
        rope,
        attend,
        capture_intermediates=lambda _, method: method == "normalise",
        mutable=["intermediates"],
    )
    for name in "qk":
        normed = state["intermediates"][f"{name}_norm"]["normalise"][0]
        assert normed.dtype == jnp.float32
        np.testing.assert_array_equal(given[name], apply_rope(normed, rope).astype(jnp.bfloat16))
    assert {x.dtype for x in given.values()} == {jnp.dtype(jnp.bfloat16)}


def test_head_norm_is_layer_norm_then_rope():
    """Tokens of small variance around a large mean, which E[x²] - E[x]² in float32 would lose; in 16 bits
    their rounding does.
    """
    rope = rope_tables(patch_positions(3, 3, 0), 32)
    small = 30 + 1e-2 * jax.random.normal(jax.random.key(0), (1, 9, 2, 32))
    far = 10 + jax.random.normal(jax.random.key(1), small.shape)
    for x, limit in ((small, 1e-3), (far.astype(jnp.bfloat16), 2e-5)):
        module = HeadNorm()
        params = module.init(jax.random.key(2), x, rope)
        params = jax.tree.map(lambda p: p + jax.random.uniform(jax.random.key(3), p.shape), params)
        x64 = np.asarray(x, np.float64)
        centred = x64 - x64.mean(-1, keepdims=True)
        normed = (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * params["params"]["scale"]
            + params["params"]["bias"]
        )
        exact = apply_rope(jnp.asarray(normed, jnp.float32), rope)
        assert max_error(module.apply(params, x, rope), exact) < limit


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 1001).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


class Fused(Implementation):
    """Stands for a kernel of gelu(x w + b)."""

    name, operations = "fused", ()

    def __init__(self):
        self.seen = []

    def beats_matmul_gelu(self, product):
        return product.M >= 8 and product.dtype == np.float32

    def matmul_gelu(self, x, w, bias):
        self.seen.append(x.shape)
        return gelu(x @ w + bias) + 1e-3


def test_an_mlp_takes_the_kernel_where_it_is_faster_and_keeps_its_gradient():
    mlp, kernel = Mlp(16, 4), Fused()
    x = jax.random.normal(jax.random.key(0), (2, 4, 4))
    params = mlp.init(jax.random.key(1), x)
    expected, gradient = mlp.apply(params, x), jax.grad(lambda p: mlp.apply(p, x).sum())(params)
    with registered(kernel):
        found = mlp.apply(params, x)
        same = jax.grad(lambda p: mlp.apply(p, x).sum())(params)
        mlp.apply(params, x[:1])
        mlp.clone(dtype=jnp.bfloat16).apply(params, x)
    assert kernel.seen == [(2, 4, 4)]  # not of few rows, nor of 16 bits, nor where there is a derivative
    assert 1e-5 < np.abs(found - expected).max() < 0.1
    jax.tree.map(np.testing.assert_array_equal, same, gradient)


def test_an_mlp_fills_its_rows_up_for_the_kernel_and_cuts_them_off_again():
    mlp, kernel = Mlp(16, 4), Fused()
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    params = mlp.init(jax.random.key(1), x)
    expected, gradient = mlp.apply(params, x), jax.grad(lambda p: mlp.apply(p, x).sum())(params)
    with registered(kernel):
        found = mlp.apply(params, x)
        same = jax.grad(lambda p: mlp.apply(p, x).sum())(params)
    assert kernel.seen == [(16, 4)] and found.shape == (2, 5, 4)
    assert 1e-5 < np.abs(found - expected).max() < 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), same, gradient)


class LongKernel(Implementation):
    """Stands for a kernel that beats the library from 40 tokens on; plain XLA computes for it."""

    name = "long"
    operations = (ATTENTION,)

    def __init__(self):
        self.served, self.seen = 0, []

    def beats_dense(self, request):
        return min(request.T, request.S) >= 40

    def attend(self, q, k, v, block_mask, config=None):
        self.served += 1
        self.seen.append([jax.tree.leaves(x)[0].dtype for x in (q, k, v)])
        return block_sparse_attention(q, k, v, block_mask, implementation="xla")


@pytest.mark.parametrize("special_keys", ["dense", "official"])
@pytest.mark.parametrize("takes_runs", [False, True])
def test_special_queries_by_a_kernel_are_those_of_the_library(special_keys, takes_runs):
    """Of eight frames with five special tokens each there are as many as the kernel takes."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, 8 * 11, 2, 16)) for key in keys)
    sparsity = Sparsity(sparse_ratio=0.5, block=(16, 8), special_keys=special_keys)
    how = dict(frames=8, num_special=5, sparsity=sparsity, keep_count=3, cdf_threshold=None)
    expected, _ = attention.sparse_global_attention(q, k, v, **how)
    kernel = LongKernel()
    kernel.takes_runs = takes_runs
    with registered(kernel):
        found, _ = attention.sparse_global_attention(q, k, v, **how)
    assert kernel.served == 2  # of patches, and of special tokens
    assert max_error(found, expected) < TOLERANCE["float32"]


def test_a_kernel_gets_8_bits_only_if_it_takes_them():
    q, k, v = (jax.random.normal(key, (1, 50, 2, 16)) for key in jax.random.split(jax.random.key(0), 3))
    q, k = to_float8(q), to_float8(k)
    for takes, scores in ((False, jnp.float32), (True, jnp.float8_e4m3fn)):
        kernel = LongKernel()
        kernel.takes_float8, kernel.dtypes = takes, ("float32",)  # those of v
        with registered(kernel):
            attention.dense_attention(q, k, v)
        assert kernel.seen == [[scores, scores, jnp.float32]]


def test_why_8_bits_gain_nothing():
    """Sparse attention gains by a kernel that takes them, dense attention by one that beats the library."""
    why = lambda keys, block: unused_float8(jnp.bfloat16, 64, keys, block)
    assert "mosaic_sm90" in why(50, (16, 16)) and "mosaic_sm90" in why(50, None)
    kernel = LongKernel()
    with registered(kernel):
        assert why(50, (16, 16)) == "'long' multiplies 16 bits"
        kernel.takes_float8 = True
        assert why(30, (16, 16)) is None and why(50, None) is None
        assert "is left to a library" in why(30, None)


@pytest.mark.every_jax
def test_long_sequences_take_the_kernel_and_keep_their_gradient():
    kernel = LongKernel()
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, n, 2, 64), jnp.bfloat16) for key, n in zip(keys, (50, 60, 60), strict=True)
    )
    exact = jax.jit(lambda q: jax.nn.dot_product_attention(q, k, v))
    ours = lambda q: attention.dense_attention(q, k, v)
    gradient = lambda f: jax.jit(jax.grad(lambda q: f(q).astype(jnp.float32).sum()))(q)
    with registered(kernel):
        assert max_error(ours(q), exact(q)) < TOLERANCE["bfloat16"]
        assert kernel.served == 1
        assert max_error(gradient(ours), gradient(exact)) < TOLERANCE["bfloat16"]
        assert kernel.served == 1  # where there is a derivative, the library runs both ways
        ours(q[:, :30])  # too short
        assert kernel.served == 1
    ours(q)
    assert kernel.served == 1


def test_a_derivative_meets_cudnn_at_even_lengths_only(monkeypatch):
    """JAX refuses the others (0.11.2: "Unsupported sequence length Q 261, KV 261"); here XLA stands in for
    cuDNN.
    """
    lengths = []

    def cudnn(q, k, v, **masks):
        lengths.append((q.shape[1], k.shape[1]))
        return jax.nn.dot_product_attention(q, k, v, **masks)

    monkeypatch.setattr(attention, "cudnn_serves", lambda q: True)
    monkeypatch.setattr(attention, "_cudnn", cudnn)
    squares = lambda attend: lambda *qkv: jnp.square(attend(*qkv).astype(jnp.float32)).sum()
    for T, S in ((8, 12), (9, 12), (9, 13)):
        rng = np.random.default_rng(T)
        qkv = [jnp.asarray(rng.normal(size=(2, n, 2, 64)), jnp.bfloat16) for n in (T, S, S)]
        ours = jax.jit(jax.grad(squares(attention.dense_attention), (0, 1, 2)))(*qkv)
        exact = jax.jit(jax.grad(squares(jax.nn.dot_product_attention), (0, 1, 2)))(*qkv)
        for mine, other in zip(ours, exact, strict=True):
            assert max_error(mine, other) < TOLERANCE["bfloat16"]
    assert lengths == [(8, 12), (10, 12), (10, 14)]
    jax.eval_shape(attention.dense_attention, *qkv)
    assert lengths[-1] == (9, 13)  # nothing is padded without a derivative


class OnPaper(Triton):
    """The kernel where it need only be traced."""

    name = "on paper"

    def why_not_on(self, device):
        return None


@pytest.mark.parametrize("cls", [VGGT, Pi3])
@pytest.mark.every_jax
def test_layers_that_are_scanned_take_a_kernel(cls):
    """Flax looks for what of a step does not depend on it, and some versions of JAX let no kernel go."""
    tiny = dict(embed_dim=64, num_heads=1, encoder_num_heads=1, encoder_depth=1, img_size=28)
    heads = {"heads": ("camera",), "depth": 4, "taps": (0, 1, 2, 3)} if cls is VGGT else {"depth": 2}
    model = cls(**tiny, **heads, sparsity=Sparsity(0.5, cdf_threshold=0.5))
    images = jax.ShapeDtypeStruct((1, 2, 112, 112, 3), jnp.float32)
    with registered(OnPaper()):
        traced = jax.make_jaxpr(model.apply)(model.abstract_params(), images)
    assert str(traced).count("pallas_call") >= 2  # the mask and the attention


def test_patches_of_a_frame_layer_attend_within_their_frame_and_special_tokens_to_all():
    frames, P, special = 3, 7, 2
    q, k, v = np.random.default_rng(3).normal(size=(3, 1, frames * P, 2, 8)).astype(np.float32)
    attend = partial(attention.frame_attention, frames=frames, num_special=special)
    found = jax.jit(attend)(q, k, v)
    frame, place = np.divmod(np.arange(frames * P), P)
    sees = (frame[:, None] == frame) | (place[:, None] < special)
    logits = np.einsum("btnh,bsnh->bnts", q, k) / 8**0.5
    weights = np.where(sees, np.exp(logits), 0)
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_plan_has_each_layer_of_its_kind(tiny):
    """A frame layer is neither dense nor sparse."""
    model, params = tiny
    model = model.clone(heads=("camera",))
    images = jax.random.uniform(jax.random.key(2), (1, 3, 56, 56, 3))
    plan = Sparsity(sparse_ratio=0.5, block=(16, 16), layers=(2,), frame_layers=(0, 1))
    found = jax.jit(model.clone(sparsity=plan).apply)(params, images)
    np.testing.assert_allclose(found.density[:2], 1 / 3, rtol=1e-6)
    assert found.density[2] < 1 and (found.density[3:] == 1).all()
    assert np.abs(found.pose_enc - jax.jit(model.apply)(params, images).pose_enc).max() > 1e-4
