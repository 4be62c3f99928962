"""What is trained, on what and how long. A configuration is a Python file whose `get_config()` returns a
`TrainConfig`.

pydantic checks the fields, since it is a dependency already and reads both values (strictly) and the texts of
`load_config` (`overrides`) by the same annotations; a parser such as tyro would bring a second command line.
"""

from __future__ import annotations

import dataclasses
import functools
import runpy
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, create_model

from fastvggt_jax.datasets.synthetic import SPLIT_SIZE
from fastvggt_jax.errors import Error, InputError
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.models.base import Model
from fastvggt_jax.sources.sizing import check_sides

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
LAX = ConfigDict(allow_inf_nan=False)  # for texts

Size = Annotated[int, Field(ge=1, le=1 << 16)]
Steps = Annotated[int, Field(ge=1, le=10**8)]  # each has a learning rate, made at the start
Number = Annotated[int, Field(ge=0, le=SPLIT_SIZE)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of batch: so many scenes of so many views of so many pixels. Of several kinds, each is drawn in
    proportion to its weight.

    Raises InputError: a value of the wrong type, or out of its range.
    """

    scenes: Size
    frames: Size
    height: Size
    width: Size
    weight: Positive = 1.0

    def __post_init__(self) -> None:
        _check(self)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every number of a training run. Peak learning rate and clipping are by default VGGT's (arXiv 2503.11651
    §3.4).

    Attributes:
      model: with its heads, its `dtype` of computing and whether it recomputes (`remat`); the loss is its own
        (`Model.loss`). Parameters and optimizer are float32.
      shapes: the kinds of batches. Every kind is compiled once.
      steps: of the whole run, also where it was interrupted.
      learning_rate: at its peak, after `warmup_steps`; from there a cosine falls to `final_learning_rate`.
      weight_decay: of matrices alone. clip_norm: of the gradient. ema_decay: of the averaged weights, None
        for no average.
      init: a native weight file to start from, or a bundled model's name; None starts from random numbers.
      loss_weights: of the terms that the published loss does not have, by their names in the model's
        `loss_weights`, where their meaning stands; those that are not given weigh what they do there.
      layer_scale: of the blocks of a random start (CaiT, arXiv 2103.17239, starts networks of up to 18 blocks
        at 0.1).
      frozen: patterns of parameter names, '/'-joined as in the weight file, that stay as they are:
        "aggregator/patch_embed/*".
      seed: of random parameters and of the order of the kinds of batches.
      query_points: points to track per scene, for a model with a track head.
      first_scene: number of the first scene, to go on where an earlier run's scenes ended.
      supersampling: rays per pixel and side.
      data: (step, shape) -> `data.Batch`, instead of rendered scenes. Steps below 0 are validation's.
      weights_dtype: "float32" or "bfloat16", of the weight file that is written at the end.
      log_every, validate_every, save_every: steps. validation_scenes: how many held-out scenes the loss is
        taken over, in whole batches of the first shape.
      shard_params: whether parameters, averages and optimizer are spread over the devices (FSDP), or only the
        scenes of a batch.

    Raises InputError, naming the field: a value of the wrong type or out of its range, or one that does not
      fit the model.
    """

    model: InstanceOf[Model]
    shapes: Annotated[tuple[InstanceOf[Shape], ...], Field(min_length=1)]
    steps: Steps
    learning_rate: Positive = 2e-4
    warmup_steps: Number = 1000
    final_learning_rate: NotNegative = 1e-6
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: NotNegative = 0.05
    clip_norm: Positive = 1.0
    ema_decay: Decay | None = 0.999
    init: str | None = None
    loss_weights: Mapping[str, NotNegative] = dataclasses.field(default_factory=dict)
    layer_scale: NotNegative = 0.1
    frozen: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    query_points: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    first_scene: Number = 0
    supersampling: Annotated[int, Field(ge=1, le=64)] = 2
    data: Callable[[int, Shape], Any] | None = None
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: Steps = 50
    validate_every: Steps = 1000
    validation_scenes: Number = 32
    save_every: Steps = 1000
    shard_params: bool = False

    def __post_init__(self) -> None:
        _check(self)
        self._check_model()
        if self.first_scene_of(self.steps) > SPLIT_SIZE:
            text = f"first_scene={self.first_scene} and {self.steps} steps lead beyond the last scene"
            raise InputError(f"{text}, number {SPLIT_SIZE - 1}", argument="first_scene")
        if self.warmup_steps >= self.steps:
            text = f"warmup_steps={self.warmup_steps} must be less than steps={self.steps}"
            raise InputError(text, argument="warmup_steps")

    def _check_model(self) -> None:
        model, name = self.model, type(self.model).__name__
        right = model.from_config(model.config())  # its fields have the right types
        try:
            right.abstract_params()
        except InputError as error:
            raise InputError(f"the model {error}", argument="model") from error
        if model.sparsity is not None:
            text = (
                f"the model's sparsity={model.sparsity} must be None: block-sparse attention has no gradient"
            )
            raise InputError(text, argument="sparsity")
        for shape in self.shapes:
            try:
                check_sides(model.image_policy.patch, height=shape.height, width=shape.width)
            except InputError as error:
                raise InputError(f"{shape}: {error}", argument=error.argument) from error
        for weight in self.loss_weights:
            if weight not in model.loss_weights:
                known = ", ".join(model.loss_weights) or "none"
                text = f"loss_weights has {weight!r}, which the loss of a {name} does not; it has {known}"
                raise InputError(text, argument="loss_weights")
        if ("track" in model.heads) != (self.query_points > 0):
            need = "must be greater than 0" if "track" in model.heads else "must be 0: no head tracks points"
            text = (
                f"query_points={self.query_points} does not fit the heads {', '.join(model.heads)}: it {need}"
            )
            raise InputError(text, argument="query_points")

    def shape_of(self, step: int) -> Shape:
        """The kind of batch of a step; the same for the same seed and step."""
        weights = np.array([shape.weight for shape in self.shapes])
        return self.shapes[
            np.random.default_rng((self.seed, step)).choice(len(weights), p=weights / weights.sum())
        ]

    def first_scene_of(self, step: int) -> int:
        """Number of the first scene of a step's batch. No scene comes twice."""
        return self.first_scene + step * max(shape.scenes for shape in self.shapes)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@functools.cache
def _schema(cls: type) -> Any:
    fields: Any = {name: (hint, ...) for name, hint in _hints(cls).items()}
    return create_model(cls.__name__, __config__=STRICT, **fields)


def _check(fields: Shape | TrainConfig) -> None:
    values = {field.name: getattr(fields, field.name) for field in dataclasses.fields(fields)}
    try:
        schema = _schema(type(fields))  # type: ignore[arg-type]
        schema.model_validate(values)
    except ValidationError as error:
        raise _in_words(error) from error


def _in_words(error: ValidationError, name: str = "") -> InputError:
    """Of what was wrong first: "steps=0 must be greater than or equal to 1"."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, [name, *first["loc"]] if name else first["loc"]))
    must = first["msg"].replace("Input should be", "must be")
    must = must if must.startswith("must be") else f"is wrong: {must}"
    return InputError(f"{where}={first['input']!r} {must}", argument=where.split(".")[0])


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a Python file, with "field=value" put over it, such as "steps=1e5",
    "ema_decay=None", "frozen=aggregator/*,camera_head/*" or "loss_weights.pairs=3".

    Raises MissingError, or InputError: the file is no configuration, a field is unknown or its value wrong.
    """
    path = regular_file(path, "config")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if get_config is not None else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's code: anything
        reason = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())  # on one line
        raise InputError(f"{path} is no configuration that works: {reason}") from error
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path} has no get_config() that returns a fastvggt_jax.train.TrainConfig")
    return dataclasses.replace(config, **_overridden(config, overrides))


