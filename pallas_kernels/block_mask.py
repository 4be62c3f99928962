"""`BlockMask`: which key blocks each query block attends to, one bit a block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
WORD = 32  # key blocks in a word of `kv_bits`
DEFAULT_BLOCK = (128, 64)  # queries and keys of a block, the paper's


def cdiv(a: Any, b: int) -> Any:
    return -(-a // b)


def aligned(x: Array) -> Array:
    """[B, T, ...] with rows of zeros up to a multiple of 8, which the tiles of Hopper's copy engine
    need.
    """
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), *[(0, 0)] * (x.ndim - 2)))


def joined(runs: Sequence[Array], lengths: Sequence[int]) -> Array:
    """[B, S, ...], one run after another, of arrays that may be longer than their runs."""
    return jnp.concatenate([x[:, :length] for x, length in zip(runs, lengths, strict=True)], 1)


def pack_bits(kept: Array) -> Array:
    """bool[..., S] -> u32[..., ceil(S / 32)]: bit i of word w is entry 32·w + i; bits past S are zero. One
    fused pass.
    """
    size = kept.shape[-1]
    words = cdiv(size, WORD)
    kept = jnp.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(0, words * WORD - size)])
    kept = kept.reshape(*kept.shape[:-1], words, WORD).astype(jnp.uint32)
    return jnp.sum(kept << jnp.arange(WORD, dtype=jnp.uint32), -1, dtype=jnp.uint32)


def _checked(kv_runs: Sequence[int], block: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, int]]:
    if not kv_runs or min(kv_runs) < 0:
        raise ValueError(
            f"{kv_runs=} must be the lengths of one run of keys or several, none of them negative"
        )
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"{block=} must be two positive integers (queries, keys)")
    return tuple(kv_runs), (block[0], block[1])


class Lengths(NamedTuple):
    """How many tokens count, the first ones, where arrays are filled up to a size that many inputs share and
    that one program serves. i32[] each, at least 1, which may be traced, the same for all of a batch.

    What fills up must be finite. Keys of it weigh exactly nothing; outputs of its queries mean nothing.

    Attributes:
      q: queries.
      kv_runs: keys of each run, see `BlockMask`.
    """

    q: Array
    kv_runs: tuple[Array, ...]

    def in_a_row(self) -> Lengths:
        """The same of one run, the runs' keys one after another."""
        return Lengths(self.q, (reduce(add, self.kv_runs),))


