"""Our block-sparse attention over shapes × densities, beside dense and sparse attention of others, in one run
on one GPU.

    python -m pallas_kernels.bench --shapes square_65536 vggt_100_518x518 --density 1.0 0.25 0.1

"ours: mask" is `pooled_block_mask` alone, "ours: kernel" `block_sparse_attention` with that mask given,
"ours: mask + kernel" one jit of both. TFLOP/s are effective ones, 4·T·S·head_dim·heads·density / time: the
work of the blocks that are kept. "×kernel" and "×sum" are a row's time over ours; dense peers, which need no
mask, are measured once per shape and stand beside every density. Inputs are random and batch is 1. "error" is
what the same call gives at 2,048 tokens (or one view) and 2 heads, against float32: the largest deviation
over the largest value; of a mask, the share of its blocks that float32 would not keep; of 8 bits, against
float32 of the rounded numbers. More than 0.05 is called wrong. Ours, JAX's peers, PyTorch's and each of the
optional peers, FlashAttention-3 (`fa3-fwd`), FlashAttention-4 (`flash-attn-4`), FlashInfer
(`flashinfer-python`) and tokamax, run in processes of their own, one after another: each has the GPU's memory
to itself, and one that hangs or breaks takes no other down.
What is not installed or could not run is listed with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from pallas_kernels.bench import workloads
from pallas_kernels.bench.parts import PARTS, find_device, installed_versions, missing_rows, run_part
from pallas_kernels.bench.peers import PEERS, why_not
from pallas_kernels.bench.table import entry, is_wrong, table
from pallas_kernels.bench.workloads import Workload
from pallas_kernels.implementation import find


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench", description=(__doc__ or "").split("\n")[0]
    )
    known = f"TOKENSxHEADSxHEAD_DIM or one of {', '.join(workloads.WORKLOADS)}"
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
    parser.add_argument(
        "--float8-scores",
        action="store_true",
        help="another row of ours: q and k are rounded to float8_e4m3fn first",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--skip-peers", action="store_true", help="ours only")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def check(args: argparse.Namespace) -> list[Workload]:
    """The workloads; raises ValueError for what every row would fail on."""
    if not all(0 < density <= 1 for density in args.density):
        raise ValueError("--density must be above 0 and at most 1")
    if min(args.block) < 1 or args.repeats < 1:
        raise ValueError("--block and --repeats must be at least 1")
    if args.implementation:
        find(args.implementation)
    return [workloads.find(name) for name in args.shapes]


def main(arguments: list[str] | None = None) -> int:
    """Prints the rows; 2 for bad arguments, 1 if a row of ours is missing or wrong, else 0 (a missing peer is
    no failure).
    """
    args = parse(arguments)
    if args.part:
        for row in PARTS[args.part](args, workloads.find(args.shapes[0])):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
        return 0
    try:
        works = check(args)
        platform, device = find_device()
        named = [work.name for work in works if work.name in workloads.WORKLOADS]
        if platform != "gpu" and named:
            why = f"JAX sees no GPU, only {device}, and {named[0]} is too large for that"
            raise ValueError(f"{why}: try --shapes 1024x2x64")
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
    for work in works:
        rows = run_part("ours", args, work)
        failed |= any(row.ms is None or is_wrong(row) for row in rows)
        for part in () if args.skip_peers else PEERS:
            reason = why_not(part, platform, device)
            rows += missing_rows(part, args, work, reason) if reason else run_part(part, args, work)
        for asked in args.density:
            entries = [entry(row, rows, asked, work) for row in rows if row.asked in (None, asked)]
            if args.json:
                common = {"device": device, "versions": versions, "dtype": args.dtype, "block": args.block}
                print("\n".join(json.dumps(one | common) for one in entries), flush=True)
            else:
                print(table(work, asked, entries), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
