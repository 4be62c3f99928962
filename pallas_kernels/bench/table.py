"""What is reported: rows, and how they are printed."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from pallas_kernels.bench.errors import WRONG
from pallas_kernels.bench.workloads import Workload

MASK, KERNEL, SUM = "ours: mask", "ours: kernel", "ours: mask + kernel"
FLOAT8 = "ours: q, k to 8 bits + kernel"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A row, or one for every density.

    Attributes:
      name: of its row, less the block.
      function: what it runs, see `jax_peers` and `torch_peers`.
      block: of its mask; () is the one that ours has, None a dense peer's.
    """

    name: str
    function: Callable[..., Any]
    block: tuple[int, int] | tuple[()] | None = None

    def mask_block(self, args: argparse.Namespace) -> tuple[int, int] | None:
        return (args.block[0], args.block[1]) if self.block == () else self.block or None

    def what(self, args: argparse.Namespace) -> str:
        """The row's name."""
        block = self.mask_block(args)
        return f"{self.name}, {block[0]}×{block[1]}" if block else f"{self.name}, dense"

    def asked(self, args: argparse.Namespace) -> list[float | None]:
        """Densities of its rows; [None] for a dense peer's one row, which stands beside all."""
        return [None] if self.block is None else list(args.density)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement, or the reason why there is none."""

    what: str
    asked: float | None  # density asked for; None for a dense peer, which stands beside every density
    T: int  # queries and keys of what really ran
    S: int
    ms: float | None = None  # None: it did not run
    density: float = 1.0  # share of blocks computed
    error: float | None = None  # against float32 at a small size; of a mask, the share of wrong blocks
    note: str = ""  # how it ran, or why it did not


def attempt(row: Row, measure: Callable[[], float], check: Callable[[], float]) -> Row:
    """The row with its error and its time or, whatever goes wrong in a peer or in a kernel, with the reason:
    the other rows are still wanted.
    """
    try:
        return dataclasses.replace(row, error=check(), ms=measure())
    except Exception as error:
        return dataclasses.replace(row, note=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])


def is_wrong(row: Row) -> bool:
    """Whether it ran and gave something else than attention."""
    return row.error is not None and not row.error <= WRONG  # NaN is wrong too


def entry(row: Row, rows: list[Row], asked: float, work: Workload) -> dict[str, Any]:
    """A row as it is printed beside density `asked`: with effective TFLOP/s, and its time over ours. None
    where there is no number.
    """
    ours = {other.what: other.ms for other in rows if other.asked == asked}

    def over(what: str) -> float | None:
        ms = ours.get(what)
        return row.ms / ms if row.ms and ms else None

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
        "error": row.error if row.ms else None,
        "tflops": flops / row.ms / 1e9 if row.ms and row.what != MASK else None,
        "ratio_to_kernel": over(KERNEL),
        "ratio_to_sum": over(SUM),
        "note": "; ".join(["wrong"] * is_wrong(row) + [row.note] * bool(row.note)) if row.ms else "",
        "missing": "" if row.ms else row.note or "no message",
    }


def table(work: Workload, asked: float, entries: list[dict[str, Any]]) -> str:
    """The entries of one shape and density as text."""
    size = f"T={work.patches} S={work.kv_len}, {work.num_heads} heads × {work.head_dim}"
    lines = [f"\n{work.name} ({size}), density {asked:g}"]
    lines += [f"  {'':32} {'density':>8} {'ms':>9} {'TFLOP/s':>8} {'×kernel':>8} {'×sum':>8} {'error':>8}"]
    number = lambda value, width, form: f"{value:{width}{form}}" if value is not None else f"{'–':>{width}}"
    for one in entries:
        if one["missing"]:
            lines.append(f"  {one['what']:32} missing: {one['missing']}")
            continue
        columns = (
            (one["density"], 8, ".4f"),
            (one["ms"], 9, ".3f"),
            (one["tflops"], 8, ".1f"),
            (one["ratio_to_kernel"], 8, ".2f"),
            (one["ratio_to_sum"], 8, ".2f"),
            (one["error"], 8, ".1e"),
        )
        lines.append(
            f"  {one['what']:32} {' '.join(number(*column) for column in columns)}  {one['note']}".rstrip()
        )
    return "\n".join(lines)
