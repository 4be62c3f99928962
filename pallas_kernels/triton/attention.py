"""Block-sparse attention for NVIDIA GPUs from compute capability 8.0 on: one Pallas kernel for Triton.

How it works. A thread block computes one tile of queries. It walks the set bits of the tile's mask row,
gathers the kept key blocks a step of keys at a time, and folds them into an online softmax: one running
maximum, one sum and one row of outputs per query, in float32. Triton's compiler picks the matrix
instructions of the card, swizzles shared memory, and pipelines the copies of K and V over `stages` steps,
for which the loop must hold no other loop and no branch. Hence three preparations, made by XLA in one pass
over the mask's bits:

- which word of bits that is not zero follows on each, so that the next set bit is always one select away;
- partial key blocks, which end a run, are moved to the end of the row's bits: all steps but the last one or
  two hold whole blocks that are kept, and need no masking;
- the masked steps are a loop of their own.

Keys are addressed where they lie: K and V are neither padded nor cut, and a key that is not kept is not
read, so that a NaN in it does not show.

Why Triton, which JAX calls deprecated: the other road, Mosaic GPU, has `mma` from jax 0.12 on, but copies
to shared memory by the engine that Hopper brought, and neither pipelines nor swizzles for the cards before
it by itself.
"""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.block_mask import WORD, BlockMask, cdiv, pack_bits
from pallas_kernels.shift import FIXED_SHIFT_RANGE, key_bound
from pallas_kernels.triton.calls import droppable
from pallas_kernels.triton.config import TuningConfig, kernel_head_dim
from pallas_kernels.varying import result

Array = jax.Array
Ref = Any
Cursor = tuple[Array, ...]  # see `_attend_tile`
# A running maximum that has seen no score: finite, because -inf - -inf is NaN.
NO_SCORE = float(np.finfo(np.float32).min)


