"""`fastvggt analyze`: attention by groups of tokens, equal to what a dense float32 matrix gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax.analyze.attention import GLOBAL, Groups, grouped_attention, observe, runtime_shares
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.vit import HeadNorm
from fastvggt_jax.sparsity import Sparsity, parse_sparsity

FRAMES, SIDE = 3, 56  # 4 x 4 patches of 14


@pytest.fixture(scope="module")
def seen(tiny):
    """(model, params, images, all queries and keys f32[L, T, N, H] as flax captures them)."""
    model, params = tiny
    images = np.random.default_rng(0).integers(0, 255, (1, FRAMES, SIDE, SIDE, 3), np.uint8)
    norms = lambda module, _: isinstance(module, HeadNorm) and GLOBAL in module.path

    @jax.jit
    def capture(params, images):
        return model.apply(params, images, capture_intermediates=norms, mutable=["intermediates"])[1]

    tree = capture(params, images)["intermediates"]["aggregator"][GLOBAL]["attn"]
    q, k = (np.asarray(tree[name]["__call__"][0])[:, 0] for name in ("q_norm", "k_norm"))
    return model, params, images, q, k


def dense(q, k):
    """The whole matrix f64[..., N, T, S] of float32 queries and keys [..., T, N, H]."""
    logits = (
        np.einsum("...tnh,...snh->...nts", q.astype(np.float64), k.astype(np.float64)) / q.shape[-1] ** 0.5
    )
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_groups_cover_every_token_once():
    groups = Groups.make(2, 5, (4, 6), most=8)
    assert groups.cells == (2, 2) and groups.count == 2 * (1 + 4)
    of = groups.of.reshape(2, -1)
    assert (of[:, :5] == [[0], [1]]).all()
    assert of[1, 5:].reshape(4, 6).tolist() == [[6, 6, 6, 7, 7, 7]] * 2 + [[8, 8, 8, 9, 9, 9]] * 2
    token = groups.token(1, 3, 5)
    assert token == len(groups.of) - 1 and groups.patches(np.arange(len(groups.of)))[1, 3, 5] == token


@pytest.mark.parametrize("rows", [1, 7, 40, None])
def test_means_and_maxima_of_groups(rows):
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 40, 3, 8)).astype(np.float32) * 2
    group = rng.integers(0, 6, 40).astype(np.int32)
    mean, maximum = grouped_attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(group), 6, rows)
    p = dense(q, k)
    for a in range(6):
        for b in range(6):
            part = p[:, group == a][:, :, group == b]
            np.testing.assert_allclose(mean[:, a, b], part.mean((1, 2)), rtol=1e-5)
            np.testing.assert_allclose(maximum[:, a, b], part.max((1, 2)), rtol=1e-5)


def test_no_matrix_of_all_pairs_is_in_memory():
    T, N, H, rows = 4096, 2, 8, 16
    x = jax.ShapeDtypeStruct((T, N, H), jnp.float32)
    group = jax.ShapeDtypeStruct((T,), jnp.int32)
    compiled = (
        jax.jit(lambda q, k, group: grouped_attention(q, k, group, 8, rows)).lower(x, x, group).compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * T * T * N / 16


def test_a_model_is_seen_as_it_attends(seen):
    model, params, images, q, k = seen
    found = observe(model, params, images, patch=(1, 2, 3), layers=(0, 3), rows=16, groups=12)
    p = dense(q, k)[[0, 3]]  # [2, N, T, T]
    groups = found.groups
    assert groups.cells == (2, 2) and found.mean.shape == (2, model.num_heads, groups.count, groups.count)
    np.testing.assert_allclose(found.row, p[:, :, groups.token(1, 2, 3)], atol=1e-5)
    special = groups.of < FRAMES
    pairs = found.pairs()
    for query, of_query in (("special", special), ("patch", ~special)):
        for key, of_key in (("special", special), ("patch", ~special)):
            part = p[:, :, of_query][..., of_key]
            numbers = pairs[f"{query} to {key}"]
            np.testing.assert_allclose(numbers["mean"], part.mean((1, 2, 3)), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(numbers["maximum"], part.max((1, 2, 3)), rtol=1e-5, atol=1e-5)
    one = (groups.of == 4), (groups.of == 9)
    np.testing.assert_allclose(found.mean[:, :, 4, 9], p[:, :, one[0]][..., one[1]].mean((2, 3)), atol=1e-5)
    strongest = found.matches(1, most=3)[1]
    rows = groups.patches(p[1, :, groups.token(1, 2, 3)].mean(0))
    rows[1] = 0
    assert [rows[m["frame"], m["y"], m["x"]] for m in strongest] == pytest.approx(
        np.sort(rows, None)[::-1][:3], abs=1e-5
    )


@pytest.mark.slow
def test_kept_blocks_are_those_of_the_layer(seen):
    model, params, images, q, k = seen
    sparsity = Sparsity(0.5, block=(8, 4))
    found = observe(model, params, images, patch=(1, 2, 3), layers=(2,), sparsity=sparsity)
    special = found.groups.of < FRAMES
    some = (jnp.asarray(x[2][~special])[None] for x in (q, k))
    mask = sparsity.block_mask(*some, keep_count=6, cdf_threshold=None, kv_runs=(48,)).to_dense()
    rows = found.kept[0].reshape(-1, 12, 4)  # a row of four patches is a block
    np.testing.assert_array_equal(rows.all(-1), mask[0, :, (16 + 2 * 4 + 3) // 8])
    assert found.kept.mean() == pytest.approx(0.5) and (rows.all(-1) == rows.any(-1)).all()


@pytest.mark.slow
def test_layers_within_frames_keep_their_own(seen):
    model, params, images, *_ = seen
    within = Sparsity(0.5, block=(8, 4), frame_layers=(1,), layers=(2,))
    kept = observe(model, params, images, patch=(1, 2, 3), sparsity=within).kept
    assert kept[1, :, 1].all() and not kept[1, :, [0, 2]].any()
    assert kept[[0, 3]].all() and kept[2].mean() == pytest.approx(0.5)


def test_what_is_not_there_is_said(seen):
    model, params, images, *_ = seen
    with pytest.raises(InputError, match="patch 3,0,0 has frame 3, there are 0 to 2"):
        observe(model, params, images, patch=(3, 0, 0))
    with pytest.raises(InputError, match="layers has 4, the model has layers 0 to 3"):
        observe(model, params, images, layers=(4,))
    with pytest.raises(InputError, match="names layer 8, the model has layers 0 to 3"):
        observe(model, params, images, sparsity=parse_sparsity("quick"))
    with pytest.raises(InputError, match="one ρ"):
        observe(model, params, images, sparsity=Sparsity((0.5,) * 4))
    with pytest.raises(InputError, match="views has 4, there are 1 to 3"):
        runtime_shares(model, params, images, (4,))
