"""Random weights that keep activations alive, for benchmarks and tests."""

import math
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fastvggt_jax.models.base import Model

CAMERA_OUT = "camera_head/pose_branch/fc2"  # the last layer of a camera head that refines a pose encoding


def random_params(
    model: Model, seed: int = 0, dtype: DTypeLike = jnp.float32, stored: Callable[[str], Any] | None = None
) -> dict[str, Any]:
    """{"params": tree of arrays}, drawn so that activations neither die nor grow; `model.init` starts the
    tokens and the layer scales so near 0 that all cameras and depths would come out alike.

    dtype: of all; `stored` instead of each, by its name.
    """
    dtype_of = stored or (lambda _: dtype)
    specs = flax.traverse_util.flatten_dict(model.abstract_params()["params"], sep="/")
    keys = jax.random.split(jax.random.key(seed), len(specs))
    out = {
        name: _draw(name, spec.shape, key, dtype_of(name))
        for (name, spec), key in zip(specs.items(), keys, strict=True)
    }
    if CAMERA_OUT + "/bias" in out:
        # Upright cameras that differ little: iterations add up the last layer's output.
        out[CAMERA_OUT + "/kernel"] *= 0.02
        out[CAMERA_OUT + "/bias"] = jnp.array(
            [0, 0, 0, 0, 0, 0, 0.25, 0.2, 0.25], dtype_of(CAMERA_OUT + "/bias")
        )
    return {"params": flax.traverse_util.unflatten_dict(out, sep="/")}


def _draw(name: str, shape: tuple[int, ...], key: jax.Array, dtype: DTypeLike) -> jax.Array:
    *parents, leaf = name.split("/")
    draw = _normal(key, shape, dtype)
    if leaf == "kernel":
        # The last axis counts the outputs and a scanned stack's first one the layers; the rest is the fan-in.
        stacked = any(part == "trunk" or part.endswith("blocks") for part in parents)
        scale = math.prod(shape[int(stacked) : -1]) ** -0.5
    else:
        scale = 0.1 if leaf in ("scale", "gamma", "bias") else 0.5
    scaled = draw * np.asarray(scale, dtype)
    return jnp.asarray(scaled + np.asarray(1, dtype) if leaf in ("scale", "gamma") else scaled)


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray | jax.Array:
    """jax.random.normal, whose n-th number is the same in every shape: few lengths are few programs to
    compile, which takes most of a small model's time."""
    size = math.prod(shape)
    if size > 2**20:
        return jax.random.normal(key, shape, dtype)
    length = max(1024, 1 << (size - 1).bit_length())
    return np.asarray(jax.random.normal(key, (length,), dtype))[:size].reshape(shape)
