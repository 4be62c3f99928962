"""How far a row's attention is from float32 arithmetic: what is fast and wrong is no peer."""

from __future__ import annotations

from typing import Any

import numpy as np

WRONG = 0.05  # an error above this is no rounding: 16-bit rows have 2e-3 to 1e-2


def block_sizes(runs: tuple[int, ...], block: int) -> list[int]:
    """Lengths of the blocks that the runs are cut into, each run's last one maybe shorter."""
    return [min(block, run - start) for run in runs for start in range(0, run, block)]


def exact(q: Any, k: Any, v: Any, keep: np.ndarray | None = None) -> np.ndarray:
    """softmax(q kᵀ / sqrt(H)) v in float32, in NumPy: [1, T, N, H], [1, S, N, H], [1, S, N, H] ->
    f32[1, T, N, H].

    keep: bool[N, T, S], True = computed; None for everything.
    """
    q, k, v = (np.asarray(x, np.float32)[0].transpose(1, 0, 2) for x in (q, k, v))  # [N, T or S, H]
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))  # [N, T, S]
    if keep is not None:
        scores = np.where(keep, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights @ v / weights.sum(-1, keepdims=True)  # [N, T, H]
    return out.transpose(1, 0, 2)[None]


def of_tokens(kept: Any, T: int, runs: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """bool[N, Tb, Sb] of blocks -> bool[N, T, S] of queries and keys."""
    rows = np.repeat(np.asarray(kept), block_sizes((T,), block[0]), axis=1)
    return np.repeat(rows, block_sizes(runs, block[1]), axis=2)


def max_relative_error(out: Any, exact: np.ndarray) -> float:
    """The largest deviation over the largest value; NaN if any number of `out` is."""
    out = np.asarray(out, np.float32)
    if out.shape != exact.shape:
        raise ValueError(f"the output is {out.shape}, not {exact.shape}")
    return float(np.abs(out - exact).max() / np.abs(exact).max())
