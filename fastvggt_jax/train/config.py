"""What is trained, on what and how long. A configuration is a Python file whose `get_config()` returns a `TrainConfig`."""

from __future__ import annotations

import ast
import dataclasses
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.models.vggt import VGGT


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of batch: so many scenes of so many views of so many pixels. Of several kinds, each is drawn in proportion to its weight."""

    scenes: int
    frames: int
    height: int
    width: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every number of a training run. The defaults are VGGT's (arXiv 2503.11651 §3.4) where it says them.

    Attributes:
      model: with its heads, its `dtype` of computing and whether it recomputes (`remat`). Parameters and optimizer are float32.
      shapes: the kinds of batches. Every kind is compiled once.
      steps: of the whole run, also where it was interrupted.
      learning_rate: at its peak, after `warmup_steps`; from there a cosine falls to `final_learning_rate`.
      weight_decay: of matrices alone. clip_norm: of the gradient. ema_decay: of the averaged weights, None for no average.
      init: a native weight file to start from; None starts from random numbers.
      layer_scale: of the blocks of a random start (CaiT, arXiv 2103.17239, starts networks of up to 18 blocks at 0.1).
      frozen: patterns of parameter names, '/'-joined as in the weight file, that stay as they are: "aggregator/patch_embed/*".
      query_points: points to track a scene, for a model with a track head.
      first_scene: number of the first scene, to go on where an earlier run's scenes ended.
      supersampling: rays a pixel and side.
      data: (step, shape) -> `data.Batch`, instead of rendered scenes.
      log_every, validate_every, save_every: steps. validation_scenes: how many held-out scenes the loss is taken over.
      shard_params: whether parameters, averages and optimizer are spread over the devices (FSDP), or only the scenes of a batch.
    """

    model: VGGT
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
    layer_scale: float = 0.1
    frozen: tuple[str, ...] = ()
    seed: int = 0
    query_points: int = 0
    first_scene: int = 0
    supersampling: int = 2
    data: Callable[[int, Shape], Any] | None = None
    log_every: int = 50
    validate_every: int = 1000
    validation_scenes: int = 32
    save_every: int = 1000
    shard_params: bool = False

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("shapes is empty: give at least one Shape(scenes, frames, height, width)")
        for shape in self.shapes:
            if min(dataclasses.astuple(shape)) <= 0:
                raise ValueError(f"{shape}: every number of a shape must be greater than 0")
            if shape.height % self.model.patch_size or shape.width % self.model.patch_size:
                raise ValueError(f"{shape}: height and width must be multiples of the model's patch size {self.model.patch_size}")
        for name in ("steps", "learning_rate", "clip_norm", "log_every", "validate_every", "save_every", "supersampling"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be less than steps={self.steps}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1), or None for no average")
        if ("track" in self.model.heads) != (self.query_points > 0):
            heads = ", ".join(self.model.heads)
            raise ValueError(f"query_points={self.query_points} does not fit the heads {heads}: a track head needs some, others none")

    def shape_of(self, step: int) -> Shape:
        """The kind of batch of a step; the same for the same seed and step."""
        weights = np.array([shape.weight for shape in self.shapes])
        return self.shapes[np.random.default_rng((self.seed, step)).choice(len(weights), p=weights / weights.sum())]

    def first_scene_of(self, step: int) -> int:
        """Number of the first scene of a step's batch. No scene comes twice."""
        return self.first_scene + step * max(shape.scenes for shape in self.shapes)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a Python file, with "field=value" put over it.

    Raises FileNotFoundError, or ValueError in a sentence: the file is no configuration, a field is unknown or its value wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a training configuration is a Python file with get_config()")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if get_config is not None else None
    except (TypeError, ValueError, SyntaxError, NameError, ImportError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path} has no get_config() that returns a fastvggt_jax.train.TrainConfig")
    values = dict(_parse(text) for text in overrides)
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in ("model", "shapes", "data")]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be set; what can: {', '.join(names)}")
    try:
        return dataclasses.replace(config, **values)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"{', '.join(overrides)}: {error}") from error


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} must be field=value, such as steps=1000")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, such as a file's name
