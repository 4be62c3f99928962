"""Which global layers a scene needs: what becomes of cameras and depth without the attention of some (after
arXiv 2509.07120, Figure 5), against the whole model, so that no truth is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fastvggt_jax.analyze.attention import GLOBAL
from fastvggt_jax.errors import memory_errors
from fastvggt_jax.evaluate.ablations import some_layers
from fastvggt_jax.evaluate.metrics import abs_rel, depth_scale, pair_errors
from fastvggt_jax.models.base import Model

Array = jax.Array
GROUP = 2  # layers of a group at least: each alone is told anyway


@dataclasses.dataclass(frozen=True)
class Change:
    """What the scene changes by without the attention of some global layers.

    layers: their numbers. group: "first", "middle" or "last" of several, "" of one.
    rotation, direction: degrees, medians over all pairs of views of the angles between relative poses, see
      `evaluate.metrics.pair_errors`; None of a single view.
    depth: the mean of |depth - the whole model's| / the whole model's, after one scale for all views.
    """

    layers: tuple[int, ...]
    group: str
    rotation: float | None
    direction: float | None
    depth: float


def without_layers(model: Model, params: Any, images: np.ndarray) -> list[Change]:
    """Each global layer alone, then the first, the middle and the last sixth of them.

    images: u8 or float [1, F, H, W, 3]. The model runs dense, whatever its `sparsity`, and needs the heads
    of a reconstruction. A layer's attention is left out by its output projection, which is multiplied by
    zero: what comes before it passes on as it is, to the layer's MLP. So it is one program that runs for all.
    Raises OutOfMemoryError.
    """
    alone: Any = model.clone(sparsity=None, parent=None)

    @jax.jit
    def run(params: Any, images: Array, kept: Array) -> dict[str, Array]:
        said = model.reconstruction(alone.apply(_scaled(params, kept), images))
        surface = said.depth_conf[0] >= said.conf_floor
        return {"poses": said.cam_from_world[0], "depth": said.depth[0], "surface": surface}

    def scene(layers: Iterable[int]) -> dict[str, np.ndarray]:
        kept = np.ones(model.depth, np.float32)
        kept[list(layers)] = 0
        return {name: np.asarray(x, np.float64) for name, x in run(params, images, kept).items()}

    groups: list[tuple[tuple[int, ...], str]] = [((layer,), "") for layer in range(model.depth)]
    groups += [(layers, where) for where, layers in some_layers(model.depth, GROUP).items()]
    with memory_errors("take fewer photographs, or a smaller size"):
        whole = scene(())
        return [Change(layers, group, *_differences(scene(layers), whole)) for layers, group in groups]


def _scaled(params: Any, kept: Array) -> Any:
    """The parameters with the output of each global layer's attention times one of kept f32[layers]."""

    def scaled(path: tuple[Any, ...], x: Array) -> Array:
        names = [getattr(part, "key", None) for part in path]
        if GLOBAL not in names or names[-3:-1] != ["attn", "proj"]:
            return x
        return x * kept.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    return jax.tree_util.tree_map_with_path(scaled, params)


def _differences(
    some: dict[str, np.ndarray], whole: dict[str, np.ndarray]
) -> tuple[float | None, float | None, float]:
    rotation, direction = pair_errors(some["poses"], whole["poses"])
    angles = (float(np.median(rotation)), float(np.median(direction))) if len(rotation) else (None, None)
    ahead = whole["depth"] > 0
    seen = ahead & (whole["surface"] > 0)
    seen = seen if seen.any() else ahead  # a model that is sure of nothing
    depth, true = some["depth"][seen], whole["depth"][seen]
    return *angles, abs_rel(depth_scale(depth, true) * depth, true) if len(true) else 0.0
