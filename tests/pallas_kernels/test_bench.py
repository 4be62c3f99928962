"""`pallas_kernels.bench` and `timing`: what runs without a GPU."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, reference, timing
from pallas_kernels.bench import __main__ as command
from pallas_kernels.bench import errors, jax_peers, ours, parts, peers, table, torch_peers, workloads
from pallas_kernels.bench.table import FLOAT8, KERNEL, MASK, SUM, Row

ROOT = Path(__file__).parents[2]
TINY = ["--shapes", "256x2x16", "--block", "32", "16", "--density", "1", "0.26", "--repeats", "1"]
NO_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="where there is no GPU")


@pytest.fixture
def cpu(monkeypatch):
    monkeypatch.setattr(command, "find_device", lambda: ("cpu", "cpu"))


def arguments(*more: str) -> tuple[argparse.Namespace, workloads.Workload]:
    args = command.parse([*TINY, *more])
    return args, command.check(args)[0]


def test_workloads():
    work = workloads.find("vggt_100_518x518")
    assert (work.patches, work.specials, work.kv_len, work.kv_runs) == (
        100 * 37 * 37,
        500,
        137_400,
        (136_900, 500),
    )
    assert workloads.find("vggt_10_392x518").patches == 10 * 28 * 37
    assert workloads.find("square_137216").kv_runs == (137_216,)
    assert (
        workloads.find("1024x2x64") == workloads.Workload("1024x2x64", 1024, 14, 14, 0, 2, 64)
        and workloads.find("1024x2x64").kv_len == 1024
    )
    assert len(workloads.WORKLOADS) == 12 and all(
        (w.num_heads, w.head_dim) == (16, 64) for w in workloads.WORKLOADS.values()
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--shapes", "vggt"], "no shape 'vggt'"),
        (["--shapes", "1024x0x64"], "no shape '1024x0x64'"),
        (["--density", "0"], "--density must be above 0"),
        (["--density", "nan"], "--density must be above 0"),
        (["--block", "0", "64"], "--block and --repeats"),
        (["--repeats", "0"], "--block and --repeats"),
        (["--shapes", "square_65536"], "JAX sees no GPU"),
        (["--implementation", "nope"], "implementation='nope' must be None or one of"),
    ],
)
def test_bad_arguments_get_one_sentence(cpu, capsys, wrong, message):
    assert command.main([*TINY, *wrong]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: {message}") and err.count("\n") == 1


@NO_GPU
def test_rows_of_a_tiny_shape_without_a_gpu():
    command = [sys.executable, "-m", "pallas_kernels.bench", *TINY, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for asked, density in ((1, 1), (0.26, 0.25)):  # 4 of 16 key blocks are the nearest to 0.26
        here = {row["what"]: row for row in rows if row["asked_density"] == asked}
        kernel, both = here[KERNEL], here[SUM]
        for row in (here[MASK], kernel, both):
            assert (
                row["density"] == density
                and not row["missing"]
                and row["device"] == "cpu"
                and "jax" in row["versions"]
            )
            assert row["ratio_to_kernel"] == pytest.approx(row["ms"] / kernel["ms"])
            assert row["ratio_to_sum"] == pytest.approx(row["ms"] / both["ms"])
        assert kernel["tflops"] * 1e9 * kernel["ms"] == pytest.approx(4 * 256 * 256 * 2 * 16 * density)
        assert here[MASK]["tflops"] is None
        others = [row for row in here.values() if not row["what"].startswith("ours")]
        assert len(others) == 10 and all(row["ms"] is None and "no GPU" in row["missing"] for row in others)
        assert here[MASK]["error"] == 0 and kernel["error"] < 1e-2 and both["error"] < 1e-2


def test_special_keys_are_measured_too():
    args, _ = arguments("--implementation", "reference", "--float8-scores")
    work = workloads.Workload("views", 2, 140, 140, 5, 1, 16)
    rows = list(ours.ours_rows(args, work))
    assert [row.what for row in rows] == 2 * [MASK, KERNEL, SUM, FLOAT8] and all(row.ms for row in rows)
    assert (rows[0].T, rows[0].S) == (200, 210)
    assert all(0 < row.error < 1e-2 for row in rows if row.what == FLOAT8)  # of the numbers that 8 bits hold
    assert [row.what for row in parts.missing_rows("ours", args, work, "")] == [row.what for row in rows]
    assert rows[4].density == pytest.approx(
        (3 + 1) / (13 + 1)
    )  # 3 of 13 blocks of patch keys, and the special one


def test_a_row_that_fails_says_why_and_spares_the_others():
    args, work = arguments()
    args.implementation = "nonsense"
    rows = parts.run_part("ours", args, work)
    assert [row.asked for row in rows] == [1] * 3 + [0.26] * 3
    assert all(row.ms is None and "nonsense" in row.note for row in rows)

    def fails() -> float:
        raise NotImplementedError("head_dim=16 must be 64,\n  and more")

    row = table.attempt(Row("peer", None, 256, 256), fails, lambda: 0.0)
    assert row.ms is None and row.note == "NotImplementedError: head_dim=16 must be 64, and more"
    shown = table.table(work, 1.0, [table.entry(row, [row], 1.0, work)])
    assert "peer" in shown and "missing: NotImplementedError" in shown


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(parts, "PART_LIMIT_S", 0.1)
    rows = parts.run_part("ours", *arguments())
    assert len(rows) == 6 and all(row.ms is None and row.note == "not done after 0.1 s" for row in rows)


def test_rows_before_a_crash_are_kept(monkeypatch):
    kept = json.dumps(vars(Row(MASK, 1.0, 256, 256, ms=2.0)))
    crashed = subprocess.CompletedProcess([], -11, stdout=f"noise\n{kept}\n" + kept[:20], stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crashed)
    rows = parts.run_part("ours", *arguments())
    assert [row.ms for row in rows] == [2.0] + 5 * [None] and {row.note for row in rows[1:]} == {
        "ended by signal 11"
    }


@NO_GPU
@pytest.mark.parametrize("part, count", [("jax", 2), ("torch", 4), ("flash_attention_4", 4)])
def test_peers_that_cannot_run_are_named(part, count):
    rows = parts.run_part(part, *arguments())
    assert len(rows) == count and all(row.ms is None and "Error" in row.note for row in rows)


def test_a_dense_peer_stands_beside_every_density():
    _, work = arguments()
    rows = [
        Row(KERNEL, 0.25, 256, 256, ms=2.0, density=0.25),
        Row("dense", None, 256, 256, ms=6.0),
    ]
    shown = table.entry(rows[1], rows, 0.25, work)
    assert (shown["density"], shown["ratio_to_kernel"], shown["ratio_to_sum"]) == (1.0, 3.0, None)
    assert shown["tflops"] * 1e9 == pytest.approx(4 * 256 * 256 * 2 * 16 / 6.0)


def test_nearest_supported_length():
    assert [jax_peers.nearest_multiple(n, 128) for n in (1, 128, 10_360, 191, 192)] == [
        128,
        128,
        10_368,
        128,
        256,
    ]


def test_median_of_regions():
    calls = []

    def region(n: int) -> float:
        calls.append(n)
        return n * (0.05 if len(calls) != 3 else 5.0)  # the first timed region is slow

    assert timing.median_ms(region, 3) == pytest.approx(50)
    assert calls == [1, 1, 4, 4, 4]


CALL_S = 5e-5  # so short that several calls are put into one program


class Clock:
    """A made-up device: a call takes CALL_S and a clock says how long all have taken."""

    now = 0.0

    def call(self, *_) -> None:
        self.now += CALL_S


def test_a_short_call_is_timed_by_itself(monkeypatch):
    """And not the program of several that it is measured with."""
    clock = Clock()
    fake = argparse.Namespace(jit=lambda f: f, block_until_ready=lambda x: x)
    monkeypatch.setattr(timing, "jax", fake)
    monkeypatch.setattr(timing, "time", argparse.Namespace(perf_counter=lambda: clock.now))
    assert timing.jax_ms(clock.call, "q", repeats=3) == pytest.approx(1e3 * CALL_S)
    monkeypatch.setattr(timing, "SHORT_MS", 0.0)  # measured one by one
    assert timing.jax_ms(clock.call, "q", repeats=3) == pytest.approx(1e3 * CALL_S)


def test_a_short_call_of_torch_is_timed_by_itself():
    clock = Clock()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.now

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    class Graph:
        """Captures calls, without a time; a replay takes theirs together."""

        def __enter__(self):
            self.start = clock.now

        def __exit__(self, *_):
            self.captured, clock.now = clock.now - self.start, self.start

        def replay(self):
            clock.now += self.captured

    cuda = argparse.Namespace(
        Event=Event, CUDAGraph=Graph, graph=lambda graph: graph, synchronize=lambda: None
    )
    torch = argparse.Namespace(cuda=cuda)
    assert timing.torch_ms(torch, clock.call, repeats=3) == pytest.approx(1e3 * CALL_S)


def test_short_calls_share_a_program_and_nothing_else():
    function = lambda q, k: q @ (k @ k)  # the same k in each call, yet its product is computed for each
    q = jnp.ones((64, 64))
    flops = lambda n: timing.several(function).lower(*[(q, q)] * n).compile().cost_analysis()["flops"]
    assert flops(8) == pytest.approx(8 * flops(1))
    assert timing.jax_ms(function, q, q, repeats=1) > 0


def test_flex_mask_has_the_density_in_full_blocks():
    pytest.importorskip("torch")
    work = workloads.Workload(
        "views", 2, 280, 280, 5, 2, 16
    )  # 800 queries, 810 keys: 7 × 7 blocks, the last ones partial
    kept = torch_peers.random_blocks(work, 0.5, (128, 128), "cpu")
    mask = torch_peers.flex_mask(kept, (128, 128), 800, 810)
    assert mask.to_dense()[0].bool().equal(kept) and kept.sum(-1).tolist() == 2 * [7 * [4]]
    assert not mask.kv_num_blocks.any() and mask.shape == (1, 2, 800, 810)


# ---- correctness, which stands in every row


def test_float32_attention_is_the_definition():
    """With two runs of keys, whose last blocks are partial, and a mask that differs by head."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, n, 2, 8)).astype(np.float32) for n in (20, 24, 24))
    kept = rng.random((1, 2, 3, 4)) < 0.5
    kept[..., 0] = True
    mask = BlockMask.from_dense(jnp.asarray(kept), 20, (15, 9), (8, 8))
    keep = errors.of_tokens(kept[0], 20, (15, 9), (8, 8))
    expected = reference.block_sparse_attention(q, k, v, mask)
    assert errors.max_relative_error(expected, errors.exact(q, k, v, keep)) < 1e-6
    assert errors.max_relative_error(expected, errors.exact(q, k, v)) > 0.1


