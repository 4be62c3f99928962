"""Where a model's time goes: what is counted, by part, and the tables that docs/performance.md shows."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fastvggt_jax import bench, profile
from pallas_kernels.implementation import Implementation, registered
from tests.cli.test_bench import CONFIGS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(CONFIGS["vggt"]))
    how = dict(frames=3, heads=("camera", "depth"), size=56, sparsity="0.5", block="16x16", dtype="float32")
    return bench.Case(config=str(path), profile=True, **how)


TOKENS, D, LAYERS = 3 * (16 + 5), 32, 4


def test_work_is_that_of_the_products(case):
    model = case.build()
    images = jax.ShapeDtypeStruct((1, 3, 56, 56, 3), jnp.float32)
    work = profile.work_of_parts(model, model.abstract_params(), images)
    # Of each layer the products of q, k, v, of the output, and the MLP's two: 12 D² multiplications.
    for part in ("frame blocks: the rest", "global blocks: the rest"):
        assert work[part].flop == LAYERS * TOKENS * 12 * 2 * D**2
    assert work["depth head"].flop > 10 * work["camera head"].flop > 0
    attention = profile.work_of_attention(model, 3, (4, 4), [0.5] * LAYERS)
    assert attention["frame blocks: attention"].flop == LAYERS * 3 * 4 * (16 + 5) ** 2 * D
    assert attention["global blocks: special queries"].flop == LAYERS * 4 * 3 * 5 * TOKENS * D
    assert attention["global blocks: attention"].flop == LAYERS * 4 * 3 * 16 * TOKENS * D * 0.5


class Kernel(Implementation):
    """Takes every product of an MLP, and has nothing in it that could be counted."""

    name = "all in one"

    def beats_matmul_gelu(self, product):
        return True

    def matmul_gelu(self, x, w, bias):
        return jnp.zeros((*x.shape[:-1], w.shape[1]), x.dtype)


def test_products_within_a_kernel_are_counted_too(case):
    model = case.build()
    images = jax.ShapeDtypeStruct((1, 3, 56, 56, 3), jnp.float32)
    plain = profile.work_of_parts(model, model.abstract_params(), images)
    with registered(Kernel()):
        assert profile.work_of_parts(model, model.abstract_params(), images) == plain


@pytest.mark.slow  # the profiler itself takes ten seconds
def test_every_part_has_its_time(case):
    parts = bench.measure(case)["parts"]
    assert set(parts) >= {
        *("encoder", "frame blocks: attention", "frame blocks: the rest", "global blocks: block mask"),
        *("global blocks: special queries", "global blocks: attention", "global blocks: the rest"),
        *("camera head", "depth head"),
    }
    assert all(one["seconds"] > 0 for one in parts.values())


@pytest.mark.parametrize(
    "name, part",
    [
        ("jit(apply)/VGGT/aggregator/patch_embed/while/body/blocks/attn/attend/dot", "encoder"),
        (
            "jit(apply)/VGGT/aggregator/while/body/frame_blocks.pair/frame_blocks/mlp/fc1",
            "frame blocks: the rest",
        ),
        ("a/frame_blocks.pair/frame_blocks/attn/attend/custom-call", "frame blocks: attention"),
        (
            "a/frame_blocks.pair/global_blocks/attn/attend/split_tokens/slice",
            "global blocks: tokens split and merged",
        ),
        ("a/frame_blocks.pair/global_blocks/attn/attend/special_queries/x", "global blocks: special queries"),
        ("a/frame_blocks.pair/taps/cond", "taps"),
        ("a/depth_head/DPTHead/conv", "depth head"),
        ("a/copy", "other"),
    ],
)
def test_names_of_operations_say_which_part_they_are_of(name, part):
    assert profile.part_of(name) == part


def test_the_ceiling_of_a_small_card_is_measured_in_its_memory(monkeypatch):
    sizes = []
    monkeypatch.setattr(profile, "memory_limit", lambda: 2**25)
    monkeypatch.setattr(profile, "_fastest", lambda function, argument: sizes.append(argument.nbytes) or 1.0)
    assert profile.measure_ceiling() == profile.Ceiling(2.0 * 1024**3, 2.0 * 2**22)
    assert sizes == [4 * 1024**2, 2**22]


@pytest.mark.parametrize(
    "page, rows, count",
    [("performance.md", "profile_h100.jsonl", 3), ("pi3x.md", "profile_pi3x_h100.jsonl", 1)],
)
def test_the_tables_of_the_docs_are_those_of_the_file(page, rows, count):
    text, lines = (ROOT / "docs" / page).read_text(), (ROOT / "benchmarks" / rows).read_text()
    tables = profile.tables(lines)
    assert len(tables) == count and all(table in text for table in tables)
    for one in map(json.loads, lines.splitlines()):
        total = sum(part["seconds"] for part in one["parts"].values())
        assert total == pytest.approx(one["seconds"], rel=0.05)


def test_rows_that_were_not_profiled_have_no_table_and_a_small_device_has_ceilings():
    how = dict(model="vggt", frames=1, size=[28, 28], sparsity="dense", device="cpu", jax="0", seconds=1.0)
    row = how | {"ceiling": {"flop": 1.08e11, "bytes": 3.61e9}, "parts": {}}
    (table,) = profile.tables(f"{json.dumps(how)}\n{json.dumps(row)}")
    assert table.endswith("the ceilings are 0.108 TFLOP/s and 0.00361 TB/s.")
