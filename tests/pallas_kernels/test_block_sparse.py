"""Block-sparse attention: the XLA implementation against the definition, on shapes that are awkward on
purpose.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, block_sparse_attention, to_float8, xla
from tests.conftest import TOLERANCE, max_error


def qkv(T, S, N=2, H=16, B=1, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)  # whose numbers need no compiling
    return tuple(jnp.asarray(rng.normal(size=(B, n, N, H)), dtype) for n in (T, S, S))


def random_mask(T, runs, block, B=1, N=2, density=0.4, seed=1):
    blocks = (-(-T // block[0]), sum(-(-r // block[1]) for r in runs))
    mask = np.random.default_rng(seed).random((B, N, *blocks)) < density
    mask[..., 0] = True
    return BlockMask.from_dense(mask, T, runs, block)


@pytest.mark.parametrize(
    "T, runs, block, B",
    [
        pytest.param(64, (64,), (16, 8), 1, marks=pytest.mark.slow),
        (61, (83,), (16, 8), 2),  # ragged tails
        (61, (83, 17), (16, 8), 1),  # two runs, both ragged
        (7, (5,), (128, 64), 1),  # less than a block
        pytest.param(300, (700, 3), (128, 64), 1, marks=pytest.mark.slow),
        (40, (900, 100), (16, 8), 2),  # several words of mask bits
    ],
)
def test_xla_agrees_with_the_definition(T, runs, block, B):
    q, k, v = qkv(T, sum(runs), B=B)
    mask = random_mask(T, runs, block, B)
    ours = jax.jit(block_sparse_attention)(q, k, v, mask)
    exact = jax.jit(partial(block_sparse_attention, implementation="reference"))(q, k, v, mask)
    assert max_error(ours, exact) < TOLERANCE["float32"]


def test_runs_that_do_not_fit_the_mask_are_one_sentence():
    q, k, v = qkv(16, 24)
    mask = random_mask(16, (16, 8), (16, 8))
    split = lambda x: (x[:, :16], x[:, 16:])
    half = lambda x: (x[:, :16], x[:, 16:].astype(jnp.bfloat16))
    for keys, values, words in (
        (split(k), v, "both tuples of an array for each of 2 runs"),
        ((k,), (v,), "both tuples of an array for each of 2 runs"),
        (list(split(k)), list(split(v)), "both tuples of an array for each of 2 runs"),
        (split(k[0]), split(v[0]), "the runs of k and v must be"),
        (half(k), split(v), "must share one dtype"),
    ):
        with pytest.raises(ValueError, match=words):
            block_sparse_attention(q, keys, values, mask)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_queries_and_keys_of_8_bits_are_the_numbers_that_they_hold(implementation):
    q, k, v = qkv(61, 83)
    q, k = to_float8(q.at[0, 0].set(1e4)), to_float8(k)
    mask = random_mask(61, (83,), (16, 8))
    attend = lambda *arrays: block_sparse_attention(*arrays, mask, implementation=implementation)
    out = attend(q, k, v)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()
    assert max_error(out, attend(*(x.astype(jnp.float32) for x in (q, k)), v)) < TOLERANCE["float32"]
    np.testing.assert_array_equal(q[0, 0].astype(jnp.float32), 448)  # the largest one
    with pytest.raises(NotImplementedError, match="rounding to 8 bits .* has no gradient"):
        jax.grad(lambda v: attend(to_float8(v[:, :61]), k, v).sum())(v)
    with pytest.raises(ValueError, match="share one dtype, or q and k be float8_e4m3fn, not float8"):
        attend(q, k.astype(jnp.float32), v)
    with pytest.raises(ValueError, match="v must be float32, bfloat16 or float16, not float8_e4m3fn"):
        attend(q, k, to_float8(v))


def test_small_temporaries_change_nothing(monkeypatch):
    q, k, v = qkv(300, 400)
    mask = random_mask(300, (400,), (16, 8))
    whole = block_sparse_attention(q, k, v, mask)
    monkeypatch.setattr(xla, "TEMPORARY_BYTES", 1)  # one query block at a time
    monkeypatch.setattr(xla, "KEYS_PER_STEP", 24)  # three key blocks a step
    assert max_error(block_sparse_attention(q, k, v, mask), whole) < TOLERANCE["float32"]


def test_dropped_keys_weigh_nothing():
    q, k, v = qkv(32, 32)
    first_only = jnp.zeros((1, 2, 2, 4), bool).at[..., 0].set(True)
    mask = BlockMask.from_dense(first_only, 32, (32,), (16, 8))
    clean = block_sparse_attention(q, k, v, mask)
    np.testing.assert_array_equal(
        clean, block_sparse_attention(q, k.at[:, 8:].set(1e4), v.at[:, 8:].set(1e4), mask)
    )
    alone = jax.nn.dot_product_attention(q, k[:, :8], v[:, :8])
    assert max_error(clean, alone) < TOLERANCE["float32"]


@pytest.mark.parametrize("dropped", [0, 2])
def test_a_nan_of_a_dropped_block_is_never_seen(dropped):
    q, k, v = qkv(64, 64)
    mask = jnp.ones((1, 2, 4, 4), bool).at[..., dropped].set(False)
    mask = BlockMask.from_dense(mask, 64, (64,), (16, 16))
    poisoned = v.at[:, 16 * dropped : 16 * dropped + 16].set(jnp.nan)
    attend = lambda v: block_sparse_attention(q, k, v, mask, implementation="xla")
    np.testing.assert_array_equal(attend(poisoned), attend(v))


def test_a_row_without_keys_gives_zeros():
    q, k, v = qkv(32, 32)
    empty = jnp.ones((1, 2, 2, 4), bool).at[0, 1, 0].set(False)
    mask = BlockMask.from_dense(empty, 32, (32,), (16, 8))
    for implementation in ("xla", "reference"):
        with pytest.raises(ValueError, match="query block 0 of head 1 in batch element 0 keeps no key block"):
            block_sparse_attention(q, k, v, mask, implementation=implementation)
        out = np.asarray(
            jax.jit(block_sparse_attention, static_argnames="implementation")(
                q, k, v, mask, implementation=implementation
            )
        )
        assert (out[0, :16, 1] == 0).all() and np.isfinite(out).all() and (out[0, 16:, 1] != 0).any()


def test_a_mask_may_be_closed_over():
    q, k, v = qkv(32, 32)
    mask = random_mask(32, (32,), (16, 8))
    closed = jax.jit(lambda q: block_sparse_attention(q, k, v, mask))(q)
    np.testing.assert_array_equal(closed, jax.jit(block_sparse_attention)(q, k, v, mask))


def test_a_mask_may_be_of_numpy():
    """As `jax.device_get` gives it: what it keeps is checked just the same."""
    q, k, v = qkv(32, 40)
    mask = random_mask(32, (32, 8), (16, 8))
    expected = block_sparse_attention(q, k, v, mask)
    on_host = jax.device_get(mask)
    np.testing.assert_array_equal(block_sparse_attention(q, k, v, on_host), expected)
    closed = jax.jit(lambda q: block_sparse_attention(q, k, v, on_host))
    np.testing.assert_array_equal(closed(q), expected)
    empty = dataclasses.replace(on_host, kv_num_blocks=0 * on_host.kv_num_blocks)
    with pytest.raises(ValueError, match="query block 0 of head 0 in batch element 0 keeps no key block"):
        block_sparse_attention(q, k, v, empty)


def test_large_scores_do_not_overflow():
    q, k, v = qkv(32, 32)
    mask = random_mask(32, (32,), (16, 8), density=1.0)
    out = block_sparse_attention(100 * q, 100 * k, v, mask)
    assert (
        max_error(out, block_sparse_attention(100 * q, 100 * k, v, mask, implementation="reference")) < 1e-4
    )


def test_bfloat16_keeps_float32_statistics():
    q, k, v = qkv(64, 4096, dtype=jnp.bfloat16)
    mask = random_mask(64, (4096,), (16, 64), density=1.0)
    out = block_sparse_attention(q, k, v, mask)
    assert out.dtype == jnp.bfloat16
    exact = block_sparse_attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), mask, implementation="reference"
    )
    assert max_error(out, exact) < 1e-2


@pytest.mark.parametrize("S", [256, 2048])
def test_bfloat16_rounds_the_weights_and_the_result_but_no_sum(S):
    """Values around 1.5, so that a rounded sum would move the result to a neighbouring bfloat16 about as
    often as not.
    """
    q, k, v = qkv(64, S, dtype=jnp.bfloat16)
    v = 1.5 + 0.25 * v
    mask = random_mask(64, (S,), (16, 64), density=1.0)
    out = block_sparse_attention(q, k, v, mask)
    exact = block_sparse_attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), mask, implementation="reference"
    )
    assert (out == exact.astype(jnp.bfloat16)).mean() > 0.9


def test_bad_arguments_get_one_sentence():
    q, k, v = qkv(32, 32)
    mask = random_mask(32, (32,), (16, 8))
    with pytest.raises(ValueError, match="must be None or one of"):
        block_sparse_attention(q, k, v, mask, implementation="cuda")
    with pytest.raises(ValueError, match="share one dtype"):
        block_sparse_attention(q, k.astype(jnp.bfloat16), v, mask)
    with pytest.raises(ValueError, match="the mask is for 32×32"):
        block_sparse_attention(q[:, :16], k, v, mask)
    with pytest.raises(ValueError, match=r"must be \[B, T, N, H\], \[B, S, N, H\] and"):
        block_sparse_attention(q, k[:, :, :1], v[:, :, :1], mask)
    with pytest.raises(ValueError, match=r"the mask is for \(1, 2\) \(batch, heads\), q has \(1, 1\)"):
        block_sparse_attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], mask)
    with pytest.raises(ValueError, match=r"must be \[B, T, N, H\]"):
        block_sparse_attention(q[0], k, v, mask)
    with pytest.raises(ValueError, match="must not be empty"):
        block_sparse_attention(q[:, :0], k, v, mask)
    with pytest.raises(ValueError, match="must be float32, bfloat16 or float16, not int32"):
        block_sparse_attention(*(x.astype(jnp.int32) for x in (q, k, v)), mask)
    with pytest.raises(TypeError, match="must be a BlockMask, such as BlockMask.from_dense makes, not Array"):
        block_sparse_attention(q, k, v, mask.to_dense())
    with pytest.raises(ValueError, match=r"blocks of 8×8 make it \(1, 2, 4\) and \(1, 2, 4, 1\)"):
        block_sparse_attention(q, k, v, dataclasses.replace(mask, block=(8, 8)))


def test_lengths_beyond_32_bits_are_refused():
    long = jax.ShapeDtypeStruct((1, 2**31, 1, 64), jnp.bfloat16)
    mask = jax.eval_shape(lambda: BlockMask.full(1, 1, 2**31, (2**31,), (2**20, 2**20)))
    with pytest.raises(ValueError, match="are too many"):
        jax.eval_shape(block_sparse_attention, long, long, long, mask)


@pytest.mark.parametrize("differentiate", [jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (x,))])
@pytest.mark.every_jax
def test_a_derivative_is_refused_in_one_sentence(differentiate):
    q, k, v = qkv(32, 32)
    mask = random_mask(32, (32,), (16, 8))
    with pytest.raises(NotImplementedError, match="block-sparse attention has no gradient"):
        differentiate(lambda k: block_sparse_attention(q, k, v, mask).sum())(k)
    attend = lambda k: block_sparse_attention(q, k, v, mask, implementation="reference").sum()
    assert jnp.isfinite(jax.grad(attend)(k)).all()


def test_a_full_mask_drops_nothing():
    q, k, v = qkv(61, 100)
    mask = BlockMask.full(1, 2, 61, (83, 17), (16, 8))
    assert mask.density == 1
    np.testing.assert_array_equal(mask.to_dense(), True)
    assert (
        max_error(block_sparse_attention(q, k, v, mask), jax.nn.dot_product_attention(q, k, v))
        < TOLERANCE["float32"]
    )
    with pytest.raises(ValueError, match="must not be empty"):
        block_sparse_attention(q, k[:, :0], v[:, :0], mask)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_keys_of_each_run_in_an_array_of_its_own(implementation):
    """... which may be longer than the run, as q may be than the mask."""
    q, k, v = qkv(61, 100)
    mask = random_mask(61, (83, 17), (16, 8))
    longer = lambda x: jnp.pad(x, ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=9)
    runs = lambda x: tuple(map(longer, jnp.split(x, [83], 1)))
    attend = lambda *qkv: block_sparse_attention(*qkv, mask, implementation=implementation)
    np.testing.assert_array_equal(attend(longer(q), runs(k), runs(v)), attend(q, k, v))