def test_an_error_is_over_the_largest_value():
    exact = np.array([[1.0, -4.0], [2.0, 0.0]], np.float32)
    assert errors.max_relative_error(exact + np.array([[0, 0.5], [0, 0]]), exact) == 0.125
    assert np.isnan(errors.max_relative_error(exact * np.nan, exact))
    with pytest.raises(ValueError, match="is .1, 2., not .2, 2."):
        errors.max_relative_error(exact[:1], exact)


def test_what_is_compared_is_small_and_of_the_same_kind():
    small = workloads.find("vggt_100_518x518").reduced()
    assert (small.patches, small.kv_runs, small.num_heads) == (1369, (1369, 5), 2)
    plain = workloads.find("square_65536").reduced()
    assert (plain.patches, plain.kv_runs, plain.head_dim) == (2048, (2048,), 64)
    tiny = workloads.find("256x1x16")
    assert tiny.reduced() == tiny


@pytest.mark.parametrize("factor, wrong", [(1, False), (2, True)])
def test_a_peer_of_jax_is_compared_with_float32(factor, wrong):
    args, work = arguments()
    attend = lambda q, k, v: jax.nn.dot_product_attention(factor * q, k, v)
    peer = table.Peer("fake", lambda work, dtype: iter([jax_peers.Call(attend, dtype)]))
    (row,) = jax_peers.jax_rows((peer,), args, work)
    assert row.what == "fake, dense" and row.ms and table.is_wrong(row) == wrong
    shown = table.table(work, 1.0, [table.entry(row, [row], 1.0, work)])
    assert f"{row.error:8.1e}" in shown and ("wrong" in shown) == wrong and " error\n" in shown