def _block_lengths(kv_runs: tuple[int, ...], block: int, lengths: Lengths | None) -> Any:
    """i32[Sb], how many keys of every block of so many count; of numpy where that is known."""
    place = np.concatenate([block * np.arange(cdiv(run, block), dtype=np.int32) for run in kv_runs])
    run_of = np.repeat(np.arange(len(kv_runs)), [cdiv(run, block) for run in kv_runs])
    if lengths is None:
        return np.clip(np.array(kv_runs, np.int32)[run_of] - place, 0, block)
    return jnp.clip(jnp.stack(lengths.kv_runs).astype(jnp.int32)[run_of] - place, 0, block)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kv_num_blocks", "kv_bits", "lengths"],
    meta_fields=["q_len", "kv_runs", "block"],
)
@dataclasses.dataclass(frozen=True)
class BlockMask:
    """The kept key blocks of every query block, per batch element and head.

    Queries are cut into `Tb = ceil(q_len / block[0])` blocks. Keys are cut run by run: each entry of
    `kv_runs` is the length of a stretch of keys that is blocked on its own, so its last block may be partial.
    One run is the ordinary case; two runs let the special keys that follow the patch keys start a block of
    their own, without a padded copy of K and V. `Sb` is the number of blocks over all runs.

    Why bits: at 1,000 views of 518x518 there are 16 heads x 10,696 x 21,470 blocks. As bools they take 3.7
    GB; as int32 lists of the kept ones 3.7 GB at density 0.25 and 14.7 GB where a row may be full (τ), half
    of that in 16 bits; as bits 0.46 GB at every density. Bits are made by comparing and packing, without a
    sort or a compaction, and a kernel walks the set ones by counting trailing zeros.

    Attributes:
      kv_num_blocks: i32[B, N, Tb], how many blocks the query block attends to: the number of bits set in its
        row.
      kv_bits: u32[B, N, Tb, ceil(Sb / 32)]; bit i of word w is set where key block 32·w + i is kept. Bits
        past Sb are zero.
      q_len: number of queries, T.
      kv_runs: lengths of the runs of keys; they sum to S.
      block: (queries, keys) of a block.
      lengths: how many of these queries and keys count; None: all. Blocks of others alone are not kept.
    """

    kv_num_blocks: Array
    kv_bits: Array
    q_len: int
    kv_runs: tuple[int, ...]
    block: tuple[int, int]
    lengths: Lengths | None = None

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
            bounds += [
                (start + i, min(start + i + self.block[1], start + run)) for i in range(0, run, self.block[1])
            ]
            start += run
        return bounds

    def kv_block_lengths(self) -> np.ndarray | Array:
        """i32[Sb], how many keys of every key block count."""
        return _block_lengths(self.kv_runs, self.block[1], self.lengths)

    @classmethod
    def from_bits(
        cls,
        kv_bits: Array,
        q_len: int,
        kv_runs: tuple[int, ...],
        block: tuple[int, int],
        lengths: Lengths | None = None,
    ) -> BlockMask:
        """From u32[B, N, Tb, ceil(Sb / 32)] whose bits past Sb are zero; counts them. What does not count
        is cleared. ValueError for a block that is not positive, no run of keys or a negative one.
        """
        kv_runs, block = _checked(kv_runs, block)
        if lengths is not None:
            rows = np.arange(cdiv(q_len, block[0])) < cdiv(lengths.q, block[0])
            columns = pack_bits(_block_lengths(kv_runs, block[1], lengths) > 0)
            kv_bits = kv_bits & jnp.where(rows[:, None], columns, jnp.uint32(0))
        counts = jnp.sum(jax.lax.population_count(kv_bits).astype(jnp.int32), -1)
        return cls(counts, kv_bits, q_len, kv_runs, block, lengths)

    @classmethod
    def from_dense(
        cls,
        mask: Array,
        q_len: int,
        kv_runs: tuple[int, ...],
        block: tuple[int, int],
        lengths: Lengths | None = None,
    ) -> BlockMask:
        """From bool[B, N, Tb, Sb], True = computed. ValueError if Tb and Sb are not those of the lengths and
        the block, or the dtype is another; and as `from_bits`.
        """
        if mask.ndim != 4 or mask.dtype != bool:
            raise ValueError(f"mask must be bool[B, N, Tb, Sb], not {mask.dtype}{list(mask.shape)}")
        result = cls.from_bits(pack_bits(mask), q_len, kv_runs, block, lengths)
        expected = (result.num_q_blocks, result.num_kv_blocks)
        if mask.shape[-2:] != expected:
            raise ValueError(
                f"mask has {mask.shape[-2:]} blocks, but {q_len=} {kv_runs=} {block=} make {expected}"
            )
        return result

    @classmethod
    def full(
        cls,
        batch: int,
        heads: int,
        q_len: int,
        kv_runs: tuple[int, ...],
        block: tuple[int, int] = DEFAULT_BLOCK,
        lengths: Lengths | None = None,
    ) -> BlockMask:
        """Nothing dropped. ValueError as `from_bits`."""
        kv_runs, block = _checked(kv_runs, block)
        blocks = cdiv(q_len, block[0]), sum(cdiv(run, block[1]) for run in kv_runs)
        row = pack_bits(jnp.ones(blocks[1], bool))
        if lengths is not None:
            bits = jnp.broadcast_to(row, (batch, heads, blocks[0], *row.shape))
            return cls.from_bits(bits, q_len, kv_runs, block, lengths)
        counts = jnp.full((batch, heads, blocks[0]), blocks[1], jnp.int32)
        return cls(
            counts,
            jnp.broadcast_to(row, (*counts.shape, *row.shape)),
            q_len,
            kv_runs,
            block,
        )

    def to_dense(self) -> Array:
        """bool[B, N, Tb, Sb], True = computed."""
        bits = self.kv_bits[..., None] >> jnp.arange(WORD, dtype=jnp.uint32) & 1
        return bits.reshape(*self.kv_num_blocks.shape, -1)[..., : self.num_kv_blocks].astype(bool)

    @property
    def density(self) -> Array:
        """f32[]: share of blocks computed, over batch, heads and all block pairs (docs/method.md §7: sparsity
        = 1 - density).
        """
        return self.head_densities.mean()

    @property
    def head_densities(self) -> Array:
        """f32[N]: the same of each head."""
        if self.lengths is None:
            return jnp.mean(self.kv_num_blocks.astype(jnp.float32), (0, 2)) / self.num_kv_blocks
        rows, columns = cdiv(self.lengths.q, self.block[0]), jnp.sum(self.kv_block_lengths() > 0)
        return jnp.sum(jnp.mean(self.kv_num_blocks.astype(jnp.float32), 0), -1) / rows / columns
