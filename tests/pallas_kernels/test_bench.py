"""`pallas_kernels.bench` and `timing`: what runs without a GPU."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from pallas_kernels import timing
from pallas_kernels.bench import __main__ as command
from pallas_kernels.bench import ours, parts, peers, table, workloads
from pallas_kernels.bench.table import KERNEL, MASK, SUM, Row

pytestmark = pytest.mark.every_jax
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
        peers = [row for row in here.values() if not row["what"].startswith("ours")]
        assert len(peers) == 5 and all(row["ms"] is None and "no GPU" in row["missing"] for row in peers)


def test_special_keys_are_measured_too():
    args, _ = arguments("--implementation", "reference")
    work = workloads.Workload("views", 2, 140, 140, 5, 1, 16)
    rows = list(ours.ours_rows(args, work))
    assert [row.what for row in rows] == 2 * [MASK, KERNEL, SUM] and all(row.ms for row in rows)
    assert (rows[0].T, rows[0].S) == (200, 210)
    assert rows[3].density == pytest.approx(
        (3 + 1) / (13 + 1)
    )  # 3 of 13 blocks of patch keys, and the special one


def test_a_row_that_fails_says_why_and_spares_the_others():
    args, work = arguments("--implementation", "nonsense")
    rows = parts.run_part("ours", args, work)
    assert [row.asked for row in rows] == [1] * 3 + [0.26] * 3
    assert all(row.ms is None and "nonsense" in row.note for row in rows)

    def fails() -> float:
        raise NotImplementedError("head_dim=16 must be 64,\n  and more")

    row = table.attempt(Row("peer", None, 256, 256), fails)
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
@pytest.mark.parametrize("part, count", [("jax", 2), ("torch", 4)])
def test_peers_that_cannot_run_are_named(part, count):
    rows = parts.run_part(part, *arguments())
    assert len(rows) == count and all(row.ms is None and "Error" in row.note for row in rows)


def test_a_dense_peer_stands_beside_every_density():
    _, work = arguments()
    rows = [
        Row(KERNEL, 0.25, 256, 256, ms=2.0, density=0.25),
        Row(table.JAX_CUDNN, None, 256, 256, ms=6.0),
    ]
    shown = table.entry(rows[1], rows, 0.25, work)
    assert (shown["density"], shown["ratio_to_kernel"], shown["ratio_to_sum"]) == (1.0, 3.0, None)
    assert shown["tflops"] * 1e9 == pytest.approx(4 * 256 * 256 * 2 * 16 / 6.0)


def test_nearest_supported_length():
    assert [peers.nearest_multiple(n, 128) for n in (1, 128, 10_360, 191, 192)] == [
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
    mask, density = peers.flex_mask(work, 0.5, "cpu")
    assert density == 4 / 7 and mask.to_dense().sum(-1).tolist() == [[[4] * 7] * 2]
    assert not mask.kv_num_blocks.any() and mask.shape == (1, 2, 800, 810)