class Tensor(argparse.Namespace):
    """As much of torch's as the comparison touches."""

    float = cpu = lambda self: self

    def numpy(self):
        return self.array


@pytest.mark.parametrize("obeys", [True, False])
def test_a_peer_of_torch_is_compared_with_float32_under_its_mask(monkeypatch, obeys):
    args, work = arguments()
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 256, 2, 16)).astype(np.float32) for _ in range(3))
    kept = rng.random((2, 8, 16)) < 0.3
    kept[..., 0] = True
    out = errors.exact(q, k, v, errors.of_tokens(kept, 256, (256,), (32, 16)) if obeys else None)
    made = (lambda: Tensor(array=out)), [Tensor(array=x) for x in (q, k, v)], Tensor(array=kept)
    monkeypatch.setattr(torch_peers, "prepare", lambda *_: made)
    error = torch_peers.error(table.Peer("fake", lambda: None, ()), args, work, 0.3)
    assert (error < 1e-6) == obeys and (error > errors.WRONG) != obeys


def test_a_mask_of_ours_that_keeps_other_blocks_is_wrong(monkeypatch):
    args, work = arguments("--implementation", "reference")
    assert ours._error(MASK, args, work, 0.26) == 0
    select = ours._select

    def turned(*how):
        chosen = select(*how)
        swap = lambda q, k, **named: chosen(q, k if named else k[:, ::-1], **named)
        return swap

    monkeypatch.setattr(ours, "_select", turned)
    assert ours._error(MASK, args, work, 0.26) > errors.WRONG


