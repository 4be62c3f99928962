"""`Sparsity`: which blocks of global attention are kept. It changes the answer; how fast the answer comes is
not its business.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Collection
from typing import Any

import jax

from fastvggt_jax.errors import InputError
from pallas_kernels import BlockMask, pooled_block_mask

SPECIAL_KEYS = ("dense", "official")
POOLS = ("mean", "max")
ORDERS = ("raster", "hilbert")
# For VGGT's 24 layers, of which the first 9 need no more than their own frame: published to cost 0.15 AUC@30.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"sparse_ratio": 0.75, "frame_layers": tuple(range(9))},
    "quickest": {"sparse_ratio": 0.9, "frame_layers": tuple(range(9))},
}
Value = float | tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """Block-sparse global attention (arXiv 2509.07120; docs/method.md). Give `sparse_ratio`, `cdf_threshold`
    or both, or `frame_layers`.

    Attributes:
      sparse_ratio: ρ in [0, 1], the largest share of key blocks that a query block may drop. A tuple gives
        one value a layer.
      cdf_threshold: τ in [0, 1]; blocks are kept while their cumulative pooled probability is at most τ. It
        can only keep more than ρ does. A tuple gives one value a layer.
      block: (queries, keys) of a mask block; the paper's is (128, 64).
      special_keys: "dense" lets every patch query see every special (camera and register) key, as the paper
        says; "official" is the released code's rule, where the first special keys may share the last, partial
        patch block and be dropped with it.
      layers: global layers that are sparse (0-based); None = all but `frame_layers`. The others are dense.
      frame_layers: global layers whose patches attend within their frame alone, and whose special tokens to
        everything; for layers, usually the first, of which a model needs no more. Without ρ and τ the others
        are dense.
      pool: "mean" (the paper's) or "max" over the tokens of a block.
      order: "raster" or "hilbert", the order of a frame's patch tokens, hence what a block covers.

    A sparse model has no gradient: the method is for inference. Differentiating one raises
      NotImplementedError.

    Raises:
      InputError: a value outside the ranges above, or neither ρ nor τ.
    """

    sparse_ratio: Value = None
    cdf_threshold: Value = None
    block: tuple[int, int] = (128, 64)
    special_keys: str = "dense"
    layers: tuple[int, ...] | None = None
    frame_layers: tuple[int, ...] = ()
    pool: str = "mean"
    order: str = "raster"

    def __post_init__(self) -> None:
        if self.sparse_ratio is None and self.cdf_threshold is None and not self.frame_layers:
            text = "Sparsity needs sparse_ratio, cdf_threshold or both, e.g. Sparsity(sparse_ratio=0.5)"
            raise InputError(text, argument="sparse_ratio")
        for name in ("sparse_ratio", "cdf_threshold"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if getattr(self, name) == ():
                raise InputError(f"{name} is empty; give a number, or one for each layer", argument=name)
            for v in _values(getattr(self, name)):
                if not isinstance(v, numbers.Real) or not 0 <= v <= 1:  # NaN fails too
                    raise InputError(f"{name}={v} must lie in [0, 1]", argument=name)
        for name, options in (("special_keys", SPECIAL_KEYS), ("pool", POOLS), ("order", ORDERS)):
            if getattr(self, name) not in options:
                raise InputError(f"{name}={getattr(self, name)!r} must be one of {options}", argument=name)
        if not _are_ints(self.block) or len(self.block) != 2 or min(self.block) < 1:
            text = f"block={self.block} must be two positive integers (queries, keys)"
            raise InputError(text, argument="block")
        object.__setattr__(self, "block", tuple(int(b) for b in self.block))
        for name in ("layers", "frame_layers"):
            layers = getattr(self, name)
            if layers is None and name == "layers":
                continue
            if not _are_ints(layers) or min(layers, default=0) < 0:
                text = f"{name}={layers!r} must be a tuple of layer numbers counted from 0"
                raise InputError(text, argument=name)
            object.__setattr__(self, name, tuple(sorted({int(layer) for layer in layers})))
        both = sorted(set(self.layers or ()) & set(self.frame_layers))
        if both:
            text = f"frame_layers={self.frame_layers} and layers={self.layers} both have layer {both[0]}"
            raise InputError(text + _if_of_a_preset(self.frame_layers), argument="frame_layers")

    def check_depth(self, depth: int) -> None:
        """Raises InputError if a layer number or a tuple does not fit a model of `depth` global layers."""
        for name in ("layers", "frame_layers"):
            layers = getattr(self, name)
            if layers and layers[-1] >= depth:
                text = f"{name}={layers} names layer {layers[-1]}, the model has layers 0 to {depth - 1}"
                raise InputError(text + _if_of_a_preset(layers), argument=name)
        for name in ("sparse_ratio", "cdf_threshold"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != depth:
                text = f"{name} has {len(value)} values, the model has {depth} global layers"
                raise InputError(text, argument=name)

    def plan(self, depth: int) -> list[str]:
        """Of each global layer "dense", "sparse" or "frame"."""
        given = self.sparse_ratio is not None or self.cdf_threshold is not None
        sparse = (range(depth) if self.layers is None else self.layers) if given else ()
        return [
            "frame" if layer in self.frame_layers else "sparse" if layer in sparse else "dense"
            for layer in range(depth)
        ]

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
        **lengths: Any,
    ) -> BlockMask:
        """The blocks of one layer: of patch queries [B, T, N, H] and keys [B, L, N, H], see
        `pallas_kernels.pooled_block_mask`; `lengths` and `k_length` come where frames are filled up.

        What a subclass changes to choose otherwise, as the baseline of random blocks in evaluate/ablations.py
        does.
        """
        with jax.named_scope("block_mask"):
            return pooled_block_mask(
                q,
                k,
                keep_count=keep_count,
                cdf_threshold=cdf_threshold,
                block=self.block,
                kv_runs=kv_runs,
                pool=self.pool,
                **lengths,
            )


def _if_of_a_preset(layers: tuple[int, ...]) -> str:
    """Whose they are, for who has named no layers."""
    names = [name for name, fields in PRESETS.items() if fields["frame_layers"] == layers]
    return f" (as {' and '.join(names)} have them, for VGGT's 24 layers)" if names else ""


def _are_ints(values: object) -> bool:
    return isinstance(values, Collection) and all(isinstance(v, numbers.Integral) for v in values)


def _values(value: Value) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _per_layer(value: float | tuple[float, ...], depth: int) -> list[float]:
    return list(value) if isinstance(value, tuple) else [value] * depth


def parse_sparsity(text: str, block: tuple[int, int] = (128, 64), **fields: Any) -> Sparsity | None:
    """From "dense" (None, unless there are `frame_layers`), "0.5,0.9" (ρ, τ), "0.5" (ρ alone), ",0.9" (τ
    alone) or a name of PRESETS; `fields` are further ones, which go before a preset's.

    Raises InputError for anything else.
    """
    if text == "dense":
        return Sparsity(block=block, **fields) if fields.get("frame_layers") else None
    if text in PRESETS:
        return Sparsity(block=block, **PRESETS[text] | {name: v for name, v in fields.items() if v})
    try:
        values = [float(part) if part.strip() else None for part in text.split(",")]
        ratio, threshold = (*values, None)[:2] if len(values) < 3 else values
        return Sparsity(ratio, threshold, block, **fields)
    except ValueError as error:
        if isinstance(error, InputError) and error.argument in fields:
            raise
        form = "dense, or ρ and τ in [0, 1] as 0.5,0.9, or one of them as 0.5 or ,0.9, or "
        form += " or ".join(PRESETS)
        raise InputError(f"sparsity must be {form}; not {text!r}", argument="sparsity") from error


MOST_LAYERS = 1024


def parse_block(text: str) -> tuple[int, int]:
    """From "128x64" to (128, 64), queries and keys. Raises InputError."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"block must be queries x keys such as 128x64, not {text!r}", argument="block")
    return int(match[1]), int(match[2])


def parse_layers(text: str) -> tuple[int, ...]:
    """From "0-2,5" to (0, 1, 2, 5). Raises InputError."""
    layers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            form = "numbers and ranges such as 0-9,18-23"
            raise InputError(f"layers must be {form}, not {text!r}", argument="layers")
        if int(last or first) >= MOST_LAYERS:
            raise InputError(f"layers must be below {MOST_LAYERS}, not {text!r}", argument="layers")
        layers += range(int(first), int(last or first) + 1)
    return tuple(layers)
