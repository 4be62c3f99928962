"""The mask: its bits, which blocks it keeps, the Hopper kernel under Pallas' simulator and lowered for CUDA,
the Triton kernel under its interpreter.
"""

import itertools
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, api, pooled_block_mask, reference, thresholds, xla
from pallas_kernels import implementation as implementations
from pallas_kernels.implementation import MASK, Device, Request, find
from pallas_kernels.triton import mask as triton_mask

needs_jax_011 = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11"
)

HOPPER = Device("gpu", "NVIDIA H100 80GB HBM3", "9.0")


def on(device, monkeypatch) -> None:
    """As if JAX computed there."""
    monkeypatch.setattr(implementations, "device_of", lambda x=None: device)


def queries_and_keys(T, L=None, N=2, H=16, B=1, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)  # whose numbers need no compiling
    return tuple(jnp.asarray(rng.normal(size=(B, n, N, H)), dtype) for n in (T, L or T))


def kept_by_threshold(scores, keep_count, cdf_threshold, find=thresholds.row_thresholds):
    """bool[..., S]; keep_count and cdf_threshold are traced where they are not None."""
    select = jax.jit(
        lambda scores, n, tau: scores >= find(scores, jnp.maximum(1, 0 if n is None else n), tau)[..., None]
    )
    return np.asarray(select(scores, keep_count, cdf_threshold))