@pytest.mark.parametrize("what", [KERNEL, SUM])
def test_attention_of_ours_that_ignores_its_mask_is_wrong(monkeypatch, what):
    args, work = arguments("--implementation", "reference")
    assert ours._error(what, args, work, 0.26) < 1e-2
    monkeypatch.setattr(
        ours, "block_sparse_attention", lambda q, k, v, mask, **_: jax.nn.dot_product_attention(q, k, v)
    )
    assert ours._error(what, args, work, 0.26) > errors.WRONG


def test_peers_that_are_not_installed_are_said_and_not_started(monkeypatch, capsys):
    """And a row of ours that is wrong is a failure."""
    started, error = [], 1e-3

    def run_part(part, args, work):
        started.append(part)
        rows = parts.missing_rows(part, args, work, "")
        return [table.attempt(row, lambda: 2.0, lambda: error) for row in rows]

    found = {"jax", "torch", "flash-attn-4"}
    monkeypatch.setattr(peers.metadata, "distributions", lambda name: [name] * (name in found))
    monkeypatch.setattr(command, "find_device", lambda: ("gpu", "a card"))
    monkeypatch.setattr(command, "installed_versions", dict)
    monkeypatch.setattr(command, "run_part", run_part)
    assert command.main([*TINY[:-5], "--density", "0.25"]) == 0
    out = capsys.readouterr().out
    for row, package in (
        ("FlashAttention-3, dense", "fa3-fwd"),
        ("FlashInfer, 32×16", "flashinfer-python"),
        ("tokamax, Mosaic GPU, dense", "tokamax"),
    ):
        assert f"  {row:32} missing: {package} is not installed\n" in out
    assert started == ["ours", "jax", "torch", "flash_attention_4"] and out.count("missing") == 3
    assert "FlashAttention-4, 192×128" in out and "FlashAttention-4, 32×16" in out
    error = 0.5
    assert command.main([*TINY[:-5], "--density", "0.25"]) == 1
