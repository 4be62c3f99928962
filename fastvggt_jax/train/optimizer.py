"""AdamW with warm-up and a cosine, clipped gradients, and parameters that stay frozen."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import optax

from fastvggt_jax.errors import InputError
from fastvggt_jax.train.config import TrainConfig


def learning_rates(config: TrainConfig) -> np.ndarray:
    """f32[steps]. They are given to the steps one by one, so that runs of other lengths or rates are the same
    program.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.final_learning_rate,
    )
    return np.asarray(schedule(np.arange(config.steps)), np.float32)


def trainable(params: Any, frozen: Sequence[str]) -> Any:
    """A tree like `params` of bool. Raises InputError for a pattern that fits no parameter, or if nothing is
    left to train.
    """
    names = list(flax.traverse_util.flatten_dict(params, sep="/"))
    for pattern in frozen:
        if not fnmatch.filter(names, pattern):
            text = f"frozen: no parameter is named like {pattern!r}; names are such as {names[0]}"
            raise InputError(text, argument="frozen")
    free = {name: not any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen) for name in names}
    if not any(free.values()):
        raise InputError(f"frozen={tuple(frozen)} leaves nothing to train", argument="frozen")
    return flax.traverse_util.unflatten_dict(free, sep="/")


def make_optimizer(config: TrainConfig, params: Any) -> optax.GradientTransformation:
    """AdamW without its learning rate: what it gives, times -rate, is the update. Of a tree of parameters, or
    of their shapes.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        optax.add_decayed_weights(config.weight_decay, mask=_matrices),
    )
    labels = jax.tree.map(lambda free: "trained" if free else "frozen", trainable(params, config.frozen))
    return optax.multi_transform({"trained": adamw, "frozen": optax.set_to_zero()}, labels)


def _matrices(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
