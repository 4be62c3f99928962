"""Whole-model time and peak memory over frames × sparsity, beside PyTorch's attention at the same shapes.

    python -m fastvggt_jax.bench --frames 1 10 50 100 --sparse-ratio dense 0.75
    python -m fastvggt_jax.bench --model pi3 --only model --frames 100 200

Weights and images are random: the time does not depend on them, nor does a dense model's; which blocks a
sparse model keeps does, but with `--sparse-ratio` alone their number does not. Each row runs in a process of
its own, so its peak memory is its own.

"needs GiB" is what the compiled program holds at once: weights, images, outputs and temporaries. "peak GiB"
is the most that the process has allocated, which on a first compilation includes what XLA's autotuner tries
out; `--memory-limit` shows that it does without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fastvggt_jax.models import registry
from fastvggt_jax.sparsity import Sparsity
from fastvggt_jax.testing.random_weights import random_params
from pallas_kernels.timing import jax_ms, torch_ms

GIB = 2**30


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One row: compiles and runs the model on `args.frames[0]` frames."""
    frames, ratio = args.frames[0], args.sparse_ratio[0]
    sparsity = (
        None if ratio == "dense" else Sparsity(sparse_ratio=float(ratio), cdf_threshold=args.cdf_threshold)
    )
    config = json.loads(Path(args.config).read_text()) if args.config else {}
    model = registry.find(args.model).from_config(config.get("config", config), sparsity=sparsity)
    if args.heads:
        model = model.clone(heads=tuple(args.heads))
    if args.dtype:
        model = model.clone(dtype=jnp.dtype(args.dtype))
    with jax.default_prng_impl("rbg"):  # compiles in a tenth of the time
        params = random_params(model, dtype=jnp.dtype(args.param_dtype))
    height, width = args.size
    images = jax.random.uniform(jax.random.key(1), (1, frames, height, width, 3))
    points = (
        jnp.full((1, 256, 2), height / 2, jnp.float32)
        if args.model == "vggt" and "track" in args.heads
        else None
    )
    jax.block_until_ready((params, images))
    start = time.perf_counter()
    step = jax.jit(model.apply).lower(params, images, points).compile()
    compile_s = time.perf_counter() - start
    jax.block_until_ready(step(params, images, points))
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        jax.block_until_ready(step(params, images, points))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    stats = jax.devices()[0].memory_stats() or {}
    program = step.memory_analysis()
    needs = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
    return {
        "model": args.model,
        "frames": frames,
        "size": [height, width],
        "sparse_ratio": ratio,
        "seconds": seconds,
        "ms_per_frame": 1e3 * seconds / frames,
        "compile_seconds": compile_s,
        "needs_gib": needs / GIB,
        "peak_gib": stats.get("peak_bytes_in_use", 0) / GIB,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def torch_attention_ms(frames: int, size: tuple[int, int], repeats: int) -> dict[str, float]:
    """PyTorch SDPA of one global layer, bf16, 16 heads × 64, in ms by backend; empty where torch or CUDA is
    missing.
    """
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    tokens = frames * (5 + size[0] // 14 * (size[1] // 14))
    q, k, v = (torch.randn(1, 16, tokens, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    result = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        with sdpa_kernel(backend):
            result[name] = torch_ms(
                torch, lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), repeats=repeats
            )  # noqa: B023
    return result


def jax_attention_ms(frames: int, size: tuple[int, int], repeats: int) -> float:
    """Our dense attention of one global layer at the same shape, in ms."""
    from fastvggt_jax.attention import dense_attention

    tokens = frames * (5 + size[0] // 14 * (size[1] // 14))
    q, k, v = (
        jax.random.normal(key, (1, tokens, 16, 64), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 3)
    )
    return jax_ms(dense_attention, q, k, v, repeats=repeats)


def attention_row(args: argparse.Namespace) -> dict[str, Any]:
    frames = args.frames[0]
    ours = jax_attention_ms(frames, args.size, args.repeats)
    return {"frames": frames, "jax": ours} | torch_attention_ms(frames, args.size, args.repeats)


def _child(arguments: list[str], memory_limit: float | None = None) -> dict[str, Any]:
    """Runs one row in a process of its own; {"error": its message} if it fails."""
    environment = dict(os.environ)
    if memory_limit is not None:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{memory_limit / _gpu_memory_gib():.4f}"
    command = [sys.executable, "-m", "fastvggt_jax.bench", "--row", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if "Error" in line] or ["no message"]
        return {"error": lines[-1][:200]}
    return json.loads(process.stdout.strip().splitlines()[-1])


def _gpu_memory_gib() -> float:
    """Memory of the first GPU, asked of nvidia-smi: this process must not open the device that its rows need."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 1024


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fastvggt_jax.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vggt", choices=registry.names())
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 10, 50, 100])
    parser.add_argument("--sparse-ratio", nargs="+", default=["dense", "0.75"], help="'dense' or ρ")
    parser.add_argument("--cdf-threshold", type=float, help="τ")
    parser.add_argument("--size", type=int, nargs=2, default=[518, 518], metavar=("H", "W"))
    parser.add_argument(
        "--heads",
        nargs="*",
        default=["camera", "depth", "point"],
        help="of VGGT; π³ has one set",
    )
    parser.add_argument("--dtype", help="of the backbone's matrix products (bfloat16)")
    parser.add_argument("--config", metavar="FILE.json", help="sizes of a model other than the released one")
    parser.add_argument("--param-dtype", default="float32")
    parser.add_argument(
        "--memory-limit", type=float, metavar="GIB", help="JAX may allocate no more than this"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument(
        "--only",
        choices=("model", "attention"),
        help="the whole model, or one global layer's attention beside PyTorch's",
    )
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the rows; 2 for arguments that no row could run with, 1 if a row has failed, else 0."""
    args = parse(arguments)
    if args.row:
        print(json.dumps(attention_row(args) if args.only == "attention" else measure(args)))
        return 0
    try:
        check(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say = (lambda text: None) if args.json else print
    shared = [
        "--model",
        args.model,
        "--heads",
        *args.heads,
        "--size",
        *map(str, args.size),
        "--repeats",
        str(args.repeats),
    ]
    shared += ["--param-dtype", args.param_dtype] + (["--dtype", args.dtype] if args.dtype else [])
    shared += ["--config", args.config] if args.config else []
    shared += ["--cdf-threshold", str(args.cdf_threshold)] if args.cdf_threshold is not None else []
    failed = False
    if args.only != "attention":
        say(f"{args.model}, {args.size[0]}×{args.size[1]}")
        say(
            f"{'frames':>6} {'attention':>9} {'seconds':>8} {'ms/frame':>8} {'compile s':>9} {'needs GiB':>9} {'peak GiB':>8}"
        )
        for frames in args.frames:
            for ratio in args.sparse_ratio:
                row = _child([*shared, "--frames", str(frames), "--sparse-ratio", ratio], args.memory_limit)
                failed |= print_row({"frames": frames, "sparse_ratio": ratio} | row, model_line, args.json)
    if args.only != "model":
        say(
            "one global layer's dense attention, ms (bf16, 16 heads × 64): ours, then PyTorch SDPA and its ratio to ours"
        )
        for frames in args.frames:
            row = _child([*shared, "--only", "attention", "--frames", str(frames)])
            failed |= print_row({"frames": frames} | row, attention_line, args.json)
    return int(failed)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError for what every row would fail on."""
    if args.config:
        config = json.loads(Path(args.config).read_text())
        registry.find(args.model).from_config(config.get("config", config))
    if any(side < 14 or side % 14 for side in args.size):
        raise ValueError(f"--size {args.size[0]} {args.size[1]} must be multiples of 14")
    if args.memory_limit is not None and shutil.which("nvidia-smi") is None:
        raise ValueError(
            "--memory-limit needs an NVIDIA GPU: it asks nvidia-smi, which is not here, for the whole memory"
        )
    if min(args.frames) < 1 or args.repeats < 1:
        raise ValueError("--frames and --repeats must be at least 1")
    for ratio in args.sparse_ratio:
        if ratio != "dense":
            Sparsity(sparse_ratio=float(ratio), cdf_threshold=args.cdf_threshold)


def print_row(row: dict[str, Any], line: Callable[[dict[str, Any]], str], as_json: bool) -> bool:
    """Prints a row and says whether it has failed."""
    print(json.dumps(row) if as_json or "error" in row else line(row), flush=True)
    return "error" in row


def model_line(row: dict[str, Any]) -> str:
    name = row["sparse_ratio"] if row["sparse_ratio"] == "dense" else f"ρ={row['sparse_ratio']}"
    times = f"{row['seconds']:8.3f} {row['ms_per_frame']:8.2f} {row['compile_seconds']:9.1f}"
    return f"{row['frames']:>6} {name:>9} {times} {row['needs_gib']:9.2f} {row['peak_gib']:8.2f}"


def attention_line(row: dict[str, Any]) -> str:
    peers = [
        f"torch {name} {row[name]:.2f} (×{row[name] / row['jax']:.2f})"
        for name in ("flash", "cudnn")
        if name in row
    ]
    return f"{row['frames']:>6} ours {row['jax']:.2f}  {'  '.join(peers)}"


if __name__ == "__main__":
    sys.exit(main())