def block_sparse_attention(
    q: Array, k: Array, v: Array, mask: BlockMask, config: TuningConfig, *, interpret: bool = False
) -> Array:
    """See `api.block_sparse_attention`; `interpret` runs the kernel in Pallas' interpreter, on a CPU."""
    (B, T, N, H), S = q.shape, k.shape[1]
    width = kernel_head_dim(H)
    if width != H:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - H))) for x in (q, k, v))
    counts, words, following = _walk(mask)
    tiles = cdiv(mask.block[0], config.rows)  # of a query block
    per_head = lambda length: pl.BlockSpec((None, length, None, width), lambda i, n, b: (b, 0, n, 0))
    scale = math.log2(math.e) / math.sqrt(H)  # exponentials are powers of two
    bound = key_bound([k], scale)[..., None]
    per_row = lambda x: pl.BlockSpec((None, None, None, x.shape[-1]), lambda i, n, b: (b, n, i // tiles, 0))
    call = pl.pallas_call(
        partial(_attend_tile, mask=mask, config=config, scale=scale, interpret=interpret),
        # The first dimension runs fastest: one head after another, to share what L2 holds of its K and V.
        grid=(mask.num_q_blocks * tiles, N, B),
        in_specs=[
            *map(per_head, (T, S, S)),
            pl.BlockSpec((None, None, 1), lambda i, n, b: (b, n, 0)),
            *map(per_row, (counts, words, following)),
        ],
        out_specs=per_head(T),
        out_shape=result(q.shape, q.dtype, q),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
    )
    out = droppable(call)(q, k, v, bound, counts, words, following)
    return out[..., :H]


def _walk(mask: BlockMask) -> tuple[Array, Array, Array]:
    """The mask's rows as the kernel walks them.

    Returns:
      i32[B, N, Tb, 3]: how many whole key blocks the row keeps, how many blocks in all, and its first word
      that is not zero; and, with lengths, of each partial block its first key and its keys.
      i32[B, N, Tb, words]: its bits without those of partial blocks, then the partial ones', which `_partial`
      lists, in words of their own; one word of zeros.
      i16[B, N, Tb, words], or i32: which word that is not zero follows on each; the last word where none
      does.
    """
    W, partials = mask.kv_bits.shape[-1], _partial(mask)
    numbers = [number for number, _, _ in partials]
    cleared: Any
    if mask.lengths is None:
        is_partial = np.zeros(W * WORD, bool)
        is_partial[numbers] = True
        cleared = ~np.packbits(is_partial, bitorder="little").view("<u4")
        kept = [mask.kv_bits[..., i // WORD] >> np.uint32(i % WORD) & 1 for i in numbers]
    else:
        own = [pack_bits(np.arange(W * WORD) == number) for number in numbers]
        cleared = ~reduce(jnp.bitwise_or, own)
        kept = [jnp.any(mask.kv_bits & one != 0, -1).astype(jnp.uint32) for one in own]
    parts = [mask.kv_bits & cleared, *([pack_bits(jnp.stack(kept, -1))] if kept else [])]
    words = jnp.concatenate([*parts, jnp.zeros_like(mask.kv_bits[..., :1])], -1)

    last = words.shape[-1] - 1
    place = np.arange(last + 1)
    later = (place > place[:, None]) & (words != 0)[..., None, :]  # fused with its reduction: never in memory
    following = jnp.min(jnp.where(later, place, last), -1)
    first = jnp.min(jnp.where(words != 0, place, last), -1)
    whole = mask.kv_num_blocks - (jnp.sum(jnp.stack(kept, -1), -1).astype(jnp.int32) if kept else 0)
    columns = [whole, mask.kv_num_blocks, first.astype(jnp.int32)]
    if mask.lengths is not None:
        columns += [jnp.broadcast_to(x, whole.shape) for _, start, rest in partials for x in (start, rest)]
    counts = jnp.stack(columns, -1).astype(jnp.int32)
    following = following.astype(jnp.int16 if last < 2**15 else jnp.int32)
    return counts, lax.bitcast_convert_type(words, jnp.int32), following


def _partial(mask: BlockMask) -> list[tuple[Any, Any, Any]]:
    """(number, first key, keys) of the key blocks that are not whole: at most one a run. With lengths, which
    say so only at run time, the last one of each run that is not empty.
    """
    block_k, found, blocks, start = mask.block[1], [], 0, 0
    for r, run in enumerate(mask.kv_runs):
        if mask.lengths is not None and run:
            length = mask.lengths.kv_runs[r]
            before = cdiv(length, block_k) - 1  # blocks of the run
            found.append((blocks + before, start + before * block_k, length - before * block_k))
        elif rest := run % block_k:
            found.append((blocks + run // block_k, start + run - rest, rest))
        start, blocks = start + run, blocks + cdiv(run, block_k)
    return found


def _attend_tile(
    q_ref: Ref,  # [T, H]
    k_ref: Ref,  # [S, H]
    v_ref: Ref,  # [S, H]
    bound_ref: Ref,  # [1], see `shift.key_bound`
    counts_ref: Ref,  # see `_walk`
    words_ref: Ref,
    following_ref: Ref,
    out_ref: Ref,  # [T, H]
    *,
    mask: BlockMask,
    config: TuningConfig,
    scale: float,
    interpret: bool,
) -> None:
    """One tile of queries; exponentials are powers of two, of scores times `scale`.

    The shift of the softmax is fixed or the running maximum, see `shift`. Masked steps take the running
    maximum, which a fixed shift already is.

    A cursor is (the bits of the present word that are not yet taken, its number, the number of the following
    word, that word, the number of the one after it, the part of the present key block).
    """
    (block_q, block_k), T, rows, keys = mask.block, mask.q_len, config.rows, config.step_keys
    unit = min(keys, block_k)  # keys of a slot of a step: a whole block or a part of one
    parts, slots = block_k // unit, keys // unit  # of a block; of a step. One of them is 1.
    first_partial = WORD * mask.kv_bits.shape[-1]  # number of the first partial block in `words`
    if mask.lengths is None:
        partials = [(partial_start, rest) for _, partial_start, rest in _partial(mask)]
    else:
        partials = [(counts_ref[i], counts_ref[i + 1]) for i in range(3, counts_ref.shape[0], 2)]
    exp2 = jnp.exp2 if interpret else _exp2
    column = jnp.arange(keys)
    feature = jnp.arange(q_ref.shape[1])[None, :]

    def take(cursor: Cursor) -> tuple[Array, Cursor]:
        """The number of the block at the cursor, and the cursor moved on by one part."""
        word, index, ahead, ahead_word, ahead_next, part = cursor
        number = index * WORD + _lowest_bit(word)
        if parts > 1:
            part = jnp.where(part == parts - 1, 0, part + 1)
            word = jnp.where(part == 0, word & (word - 1), word)
        else:
            word = word & (word - 1)
        done = word == 0
        word, index = jnp.where(done, ahead_word, word), jnp.where(done, ahead, index)
        ahead = jnp.where(done, ahead_next, ahead)
        # Loaded in every step, used in a later one: the loop neither branches nor waits.
        return number, (word, index, ahead, *look(ahead), part)

    def look(index: Array) -> tuple[Array, Array]:
        return words_ref[index], following_ref[index].astype(jnp.int32)

    def per_column(of_slots: list[Array]) -> Array:
        """i32[keys] from one number per slot."""
        result = jnp.broadcast_to(of_slots[0], (keys,))
        for i, number in enumerate(of_slots[1:], 1):
            result = jnp.where(column >= i * unit, number, result)
        return result

    def first_key(number: Array) -> Array:
        """Of a whole block."""
        start, blocks, shift = 0, 0, jnp.int32(0)
        for run in mask.kv_runs:
            if start != blocks * block_k:
                shift = jnp.where(number >= blocks, start - blocks * block_k, shift)
            start, blocks = start + run, blocks + cdiv(run, block_k)
        return number * block_k + shift

    def step(i: Array, carry: tuple[Any, ...], is_masked: bool, is_fixed: bool) -> tuple[Any, ...]:
        cursor, out, top, total = carry
        starts, lengths = [], []
        for slot in range(slots):
            offset = cursor[-1] * unit if parts > 1 else 0
            number, cursor = take(cursor)
            start, length = first_key(number), jnp.int32(block_k)
            if is_masked:
                for r, (partial_start, rest) in enumerate(partials):
                    here = number == first_partial + r
                    start, length = jnp.where(here, partial_start, start), jnp.where(here, rest, length)
                length = jnp.where(i * slots + slot < count * parts, length, 0)
            starts.append(start + offset)
            lengths.append(length - offset)
        inner = column % unit if slots > 1 else column
        key = per_column(starts) + inner
        valid = inner < per_column(lengths) if is_masked else None

        def load(ref: Ref) -> Array:
            here = ref.at[key[:, None], feature]
            return plgpu.load(here) if valid is None else plgpu.load(here, mask=valid[:, None], other=0.0)

        scores = plgpu.dot(q, load(k_ref), trans_b=True)  # f32[rows, keys]
        if valid is not None:
            scores = jnp.where(valid[None, :], scores, -jnp.inf)
        if not is_fixed:
            new_top = jnp.maximum(top, scores.max(1) * scale)
            rescale = exp2(top - new_top)
            top, total, out = new_top, total * rescale, out * rescale[:, None]
        p = exp2(scores * scale - top[:, None])
        out = out + plgpu.dot(p.astype(v_ref.dtype), load(v_ref))
        return cursor, out, top, total + p.sum(1)

    tiles = cdiv(block_q, rows)
    i = pl.program_id(0)
    block, tile = lax.div(i, tiles), lax.rem(i, tiles)
    row = block * block_q + tile * rows + jnp.arange(rows)
    in_tile = (row < jnp.minimum((block + 1) * block_q, T))[:, None]
    q = plgpu.load(q_ref.at[row[:, None], feature], mask=in_tile, other=0.0)
    # A tile past the last query has nothing to do.
    has_rows = block * block_q + tile * rows < T
    whole, count = (jnp.where(has_rows, counts_ref[j], 0) for j in (0, 1))
    index = counts_ref[2]
    word, ahead = look(index)
    cursor = word, index, ahead, *look(ahead), jnp.int32(0)
    top = jnp.full(rows, NO_SCORE, jnp.float32)
    fixed = jnp.int32(0)  # steps that take the fixed shift: all that need no masking, or none
    masked, steps = lax.div(whole * parts, slots), lax.div(count * parts + slots - 1, slots)
    if q.dtype == jnp.bfloat16:
        bound = jnp.sqrt(jnp.square(q.astype(jnp.float32)).sum(1)) * bound_ref[0]
        in_range = 2 * jnp.max(bound) <= FIXED_SHIFT_RANGE  # false for NaN
        top, fixed = jnp.where(in_range, bound, top), jnp.where(in_range, masked, 0)
    carry = cursor, jnp.zeros((rows, q.shape[1]), jnp.float32), top, jnp.zeros(rows, jnp.float32)
    # Loops that follow on each other share their buffers in shared memory; those of two branches do not.
    if q.dtype == jnp.bfloat16:
        carry = lax.fori_loop(0, fixed, partial(step, is_masked=False, is_fixed=True), carry)
    carry = lax.fori_loop(fixed, masked, partial(step, is_masked=False, is_fixed=False), carry)
    _, out, _, total = lax.fori_loop(masked, steps, partial(step, is_masked=True, is_fixed=False), carry)
    out = out / jnp.where(total == 0, 1.0, total)[:, None]  # a row that keeps nothing gives zeros
    plgpu.store(out_ref.at[row[:, None], feature], out.astype(out_ref.dtype), mask=in_tile)


def _lowest_bit(word: Array) -> Array:
    """Number of the lowest set bit of an i32; -1 for zero."""
    return 31 - lax.clz(word & -word)


def _exp2(x: Array) -> Array:
    """2 ** x by one instruction, for which a result below 2**-126 is zero; jnp.exp2 takes four."""
    instruction = "ex2.approx.ftz.f32 $0, $1;"
    [result] = plgpu.elementwise_inline_asm(
        instruction,
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return result
