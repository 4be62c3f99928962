"""Our block-sparse attention over shapes × densities, beside dense and sparse attention of others, in one run
on one GPU.

    python -m pallas_kernels.bench --shapes square_65536 vggt_100_518x518 --density 1.0 0.25 0.1

"ours: mask" is `pooled_block_mask` alone, "ours: kernel" `block_sparse_attention` with that mask given,
"ours: mask + kernel" one jit of both. TFLOP/s are effective ones, 4·T·S·head_dim·heads·density / time: the
work of the blocks that are kept. "×kernel" and "×sum" are a row's time over ours; dense peers, which need no
mask, are measured once a shape and stand beside every density. Inputs are random and batch is 1. Ours, JAX's
peers and PyTorch's run in processes of their own, one after another: each has the GPU's memory to itself, and
one that hangs or breaks takes no other down. What could not run is listed with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import block_sparse_attention, pooled_block_mask, shapes
from pallas_kernels.shapes import Workload
from pallas_kernels.timing import jax_ms, torch_ms

MASK, KERNEL, SUM = "ours: mask", "ours: kernel", "ours: mask + kernel"
JAX_CUDNN, JAX_MGPU = "JAX cuDNN, dense", "JAX attention_mgpu, dense"
TORCH_FLASH, TORCH_CUDNN = "PyTorch FlashAttention-2, dense", "PyTorch cuDNN, dense"
TORCH_FLEX = "PyTorch FlexAttention, 128×128"
SPARSE, DENSE = (
    {"ours": (MASK, KERNEL, SUM), "torch": (TORCH_FLEX,)},
    {"jax": (JAX_CUDNN, JAX_MGPU), "torch": (TORCH_FLASH, TORCH_CUDNN)},
)

FLEX_BLOCK = 128
MGPU_TILINGS = (
    (64, 256, 2),
    (64, 128, 2),
    (64, 128, 4),
    (64, 64, 4),
    (128, 64, 4),
    (128, 128, 2),
)  # block_q, block_kv, max_concurrent_steps
PART_LIMIT_S = 300  # for all rows of one process; a kernel that hangs ends there
PACKAGES = ("jax", "jaxlib", "nvidia-cudnn-cu13", "torch", "triton")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement, or the reason why there is none."""

    what: str
    asked: float | None  # density asked for; None for a dense peer, which stands beside every density
    T: int  # queries and keys of what really ran
    S: int
    ms: float | None = None  # None: it did not run
    density: float = 1.0  # share of blocks computed
    note: str = ""  # how it ran, or why it did not


def _attempt(row: Row, measure: Callable[[], float]) -> Row:
    """The row with its time or, whatever goes wrong in a peer or in a kernel, with the reason: the other rows
    are still wanted.
    """
    try:
        return dataclasses.replace(row, ms=measure())
    except Exception as error:
        return dataclasses.replace(row, note=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])


# What is measured: one process each


