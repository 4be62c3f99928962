"""Dense attention of others that JAX runs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from pallas_kernels.bench import errors
from pallas_kernels.bench.table import Peer, Row, attempt
from pallas_kernels.bench.workloads import Workload, random_qkv
from pallas_kernels.timing import jax_ms

Array = jax.Array
MGPU_TILINGS = (
    (64, 256, 2),
    (64, 128, 2),
    (64, 128, 4),
    (64, 64, 4),
    (128, 64, 4),
    (128, 128, 2),
)  # block_q, block_kv, max_concurrent_steps


@dataclasses.dataclass(frozen=True)
class Call:
    """How a peer is called.

    Attributes:
      attend: q [1, T, N, H], k, v [1, S, N, H] -> [1, T, N, H].
      dtype: of the arrays.
      divides: T and S must be multiples of these.
      q_factor: of q, where scaling is left to the caller; no part of what is timed.
      note: how it runs.
    """

    attend: Callable[[Array, Array, Array], Array]
    dtype: str
    divides: tuple[int, int] = (1, 1)
    q_factor: float = 1.0
    note: str = ""

    def sizes(self, work: Workload) -> tuple[int, int]:
        """The nearest T and S that it takes."""
        return nearest_multiple(work.patches, self.divides[0]), nearest_multiple(work.kv_len, self.divides[1])

    def arrays(self, work: Workload) -> tuple[Array, Array, Array]:
        return random_qkv(*self.sizes(work), work, self.dtype)

    def ms(self, work: Workload, repeats: int) -> float:
        q, k, v = self.arrays(work)
        return jax_ms(self.attend, q * self.q_factor, k, v, repeats=repeats)

    def error(self, work: Workload) -> float:
        q, k, v = self.arrays(work)
        out = jax.jit(self.attend)(q * self.q_factor, k, v)
        return errors.max_relative_error(out, errors.exact(q, k, v))


def cudnn(work: Workload, dtype: str) -> Iterator[Call]:
    yield Call(partial(jax.nn.dot_product_attention, implementation="cudnn"), dtype)


def attention_mgpu(work: Workload, dtype: str) -> Iterator[Call]:
    """JAX's Mosaic GPU example kernel, by tiling. Its shared memory is declared float16 (jax 0.11.2), so
    bfloat16 inputs do not trace; tensor cores run both at one rate.
    """
    dtype = "float16" if dtype == "bfloat16" else dtype
    for block_q, block_kv, steps in MGPU_TILINGS:

        def attend(
            q: Array, k: Array, v: Array, tiling: tuple[int, int, int] = (block_q, block_kv, steps)
        ) -> Any:
            from jax.experimental.pallas.ops.gpu import attention_mgpu

            block_q, block_kv, steps = tiling
            config = attention_mgpu.TuningConfig(
                block_q=block_q, block_kv=block_kv, max_concurrent_steps=steps
            )
            return attention_mgpu.attention(q, k, v, config)

        note = f"{dtype}, block_q={block_q} block_kv={block_kv} max_concurrent_steps={steps}"
        yield Call(attend, dtype, (2 * block_q, block_kv), work.head_dim**-0.5, note)


def tokamax(work: Workload, dtype: str) -> Iterator[Call]:
    """With its own heuristic's tiling: an autotuned one is a matter of minutes."""
    import tokamax

    yield Call(partial(tokamax.dot_product_attention, implementation="mosaic"), dtype)


def jax_rows(peers: tuple[Peer, ...], args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """The best call of each peer."""
    for peer in peers:
        rows = [call_row(peer.what(args), call, args, work) for call in peer.function(work, args.dtype)]
        yield max(rows, key=lambda row: row.T * row.S / row.ms if row.ms else 0)


def call_row(what: str, call: Call, args: argparse.Namespace, work: Workload) -> Row:
    (T, S), note = call.sizes(work), call.note
    if (work.patches, work.kv_len) != (T, S):
        note += f", at T={T} S={S}: the nearest that it supports"
    return attempt(
        Row(what, None, T, S, note=note),
        measure=partial(call.ms, work, args.repeats),
        check=partial(call.error, work.reduced()),
    )


def nearest_multiple(n: int, of: int) -> int:
    """The multiple of `of`, at least `of` itself, that is nearest to n."""
    return max(1, (n + of // 2) // of) * of
