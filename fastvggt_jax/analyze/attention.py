"""Exact attention probabilities of a model's global layers, summed up as they are computed: a few queries
at a time, so that no matrix of all pairs is ever in memory (after arXiv 2509.07120, Figures 1, 3 and 4).

Tokens are taken together in groups: the special tokens of a frame are one, its patches one for each cell of a
coarse grid. Of every pair of groups the mean and the largest probability are kept, for each head. The model
runs dense, whatever its `sparsity`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax.errors import InputError, memory_errors
from fastvggt_jax.models.base import Model
from fastvggt_jax.models.vit import Attention
from fastvggt_jax.profile import kernel_times, operation_names, times_of_parts
from fastvggt_jax.sparsity import Sparsity

Array = jax.Array
LOGITS_BYTES = 256 * 2**20  # of a few queries' probabilities of all heads
GROUPS = 160  # of patches, about, at most; but one for each frame
GLOBAL = "global_blocks"  # in the path of the modules whose attention it is


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which tokens are taken together: of T tokens, F frames of `special` tokens and h x w patches.

    of: i32[T], each token's group; the first F groups are the frames' special tokens, then come the cells of
      the first frame's patches row by row, then of the second's.
    cells: (rows, columns) of a frame's.
    """

    of: np.ndarray
    frames: int
    special: int
    grid: tuple[int, int]
    cells: tuple[int, int]

    @property
    def count(self) -> int:
        return self.frames * (1 + self.cells[0] * self.cells[1])

    @classmethod
    def make(cls, frames: int, special: int, grid: tuple[int, int], most: int = GROUPS) -> Groups:
        side = max(1, math.isqrt(max(most // frames, 1)))
        cells = min(side, grid[0]), min(side, grid[1])
        y, x = (np.arange(n) * c // n for n, c in zip(grid, cells, strict=True))
        cell = (y[:, None] * cells[1] + x).reshape(-1)
        frame = np.arange(frames)[:, None]
        patches = frames + frame * cells[0] * cells[1] + cell
        of = np.concatenate([np.repeat(frame, special, 1), patches], 1)
        return cls(of.reshape(-1).astype(np.int32), frames, special, grid, cells)

    def token(self, frame: int, y: int, x: int) -> int:
        """The number of a patch's token."""
        return frame * (self.special + self.grid[0] * self.grid[1]) + self.special + y * self.grid[1] + x

    def patches(self, of_tokens: np.ndarray) -> np.ndarray:
        """[..., T] -> [..., F, h, w], the patches' alone."""
        x = of_tokens.reshape(*of_tokens.shape[:-1], self.frames, -1)[..., self.special :]
        return x.reshape(*x.shape[:-1], *self.grid)


@dataclasses.dataclass(frozen=True)
class Observed:
    """What was seen of L layers of N heads and G groups.

    layers: their numbers. mean, maximum: f32[L, N, G, G], of the probabilities of all pairs of a token of the
      first and one of the second group. row: f32[L, N, T], what the chosen patch attends to.
    kept: bool[L, N, F, h, w], which patches a sparse model would let it attend to, or None.
    """

    layers: tuple[int, ...]
    groups: Groups
    mean: np.ndarray
    maximum: np.ndarray
    row: np.ndarray
    kept: np.ndarray | None = None

    def pairs(self) -> dict[str, dict[str, list[float]]]:
        """Of special and patch queries and keys, by layer the mean and the largest of all heads."""
        count = np.bincount(self.groups.of, minlength=self.groups.count).astype(np.float64)
        kinds = {"special": slice(0, self.groups.frames), "patch": slice(self.groups.frames, None)}
        found: dict[str, dict[str, list[float]]] = {}
        for query, of_query in kinds.items():
            for key, of_key in kinds.items():
                weights = count[of_query, None] * count[None, of_key]
                if not weights.sum():  # a model without special tokens
                    continue
                mean = (self.mean[:, :, of_query, of_key] * weights).sum((2, 3)) / weights.sum()
                highest = self.maximum[:, :, of_query, of_key].max((1, 2, 3))
                found[f"{query} to {key}"] = {"mean": mean.mean(1).tolist(), "maximum": highest.tolist()}
        return found

    def matches(self, frame: int, most: int = 8) -> list[list[dict[str, Any]]]:
        """By layer the strongest patches of other frames for the chosen patch, which is of this frame: the
        means of all heads.
        """
        found = []
        for row in self.groups.patches(self.row.mean(1)):  # [F, h, w]
            others = row.copy()
            others[frame] = -1
            best = np.argsort(-others, axis=None, kind="stable")[:most]
            places = zip(*np.unravel_index(best, others.shape), strict=True)
            of_layer = [
                {"frame": int(f), "y": int(y), "x": int(x), "probability": float(others[f, y, x])}
                for f, y, x in places
                if f != frame
            ]
            found.append(of_layer)
        return found


def grouped_attention(
    q: Array, k: Array, group: Array, groups: int, rows: int | None = None
) -> tuple[Array, Array]:
    """(mean, maximum) f32[N, G, G] of softmax(q kᵀ / sqrt(H)) over all pairs of two groups.

    q, k: [T, N, H]. group: i32[T]. rows: queries at a time; None: as many as LOGITS_BYTES hold.
    """
    T, N, H = q.shape
    rows = min(T, rows or max(1, LOGITS_BYTES // (8 * N * T)))
    steps = -(-T // rows)
    q, k = q.astype(jnp.float32) * H**-0.5, k.astype(jnp.float32)
    q = jnp.pad(q, ((0, steps * rows - T), (0, 0), (0, 0))).reshape(steps, rows, N, H)
    of = jnp.pad(group, (0, steps * rows - T), constant_values=groups).reshape(steps, rows)

    def step(carry: tuple[Array, Array], some: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        total, highest = carry  # [G + 1, G, N], the last for what is no query
        few, of_few = some
        p = jax.nn.softmax(jnp.einsum("tnh,snh->tns", few, k, precision="highest"), -1)
        p = jnp.moveaxis(p, 2, 0)  # [T, rows, N]
        of_key = partial(jax.ops.segment_sum, segment_ids=group, num_segments=groups)
        sums = jnp.swapaxes(of_key(p), 0, 1)  # [rows, G, N]
        most = jnp.swapaxes(jax.ops.segment_max(p, group, groups), 0, 1)
        return (total.at[of_few].add(sums), highest.at[of_few].max(most)), None

    start = jnp.zeros((groups + 1, groups, N), jnp.float32)
    (total, highest), _ = jax.lax.scan(step, (start, start), (q, of))
    count = jnp.maximum(jnp.bincount(group, length=groups), 1).astype(jnp.float32)
    mean = total[:groups] / (count[:, None, None] * count[:, None])
    return jnp.moveaxis(mean, 2, 0), jnp.moveaxis(highest[:groups], 2, 0)


def observe(
    model: Model,
    params: Any,
    images: np.ndarray,
    *,
    patch: tuple[int, int, int] = (0, 0, 0),
    layers: Sequence[int] | None = None,
    sparsity: Sparsity | None = None,
    groups: int = GROUPS,
    rows: int | None = None,
) -> Observed:
    """Run the model once and keep what its global layers attend to.

    images: u8 or float [1, F, H, W, 3]. patch: (frame, row, column) of the one whose matches are kept.
    layers: which are kept; None: all. sparsity: of which the kept patches are told, with one ρ and τ for all
      its sparse layers. groups, rows: see `Groups.make` and `grouped_attention`.
    Raises InputError for a patch or a layer that is not there, or a sparsity of other layers;
    OutOfMemoryError.
    """
    _, frames, height, width, _ = images.shape
    side = model.image_policy.patch
    of = Groups.make(frames, model.num_special, (height // side, width // side), groups)
    for value, name, end in zip(patch, ("frame", "row", "column"), (frames, *of.grid), strict=True):
        if not 0 <= value < end:
            text = f"patch {','.join(map(str, patch))} has {name} {value}, there are 0 to {end - 1}"
            raise InputError(text, argument="patch")
    chosen = tuple(range(model.depth)) if layers is None else tuple(sorted(set(layers)))
    if wrong := [layer for layer in chosen if not 0 <= layer < model.depth]:
        text = f"layers has {wrong[0]}, the model has layers 0 to {model.depth - 1}"
        raise InputError(text, argument="layers")
    plan = None
    if sparsity is not None:
        if any(isinstance(x, tuple) for x in (sparsity.sparse_ratio, sparsity.cdf_threshold)):
            raise InputError("sparsity must have one ρ and one τ for all layers", argument="sparsity")
        sparsity.check_depth(model.depth)
        plan = [sparsity.plan(model.depth)[layer] for layer in chosen]
    look = partial(_look, of, of.token(*patch), sparsity if plan and "sparse" in plan else None, rows)
    alone: Any = model.clone(sparsity=None, parent=None)

    @jax.jit
    def run(params: Any, images: Array) -> dict[str, Array]:
        with nn.intercept_methods(_interceptor(look)):
            _, seen = alone.apply(params, images, mutable=["intermediates"])
        (found,) = _found(seen)
        return {name: x[jnp.array(chosen)] for name, x in found.items()}

    with memory_errors("take fewer photographs, or a smaller size"):
        seen = {name: np.asarray(x) for name, x in run(params, images).items()}
    kept = None
    if plan is not None and sparsity is not None:
        kept = np.ones((len(chosen), seen["row"].shape[1], frames, *of.grid), bool)
        for layer, kind in enumerate(plan):
            if kind == "frame":
                kept[layer] = (np.arange(frames) == patch[0])[:, None, None]
            elif kind == "sparse":  # a block may reach from one frame into the next
                patches = np.repeat(seen["kept"][layer], sparsity.block[1], -1)
                kept[layer] = patches[:, : kept[layer, 0].size].reshape(kept[layer].shape)
    return Observed(chosen, of, seen["mean"], seen["maximum"], seen["row"], kept)


def _look(
    groups: Groups, token: int, sparsity: Sparsity | None, rows: int | None, q: Array, k: Array
) -> dict[str, Array]:
    """Of one layer's queries and keys [1, T, N, H]."""
    mean, maximum = grouped_attention(q[0], k[0], jnp.asarray(groups.of), groups.count, rows)
    one = q[0, token].astype(jnp.float32) * q.shape[-1] ** -0.5
    logits = jnp.einsum("nh,snh->ns", one, k[0].astype(jnp.float32), precision="highest")
    found = {"mean": mean, "maximum": maximum, "row": jax.nn.softmax(logits, -1)}
    if sparsity is None:
        return found
    frames, special, patches = groups.frames, groups.special, groups.grid[0] * groups.grid[1]
    some = [
        x.reshape(1, frames, -1, *x.shape[2:])[:, :, special:].reshape(1, -1, *x.shape[2:]) for x in (q, k)
    ]
    counts = sparsity.keep_counts(sparsity.num_kv_blocks(frames * patches), 1)
    thresholds = sparsity.cdf_thresholds(1)
    mask = sparsity.block_mask(
        *some,
        keep_count=None if counts is None else counts[0],
        cdf_threshold=None if thresholds is None else thresholds[0],
        kv_runs=(frames * patches,),
    )
    frame, rest = divmod(token, special + patches)
    query_block = (frame * patches + rest - special) // sparsity.block[0]
    return found | {"kept": mask.to_dense()[0, :, query_block]}


def _interceptor(look: Callable[[Array, Array], dict[str, Array]]) -> Any:
    """Of `nn.intercept_methods`: lets global layers attend as they do, and keeps what `look` sees."""

    def intercept(next_one: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if (
            not isinstance(module, Attention)
            or context.method_name != "__call__"
            or GLOBAL not in module.path
        ):
            return next_one(*args, **kwargs)
        x, rope, attend = args

        def watched(q: Array, k: Array, v: Array) -> Array:
            module.sow("intermediates", "seen", look(q, k), init_fn=dict, reduce_fn=lambda _, new: new)
            return attend(q, k, v)

        return next_one(x, rope, watched, **kwargs)

    return intercept


def _found(tree: Any) -> list[dict[str, Array]]:
    """What was kept, wherever in the tree."""
    if not isinstance(tree, dict):
        return []
    return [tree["seen"]] if "seen" in tree else [one for value in tree.values() for one in _found(value)]


def check_views(counts: Sequence[int], views: int) -> None:
    """Raises InputError for a number of views that there are not."""
    if wrong := [count for count in counts if not 1 <= count <= views]:
        raise InputError(f"views has {wrong[0]}, there are 1 to {views}", argument="views")


def runtime_shares(
    model: Model, params: Any, images: np.ndarray, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """For each number of views the seconds that each part of one run takes on the default device, as
    `fastvggt_jax.profile` tells them apart; on a GPU call its `name_kernels` first. Raises InputError for
    more views than there are, and OutOfMemoryError.
    """
    check_views(counts, images.shape[1])
    rows = []
    for count in counts:
        some = jnp.asarray(images[:, :count])
        with memory_errors("take fewer photographs, or a smaller size"):
            step = jax.jit(model.apply).lower(params, some).compile()
            jax.block_until_ready(step(params, some))
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    jax.block_until_ready(step(params, some))
                kernels = kernel_times(Path(folder))
        rows.append({"views": count, "parts": times_of_parts(kernels, operation_names(step.as_text() or ""))})
    return rows
