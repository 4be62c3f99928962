"""`BlockMask`: which key blocks each query block attends to, in the compact form that kernels walk."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kv_num_blocks", "kv_indices"],
    meta_fields=["q_len", "kv_runs", "block"],
)
@dataclasses.dataclass(frozen=True)
class BlockMask:
    """The kept key blocks of every query block, per batch element and head.

    Queries are cut into `Tb = ceil(q_len / block[0])` blocks. Keys are cut run by run: each entry of `kv_runs` is the length of a stretch
    of keys that is blocked on its own, so its last block may be partial. One run is the ordinary case; two runs let the special keys
    that follow the patch keys start a block of their own, without a padded copy of K and V. `Sb` is the number of blocks over all runs.

    Attributes:
      kv_num_blocks: i32[B, N, Tb], how many blocks the query block attends to.
      kv_indices: i32[B, N, Tb, K], their numbers in ascending order; entries past `kv_num_blocks` repeat block 0 and mean nothing.
      q_len: number of queries, T.
      kv_runs: lengths of the runs of keys; they sum to S.
      block: (queries, keys) of a block.
    """

    kv_num_blocks: Array
    kv_indices: Array
    q_len: int
    kv_runs: tuple[int, ...]
    block: tuple[int, int]

    @property
    def num_q_blocks(self) -> int:
        return cdiv(self.q_len, self.block[0])

    @property
    def num_kv_blocks(self) -> int:
        return sum(cdiv(run, self.block[1]) for run in self.kv_runs)

    @property
    def kv_len(self) -> int:
        return sum(self.kv_runs)

    def kv_block_bounds(self) -> list[tuple[int, int]]:
        """(first key, one past the last key) of every key block, in order."""
        bounds, start = [], 0
        for run in self.kv_runs:
            bounds += [(start + i, min(start + i + self.block[1], start + run)) for i in range(0, run, self.block[1])]
            start += run
        return bounds

    @classmethod
    def from_dense(
        cls, mask: Array, q_len: int, kv_runs: tuple[int, ...], block: tuple[int, int], max_kept: int | None = None
    ) -> BlockMask:
        """From bool[B, N, Tb, Sb]; `max_kept` bounds the kept blocks of a row where the caller knows it (default Sb)."""
        num_kv = mask.shape[-1]
        columns = jnp.arange(num_kv, dtype=jnp.int32)
        indices = jnp.sort(jnp.where(mask, columns, num_kv), axis=-1)[..., : max_kept or num_kv]
        indices = jnp.where(indices == num_kv, 0, indices)
        result = cls(jnp.sum(mask, -1, dtype=jnp.int32), indices, q_len, tuple(kv_runs), tuple(block))
        expected = (result.num_q_blocks, result.num_kv_blocks)
        if mask.shape[-2:] != expected:
            raise ValueError(f"mask has {mask.shape[-2:]} blocks, but {q_len=} {kv_runs=} {block=} make {expected}")
        return result

    def to_dense(self) -> Array:
        """bool[B, N, Tb, Sb], True = computed."""
        used = jnp.arange(self.kv_indices.shape[-1]) < self.kv_num_blocks[..., None]
        # The unused entries are sent to one extra column, which is cut off: a scatter of False could clear a kept block 0.
        target = jnp.where(used, self.kv_indices, self.num_kv_blocks)
        dense = jnp.zeros((*self.kv_num_blocks.shape, self.num_kv_blocks + 1), bool)
        return jnp.put_along_axis(dense, target, True, axis=-1, inplace=False)[..., :-1]

    @property
    def density(self) -> Array:
        """f32[]: share of blocks computed, over batch, heads and all block pairs (METHOD.md §9: sparsity = 1 - density)."""
        return jnp.mean(self.kv_num_blocks.astype(jnp.float32)) / self.num_kv_blocks
