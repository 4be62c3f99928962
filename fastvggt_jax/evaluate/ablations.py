"""The paper's ablations (arXiv 2509.07120 §4 and appendix) as a list of configurations, and its baseline of
random blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fastvggt_jax.errors import InputError
from fastvggt_jax.sparsity import Sparsity
from pallas_kernels import BlockMask

POINTS = (
    (0.1, 0.97),
    (0.6, 0.93),
    (0.5, 0.9),
    (0.5, 0.8),
    (0.5, 0.7),
    (0.6, 0.4),
    (0.8, 0.4),
)  # (ρ, τ) that the authors print
THREE = ((0.5, 0.9), (0.5, 0.7), (0.8, 0.4))  # a low, a middle and a high one of them
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)
THRESHOLDS = (0.97, 0.9, 0.7, 0.5, 0.3)
DROPPED_SHARE = 1 / 6  # of the global layers: 4 of VGGT's 24
# Of the global layers, the first ones, that attend within frames: 4, 9 and 12 of VGGT's 24.
FRAME_SHARES = (1 / 6, 3 / 8, 1 / 2)
DENSE = "dense"
RELEASED = "special keys as released"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """How the model runs. family: what it is a point of, a line in the plot. sparsity: None = dense."""

    family: str
    name: str
    sparsity: Sparsity | None

    @property
    def label(self) -> str:
        """Of one configuration only: the same point of two families is two."""
        return self.name if self.name == self.family else f"{self.family}: {self.name}"


@dataclasses.dataclass(frozen=True)
class RandomBlocks(Sparsity):
    """The baseline that must lose: every row keeps as many patch blocks as the method would, but any of them.

    Special queries and keys are treated as in the method, so of the same queries and keys the density is the
    same, row by row. The draw follows from the queries to the last bit: each layer and batch has another one,
    and so has another device.
    """

    def block_mask(self, q: jax.Array, k: jax.Array, **how: Any) -> BlockMask:
        if "lengths" in how:
            raise InputError("random blocks are drawn among all: leave frames out", argument="frames")
        mask = super().block_mask(q, k, **how)
        key = jax.random.key(jax.lax.bitcast_convert_type(q.astype(jnp.float32).sum(), jnp.uint32))
        patches = self.num_kv_blocks(k.shape[1])
        kept = mask.to_dense()  # [B, N, Tb, Sb]
        shuffled = jax.random.permutation(key, kept[..., :patches], -1, independent=True)
        return BlockMask.from_dense(
            jnp.concatenate([shuffled, kept[..., patches:]], -1), mask.q_len, mask.kv_runs, mask.block
        )


def ablations(
    depth: int, block: tuple[int, int], patches: int, only: Collection[str] | None = None
) -> list[Configuration]:
    """All of them for a model of `depth` global layers on so many patches in all views, or those of some
    families; dense is the first.

    Special keys as released are the same function where the patches fill whole blocks of keys, and are left
    out there unless asked for. InputError for a family that there is not.
    """

    def both(points: Sequence[tuple[float, float]], kind: type[Sparsity] = Sparsity, **fields: Any) -> list:
        return [kind(ratio, threshold, block, **fields) for ratio, threshold in points]

    families = {
        DENSE: [None],
        "ρ and τ": both(POINTS),
        "ρ alone": [Sparsity(ratio, None, block) for ratio in RATIOS],
        "τ alone": [Sparsity(None, threshold, block) for threshold in THRESHOLDS],
        "random blocks": both(POINTS, RandomBlocks),
        RELEASED: both(THREE, special_keys="official"),
        "Hilbert order": both(THREE, order="hilbert"),
        "max pooling": both(THREE, pool="max"),
    }
    found = [
        Configuration(family, describe(sparsity), sparsity)
        for family, members in families.items()
        for sparsity in members
    ]
    for where, layers in some_layers(depth).items():
        found.append(
            Configuration(
                f"{where} layers", f"ρ 1 in {_span(layers)}", Sparsity(1.0, None, block, layers=layers)
            )
        )
    for count in sorted({max(1, round(share * depth)) for share in FRAME_SHARES}):
        layers = tuple(range(count))
        label = f"{_span(layers)} within frames"
        found.append(Configuration("frame layers", label, Sparsity(block=block, frame_layers=layers)))
    known = dict.fromkeys(configuration.family for configuration in found)
    unknown = [family for family in only or () if family not in known]
    if unknown:
        text = f"family must be one of {', '.join(known)}; not {unknown[0]!r}"
        raise InputError(text, argument="family")
    chosen = (
        (DENSE, *only) if only else [family for family in known if family != RELEASED or patches % block[1]]
    )
    return [configuration for configuration in found if configuration.family in chosen]


def some_layers(depth: int, least: int = 1) -> dict[str, tuple[int, ...]]:
    """The first, middle and last sixth of the global layers, at least `least` each where there are so many.

    With ρ = 1 a query block there keeps its best key block and the special keys: as much as the method can
    drop.
    """
    count = min(max(least, round(depth * DROPPED_SHARE)), depth)
    starts = {"first": 0, "middle": (depth - count) // 2, "last": depth - count}
    return {where: tuple(range(start, start + count)) for where, start in starts.items()}


def configuration(sparsity: Sparsity | None) -> Configuration:
    """A sparsity that was chosen by hand, in the family that it belongs to."""
    if sparsity is None:
        return Configuration(DENSE, DENSE, None)
    ratio, threshold = sparsity.sparse_ratio, sparsity.cdf_threshold
    family = "ρ alone" if threshold is None else "τ alone" if ratio is None else "ρ and τ"
    return Configuration(family, describe(sparsity), sparsity)


def describe(sparsity: Sparsity | None) -> str:
    if sparsity is None:
        return DENSE
    values = (("ρ", sparsity.sparse_ratio), ("τ", sparsity.cdf_threshold))
    return " ".join(f"{letter} {value:g}" for letter, value in values if value is not None)


def _span(layers: tuple[int, ...]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