def _overridden(config: TrainConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The fields that "field=value" and "loss_weights.name=value" set."""
    hints = {
        name: hint for name, hint in _hints(TrainConfig).items() if name not in ("model", "shapes", "data")
    }
    weights = "loss_weights."
    values: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} must be field=value, such as steps=1000", argument="overrides")
        if name.startswith(weights):
            before = values.get("loss_weights", config.loss_weights)
            weight = _value(name, text, NotNegative)
            values["loss_weights"] = {**before, name.removeprefix(weights): weight}
        elif name in hints and name != "loss_weights":
            values[name] = _value(name, text, hints[name])
        else:
            known = (f"{weights}NAME" if name == "loss_weights" else name for name in hints)
            raise InputError(f"{name} cannot be set; what can: {', '.join(known)}", argument="overrides")
    return values


def _value(name: str, text: str, hint: Any) -> Any:
    """The value that a text is for a field annotated so."""
    reader: TypeAdapter[Any] = TypeAdapter(hint, config=LAX)
    value: Any = text
    if text in ("None", "none"):
        value = None
    elif typing.get_origin(hint) is tuple:
        value = tuple(filter(None, text.split(",")))
    try:
        return reader.validate_python(value)
    except ValidationError as error:
        try:
            return reader.validate_python(float(text))  # 1e5 is a whole number too
        except ValueError:  # pydantic's is one
            raise _in_words(error, name) from error
