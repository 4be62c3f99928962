"""Which global layers a scene needs: what becomes of cameras and depth without the attention of some (after
arXiv 2509.07120, Figure 5), or with that of their patches within frames, against the whole model, so that no
truth is needed.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from fastvggt_jax.analyze.attention import GLOBAL
from fastvggt_jax.errors import memory_errors
from fastvggt_jax.evaluate.ablations import some_layers
from fastvggt_jax.evaluate.metrics import abs_rel, depth_scale, pair_errors
from fastvggt_jax.models.base import Model
from fastvggt_jax.sparsity import Sparsity

Array = jax.Array
GROUP = 2  # layers of a group at least: each alone is told anyway


@dataclasses.dataclass(frozen=True)
class Change:
    """What the scene changes by without the attention of some global layers.

    layers: their numbers. group: "first", "middle" or "last" of several, "" of one.
    within_frames: whether they are `Sparsity.frame_layers` instead.
    rotation, direction: degrees, medians over all pairs of views of the angles between relative poses, see
      `evaluate.metrics.pair_errors`; None of a single view.
    depth: the mean of |depth - the whole model's| / the whole model's, after one scale for all views.
    """

    layers: tuple[int, ...]
    group: str
    within_frames: bool
    rotation: float | None
    direction: float | None
    depth: float


def without_layers(model: Model, params: Any, images: np.ndarray) -> list[Change]:
    """Each global layer alone, the first, the middle and the last sixth of them, and these within frames.

    images: u8 or float [1, F, H, W, 3]. The model runs dense, whatever its `sparsity`, and needs the heads
    of a reconstruction. A layer's attention is left out by its output projection, which is multiplied by
    zero: what comes before it passes on as it is, to the layer's MLP. So it is one program that runs for all
    of these, and one more for each group within frames. Raises OutOfMemoryError.
    """

    @partial(jax.jit, static_argnums=3)
    def run(params: Any, images: Array, kept: Array, sparsity: Sparsity | None) -> dict[str, Array]:
        alone: Any = model.clone(sparsity=sparsity, parent=None)
        said = model.reconstruction(alone.apply(_scaled(params, kept), images))
        surface = said.depth_conf[0] >= said.conf_floor
        return {"poses": said.cam_from_world[0], "depth": said.depth[0], "surface": surface}

    def scene(layers: tuple[int, ...], within_frames: bool = False) -> dict[str, np.ndarray]:
        kept = np.ones(model.depth, np.float32)
        kept[list(() if within_frames else layers)] = 0
        found = run(params, images, kept, Sparsity(frame_layers=layers) if within_frames else None)
        return {name: np.asarray(x, np.float64) for name, x in found.items()}

    groups: list[tuple[tuple[int, ...], str, bool]] = [((layer,), "", False) for layer in range(model.depth)]
    for within in (False, True):
        groups += [(layers, where, within) for where, layers in some_layers(model.depth, GROUP).items()]
    with memory_errors("take fewer photographs, or a smaller size"):
        whole = scene(())
        return [
            Change(layers, group, within, *_differences(scene(layers, within), whole))
            for layers, group, within in groups
        ]


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
