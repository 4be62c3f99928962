"""The parts of a run, each measured in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata

from pallas_kernels.bench.jax_peers import jax_rows
from pallas_kernels.bench.ours import ours_rows
from pallas_kernels.bench.peers import PACKAGES, PEERS
from pallas_kernels.bench.table import FLOAT8, KERNEL, MASK, SUM, Row
from pallas_kernels.bench.torch_peers import torch_rows
from pallas_kernels.bench.workloads import Workload

PART_LIMIT_S = 300  # for all rows of one process; a kernel that hangs ends there
VERSIONS = ("jax", "jaxlib", "nvidia-cudnn-cu13", "torch", "triton", *PACKAGES.values())
OF_JAX = ("jax", "tokamax")
PARTS: dict[str, Callable[[argparse.Namespace, Workload], Iterator[Row]]] = {
    "ours": ours_rows,
    **{part: partial(jax_rows if part in OF_JAX else torch_rows, peers) for part, peers in PEERS.items()},
}


def run_part(part: str, args: argparse.Namespace, work: Workload) -> list[Row]:
    """All rows of one part, measured in a process of its own; those that it did not get to carry the
    reason.
    """
    shared = [
        "--repeats",
        args.repeats,
        "--dtype",
        args.dtype,
        "--block",
        *args.block,
        "--density",
        *args.density,
    ]
    shared += ["--implementation", args.implementation] if args.implementation else []
    shared += ["--q-scale", args.q_scale] + ["--float8-scores"] * args.float8_scores
    command = [
        sys.executable,
        "-m",
        "pallas_kernels.bench",
        "--part",
        part,
        "--shapes",
        work.name,
        *map(str, shared),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PART_LIMIT_S)
        stdout, reason = done.stdout, _reason(done)
    except subprocess.TimeoutExpired as late:
        stdout, reason = (late.stdout or b"").decode(), f"not done after {PART_LIMIT_S} s"
    rows = [
        Row(**json.loads(line))
        for line in stdout.splitlines()
        if line.startswith('{"what"') and line.endswith("}")
    ]
    reported = {(row.what, row.asked) for row in rows}
    return rows + [
        row for row in missing_rows(part, args, work, reason) if (row.what, row.asked) not in reported
    ]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["no message"]
    return lines[-1][:200]


def missing_rows(part: str, args: argparse.Namespace, work: Workload, reason: str) -> list[Row]:
    """Every row that a part should give, without a time."""
    if part == "ours":
        rows = (MASK, KERNEL, SUM) + (FLOAT8,) * args.float8_scores
        named = [(what, asked) for asked in args.density for what in rows]
    else:
        named = [(peer.what(args), asked) for peer in PEERS[part] for asked in peer.asked(args)]
    return [Row(what, asked, work.patches, work.kv_len, note=reason) for what, asked in named]


def find_device() -> tuple[str, str]:
    """Platform and name of JAX's first device, asked in another process: this one must not open the GPU that
    the parts need.
    """
    code = "import jax; d = jax.devices()[0]; print(d.platform); print(d.device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"JAX finds no device: {_reason(done)}")
    platform, name = done.stdout.splitlines()[-2:]
    return platform, name


def installed_versions() -> dict[str, str]:
    """Versions of what the rows depend on; a package that is not installed is left out."""
    return {
        package: metadata.version(package)
        for package in dict.fromkeys(VERSIONS)
        if any(metadata.distributions(name=package))
    }
