"""Loops over a part of the frames or tokens at a time, so that what is computed on the way does not grow with
all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Arrays = tuple[Array, ...]
# (module, those of the buffers as they are, first index, how many) -> these entries of every buffer
Step = Callable[[Any, Arrays, Array | int, int], Arrays]


def take(x: Array, start: Array | int, size: int, axis: int = 1) -> Array:
    """x[..., start : start + size, ...] along `axis`; x itself where that is all of it."""
    return x if size == x.shape[axis] else jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def over_chunks(
    module: nn.Module,
    step: Step,
    buffers: Arrays,
    most: int,
    *,
    axis: int = 1,
    in_place: bool = False,
    remat: bool = False,
) -> Arrays:
    """`buffers` filled with what `step` computes of `most` of their entries along `axis` at a time.

    The last chunk overlaps the one before where they do not come out even. With `in_place` a step reads the
    buffers' own entries, which are written once then. With `remat` a derivative computes each chunk again
    instead of keeping it.
    """
    n = buffers[0].shape[axis]
    if most >= n:
        return step(module, buffers, 0, n)
    # Among the sizes near `most`, the one that computes the fewest entries twice.
    size = min(range(most, most // 2, -1), key=lambda c: -(-n // c) * c)
    starts = [min(i * size, n - size) for i in range(-(-n // size))]
    twice = len(starts) * size - n

    def body(module: nn.Module, buffers: Arrays, start: Array) -> tuple[Arrays, None]:
        found = step(module, buffers, start, size)
        if in_place and twice:
            last = start == n - size

            def fresh(new: Array, old: Array) -> Array:
                done = jnp.arange(size).reshape([-1 if i == axis else 1 for i in range(new.ndim)]) < twice
                return jnp.where(last & done, take(old, start, size, axis), new)

            found = tuple(fresh(new, old) for new, old in zip(found, buffers, strict=True))
        write = jax.lax.dynamic_update_slice_in_dim
        return tuple(write(old, new, start, axis) for old, new in zip(buffers, found, strict=True)), None

    scan = nn.scan(
        nn.remat(body, prevent_cse=False) if remat else body,
        variable_broadcast="params",
        variable_axes={"intermediates": 0},
        split_rngs={"params": False},
    )
    return scan(module, buffers, jnp.array(starts))[0]
