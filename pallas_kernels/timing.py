"""How long a call takes on a GPU: work is queued without waiting, so that the host's dispatch is hidden
behind the device's work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

REGION_S = 0.2  # about how long the calls of one timed region take together
MAX_CALLS = 200  # of one region
SHORT_MS = 0.2  # below this the host's dispatch may show
UNROLL = 8  # calls put together where it may


def median_ms(region: Callable[[int], float], repeats: int) -> float:
    """Median ms of one call; `region(n)` runs n calls back to back and returns their seconds together."""
    region(1)  # compiles
    calls = min(max(1, round(REGION_S / region(1))), MAX_CALLS)
    return 1e3 * statistics.median(region(calls) / calls for _ in range(repeats))


def jax_ms(function: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """Median ms of one call of jit(function)(*arguments)."""
    ms = median_ms(partial(_jax_region, jax.jit(function), arguments), repeats)
    if ms >= SHORT_MS:
        return ms
    return median_ms(partial(_jax_region, several(function), [arguments] * UNROLL), repeats) / UNROLL


def several(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """One program that calls `function` once for every tuple of arguments that it is given.

    A dispatch from Python costs 20 to 50 µs, too near to the time of a short call. To XLA the arguments of
    two calls are different arrays even where the caller gives the same: it cannot merge the calls or share a
    part of them. And unlike in a loop nothing is sliced or copied between them.
    """
    return jax.jit(lambda *calls: [function(*arguments) for arguments in calls])


def _jax_region(step: Callable[..., Any], arguments: Sequence[Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        out = step(*arguments)
    jax.block_until_ready(out)  # a GPU runs them in order, so the last is last
    return time.perf_counter() - start


def torch_ms(torch: Any, run: Callable[[], Any], repeats: int) -> float:
    """Median ms of run() by CUDA events."""
    ms = median_ms(partial(_torch_region, torch, run), repeats)
    if ms >= SHORT_MS:
        return ms
    graph = torch.cuda.CUDAGraph()  # as in `jax_ms`: several calls in one launch
    with torch.cuda.graph(graph):
        for _ in range(UNROLL):
            run()
    return median_ms(partial(_torch_region, torch, graph.replay), repeats) / UNROLL


def _torch_region(torch: Any, run: Callable[[], Any], calls: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3
