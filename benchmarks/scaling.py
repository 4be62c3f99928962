"""One scene on 1, 2, 4, 8 ... GPUs of one host: seconds, speed-up, memory, what is sent between them and what
is waited for; and the cost that fits them, with what it says of two hosts.

    python benchmarks/scaling.py -o benchmarks/devices_h100.jsonl         # measures what is not there yet
    python benchmarks/scaling.py --table benchmarks/devices_h100.jsonl    # no GPU is needed for that

Each row is `fastvggt bench --only model --devices D`, with `--profile` from two on, of a process of its own,
and is written as it ends: a run that was stopped goes on where it was. Many views are run once.

The cost is local·N/D + global·N²/D + sent·(N/D)(D-1)/D, for N views on D devices: what lies within frames,
what all tokens do with all, and what each device gives to the others.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from fastvggt_jax.bench import Case, run
from fastvggt_jax.errors import FailedError
from fastvggt_jax.profile import IDLE

Row = dict[str, Any]
SENT = "sent between devices"
ONCE_FROM = 500  # views, from which on one run counts


def cases(given: argparse.Namespace, most: int) -> Iterator[Case]:
    """The shortest first, and of these on most devices."""
    counts = [count for count in given.devices if count <= most]
    tuples = list(itertools.product(given.frames, given.sparsity, given.models, counts))
    if 8 in counts and given.longest:
        tuples.append((given.longest, "0.9", given.models[0], 8))
    for frames, sparsity, model, devices in sorted(tuples, key=lambda one: (one[0], -one[3])):
        yield Case(
            model=model,
            frames=frames,
            sparsity=sparsity,
            devices=devices,
            config=given.config,
            size=given.size,
            block=given.block,
            repeats=0 if frames >= ONCE_FROM else 3,
            profile=devices > 1,
        )


def key(row: Row) -> tuple[Any, ...]:
    return row["model"], row["frames"], row["sparsity"], row["devices"]


def rows_in(path: Path) -> list[Row]:
    """The last of each model, number of views, sparsity and devices."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({key(row): row for row in rows}.values())


def present() -> int:
    """Devices, asked of a process of its own: this one must not open what its rows need."""
    command = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(given: argparse.Namespace) -> None:
    done = {key(row) for row in rows_in(given.output)}
    for case in cases(given, present()):
        if (case.model, case.frames, case.sparsity, case.devices) in done:
            continue
        try:
            row = run("model", case)
        except FailedError as error:
            print(error, flush=True)
            continue
        with given.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{key(row)}: {row['seconds']:.2f} s", flush=True)


class Cost(NamedTuple):
    """Seconds per N/D, N²/D and (N/D)(D-1)/D; of how many runs, and their largest error, relative."""

    factors: np.ndarray
    runs: int
    error: float

    def __call__(self, frames: int, devices: int) -> float:
        return float(terms(frames, devices) @ self.factors)


def terms(frames: int, devices: int) -> np.ndarray:
    each = frames / devices
    return np.array([each, each * frames, each * (devices - 1) / devices])


def fitted(rows: Iterable[Row]) -> Cost | None:
    """Least squares of relative errors; None where fewer were measured than there are factors."""
    at = {(row["frames"], row["devices"]): row["seconds"] for row in rows}
    matrix = np.array([terms(*one) / seconds for one, seconds in at.items()])
    if len(at) < 3 or np.linalg.matrix_rank(matrix) < 3:
        return None
    factors, _ = nnls(matrix, np.ones(len(at)))
    return Cost(factors, len(at), float(np.abs(matrix @ factors - 1).max()))


def sent_bytes(row: Row, devices: int) -> float:
    """By each device to those of the other one of two hosts: half of its own q, k, v and results."""
    model = Case(model=row["model"]).build()
    height, width = row["size"][1], row["size"][0]
    patch = model.image_policy.patch
    tokens = (height // patch) * (width // patch) + model.num_special
    return model.depth * 4 * row["frames"] / devices * tokens * model.embed_dim * 2 / 2


def table(rows: list[Row], between_hosts: float) -> str:
    """In Markdown. between_hosts: bytes per second that each device sends to another host."""
    alone = {key(row)[:3]: row for row in rows if row["devices"] == 1}
    lines = [
        "| model | views | attention | GPUs | seconds | speed-up | GiB of each | sent | idle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=key):
        one, parts = alone.get(key(row)[:3]), row.get("parts", {})
        gain = f"×{one['seconds'] / row['seconds']:.2f}" if one else ""
        whole = row.get("profiled_seconds", row["seconds"])
        share = [f"{parts[p]['seconds'] / whole:.1%}" if p in parts else "" for p in (SENT, IDLE)]
        numbers = [f"{row['seconds']:.2f}", gain, f"{row['needs_gib']:.1f}", *share]
        lines.append(f"| {' | '.join(map(str, key(row)))} | {' | '.join(numbers)} |")
    lines += [
        "",
        "| model | attention | local, ms | global, µs | sent, ms | runs, largest error | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, sparsity in sorted({(row["model"], row["sparsity"]) for row in rows}):
        some = [row for row in rows if (row["model"], row["sparsity"]) == (model, sparsity)]
        cost = fitted(some)
        if cost is None:
            continue
        most, devices = max(some, key=lambda row: row["frames"]), max(row["devices"] for row in some)
        frames = most["frames"]
        said = [f"{frames} views on {2**k}: {cost(frames, 2**k):.1f} s" for k in range(4) if 2**k > devices]
        hosts = cost(frames, 16) + sent_bytes(most, 16) / between_hosts
        said.append(f"on two hosts of 8: {hosts:.1f} s")
        local, everywhere, sent = cost.factors
        fit = f"{1e3 * local:.2f} | {1e6 * everywhere:.2f} | {1e3 * sent:.2f} | {cost.runs}, {cost.error:.1%}"
        lines.append(f"| {model} | {sparsity} | {fit} | {'; '.join(said)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path, help="JSON lines that rows are added to")
    what.add_argument("--table", type=Path, help="JSON lines that a table is made of")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--models", nargs="+", default=["vggt", "pi3"])
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--sparsity", nargs="+", default=["dense", "0.75", "0.9"])
    parser.add_argument("--longest", type=int, default=4000, help="views at 0.9 on eight; 0: none")
    parser.add_argument("--between-hosts", type=float, default=50, help="GB/s that each GPU sends to others")
    parser.add_argument("--config", help="a JSON file of a smaller model's fields")
    parser.add_argument("--size", type=int)
    parser.add_argument("--block", default="128x64")
    given = parser.parse_args()
    if given.output:
        measure(given)
    path = given.output or given.table
    rows = rows_in(path)
    print(f"{path}: {', '.join(sorted({row['device'] for row in rows}))}\n")
    print(table(rows, given.between_hosts * 1e9))


if __name__ == "__main__":
    main()
