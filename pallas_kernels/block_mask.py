"""`BlockMask`: which key blocks each query block attends to, one bit a block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array
WORD = 32  # key blocks in a word of `kv_bits`
DEFAULT_BLOCK = (128, 64)  # queries and keys of a block, the paper's


def cdiv(a: int, b: int) -> int:
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


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kv_num_blocks", "kv_bits"],
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
    """

    kv_num_blocks: Array
    kv_bits: Array
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
            bounds += [
                (start + i, min(start + i + self.block[1], start + run)) for i in range(0, run, self.block[1])
            ]
            start += run
        return bounds

    @classmethod
    def from_bits(
        cls, kv_bits: Array, q_len: int, kv_runs: tuple[int, ...], block: tuple[int, int]
    ) -> BlockMask:
        """From u32[B, N, Tb, ceil(Sb / 32)] whose bits past Sb are zero; counts them."""
        counts = jnp.sum(jax.lax.population_count(kv_bits).astype(jnp.int32), -1)
        return cls(counts, kv_bits, q_len, tuple(kv_runs), (block[0], block[1]))

    @classmethod
    def from_dense(
        cls, mask: Array, q_len: int, kv_runs: tuple[int, ...], block: tuple[int, int]
    ) -> BlockMask:
        """From bool[B, N, Tb, Sb], True = computed. ValueError if Tb and Sb are not those of the lengths and
        the block.
        """
        result = cls.from_bits(pack_bits(mask), q_len, kv_runs, block)
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
    ) -> BlockMask:
        """Nothing dropped."""
        blocks = cdiv(q_len, block[0]), sum(cdiv(run, block[1]) for run in kv_runs)
        row = pack_bits(jnp.ones(blocks[1], bool))
        counts = jnp.full((batch, heads, blocks[0]), blocks[1], jnp.int32)
        return cls(
            counts,
            jnp.broadcast_to(row, (*counts.shape, *row.shape)),
            q_len,
            tuple(kv_runs),
            (block[0], block[1]),
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
        return jnp.mean(self.kv_num_blocks.astype(jnp.float32), (0, 2)) / self.num_kv_blocks
