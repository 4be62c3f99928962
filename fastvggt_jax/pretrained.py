"""Models with their weights, by the name of a file or of what comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastvggt_jax.errors import InputError, MissingError, WeightsError
from fastvggt_jax.io.tensors import compare_shapes
from fastvggt_jax.io.weights import WeightFile, abstract_tensors, open_weights, read_tensors
from fastvggt_jax.models import registry
from fastvggt_jax.models.base import Model


class Bundled(NamedTuple):
    """A model that comes with the package. block: (queries, keys) of sparse attention that suits its size."""

    path: Path
    block: tuple[int, int]


BUNDLED = {"mini": Bundled(Path(__file__).parent / "bundled" / "mini.safetensors", (64, 32))}


def from_pretrained(
    name: str | Path,
    *,
    param_dtype: jax.typing.DTypeLike | None = None,
    heads: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Model, dict[str, Any]]:
    """Builds the model of a native weight file and loads its parameters onto the default device.

    name: a file, or "mini" for the model that comes with the package.
    param_dtype: float32 or bfloat16 casts the parameters on load; None keeps the stored one.
    heads: the heads to load, out of the model's `heads`; None means all in the file. The tensors of the others are not
      read.
    options: further fields of the model that say how it is run, such as `dtype` (of its matrix products) and
      `sparsity`.
    Tensors are read one by one, so the host holds no second copy.

    Returns (model, params) for `model.apply(params, images)`.
    Raises MissingError; WeightsError if the file is damaged, not native, of a newer version or of another model, or if
    names or shapes are not the model's; InputError for a head that the file does not have.
    """
    weights = open_weights(weight_file(name))
    model = _model(weights).clone(**options)
    for argument, dtype in (("param_dtype", param_dtype), ("dtype", model.dtype)):
        if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
            text = f"{argument} must be a floating-point type such as bfloat16 or float32, not {dtype}"
            raise InputError(text, argument=argument)
    wanted = {name: spec.shape for name, spec in abstract_tensors(model).items()}
    text = compare_shapes(weights.shapes, wanted)
    if text:
        raise WeightsError(f"{name} does not fit its model {type(model).__name__}: {text}")
    names = list(wanted)
    if heads is not None:
        absent = [head for head in heads if head not in model.heads]
        if absent:
            text = f"{name} has no {', '.join(absent)} head; it has {', '.join(model.heads)}"
            raise InputError(text, argument="heads")
        left_out = [head for head in model.heads if head not in heads]
        unread = tuple(prefix for head in left_out for prefix in model.head_parameters(head))
        names = [name for name in names if not name.startswith(unread)]
        model = model.clone(heads=tuple(head for head in model.heads if head in heads))
    return model, {"params": read_tensors(weights.file, names, param_dtype)}


def read_model(name: str | Path) -> Model:
    """The model of a native weight file, without its parameters. Takes and raises what `from_pretrained` does."""
    return _model(open_weights(weight_file(name)))


def recommended_block(name: str | Path) -> tuple[int, int]:
    """(queries, keys) of a block of sparse attention: a bundled model's own, else the method's."""
    return BUNDLED[str(name)].block if str(name) in BUNDLED else (128, 64)


def weight_file(name: str | Path) -> Path:
    """The file itself, or that of a bundled model's name. Raises MissingError."""
    path = BUNDLED[str(name)].path if str(name) in BUNDLED else Path(name)
    if not path.exists():
        text = f"{path}: no such weight file; bundled is {', '.join(BUNDLED)}"
        raise MissingError(f"{text} (an official checkpoint must be converted first)")
    return path


def _model(weights: WeightFile) -> Model:
    try:
        cls = registry.find(weights.model)
    except InputError as error:
        known = ", ".join(registry.names())
        text = f"{weights.path} holds the model {weights.model!r}; this fastvggt_jax knows {known}"
        raise WeightsError(text) from error
    try:
        return cls.from_config(weights.config)
    except InputError as error:
        raise WeightsError(f"{weights.path} has no usable config: {error}") from error
