"""Where a model's time goes: what is counted, by part, and the tables that docs/performance.md shows."""

import json
from pathlib import Path

import pytest

from fastvggt_jax import bench, profile
from tests.cli.test_bench import CONFIGS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(CONFIGS["vggt"]))
    case = bench.Case(
        frames=3, size=56, sparsity="0.5", block="16x16", config=str(path), dtype="float32", profile=True
    )
    return bench.measure(case)


def test_every_part_has_its_time_and_its_work(row):
    parts = row["parts"]
    assert set(parts) >= {
        *("encoder", "frame blocks: attention", "frame blocks: the rest", "global blocks: block mask"),
        *("global blocks: special queries", "global blocks: attention", "global blocks: the rest"),
        *("camera head", "depth head", "point head"),
    }
    assert all(one["seconds"] > 0 for one in parts.values())
    tokens, D = 3 * (16 + 5), 32
    # Of each of four layers the products of q, k, v, of the output, and the MLP's two: 12 D² multiplications.
    for part in ("frame blocks: the rest", "global blocks: the rest"):
        assert parts[part]["flop"] == 4 * tokens * 12 * 2 * D**2
    assert parts["frame blocks: attention"]["flop"] == 4 * 3 * 4 * (16 + 5) ** 2 * D
    special = 3 * 5
    assert parts["global blocks: special queries"]["flop"] == 4 * 4 * special * tokens * D
    density = sum(row["density"])
    assert parts["global blocks: attention"]["flop"] == pytest.approx(4 * 3 * 16 * tokens * D * density)
    assert parts["depth head"]["flop"] > 10 * parts["camera head"]["flop"]


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


def test_the_tables_of_the_docs_are_those_of_the_file():
    text = (ROOT / "docs" / "performance.md").read_text()
    rows = [
        json.loads(line) for line in (ROOT / "benchmarks" / "profile_h100.jsonl").read_text().splitlines()
    ]
    for one in rows:
        assert profile.table(one) in text
        total = sum(part["seconds"] for part in one["parts"].values())
        assert total == pytest.approx(one["seconds"], rel=0.05)
    assert len(rows) == 2
