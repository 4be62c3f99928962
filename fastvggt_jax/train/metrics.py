"""Where a run's numbers go: `metrics.jsonl` (a line a record), the terminal, and TensorBoard's files where
tensorboardX is installed.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from fastvggt_jax.io.files import regular_file, write_file
from fastvggt_jax.io.json_files import parse_json

FINITE = ("loss", "gradient norm")  # what has to be, lest the parameters are lost
SHOWN = (
    "loss",
    "translation",
    "rotation",
    "depth error",
    "point error",
    "scenes a second",
)  # in the terminal; the files have all


class Metrics:
    def __init__(self, folder: Path, first_step: int, quiet: bool) -> None:
        """Goes on after `first_step`; what an interrupted run has recorded beyond it is dropped, since it
        will come again, and so are lines that are damaged.
        """
        path = folder / "metrics.jsonl"
        before = regular_file(path).read_bytes() if os.path.lexists(path) else b""
        found = [_record(line) for line in before.splitlines()]
        if damaged := [str(number) for number, record in enumerate(found, 1) if record is None]:
            text = f"{path} is damaged in line {', '.join(damaged[:5])}, which is left out"
            warnings.warn(text, stacklevel=2)
        records = [record for record in found if record is not None]
        records = [record for record in records if record["step"] <= first_step]
        kept = "".join(json.dumps(record) + "\n" for record in records).encode()
        if kept != before:
            write_file(path, kept)
        self.best = min(
            (record["loss"] for record in records if record["kind"] == "validation"), default=math.inf
        )
        self.file = open(path, "a")  # noqa: SIM115  closed by `close`
        self.console = Console(quiet=quiet, highlight=False)
        self.board = _board(folder, first_step)
        self.pending: list[Mapping[str, jax.Array]] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Of "scenes a second"."""
        self.scenes, self.since = 0, time.monotonic()

    def add(self, values: Mapping[str, jax.Array], scenes: int) -> None:
        """What one more step on so many scenes has given; it is not waited for."""
        self.pending.append(values)
        self.scenes += scenes

    def record(self, step: int) -> int | None:
        """Writes means of what was added since the last time. Returns the first step that is not finite; then
        it writes nothing.
        """
        if not self.pending:
            return None
        values = jax.device_get(self.pending)
        bad = [
            step - len(values) + i + 1
            for i, value in enumerate(values)
            if not all(math.isfinite(value[name]) for name in FINITE)
        ]
        if bad:
            return bad[0]
        self.write(
            step, "train", means(values) | {"scenes a second": self.scenes / (time.monotonic() - self.since)}
        )
        self.pending = []
        self.start_clock()
        return None

    def validated(self, step: int, values: Mapping[str, float]) -> bool:
        """Writes what a validation has given; True if no earlier one's loss was lower. Its time is not that
        of the steps.
        """
        self.write(step, "validation", values)
        self.start_clock()
        best = values["loss"] <= self.best
        self.best = min(self.best, values["loss"])
        return best

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Numbers of `kind` "train" or "validation" after `step` steps."""
        self.file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self.file.flush()
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        self.console.print(f"[bold]{step:>7}[/bold] {kind:<10} {shown}", soft_wrap=True)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)  # a folder's name may hold brackets

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of several records of the same names."""
    return {name: float(sum(value[name] for value in values) / len(values)) for name in values[0]}


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl holds; None if it is no record, such as a half-written last line."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    numbers = isinstance(record, dict) and all(
        isinstance(record.get(x), int | float) and math.isfinite(record[x]) for x in ("step", "loss")
    )
    return record if numbers and record.get("kind") in ("train", "validation") else None


def _board(folder: Path, first_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