@pytest.mark.parametrize(
    "runs", [(5,), (31 * 8,), (32 * 8,), (32 * 8 + 1,), (83, 17), (41 * 8 - 3, 9, 25 * 8)]
)
def test_bits_say_which_blocks_are_kept(runs):
    T, block, num_kv = 61, (16, 8), sum(-(-run // 8) for run in runs)
    dense = np.random.default_rng(0).random((2, 3, 4, num_kv)) < 0.4
    mask = BlockMask.from_dense(jnp.array(dense), T, runs, block)
    assert mask.kv_bits.dtype == jnp.uint32 and mask.kv_bits.shape == (2, 3, 4, -(-num_kv // 32))
    bits = np.unpackbits(np.asarray(mask.kv_bits).astype("<u4").view(np.uint8), axis=-1, bitorder="little")
    np.testing.assert_array_equal(bits[..., :num_kv], dense)
    assert not bits[..., num_kv:].any()
    np.testing.assert_array_equal(mask.kv_num_blocks, dense.sum(-1))
    np.testing.assert_array_equal(mask.to_dense(), dense)
    assert float(mask.density) == pytest.approx(dense.mean())


def test_a_mask_knows_its_blocks():
    dense = jnp.ones((1, 2, 4, 14), bool)
    assert BlockMask.from_dense(dense, 61, (83, 17), (16, 8)).kv_block_bounds()[10:12] == [(80, 83), (83, 91)]
    with pytest.raises(ValueError, match="blocks"):
        BlockMask.from_dense(dense, 61, (100,), (16, 16))
    for bad in (dense.astype(jnp.int32), dense[0]):  # a 2 would set its neighbour's bit
        with pytest.raises(ValueError, match=r"mask must be bool\[B, N, Tb, Sb\], not"):
            BlockMask.from_dense(bad, 61, (83, 17), (16, 8))
    for runs, block, message in (
        ((100,), (0, 8), r"block=\(0, 8\) must be two positive integers"),
        ((100,), (16, -8), "must be two positive integers"),
        ((100,), (16,), "must be two positive integers"),
        ((), (16, 8), r"kv_runs=\(\) must be the lengths of one run"),
        ((100, -8), (16, 8), "none of them negative"),
    ):
        with pytest.raises(ValueError, match=message):
            BlockMask.full(1, 2, 61, runs, block)
        with pytest.raises(ValueError, match=message):
            BlockMask.from_dense(dense, 61, runs, block)


def test_set_bits_are_found_by_their_rank():
    bits = np.array([[0x80000001, 0, 0xFFFFFFFF, 0x10000], [0, 0, 0, 0x80000000]], np.uint32)
    flat = np.unpackbits(bits.astype("<u4").view(np.uint8), axis=-1, bitorder="little")
    counts = np.bitwise_count(bits).astype(np.int32)
    for row in (0, 1):
        expected = np.flatnonzero(flat[row])
        before = np.cumsum(counts[row]) - counts[row]
        found = xla.nth_set_bit(jnp.array(bits[row]), jnp.array(before, jnp.int32), jnp.arange(len(expected)))
        np.testing.assert_array_equal(found, expected)


def test_the_mask_of_a_thousand_views_takes_what_its_docstring_says():
    tokens = jax.ShapeDtypeStruct((1, 37 * 37 * 1000, 16, 64), jnp.bfloat16)
    mask = jax.eval_shape(
        lambda q, k, n: pooled_block_mask(
            q, k, keep_count=n, kv_runs=(q.shape[1], 5000), implementation="xla"
        ),
        tokens,
        tokens,
        5000,
    )
    assert (mask.num_q_blocks, mask.num_kv_blocks) == (10696, 21470)
    assert round(mask.kv_bits.size * 4 / 1e9, 2) == 0.46


def test_the_block_that_crosses_tau_is_dropped_and_one_is_always_kept():
    p = jnp.array([0.15, 0.5, 0.05, 0.3])

    def kept(keep_count, cdf_threshold):
        defined = reference.select_blocks(p, keep_count, cdf_threshold)
        np.testing.assert_array_equal(kept_by_threshold(jnp.log(p), keep_count, cdf_threshold), defined)
        return defined[jnp.array([1, 3, 0, 2])].tolist()  # in descending order

    assert kept(None, 0.79) == [True, False, False, False]
    assert kept(None, 0.8) == [True, True, False, False]  # 0.8 <= 0.8 + 1e-5
    assert kept(None, 0.799995) == [True, True, False, False]  # the slack is for rounding
    assert kept(None, 0.1) == [True, False, False, False]
    assert kept(0, None) == [True, False, False, False]
    assert kept(3, 0.5) == [True, True, True, False]


@pytest.mark.parametrize("size", [1, 7, 300])
def test_thresholds_select_what_sorting_selects(size):
    shift = jnp.array([-20.0, 0.0, 20.0])[:, None, None]  # scores all negative, of both signs, all positive
    scores = 2 * jax.random.normal(jax.random.key(size), (3, 10, size)) + shift
    p = jax.nn.softmax(scores, -1)
    keep, tau = (None, 0, 1, size // 3, size), (None, 0.0, 0.3, 0.9, 1.0)
    by_threshold = jax.jit(
        lambda n, t: (
            scores >= thresholds.row_thresholds(scores, 1 if n is None else jnp.maximum(1, n), t)[..., None]
        )
    )
    by_sorting = jax.jit(lambda n, t: reference.select_blocks(p, n, t))
    for n, t in list(itertools.product(keep, tau))[1:]:
        np.testing.assert_array_equal(
            by_threshold(n, t), by_sorting(n, t), err_msg=f"keep_count={n} cdf_threshold={t}"
        )


def test_blocks_far_away_do_not_tie_at_probability_zero():
    scores = 1000 * jax.random.permutation(jax.random.key(0), jnp.arange(50.0))
    assert (jax.nn.softmax(scores) == 0).sum() == 49
    np.testing.assert_array_equal(kept_by_threshold(scores, 20, None), scores >= 30_000)


@pytest.mark.parametrize("start", [1.0, -1.0, 1e-30, 1e30])
def test_neighbouring_numbers_are_told_apart(start):
    scores = (np.array(start, np.float32).view(np.int32) + np.arange(9, dtype=np.int32)).view(np.float32)
    for n in range(1, 10):
        kept = kept_by_threshold(jnp.array(scores), n, None)
        assert kept.sum() == n and scores[kept].min() >= scores[~kept].max(initial=-np.inf)


def test_blocks_of_one_score_are_kept_or_dropped_together():
    for value in (0.0, -3.5, 2.0):
        row = jnp.full((9,), value)
        assert kept_by_threshold(row, 4, None).all() and kept_by_threshold(row, None, 0.5).all()
    row = jnp.array([3.0, 1.0, 1.0, 1.0, 0.0])
    assert kept_by_threshold(row, 2, None).tolist() == [True, True, True, True, False]
    p = jax.nn.softmax(row)
    across = float(p[0] + 1.5 * p[1])  # τ lies within the tie: sorting keeps one of the three
    assert kept_by_threshold(row, None, across).tolist() == [True, False, False, False, False]
    assert kept_by_threshold(row, 2, across).tolist() == [True, True, True, True, False]
    assert kept_by_threshold(jnp.array([-0.0, 0.0, -1.0]), 1, None).tolist() == [True, True, False]


def test_of_equally_probable_blocks_the_reference_keeps_the_first():
    assert reference.select_blocks(jnp.array([0.2, 0.3, 0.2, 0.3, 0.0]), 3, None).tolist() == [
        True,
        True,
        False,
        True,
        False,
    ]


def test_every_layer_may_have_its_own_values():
    q, k = queries_and_keys(200)
    keep, tau = jnp.array([0, 3, 25, 12]), jnp.array([0.9, 0.0, 0.5, 1.0])
    one = lambda n, t: pooled_block_mask(
        q, k, keep_count=n, cdf_threshold=t, block=(16, 8), implementation="xla"
    )
    _, scanned = jax.lax.scan(lambda _, layer: (None, one(*layer)), None, (keep, tau))
    mapped = jax.jit(jax.vmap(one))(keep, tau)
    define = jax.jit(
        lambda n, t: pooled_block_mask(
            q, k, keep_count=n, cdf_threshold=t, block=(16, 8), implementation="reference"
        )
    )
    for i in range(4):
        defined = define(keep[i], tau[i])
        for masks in (scanned, mapped):
            np.testing.assert_array_equal(masks.kv_bits[i], defined.kv_bits)
            np.testing.assert_array_equal(masks.kv_num_blocks[i], defined.kv_num_blocks)


@pytest.mark.parametrize("T, L", [(61, 83), (5, 300)])
@pytest.mark.every_jax
def test_a_batch_is_a_loop_over_its_elements(T, L):
    q, k = queries_and_keys(T, L, B=3)
    select = jax.jit(
        lambda q, k: (
            pooled_block_mask(q, k, keep_count=4, cdf_threshold=0.4, block=(16, 8), kv_runs=(L, 10)).kv_bits
        )
    )
    batched, mapped = select(q, k), jax.vmap(select)(q[:, None], k[:, None])
    for b in range(3):
        alone = select(q[b : b + 1], k[b : b + 1])
        np.testing.assert_array_equal(batched[b], alone[0])
        np.testing.assert_array_equal(mapped[b], alone)


def test_pooled_mask_in_chunks_of_rows_is_the_same(monkeypatch):
    q, k = queries_and_keys(300, B=2)
    options = {"keep_count": 5, "cdf_threshold": 0.3, "block": (16, 8), "kv_runs": (300, 20)}
    whole = pooled_block_mask(q, k, **options)
    monkeypatch.setattr(xla, "MASK_ROWS_BYTES", 2000)
    parts = jax.jit(lambda q, k: pooled_block_mask(q, k, **options)).trace(q, k)
    assert "u32[7,2,2,3,2]" in str(parts.jaxpr)  # seven chunks of three rows
    np.testing.assert_array_equal(parts.lower().compile()(q, k).kv_bits, whole.kv_bits)
    defined = pooled_block_mask(q, k, **options, implementation="reference")
    np.testing.assert_array_equal(defined.kv_bits, whole.kv_bits)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize(
    "L, special", [(64, 10), (31 * 8, 8), (250, 40), (32 * 8, 300)]
)  # the first special block begins or splits a word
def test_special_blocks_are_forced_on(implementation, L, special):
    q, k = queries_and_keys(64, L)
    dense = pooled_block_mask(
        q, k, keep_count=1, block=(16, 8), kv_runs=(L, special), implementation=implementation
    ).to_dense()
    patch = -(-L // 8)
    assert (
        dense.shape[-1] == patch + -(-special // 8)
        and dense[..., patch:].all()
        and (dense[..., :patch].sum(-1) == 1).all()
    )


def test_a_row_keeps_as_many_blocks_as_it_is_told():
    q, k = queries_and_keys(64)
    for implementation in ("xla", "reference"):
        mask = pooled_block_mask(q, k, keep_count=5, block=(16, 8), implementation=implementation)
        np.testing.assert_array_equal(mask.to_dense().sum(-1), 5)
    traced = jax.jit(lambda n: pooled_block_mask(q, k, keep_count=n, block=(16, 8)))(5)
    np.testing.assert_array_equal(traced.to_dense(), mask.to_dense())
    assert (pooled_block_mask(q, k, keep_count=0, block=(16, 8)).kv_num_blocks == 1).all()
    everything = pooled_block_mask(q, k, keep_count=99, block=(16, 8), kv_runs=(64, 3))
    assert everything.to_dense().all() and float(everything.density) == 1
    assert pooled_block_mask(q, k, keep_count=1).block == (128, 64)  # the paper's


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("T", [5, 16, 19])
def test_a_block_is_pooled_over_its_own_tokens_only(pool, T):
    x = jax.random.normal(jax.random.key(0), (2, T, 3, 4)) - 2
    windows = [x[:, i : i + 8] for i in range(0, T, 8)]
    expected = jnp.stack([getattr(window, pool)(1) for window in windows], 2)
    np.testing.assert_allclose(reference.pool_blocks(x, 8, pool), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "implementation", ["xla", pytest.param("mosaic_sm90", marks=[needs_jax_011, pytest.mark.every_jax])]
)
def test_no_gradient_passes(implementation, monkeypatch):
    """The mask is a choice: what differentiates around it is not asked for a derivative of it."""
    on(HOPPER, monkeypatch)
    q, k = queries_and_keys(64, dtype=jnp.bfloat16)
    options = {"keep_count": 2, "cdf_threshold": 0.3, "block": (16, 8), "implementation": implementation}
    differentiate = lambda: jax.jvp(lambda q: pooled_block_mask(q, k, **options).density, (q,), (q,))
    density, slope = differentiate() if implementation == "xla" else simulated(differentiate)
    assert density > 0 and slope == 0


def test_a_nan_among_the_queries_keeps_everything():
    """... of its block, so that it shows in the output instead of turning into zeros."""
    q, k = queries_and_keys(64)
    clean = pooled_block_mask(q, k, keep_count=1, block=(16, 8), kv_runs=(64, 5))
    mask = pooled_block_mask(q.at[0, 20, 1, 0].set(jnp.nan), k, keep_count=1, block=(16, 8), kv_runs=(64, 5))
    assert mask.to_dense()[0, 1, 1].all()
    np.testing.assert_array_equal(
        mask.to_dense().at[0, 1, 1].set(False), clean.to_dense().at[0, 1, 1].set(False)
    )


def test_bad_arguments_get_one_sentence():
    q, k = queries_and_keys(32)
    for arguments, message in (
        ((q[0], k), r"q \(32, 2, 16\) and k .* must be \[B, T, N, H\] and"),
        ((q, k[:, :, :1]), "must be"),
        ((q[:, :0], k), "must not be empty"),
        ((q, k[:, :0]), "must not be empty"),
        ((q, k.astype(jnp.bfloat16)), "must share one dtype, .* not float32 and bfloat16"),
        ((q.astype(jnp.int8), k.astype(jnp.int8)), "not int8 and int8"),
    ):
        with pytest.raises(ValueError, match=message):
            pooled_block_mask(*arguments, keep_count=1)
    for options, message in (
        ({"keep_count": None}, "keep_count, cdf_threshold or both"),
        ({"pool": "avg"}, "pool='avg' must be 'mean' or 'max'"),
        ({"keep_count": np.array([1, 2])}, r"keep_count must be one number, not an array of shape \(2,\)"),
        ({"cdf_threshold": jnp.ones((3, 1))}, r"cdf_threshold must be one number, .* \(3, 1\)"),
        ({"block": (0, 64)}, r"block=\(0, 64\) must be two positive integers"),
        ({"block": (16,)}, "two positive integers"),
        ({"kv_runs": (16, 16)}, "must hold the 32 pooled keys"),
        ({"kv_runs": ()}, "must hold the 32 pooled keys"),
        ({"kv_runs": (32, -1)}, "none may be negative"),
        ({"implementation": "cuda"}, "must be None or one of"),
    ):
        with pytest.raises(ValueError, match=message):
            pooled_block_mask(q, k, **{"keep_count": 1} | options)


def test_a_named_implementation_never_becomes_another(caplog, monkeypatch):
    on(Device("cpu", "cpu"), monkeypatch)
    api._log_once.cache_clear()
    q, k = queries_and_keys(32)
    with pytest.raises(
        NotImplementedError, match="'mosaic_sm90' cannot do this: it needs jax >= 0.11 and a Hopper GPU"
    ):
        pooled_block_mask(q, k, keep_count=1, implementation="mosaic_sm90")
    with caplog.at_level(logging.INFO, "pallas_kernels"):
        chosen = [pooled_block_mask(q, k, keep_count=1) for _ in range(2)][0]
    assert [record.getMessage() for record in caplog.records] == ["pooled_block_mask: implementation 'xla'"]
    np.testing.assert_array_equal(
        chosen.kv_bits, pooled_block_mask(q, k, keep_count=1, implementation="xla").kv_bits
    )


def simulated(run):
    """What `run` returns with Mosaic GPU kernels simulated on the CPU; asserts that no memory access races
    another.
    """
    import jax.experimental.pallas.mosaic_gpu as plgpu
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as simulator

    simulator.reset_gpu_interpret_mode_state()
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        result = jax.block_until_ready(run())
    assert not simulator.get_races().races_found
    return result


def awkward_scores(size):
    """f32[5, size]."""
    scores = np.random.default_rng(0).normal(0, 3, (5, size)).astype(np.float32)
    scores[1] -= 30  # all negative
    scores[2] = 0  # all equal
    scores[3] = np.round(scores[3])  # many ties
    scores[4] = np.maximum(scores[4], -1)
    scores[4, 0] = -5  # an early step leaves only the lowest
    return jnp.asarray(scores)


@pytest.mark.every_jax
@needs_jax_011
@pytest.mark.parametrize("size", [256, 4500])  # in registers; in shared memory, and filled up with NaN
@pytest.mark.parametrize(
    "keep_count, cdf_threshold", [(1, None), (70, None), (256, None), (0, 0.8), (0, 0.0), (0, 1.0), (70, 0.6)]
)
def test_the_kernel_keeps_the_same_blocks(size, keep_count, cdf_threshold):
    from pallas_kernels.mosaic_sm90 import mask as mosaic_mask

    scores = awkward_scores(size)
    padded = jnp.pad(scores, ((0, 0), (0, -size % mosaic_mask.row_multiple(size))), constant_values=jnp.nan)
    kept = simulated(lambda: kept_by_threshold(padded, keep_count, cdf_threshold, mosaic_mask.row_thresholds))
    np.testing.assert_array_equal(kept[:, :size], kept_by_threshold(scores, keep_count, cdf_threshold))
    assert not kept[:, size:].any()


@pytest.mark.parametrize("size", [1, 256, 300, 9000])  # in registers; with empty places; in chunks
@pytest.mark.parametrize(
    "keep_count, cdf_threshold", [(1, None), (70, None), (0, 0.8), (0, 0.0), (0, 1.0), (70, 0.6)]
)
def test_the_triton_kernel_keeps_the_same_blocks(size, keep_count, cdf_threshold):
    find_thresholds = partial(triton_mask.row_thresholds, interpret=True)
    keep_count, scores = min(keep_count, size), awkward_scores(size)
    kept = kept_by_threshold(scores, keep_count, cdf_threshold, find_thresholds)
    np.testing.assert_array_equal(kept, kept_by_threshold(scores, keep_count, cdf_threshold))


@pytest.mark.slow
def test_the_triton_kernel_makes_the_same_mask(monkeypatch):
    """A batch, two runs, chunks of rows, traced values of two layers."""
    monkeypatch.setattr(triton_mask, "SCORES_BYTES", 2 * 2 * 2 * 11 * 4)  # two rows of batch and heads
    q, k = queries_and_keys(61, 83, B=2, dtype=jnp.bfloat16)
    how = {"block": (16, 8), "kv_runs": (83, 17), "pool": "mean"}
    of_layers = lambda select: jax.vmap(lambda n, t: select(q, k, keep_count=n, cdf_threshold=t, **how))(
        jnp.array([2, 5]), jnp.array([0.6, 0.1])
    )
    ours, expected = map(
        of_layers, (partial(triton_mask.pooled_block_mask, interpret=True), xla.pooled_block_mask)
    )
    np.testing.assert_array_equal(ours.kv_bits, expected.kv_bits)
    np.testing.assert_array_equal(ours.kv_num_blocks, expected.kv_num_blocks)


@pytest.mark.every_jax
@needs_jax_011
def test_the_kernel_makes_the_same_mask(monkeypatch):
    """Through the public function, as if there were a Hopper GPU: a batch, two runs, chunks of rows, traced
    values of two layers.
    """
    from pallas_kernels.mosaic_sm90 import mask as mosaic_mask

    on(HOPPER, monkeypatch)
    monkeypatch.setattr(mosaic_mask, "SCORES_BYTES", 2 * 2 * 2 * 256 * 4)  # two rows of batch and heads
    q, k = queries_and_keys(61, 83, B=2, dtype=jnp.bfloat16)

    def select(implementation):
        one = lambda n, t: pooled_block_mask(
            q,
            k,
            keep_count=n,
            cdf_threshold=t,
            block=(16, 8),
            kv_runs=(83, 17),
            implementation=implementation,
        )
        return jax.vmap(one)(jnp.array([2, 5]), jnp.array([0.6, 0.1]))

    assert "scan[" in str(jax.make_jaxpr(lambda: select(None))())  # over the chunks
    chosen, expected = simulated(lambda: select(None)), select("xla")
    np.testing.assert_array_equal(chosen.kv_bits, expected.kv_bits)
    np.testing.assert_array_equal(chosen.kv_num_blocks, expected.kv_num_blocks)


@pytest.mark.every_jax
@needs_jax_011
def test_float32_is_plain_xla(monkeypatch):
    """Throughout: programs without a Mosaic kernel may be compiled at the same time."""
    on(HOPPER, monkeypatch)
    lower = lambda dtype: (
        jax.jit(lambda q, k: pooled_block_mask(q, k, keep_count=2, block=(16, 8)).kv_bits)
        .trace(*queries_and_keys(64, dtype=dtype))
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    assert "mosaic_gpu" not in lower(jnp.float32) and "mosaic_gpu" in lower(jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="takes bfloat16 and float16, not float32"):
        pooled_block_mask(*queries_and_keys(64), keep_count=2, block=(16, 8), implementation="mosaic_sm90")


@pytest.mark.every_jax
@needs_jax_011
@pytest.mark.parametrize("num_kv", [1024, 2144, 10720, 21469])  # 48, 100, 501 and 1,003 views of 518×518
@pytest.mark.parametrize("cdf_threshold", [None, 0.9])
def test_the_kernel_lowers_for_cuda(num_kv, cdf_threshold):
    """Operations and register layouts that Mosaic GPU does not know are found here; the simulator takes them
    all.
    """
    from pallas_kernels.mosaic_sm90 import mask as mosaic_mask

    q, k = (jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16) for length in (1000, 64 * num_kv - 9))
    select = lambda q, k, n: mosaic_mask.pooled_block_mask(
        q,
        k,
        kv_runs=(k.shape[1], 50),
        block=(128, 64),
        keep_count=n,
        cdf_threshold=cdf_threshold,
        pool="mean",
    )
    lowered = jax.jit(select).trace(q, k, 100).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.every_jax
@needs_jax_011
def test_too_long_rows_are_refused():
    from pallas_kernels.mosaic_sm90 import mask as mosaic_mask

    assert mosaic_mask.row_multiple(57344) == 1024
    of = lambda keys: Request(MASK, 1, 128, keys, 2, 64, np.dtype(jnp.bfloat16), (128, 64), HOPPER)
    assert find("mosaic_sm90").why_not(of(64 * 57344)) is None
    assert "at most 57344 key blocks, not 57345" in find("mosaic_sm90").why_not(of(64 * 57344 + 1))


def test_a_gpu_without_the_kernel_says_so_once(caplog, monkeypatch):
    on(Device("gpu", "NVIDIA A100-SXM4-40GB", "8.0"), monkeypatch)
    api._log_once.cache_clear()
    q, k = queries_and_keys(32)
    for _ in range(2):
        pooled_block_mask(q, k, keep_count=1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        "implementation 'xla', which is slow on a GPU: 'mosaic_sm90' cannot do this: it needs"
        in record.getMessage()
    )
    api._log_once.cache_clear()
