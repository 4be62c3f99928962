"""What the attention kernel reaches call after call for seconds on end, as in a model with many views, and
the clock and the power of the card meanwhile; random inputs, 16 heads × 64, blocks of 128×64.

    python benchmarks/power.py 65536 137000 274000 684500
"""

import argparse
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial

import jax

from fastvggt_jax.bench import gpu_query
from pallas_kernels import block_sparse_attention, pooled_block_mask
from pallas_kernels.bench.workloads import find, random_qkv

BLOCK, HEADS, HEAD_DIM = (128, 64), 16, 64


class Card:
    """(when, MHz, W), ten times a second."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []
        query = [*gpu_query("clocks.sm,power.draw"), "-lms", "100"]
        self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            clock, power = map(float, line.split(","))
            self.seen.append((time.perf_counter(), clock, power))

    def between(self, start: float, end: float) -> str:
        now = [one for one in self.seen if start <= one[0] <= end]
        if not now:
            return "too short to see clock and power"
        clock, power = (statistics.median(one[i] for one in now) for i in (1, 2))
        return f"{clock:.0f} MHz, {power:.0f} W"


def seconds_per_call(call: Callable[[], jax.Array], seconds: float) -> tuple[float, float, float]:
    """Of calls that take `seconds` together; from when to when."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    count = max(1, round(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    for _ in range(count):
        out = call()
    jax.block_until_ready(out)
    end = time.perf_counter()
    return (end - start) / count, start, end


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=int, nargs="+")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[0.05, 0.5, 4.0], help="one after another"
    )
    given = parser.parse_args()
    card = Card()
    print(jax.devices()[0].device_kind, "jax", jax.__version__)
    for tokens in given.tokens:
        q, k, v = random_qkv(tokens, tokens, find(f"{tokens}x{HEADS}x{HEAD_DIM}"), "bfloat16")
        keep = max(1, round(given.density * -(-tokens // BLOCK[1])))
        mask = jax.jit(partial(pooled_block_mask, keep_count=keep, block=BLOCK))(q, k)
        flop = 4.0 * HEAD_DIM * BLOCK[0] * BLOCK[1] * float(mask.kv_num_blocks.sum())
        attend = jax.jit(block_sparse_attention)
        jax.block_until_ready(attend(q, k, v, mask))  # compiles
        time.sleep(3)  # the card rests
        for seconds in given.seconds:
            each, start, end = seconds_per_call(partial(attend, q, k, v, mask), seconds)
            rate = f"{1e3 * each:.2f} ms, {flop / each / 1e12:.0f} TFLOP/s"
            print(f"{tokens} tokens, for {end - start:.2f} s: {rate}; {card.between(start, end)}", flush=True)


if __name__ == "__main__":
    main()
