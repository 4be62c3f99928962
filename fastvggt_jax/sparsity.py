"""`Sparsity`: which blocks of global attention are kept. It changes the answer; how fast the answer comes is
not its business.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Collection

import jax

from pallas_kernels import BlockMask, pooled_block_mask

SPECIAL_KEYS = ("dense", "official")
POOLS = ("mean", "max")
ORDERS = ("raster", "hilbert")
Value = float | tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """Block-sparse global attention (arXiv 2509.07120; see the README). Give `sparse_ratio`, `cdf_threshold`
    or both.

    Attributes:
      sparse_ratio: ρ in [0, 1], the largest share of key blocks that a query block may drop. A tuple gives
        one value a layer.
      cdf_threshold: τ in [0, 1]; blocks are kept while their cumulative pooled probability is at most τ. It
        can only keep more than ρ does. A tuple gives one value a layer.
      block: (queries, keys) of a mask block; the paper's is (128, 64).
      special_keys: "dense" lets every patch query see every special (camera and register) key, as the paper
        says; "official" is the released code's rule, where the first special keys may share the last, partial
        patch block and be dropped with it.
      layers: global layers that are sparse (0-based); None = all. The others are dense.
      pool: "mean" (the paper's) or "max" over the tokens of a block.
      order: "raster" or "hilbert", the order of a frame's patch tokens, hence what a block covers.

    A sparse model has no gradient: the method is for inference. Differentiating one raises
      NotImplementedError.

    Raises:
      ValueError: a value outside the ranges above, or neither ρ nor τ.
    """

    sparse_ratio: Value = None
    cdf_threshold: Value = None
    block: tuple[int, int] = (128, 64)
    special_keys: str = "dense"
    layers: tuple[int, ...] | None = None
    pool: str = "mean"
    order: str = "raster"

    def __post_init__(self) -> None:
        if self.sparse_ratio is None and self.cdf_threshold is None:
            raise ValueError(
                "Sparsity needs sparse_ratio, cdf_threshold or both, e.g. Sparsity(sparse_ratio=0.5)"
            )
        for name in ("sparse_ratio", "cdf_threshold"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            for v in _values(getattr(self, name)):
                if not isinstance(v, numbers.Real) or not 0 <= v <= 1:  # NaN fails too
                    raise ValueError(f"{name}={v} must lie in [0, 1]")
        for name, options in (("special_keys", SPECIAL_KEYS), ("pool", POOLS), ("order", ORDERS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {options}")
        if not _are_ints(self.block) or len(self.block) != 2 or min(self.block) < 1:
            raise ValueError(f"block={self.block} must be two positive integers (queries, keys)")
        object.__setattr__(self, "block", tuple(int(b) for b in self.block))
        if self.layers is not None:
            if not _are_ints(self.layers) or min(self.layers, default=0) < 0:
                raise ValueError(f"layers={self.layers!r} must be a tuple of layer numbers counted from 0")
            object.__setattr__(self, "layers", tuple(sorted({int(layer) for layer in self.layers})))

    def check_depth(self, depth: int) -> None:
        """Raises ValueError if a layer number or a tuple does not fit a model of `depth` global layers."""
        if self.layers and self.layers[-1] >= depth:
            raise ValueError(
                f"layers={self.layers} names layer {self.layers[-1]}, the model has layers 0 to {depth - 1}"
            )
        for name in ("sparse_ratio", "cdf_threshold"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != depth:
                raise ValueError(f"{name} has {len(value)} values, the model has {depth} global layers")

    def is_sparse(self, depth: int) -> list[bool]:
        return [self.layers is None or layer in self.layers for layer in range(depth)]

    def keep_counts(self, num_kv_blocks: int, depth: int) -> list[int] | None:
        """n_ratio of each layer: int(nk · (1 − ρ)), truncated in double precision as in the released code."""
        if self.sparse_ratio is None:
            return None
        return [int(num_kv_blocks * (1 - ratio)) for ratio in _per_layer(self.sparse_ratio, depth)]

    def cdf_thresholds(self, depth: int) -> list[float] | None:
        return None if self.cdf_threshold is None else _per_layer(self.cdf_threshold, depth)

    def num_kv_blocks(self, patch_tokens: int) -> int:
        return math.ceil(patch_tokens / self.block[1])

    def block_mask(
        self,
        q: jax.Array,
        k: jax.Array,
        *,
        keep_count: jax.Array | int | None,
        cdf_threshold: jax.Array | float | None,
        kv_runs: tuple[int, ...],
    ) -> BlockMask:
        """The blocks of one layer: of patch queries [B, T, N, H] and keys [B, L, N, H], see
        `pallas_kernels.pooled_block_mask`.

        What a subclass changes to choose otherwise, as the baseline of random blocks in evaluate/ablations.py
        does.
        """
        how = dict(
            keep_count=keep_count,
            cdf_threshold=cdf_threshold,
            block=self.block,
            kv_runs=kv_runs,
            pool=self.pool,
        )
        return pooled_block_mask(q, k, **how)


def _are_ints(values: object) -> bool:
    return isinstance(values, Collection) and all(isinstance(v, numbers.Integral) for v in values)


def _values(value: Value) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _per_layer(value: float | tuple[float, ...], depth: int) -> list[float]:
    return list(value) if isinstance(value, tuple) else [value] * depth
