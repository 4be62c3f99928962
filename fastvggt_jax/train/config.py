"""What is trained, on what and how long. A configuration is a Python file whose `get_config()` returns a
`TrainConfig`.
"""

from __future__ import annotations

import dataclasses
import numbers
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.datasets.synthetic import SPLIT_SIZE
from fastvggt_jax.models.base import Model


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of batch: so many scenes of so many views of so many pixels. Of several kinds, each is drawn in
    proportion to its weight.
    """

    scenes: int
    frames: int
    height: int
    width: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_types(self)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every number of a training run. Peak learning rate and clipping are by default VGGT's (arXiv 2503.11651
    §3.4).

    Attributes:
      model: with its heads, its `dtype` of computing and whether it recomputes (`remat`); the loss is the one
        that it was published with. Parameters and optimizer are float32.
      shapes: the kinds of batches. Every kind is compiled once.
      steps: of the whole run, also where it was interrupted.
      learning_rate: at its peak, after `warmup_steps`; from there a cosine falls to `final_learning_rate`.
      weight_decay: of matrices alone. clip_norm: of the gradient. ema_decay: of the averaged weights, None
        for no average.
      init: a native weight file to start from, or a bundled model's name; None starts from random numbers.
      background: what confidence costs where nothing is, see `losses.loss` and `pi3_losses.loss`; 0 is
        VGGT's.
      pairs: weight of the translations between all pairs of cameras, see `losses.pair_loss`; 0 is VGGT's.
      layer_scale: of the blocks of a random start (CaiT, arXiv 2103.17239, starts networks of up to 18 blocks
        at 0.1).
      frozen: patterns of parameter names, '/'-joined as in the weight file, that stay as they are:
        "aggregator/patch_embed/*".
      query_points: points to track a scene, for a model with a track head.
      first_scene: number of the first scene, to go on where an earlier run's scenes ended.
      supersampling: rays a pixel and side.
      data: (step, shape) -> `data.Batch`, instead of rendered scenes. Steps below 0 are validation's.
      weights_dtype: "float32" or "bfloat16", of the weight file that is written at the end.
      log_every, validate_every, save_every: steps. validation_scenes: how many held-out scenes the loss is
        taken over, in whole batches of the first shape.
      shard_params: whether parameters, averages and optimizer are spread over the devices (FSDP), or only the
        scenes of a batch.
    """

    model: Model
    shapes: tuple[Shape, ...]
    steps: int
    learning_rate: float = 2e-4
    warmup_steps: int = 1000
    final_learning_rate: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float | None = 0.999
    init: str | None = None
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layer_scale: float = 0.1
    frozen: tuple[str, ...] = ()
    seed: int = 0
    query_points: int = 0
    first_scene: int = 0
    supersampling: int = 2
    data: Callable[[int, Shape], Any] | None = None
    weights_dtype: str = "float32"
    log_every: int = 50
    validate_every: int = 1000
    validation_scenes: int = 32
    save_every: int = 1000
    shard_params: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        if self.model.sparsity is not None:
            raise ValueError(
                f"the model's sparsity={self.model.sparsity} must be None: block-sparse attention has no gradient"
            )
        if not self.shapes:
            raise ValueError("shapes is empty: give at least one Shape(scenes, frames, height, width)")
        for shape in self.shapes:
            if min(dataclasses.astuple(shape)) <= 0:
                raise ValueError(f"{shape}: every number of a shape must be greater than 0")
            if shape.height % self.model.patch_size or shape.width % self.model.patch_size:
                raise ValueError(
                    f"{shape}: height and width must be multiples of the model's patch size {self.model.patch_size}"
                )
        for name in (
            "seed",
            "first_scene",
            "validation_scenes",
            "weight_decay",
            "final_learning_rate",
            "warmup_steps",
            "query_points",
            "layer_scale",
        ):
            if not getattr(self, name) >= 0:  # NaN too
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        for name in (
            "steps",
            "learning_rate",
            "clip_norm",
            "log_every",
            "validate_every",
            "save_every",
            "supersampling",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        if self.weights_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"weights_dtype={self.weights_dtype!r} must be 'float32' or 'bfloat16'")
        if self.first_scene_of(self.steps) > SPLIT_SIZE:
            raise ValueError(
                f"first_scene={self.first_scene} and {self.steps} steps lead beyond the last scene, number {SPLIT_SIZE - 1}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be less than steps={self.steps}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1), or None for no average")
        if ("track" in self.model.heads) != (self.query_points > 0):
            heads = ", ".join(self.model.heads)
            raise ValueError(
                f"query_points={self.query_points} does not fit the heads {heads}: a track head needs some, others none"
            )

    def shape_of(self, step: int) -> Shape:
        """The kind of batch of a step; the same for the same seed and step."""
        weights = np.array([shape.weight for shape in self.shapes])
        return self.shapes[
            np.random.default_rng((self.seed, step)).choice(len(weights), p=weights / weights.sum())
        ]

    def first_scene_of(self, step: int) -> int:
        """Number of the first scene of a step's batch. No scene comes twice."""
        return self.first_scene + step * max(shape.scenes for shape in self.shapes)


WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    type(None): "None",
    Model: "a model",
}


def _check_types(fields: Shape | TrainConfig) -> None:
    """Raises ValueError for a field that is not of the type that it is annotated with: a configuration is
    written by hand.
    """
    for name, hint in typing.get_type_hints(type(fields)).items():
        value = getattr(fields, name)
        if not any(_is_a(value, kind) for kind in _kinds(hint)):
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(_in_words, _kinds(hint)))}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_a(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(
            value, bool
        )
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(member, typing.get_args(kind)[0]) for member in value)
    return isinstance(value, typing.get_origin(kind) or kind)


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a tuple of {typing.get_args(kind)[0].__name__}"
    return WORDS.get(kind, "a function")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a Python file, with "field=value" put over it.

    Raises FileNotFoundError, or ValueError in a sentence: the file is no configuration, a field is unknown or
      its value wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; a training configuration is a Python file with get_config()"
        )
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if get_config is not None else None
    except Exception as error:  # a user's code: anything
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no configuration that works: {reason}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path} has no get_config() that returns a fastvggt_jax.train.TrainConfig")
    given = dict(_parse(text) for text in overrides)
    names = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.name not in ("model", "shapes", "data")
    ]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be set; what can: {', '.join(names)}")
    hints = typing.get_type_hints(TrainConfig)
    return dataclasses.replace(
        config, **{name: _as_type(name, value, hints[name]) for name, value in given.items()}
    )


def _parse(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} must be field=value, such as steps=1000")
    return name, value


def _as_type(name: str, text: str, hint: Any) -> Any:
    """The value that `text` is for a field of that type."""
    kinds = _kinds(hint)
    if type(None) in kinds and text in ("None", "none"):
        return None
    kind = kinds[0]
    if kind == tuple[str, ...]:
        return tuple(filter(None, text.split(",")))
    if kind is bool:
        words = {"true": True, "false": False}
        if text.lower() in words:
            return words[text.lower()]
        raise ValueError(f"{name}={text} must be true or false")
    try:
        number = float(text) if kind is int else None  # 1e5 is a whole number too
        return int(number) if number is not None and number.is_integer() and number < 1e15 else kind(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}={text} must be {_in_words(kind)}") from None
