"""Every model in tiny, for tests and for whoever tries a program without its weights."""

from pathlib import Path
from typing import Any

from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.models.base import Model
from fastvggt_jax.testing.random_weights import random_params


def tiny_model(name: str = "vggt", **fields: Any) -> Model:
    """The model of that name in the registry with its `tiny` numbers, changed by `fields`."""
    cls = registry.find(name)
    return cls(**{**cls.tiny, **fields})


def write_random_weights(path: Path, model_name: str = "vggt", *, seed: int = 0, **fields: Any) -> None:
    """Writes a native weight file of `tiny_model(model_name, **fields)` with `random_params`."""
    model, source = tiny_model(model_name, **fields), f"random numbers, seed {seed}"
    save_params(path, random_params(model, seed), model, source=source, license="none needed")
