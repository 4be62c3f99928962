"""The ablations are the paper's, and their baseline of random blocks is a fair one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Sparsity, errors
from fastvggt_jax.attention import sparse_global_attention
from fastvggt_jax.evaluate import ablations


@partial(jax.jit, static_argnums=(0, 3))
def masks(kind, q, k, special_keys="dense"):
    """Of 52 patches, 7 blocks of 8 keys, and 10 special keys after them."""
    runs = (52, 10) if special_keys == "dense" else (62,)
    sparsity = kind(0.6, 0.5, (16, 8), special_keys=special_keys)
    return sparsity.block_mask(q, k, keep_count=2, cdf_threshold=0.5, kv_runs=runs).to_dense()


def queries_and_keys(batch=2):
    q, k = jax.random.normal(jax.random.key(0), (2, batch, 52, 2, 16))
    return 3 * q, k


@pytest.mark.parametrize("special_keys", ["dense", "official"])
def test_random_blocks_are_as_many_in_every_row_and_leave_special_keys_alone(special_keys):
    chosen, random = (
        np.asarray(masks(kind, *queries_and_keys(), special_keys))
        for kind in (Sparsity, ablations.RandomBlocks)
    )
    np.testing.assert_array_equal(random.sum(-1), chosen.sum(-1))
    assert len(np.unique(chosen.sum(-1))) > 1, "rows keep different numbers, or equality says little"
    assert random[..., 7:].all() and (random[..., :7] != chosen[..., :7]).any((-1, -2)).all()


def test_random_blocks_are_drawn_anew_for_every_row_and_other_queries_and_alike_for_the_same():
    """Of queries that are all alike and of any length, for which the method keeps the same blocks in every
    row.
    """
    _, k = queries_and_keys()
    ones = jnp.ones_like(k)
    draw = lambda kind, length: np.asarray(masks(kind, 1e-3 * length * ones, k))
    np.testing.assert_array_equal(draw(Sparsity, 1), draw(Sparsity, 2))
    assert (draw(Sparsity, 1) == draw(Sparsity, 1)[:, :, :1]).all()
    np.testing.assert_array_equal(draw(ablations.RandomBlocks, 1), draw(ablations.RandomBlocks, 1))
    assert (draw(ablations.RandomBlocks, 1) != draw(ablations.RandomBlocks, 2)).any()
    assert (draw(ablations.RandomBlocks, 1) != draw(ablations.RandomBlocks, 1)[:, :, :1]).any()


def test_random_blocks_have_no_favourites():
    share = np.asarray(masks(ablations.RandomBlocks, *queries_and_keys(100)))[..., :7].mean((0, 1, 2))
    assert np.abs(share - share.mean()).max() < 0.08


def test_global_attention_takes_the_blocks_that_its_sparsity_chooses():
    class Asked(Exception):
        pass

    class Chooser(Sparsity):
        def block_mask(self, q, k, *, keep_count, cdf_threshold, kv_runs):
            raise Asked(q.shape[1], k.shape[1], keep_count, cdf_threshold, kv_runs)

    q = jnp.zeros((1, 3 * 25, 2, 16))
    with pytest.raises(Asked) as asked:
        sparse_global_attention(
            q, q, q, frames=3, num_special=5, sparsity=Chooser(0.5), keep_count=2, cdf_threshold=0.5
        )
    assert asked.value.args == (60, 60, 2, 0.5, (60, 15))


def test_the_ablations_are_all_there():
    runs = ablations.ablations(24, (64, 32), 8 * 225)
    without = [run.label for run in runs if run.family != "special keys as released"]
    assert (
        [run.label for run in ablations.ablations(24, (64, 32), 8 * 256)]
        == without
        != [run.label for run in runs]
    )
    assert runs[0] == ablations.Configuration("dense", "dense", None) and len(
        {run.label for run in runs}
    ) == len(runs)
    families = {
        family: [run.sparsity for run in runs if run.family == family]
        for family in dict.fromkeys(run.family for run in runs)
    }
    layers = {where: families.pop(f"{where} layers")[0] for where in ("first", "middle", "last")}
    assert [s.layers for s in layers.values()] == [(0, 1, 2, 3), (10, 11, 12, 13), (20, 21, 22, 23)]
    assert all(s.sparse_ratio == 1 for s in layers.values())
    points = lambda family: [(s.sparse_ratio, s.cdf_threshold) for s in families[family]]
    assert points("random blocks") == points("ρ and τ") == list(ablations.POINTS)
    assert {type(s) for s in families["random blocks"]} == {ablations.RandomBlocks}
    assert (
        {s.cdf_threshold for s in families["ρ alone"]}
        == {s.sparse_ratio for s in families["τ alone"]}
        == {None}
    )
    for family, field, value in (
        ("special keys as released", "special_keys", "official"),
        ("Hilbert order", "order", "hilbert"),
    ):
        assert all(getattr(s, field) == value for s in families[family])
    assert all(s.pool == "max" for s in families["max pooling"])
    assert [len(s.frame_layers) for s in families["frame layers"]] == [4, 9, 12]
    assert {kind for s in families["frame layers"] for kind in s.plan(24)} == {"frame", "dense"}
    assert all(run.sparsity.block == (64, 32) for run in runs[1:])
    some = ablations.ablations(24, (64, 32), 8 * 256, ["random blocks", "last layers"])
    assert [run.family for run in some] == [
        "dense",
        *["random blocks"] * len(ablations.POINTS),
        "last layers",
    ]
    for depth in (1, 4, 18):
        for run in ablations.ablations(depth, (128, 64), 1000)[1:]:
            run.sparsity.check_depth(depth)


def test_what_is_chosen_by_hand_is_of_the_family_that_it_belongs_to():
    assert ablations.configuration(None) == ablations.Configuration("dense", "dense", None)
    labels = {
        (0.5, 0.7): "ρ and τ: ρ 0.5 τ 0.7",
        (0.5, None): "ρ alone: ρ 0.5",
        (None, 0.7): "τ alone: τ 0.7",
    }
    for values, label in labels.items():
        found = ablations.configuration(Sparsity(*values))
        assert found.label == label and found.sparsity == Sparsity(*values)


def test_a_family_that_is_not_there():
    with pytest.raises(errors.InputError, match="family must be one of dense, ρ .*; not 'noise'") as error:
        ablations.ablations(4, (8, 4), 100, ["noise"])
    assert error.value.argument == "family"
