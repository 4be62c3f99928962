"""Named workloads: the shapes that are measured.

A workload is the patch queries of one global layer at batch 1: T = `patches` queries against S = `kv_len`
keys, the patch keys first and then, in a run of their own, the special keys. VGGT has 5 special tokens per
frame (camera + 4 register) and 16 heads × 64; the global blocks of π³ have the same numbers (5 register
tokens, width 1024), so its workloads are VGGT's.
"""

from __future__ import annotations

import dataclasses
import re

import jax

PATCH = 14  # pixels
SMALL_TOKENS, SMALL_HEADS = 2048, 2  # at which rows are compared with float32


@dataclasses.dataclass(frozen=True)
class Workload:
    """Attention of `frames` views of `height` × `width` pixels, multiples of 14; special tokens are counted
    per frame.
    """

    name: str
    frames: int
    height: int
    width: int
    num_special: int
    num_heads: int
    head_dim: int

    @property
    def patches(self) -> int:
        """L = T: patch tokens of all frames."""
        return self.frames * (self.height // PATCH) * (self.width // PATCH)

    @property
    def specials(self) -> int:
        """Special tokens of all frames."""
        return self.frames * self.num_special

    @property
    def kv_len(self) -> int:
        """S."""
        return self.patches + self.specials

    @property
    def kv_runs(self) -> tuple[int, ...]:
        """`BlockMask.kv_runs`: the patch keys, then the special keys if there are any."""
        return (self.patches, self.specials) if self.specials else (self.patches,)

    def reduced(self) -> Workload:
        """The same kind of workload at about `SMALL_TOKENS` tokens, or as many as one view has."""
        frames = max(1, SMALL_TOKENS // (self.patches // self.frames))
        heads = min(self.num_heads, SMALL_HEADS)
        return dataclasses.replace(self, frames=min(self.frames, frames), num_heads=heads)


def _plain(name: str, tokens: int, num_heads: int, head_dim: int) -> Workload:
    """T = S = tokens without special ones, written as that many frames of one patch."""
    return Workload(name, tokens, PATCH, PATCH, 0, num_heads, head_dim)


WORKLOADS = {
    work.name: work
    for work in (
        *(
            Workload(f"vggt_{n}_{h}x{w}", n, h, w, 5, 16, 64)
            for n in (10, 50, 100, 200, 500)
            for h, w in ((518, 518), (392, 518))
        ),
        _plain("square_65536", 65_536, 16, 64),
        _plain("square_137216", 137_216, 16, 64),
    )
}


def find(name: str) -> Workload:
    """The workload of that name, or a plain one from "TOKENSxHEADSxHEAD_DIM", as in "1024x2x64"; ValueError
    for anything else.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", name):
        return _plain(name, *map(int, name.split("x")))
    raise ValueError(
        f"no shape {name!r}: it is TOKENSxHEADSxHEAD_DIM, such as 1024x2x64, or one of {', '.join(WORKLOADS)}"
    )


def random_qkv(T: int, S: int, work: Workload, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [1, T, N, H] and k, v [1, S, N, H], normal."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, n, work.num_heads, work.head_dim), dtype)
        for key, n in zip(keys, (T, S, S), strict=True)
    )
    return q, k, v
