"""`Sparsity` says what is wrong with it, and counts as the released code does."""

import pytest

from fastvggt_jax import Sparsity
from fastvggt_jax.errors import InputError
from fastvggt_jax.sparsity import parse_block, parse_layers, parse_sparsity


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(sparse_ratio=[]), "sparse_ratio is empty"),
        ({}, "needs sparse_ratio, cdf_threshold or both"),
        ({"sparse_ratio": 1.5}, r"sparse_ratio=1.5 must lie in \[0, 1\]"),
        ({"sparse_ratio": float("nan")}, "sparse_ratio=nan"),
        ({"cdf_threshold": -0.1}, "cdf_threshold=-0.1"),
        ({"sparse_ratio": (0.5, 2.0)}, "sparse_ratio=2.0"),
        ({"sparse_ratio": 0.5, "special_keys": "all"}, "special_keys='all' must be one of"),
        ({"sparse_ratio": 0.5, "pool": "avg"}, "pool='avg'"),
        ({"sparse_ratio": 0.5, "order": "morton"}, "order='morton'"),
        ({"sparse_ratio": 0.5, "block": (128,)}, "block="),
        ({"sparse_ratio": 0.5, "block": (0, 64)}, "block="),
        ({"sparse_ratio": 0.5, "block": (16.0, 8.0)}, "block="),
        ({"sparse_ratio": "0.5"}, "sparse_ratio=0.5 must lie in"),
        ({"sparse_ratio": 0.5, "layers": (-1,)}, "layers="),
        ({"sparse_ratio": 0.5, "layers": (1.5,)}, "layers="),
        ({"sparse_ratio": 0.5, "layers": 3}, "layers=3"),
        ({"sparse_ratio": 0.5, "layers": "0-3"}, "layers="),
    ],
)
def test_bad_values_get_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        Sparsity(**fields)


def test_depth_is_checked():
    with pytest.raises(ValueError, match="names layer 24, the model has layers 0 to 23"):
        Sparsity(sparse_ratio=0.5, layers=(3, 24)).check_depth(24)
    with pytest.raises(ValueError, match="cdf_threshold has 2 values, the model has 4"):
        Sparsity(cdf_threshold=(0.5, 0.6)).check_depth(4)


def test_lists_become_tuples_so_that_a_model_can_be_hashed():
    listed = Sparsity(sparse_ratio=[0.5, 0.25], cdf_threshold=[0.9, 0.8], block=[16, 8], layers=[1, 0, 1])
    assert listed == Sparsity(
        sparse_ratio=(0.5, 0.25), cdf_threshold=(0.9, 0.8), block=(16, 8), layers=(0, 1)
    )
    assert hash(listed) is not None


def test_no_layers_are_not_all_layers():
    assert Sparsity(sparse_ratio=0.5).plan(3) == ["sparse"] * 3
    assert Sparsity(sparse_ratio=0.5, layers=()).plan(3) == ["dense"] * 3
    assert Sparsity(sparse_ratio=0.5, layers=(2, 0)).plan(3) == ["sparse", "dense", "sparse"]
    assert Sparsity(sparse_ratio=0.5, frame_layers=(0,)).plan(3) == ["frame", "sparse", "sparse"]
    assert Sparsity(frame_layers=(0, 1)).plan(3) == ["frame", "frame", "dense"]
    assert parse_sparsity("dense", frame_layers=(1,)).plan(2) == ["dense", "frame"]
    assert parse_sparsity("dense", frame_layers=()) is None
    with pytest.raises(ValueError, match="frame_layers=.* and layers=.* both have layer 1"):
        parse_sparsity("0.5", layers=(1, 2), frame_layers=(0, 1))
    with pytest.raises(ValueError, match="frame_layers=.* names layer 5, the model has layers 0 to 3"):
        Sparsity(frame_layers=(5,)).check_depth(4)


def test_a_partial_block_counts():
    assert (
        Sparsity(sparse_ratio=0.5).num_kv_blocks(129) == 3
        and Sparsity(sparse_ratio=0.5, block=(16, 43)).num_kv_blocks(129) == 3
    )


def test_kept_count_truncates_in_double_precision():
    # 10 · (1 - 0.9) is 0.9999999999999998 in doubles: the released code keeps int(·) = 0 and then raises it
    # to 1.
    assert Sparsity(sparse_ratio=0.9).keep_counts(10, 1) == [0]
    assert Sparsity(sparse_ratio=0.75).keep_counts(1070, 2) == [267, 267]
    assert Sparsity(cdf_threshold=0.9).keep_counts(10, 1) is None


def test_texts_become_sparsities():
    assert parse_sparsity("dense") is None
    assert parse_sparsity("0.5,0.7", (64, 32)) == Sparsity(0.5, 0.7, (64, 32))
    assert parse_sparsity("0.5") == Sparsity(0.5) and parse_sparsity(",0.7") == Sparsity(None, 0.7)
    quick = parse_sparsity("quick", (64, 32), frame_layers=(), special_keys="official")
    assert quick == Sparsity(0.75, block=(64, 32), frame_layers=tuple(range(9)), special_keys="official")
    assert parse_sparsity("quickest").plan(24) == ["frame"] * 9 + ["sparse"] * 15
    assert parse_sparsity("quickest", frame_layers=(0,)).plan(3) == ["frame", "sparse", "sparse"]
    whose = r"both have layer 3 \(as quick and quickest have them, for VGGT's 24 layers\)"
    with pytest.raises(InputError, match=whose):
        parse_sparsity("quick", layers=(3, 9))
    assert parse_block("128x64") == (128, 64)
    assert parse_layers("0-2, 5,7-7") == (0, 1, 2, 5, 7)
    for parse, text in (
        (parse_sparsity, ""),
        (parse_sparsity, "1,2,3"),
        (parse_block, "128"),
        (parse_layers, "a"),
    ):
        with pytest.raises(InputError, match=f"not {text!r}"):
            parse(text)
