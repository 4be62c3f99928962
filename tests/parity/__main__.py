"""Prints how far every stage of every golden case is from the reference, in units of its noise floor.

python -m tests.parity                             # the tiny cases
python -m tests.parity --weights --workdir DIR     # full size too: 15 GB in DIR, 12 GB of memory, minutes
python -m tests.parity --reference DIR 'sparse_*'  # other golden files, some cases
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path

from tests.parity import run_case
from tests.parity.goldens import FOLDER, Goldens


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=["*"], help="patterns of case names")
    parser.add_argument("--reference", type=Path, default=FOLDER, help="folder of golden files")
    parser.add_argument("--weights", action="store_true", help="the full-size cases too")
    parser.add_argument("--workdir", type=Path, help="keeps the full-size weight file for the next time")
    args = parser.parse_args()
    if args.workdir:
        args.workdir.mkdir(parents=True, exist_ok=True)
    goldens, failures, count = Goldens(args.reference), 0, 0
    print(f"{'case':44} {'stage':30} {'error':>9} {'limit':>7}")
    for name in goldens.names():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in args.cases):
            continue
        if name.startswith("full") and not args.weights:
            continue
        rows = goldens.rows(name, run_case(goldens, name, args.workdir))
        for stage, error, limit in rows:
            bad = not error <= limit  # NaN is bad
            failures, count = failures + bad, count + 1
            print(f"{name:44} {stage:30} {error:9.2g} {limit:7.1g}{'  FAIL' if bad else ''}", flush=True)
    print(
        f"{count - failures} of {count} stages within their limits "
        "(error in units of the noise floor; chaotic tracker stages absolute)"
    )
    return 1 if failures or not count else 0


if __name__ == "__main__":
    sys.exit(main())
