"""How many queries and keys count, known at run time only: masks and attention of these alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, Implementation, Lengths, block_sparse_attention, pooled_block_mask
from pallas_kernels.implementation import registered
from pallas_kernels.triton import mask as triton_mask

RUNS = (200, 30)  # patches, which are pooled, and special tokens


def noise(length, seed, heads=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, length, heads, 16)), jnp.float32)


class OfTriton(Implementation):
    """Its row thresholds in the interpreter, whose rows are filled with NaN."""

    name = "interpreted"
    takes_lengths = True

    def mask(self, q, k, **how):
        return triton_mask.pooled_block_mask(q, k, interpret=True, **how)


@pytest.mark.parametrize(
    "implementation, block, keep_count, cdf_threshold, pool, official",
    [
        ("reference", (16, 8), 3, 0.7, "mean", True),
        ("xla", (16, 8), 3, 0.7, "mean", False),
        ("xla", (7, 5), None, 0.9, "max", True),
        ("xla", (128, 64), 100, 1.0, "mean", False),
        ("interpreted", (16, 8), 3, 0.7, "mean", False),
    ],
)
def test_mask_and_attention_are_those_of_what_counts(
    implementation, block, keep_count, cdf_threshold, pool, official
):
    """Bit by bit, wherever the last block ends, from one program."""
    (L, S), q = RUNS, noise(200, 0)
    kv_runs = (L + S,) if official else RUNS  # one run: special keys right behind the patches that count
    how = dict(block=block, keep_count=keep_count, cdf_threshold=cdf_threshold, pool=pool)
    attention = "xla" if implementation == "interpreted" else implementation

    def attend(q, k, v, runs, patches, lengths=None):
        """lengths None: all of the patches count."""
        filled = {} if lengths is None else {"lengths": lengths, "k_length": jnp.int32(patches)}
        pooled = k[:, :L] if filled else k[:, :patches]
        mask = pooled_block_mask(q, pooled, kv_runs=runs, implementation=implementation, **how, **filled)
        return mask, block_sparse_attention(q, k, v, mask, implementation=attention)

    together, apart = jax.jit(attend, static_argnums=3), jax.jit(attend, static_argnums=(3, 4))
    with registered(OfTriton()):
        for patches, specials in ((104, 15), (1, 30)):
            runs = (patches + specials,) if official else (patches, specials)
            k, v = noise(L + S, 1), noise(L + S, 2)
            lengths = Lengths(jnp.int32(patches), tuple(map(jnp.int32, runs)))
            mask, out = together(q, k, v, kv_runs, patches, lengths)
            counts = counting(runs, kv_runs)
            alone, wanted = apart(q[:, :patches], k[:, counts], v[:, counts], runs, patches)
            blocks = counting([-(-n // block[1]) for n in runs], [-(-n // block[1]) for n in kv_runs])
            kept = np.asarray(mask.to_dense())
            np.testing.assert_array_equal(kept[:, :, : alone.num_q_blocks, blocks], alone.to_dense())
            assert not kept[..., ~blocks].any() and not kept[:, :, alone.num_q_blocks :].any()
            np.testing.assert_allclose(mask.head_densities, alone.head_densities, rtol=1e-6)
            np.testing.assert_allclose(out[:, :patches], wanted, atol=2e-6)


def counting(lengths, sizes):
    """bool[sum(sizes)], the first ones of each."""
    return np.concatenate([np.arange(size) < n for n, size in zip(lengths, sizes, strict=True)])


def test_an_implementation_that_takes_no_lengths_is_not_asked():
    class Plain(Implementation):
        name = "plain"

    q, lengths = noise(20, 0), Lengths(jnp.int32(9), (jnp.int32(9),))
    mask = BlockMask.full(2, 2, 20, (20,), (8, 8), lengths=lengths)
    with registered(Plain()):
        block_sparse_attention(q, q, q, mask)
        with pytest.raises(NotImplementedError, match="'plain' cannot do this: it does not take how many"):
            block_sparse_attention(q, q, q, mask, implementation="plain")
        with pytest.raises(NotImplementedError, match="'plain' cannot do this: it does not take how many"):
            pooled_block_mask(q, q, keep_count=1, lengths=lengths, implementation="plain")


def test_bad_lengths_get_one_sentence():
    q, length = noise(20, 0), jnp.int32(9)
    with pytest.raises(ValueError, match="must be of the queries and of each of 2 runs of keys"):
        pooled_block_mask(q, q, keep_count=1, kv_runs=(20, 4), lengths=Lengths(length, (length,)))
    with pytest.raises(ValueError, match="k_length says how many pooled keys count, and needs"):
        pooled_block_mask(q, q, keep_count=1, k_length=length)
    for lengths, words in (
        ((length, (length,)), "must be Lengths"),
        (Lengths(length, length), "must be Lengths"),
        (Lengths(jnp.full(2, 9), (length,)), "must be numbers, the same for all of a batch"),
        (Lengths(length, (21,)), r"at least 1 and at most 20 queries and \(20,\) keys"),
        (Lengths(0, (length,)), "at least 1 and at most"),
        (Lengths(length, (-1,)), "at least 1 and at most"),
    ):
        with pytest.raises(ValueError, match=words):
            pooled_block_mask(q, q, keep_count=1, block=(8, 8), lengths=lengths)
    full = BlockMask.full(2, 2, 20, (20,), (8, 8), lengths=Lengths(length, (jnp.int32(21),)))
    attend = lambda q: block_sparse_attention(q, q, q, full)
    for known in (attend, jax.jit(attend)):  # of a mask that is no argument
        with pytest.raises(ValueError, match="at least 1 and at most"):
            known(q)