def random_qkv(T: int, S: int, work: Workload, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [1, T, N, H] and k, v [1, S, N, H], normal."""
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, (1, n, work.num_heads, work.head_dim), dtype)
        for key, n in zip(keys, (T, S, S), strict=True)
    )


def ours_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """Mask, kernel and both, density by density."""
    T, S, implementation = work.patches, work.kv_len, args.implementation
    choices = [f"{implementation=}"] if implementation else _log_messages()
    q, k, v = random_qkv(T, S, work, args.dtype)
    q = q * jnp.asarray(args.q_scale, q.dtype)
    patch_k = k[
        :, :T
    ]  # an argument of its own, as the model has it: cutting it out of k is no part of the mask
    for asked in args.density:
        keep_count = max(1, round(asked * math.ceil(T / args.block[1])))
        select = partial(
            pooled_block_mask,
            keep_count=keep_count,
            block=tuple(args.block),
            kv_runs=work.kv_runs,
            implementation=implementation,
        )
        attend = partial(block_sparse_attention, implementation=implementation)
        both = lambda q, patch_k, k, v, select=select, attend=attend: attend(q, k, v, select(q, patch_k))
        mask = jax.jit(select)(q, patch_k)
        ours = Row("", asked, T, S, density=float(mask.density))
        measure = partial(jax_ms, repeats=args.repeats)
        yield _attempt(dataclasses.replace(ours, what=MASK), partial(measure, select, q, patch_k))
        yield _attempt(dataclasses.replace(ours, what=KERNEL), partial(measure, attend, q, k, v, mask))
        yield _attempt(
            dataclasses.replace(ours, what=SUM, note="; ".join(choices)),
            partial(measure, both, q, patch_k, k, v),
        )


def _log_messages() -> list[str]:
    """A list that fills with what `pallas_kernels` logs: which implementation serves where none is asked for."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("pallas_kernels")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return messages


def jax_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """JAX's own dense attention: cuDNN's, and the best tiling of the Mosaic GPU example kernel."""
    T, S = work.patches, work.kv_len
    attend = partial(jax.nn.dot_product_attention, implementation="cudnn")
    qkv = random_qkv(T, S, work, args.dtype)
    yield _attempt(Row(JAX_CUDNN, None, T, S), partial(jax_ms, attend, *qkv, repeats=args.repeats))
    rows = [_mgpu_row(args, work, *tiling) for tiling in MGPU_TILINGS]
    yield max(rows, key=lambda row: row.T * row.S / row.ms if row.ms else 0)


def _mgpu_row(args: argparse.Namespace, work: Workload, block_q: int, block_kv: int, steps: int) -> Row:
    """attention_mgpu with one tiling, at the nearest shape that the tiling divides."""
    T, S = nearest_multiple(work.patches, 2 * block_q), nearest_multiple(work.kv_len, block_kv)
    # Its shared memory is declared float16 (jax 0.11.2), so bfloat16 inputs do not trace; tensor cores run
    # both at one rate.
    dtype = "float16" if args.dtype == "bfloat16" else args.dtype
    note = f"{dtype}, block_q={block_q} block_kv={block_kv} max_concurrent_steps={steps}"
    if work.patches != T or work.kv_len != S:
        note += f", at T={T} S={S}: the nearest that it supports"

    def measure() -> float:
        from jax.experimental.pallas.ops.gpu import attention_mgpu

        config = attention_mgpu.TuningConfig(block_q=block_q, block_kv=block_kv, max_concurrent_steps=steps)
        q, k, v = random_qkv(T, S, work, dtype)
        scaled = q * work.head_dim**-0.5  # which this kernel leaves to its caller
        return jax_ms(
            lambda q, k, v: attention_mgpu.attention(q, k, v, config), scaled, k, v, repeats=args.repeats
        )

    return _attempt(Row(JAX_MGPU, None, T, S, note=note), measure)


def nearest_multiple(n: int, of: int) -> int:
    """The multiple of `of`, at least `of` itself, that is nearest to n."""
    return max(1, (n + of // 2) // of) * of


def torch_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """PyTorch's dense SDPA by backend, then FlexAttention over random blocks, as many as the density asks
    for.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA GPU")
    torch.set_grad_enabled(False)
    T, S = work.patches, work.kv_len
    dtype = getattr(torch, args.dtype)
    q, k, v = (
        torch.randn(1, work.num_heads, n, work.head_dim, device="cuda", dtype=dtype) for n in (T, S, S)
    )
    for what, backend in (
        (TORCH_FLASH, SDPBackend.FLASH_ATTENTION),
        (TORCH_CUDNN, SDPBackend.CUDNN_ATTENTION),
    ):
        with sdpa_kernel(backend):
            run = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
            yield _attempt(Row(what, None, T, S), partial(torch_ms, torch, run, args.repeats))

    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(
        flex_attention, dynamic=False
    )  # one program: all densities have arrays of the same shapes
    for asked in args.density:
        mask, density = flex_mask(work, asked, "cuda")
        run = lambda mask=mask: attend(q, k, v, block_mask=mask)
        yield _attempt(
            Row(TORCH_FLEX, asked, T, S, density=density), partial(torch_ms, torch, run, args.repeats)
        )


def flex_mask(work: Workload, density: float, device: str) -> tuple[Any, float]:
    """torch's BlockMask that keeps the same number of random 128×128 blocks in every row, and the density
    that it has.

    The kept blocks are given as full ones: the kernel evaluates no mask function inside a block.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    rows, columns = math.ceil(work.patches / FLEX_BLOCK), math.ceil(work.kv_len / FLEX_BLOCK)
    kept = max(1, round(density * columns))
    chosen = (
        torch.rand(1, work.num_heads, rows, columns, device=device).argsort(-1)[..., :kept].sort(-1).values
    )
    indices = torch.zeros(1, work.num_heads, rows, columns, dtype=torch.int32, device=device)
    indices[..., :kept] = chosen
    counts = torch.full(indices.shape[:-1], kept, dtype=torch.int32, device=device)
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(indices),
        counts,
        indices,
        BLOCK_SIZE=FLEX_BLOCK,
        seq_lengths=(work.patches, work.kv_len),
        compute_q_blocks=False,  # only a backward pass walks the columns
    )
    return mask, kept / columns


PARTS = {"ours": ours_rows, "jax": jax_rows, "torch": torch_rows}


# The processes


def run_part(part: str, args: argparse.Namespace, work: Workload) -> list[Row]:
    """All rows of one part, measured in a process of its own; those that it did not get to carry the reason."""
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
    shared += ["--q-scale", args.q_scale]
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
    named = [(what, None) for what in DENSE.get(part, ())] + [
        (what, asked) for asked in args.density for what in SPARSE.get(part, ())
    ]
    return [Row(what, asked, work.patches, work.kv_len, note=reason) for what, asked in named]


def find_device() -> tuple[str, str]:
    """Platform and name of JAX's first device, asked in another process: this one must not open the GPU that
    the parts need.
    """
    code = "import jax; d = jax.devices()[0]; print(d.platform); print(d.device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"JAX finds no device: {_reason(done)}")
    return tuple(done.stdout.splitlines()[-2:])


def installed_versions() -> dict[str, str]:
    """Versions of what the rows depend on; a package that is not installed is left out."""
    return {
        package: metadata.version(package)
        for package in PACKAGES
        if any(metadata.distributions(name=package))
    }


# Arguments and output


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench", description=__doc__.split("\n")[0]
    )
    known = f"TOKENSxHEADSxHEAD_DIM or one of {', '.join(shapes.WORKLOADS)}"
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["square_65536", "square_137216", "vggt_100_518x518"],
        metavar="NAME",
        help=known,
    )
    parser.add_argument(
        "--density",
        type=float,
        nargs="+",
        default=[1.0, 0.5, 0.25, 0.1],
        help="share of the key blocks that are kept",
    )
    parser.add_argument(
        "--block",
        type=int,
        nargs=2,
        default=[128, 64],
        metavar=("Q", "K"),
        help="queries and keys of a block of ours",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed regions, of which the median counts")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--implementation", metavar="NAME", help="of ours; default: the first that serves")
    parser.add_argument(
        "--q-scale",
        type=float,
        default=1.0,
        help="factor on ours' q: 12 leaves the range of the kernel's fixed shift",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--skip-peers", action="store_true", help="ours only")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def check(args: argparse.Namespace) -> list[Workload]:
    """The workloads; raises ValueError for what every row would fail on."""
    if not all(0 < density <= 1 for density in args.density):
        raise ValueError("--density must be above 0 and at most 1")
    if min(args.block) < 1 or args.repeats < 1:
        raise ValueError("--block and --repeats must be at least 1")
    return [shapes.find(name) for name in args.shapes]


def main(arguments: list[str] | None = None) -> int:
    """Prints the rows; 2 for bad arguments, 1 if a row of ours is missing, else 0 (a missing peer is no
    failure).
    """
    args = parse(arguments)
    if args.part:
        for row in PARTS[args.part](args, shapes.find(args.shapes[0])):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
        return 0
    try:
        workloads = check(args)
        platform, device = find_device()
        named = [work.name for work in workloads if work.name in shapes.WORKLOADS]
        if platform != "gpu" and named:
            raise ValueError(
                f"JAX sees no GPU, only {device}, and {named[0]} is too large for that: try --shapes 1024x2x64"
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    versions = installed_versions()
    if not args.json:
        setting = f"{args.dtype} · blocks {args.block[0]}×{args.block[1]}" + (
            " · peers skipped" if args.skip_peers else ""
        )
        setting += f" · q × {args.q_scale:g}" if args.q_scale != 1 else ""
        print(f"{device} · {setting} · {', '.join(map(' '.join, versions.items()))}", flush=True)
    failed = False
    for work in workloads:
        rows = run_part("ours", args, work)
        failed |= any(row.ms is None for row in rows)
        for part in () if args.skip_peers else ("jax", "torch"):
            if platform == "gpu":
                rows += run_part(part, args, work)
            else:
                rows += missing_rows(part, args, work, f"JAX sees no GPU, only {device}")
        for asked in args.density:
            entries = [entry(row, rows, asked, work) for row in rows if row.asked in (None, asked)]
            if args.json:
                common = {"device": device, "versions": versions, "dtype": args.dtype, "block": args.block}
                print("\n".join(json.dumps(one | common) for one in entries), flush=True)
            else:
                print(table(work, asked, entries), flush=True)
    return int(failed)


def entry(row: Row, rows: list[Row], asked: float, work: Workload) -> dict[str, Any]:
    """A row as it is printed beside density `asked`: with effective TFLOP/s, and its time over ours. None
    where there is no number.
    """
    ours = {other.what: other.ms for other in rows if other.asked == asked}
    over = lambda what: row.ms / ours[what] if row.ms and ours.get(what) else None
    flops = 4 * row.T * row.S * work.num_heads * work.head_dim * row.density
    return {
        "shape": work.name,
        "T": row.T,
        "S": row.S,
        "num_heads": work.num_heads,
        "head_dim": work.head_dim,
        "what": row.what,
        "asked_density": asked,
        "density": row.density if row.ms else None,
        "ms": row.ms,
        "tflops": flops / row.ms / 1e9 if row.ms and row.what != MASK else None,
        "ratio_to_kernel": over(KERNEL),
        "ratio_to_sum": over(SUM),
        "note": row.note if row.ms else "",
        "missing": "" if row.ms else row.note or "no message",
    }


def table(work: Workload, asked: float, entries: list[dict[str, Any]]) -> str:
    """The entries of one shape and density as text."""
    size = f"T={work.patches} S={work.kv_len}, {work.num_heads} heads × {work.head_dim}"
    lines = [f"\n{work.name} ({size}), density {asked:g}"]
    lines += [f"  {'':32} {'density':>8} {'ms':>9} {'TFLOP/s':>8} {'×kernel':>8} {'×sum':>8}"]
    number = lambda value, width, digits: (
        f"{value:{width}.{digits}f}" if value is not None else f"{'–':>{width}}"
    )
    for one in entries:
        if one["missing"]:
            lines.append(f"  {one['what']:32} missing: {one['missing']}")
            continue
        columns = (
            (one["density"], 8, 4),
            (one["ms"], 9, 3),
            (one["tflops"], 8, 1),
            (one["ratio_to_kernel"], 8, 2),
            (one["ratio_to_sum"], 8, 2),
        )
        lines.append(
            f"  {one['what']:32} {' '.join(number(*column) for column in columns)}  {one['note']}".rstrip()
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
