"""Pi3X's loss: π³'s, which does not depend on the scale, and one of the metric factor. Upstream has published
neither its weight nor its form; this is the logarithm's error, as MoGe-2 has it (arXiv 2507.02546).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from fastvggt_jax.models.losses import pi3
from fastvggt_jax.models.prediction import Prediction

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array


def loss(
    prediction: Prediction, truth: Truth, background: float = 0.0, metric: float = 0.1
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum f32[] and its parts by name, unweighted.

    metric: weight of |log metric - log s|, where s brings the points, without the factor, nearest to the true
      ones in the truth's own unit, which is what the model learns to call a metre. 0, or the metric head off:
      there is no such part.
    """
    total, parts = pi3.loss(prediction, truth, background)
    if not metric or prediction.metric is None or prediction.local_points is None:
        return total, parts
    valid = truth.valid
    target, weight = pi3.targets(truth)
    points = jnp.where(valid[..., None], prediction.local_points, 0)
    points = jax.lax.stop_gradient(points / prediction.metric[:, None, None, None, None])
    wanted = jax.vmap(pi3.align_scale)(points, target, weight, valid)
    error = jnp.abs(jnp.log(prediction.metric) - jnp.log(jnp.maximum(wanted, 1e-6)))
    known = valid.any((1, 2, 3))
    parts["metric"] = jnp.where(known, error, 0).sum() / jnp.maximum(known.sum(), 1)
    return total + metric * parts["metric"], parts
