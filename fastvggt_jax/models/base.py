"""What a model owes to everything around it: `Model`, the base class of all of them.

Scenes, evaluation, training, benchmarks, export and conversion ask these methods and nothing else, so a model
is one file that is named once, in `registry`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from fastvggt_jax.attention import slower_sparse, unused_float8
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.conditions import Conditions
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.sharding import Spread, mesh_of, over_mesh
from fastvggt_jax.sources.sizing import ImagePolicy, check_sides
from fastvggt_jax.sparsity import Sparsity

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array


class Model(nn.Module):
    """A model's own fields are its configuration: they define the weights and stand in the weight file.

    Those of this class only say how it is run. Every model also has the fields `heads` (a tuple of the names
    of those that are on, all by default), `depth` (global layers) and `num_heads`, `embed_dim` (of a global
    layer).

    Attributes:
      dtype: of the backbone's matrix products; norms, RoPE, softmax statistics and geometry are float32
        always.
      heads_dtype: of the convolutions of dense heads (VGGT's depth and points, Pi3X's points and confidence).
        None: float16 on a GPU where `dtype` has 16 bits, else float32. Where a float16 is out of range, and
        for derivatives, float32 is taken by itself.
      sparsity: block-sparse global attention; None = dense.
      float8_scores: rounds the queries and keys of global attention to float8_e4m3fn, of which masks are
        made, too. A Hopper GPU computes their product in half the time where its kernel serves; elsewhere
        nothing is gained. It has no gradient.
      frames_chunk: how many frames the dense heads take at a time, at least one of each scene.
      low_memory: taps wait in the host's memory, encoder and frame blocks take a part of the frames at a
        time and the MLPs of global blocks a part of the tokens: hundreds of views more on one GPU, a tenth
        slower. The same numbers.
      remat: whether derivatives recompute what blocks and chunks of frames hold instead of keeping it.
    """

    dtype: Any = jnp.bfloat16
    heads_dtype: Any = None
    sparsity: Sparsity | None = None
    float8_scores: bool = False
    frames_chunk: int = 8
    low_memory: bool = False
    remat: bool = False

    # What `reconstruction` can take the points from, the default first.
    point_sources: ClassVar[tuple[str, ...]] = ()
    # Attention's (field of its width, field of its heads, channels per unit of the width, what the size of a
    # head is a multiple of: 4 with RoPE, which turns pairs in two directions).
    widths: ClassVar[tuple[tuple[str, str, int, int], ...]] = ()
    # The options of `loss`, weights of terms that the published loss does not have, with what they are there.
    loss_weights: ClassVar[Mapping[str, float]] = {}
    # Names of the parameters that are read in `dtype` alone, as products of matrices have them: stored in it,
    # they give the same numbers.
    read_in_dtype: ClassVar[str | None] = None
    # The module that converts its official weights, if they can be.
    conversion: ClassVar[str | None] = None
    # Fields of a tiny one, for tests and for whoever tries a program without weights.
    tiny: ClassVar[Mapping[str, Any]] = {}

    if TYPE_CHECKING:  # a subclass has these as fields or properties
        heads: tuple[str, ...] = ()
        depth: int = 0
        num_heads: int = 0
        embed_dim: int = 0

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    # ---- the configuration

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> Self:
        """The model of `config()`'s dict; `options` are further fields, such as `sparsity`.

        Raises:
          InputError: names every key that is unknown or whose value has the wrong type.
        """
        model = cls(**_checked(cls, config), **options)
        for width, heads, times, multiple in cls.widths:
            channels, number = times * getattr(model, width), getattr(model, heads)
            if channels % (number * multiple):
                text = f"the config is not one of a {cls.__name__}: the {channels} channels of {width}="
                text += (
                    f"{getattr(model, width)} must be a multiple of {multiple} for each of {heads}={number}"
                )
                raise InputError(text)
        return model

    def config(self) -> dict[str, Any]:
        """The fields that define the weights, as JSON values."""
        values = {name: getattr(self, name) for name in config_fields(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def abstract_params(self) -> dict[str, Any]:
        """{"params": tree of jax.ShapeDtypeStruct}, without computing anything.

        Raises InputError if the fields do not fit together.
        """
        alike = self.clone(**RUN, parent=None)  # what loads a file asks several times
        try:
            return jax.tree.map(lambda leaf: leaf, _abstract_params(alike))
        except (ArithmeticError, TypeError, ValueError, FlaxError) as error:
            reason = str(error).strip().split("\n")[0]
            text = f"describes no working {type(self).__name__}: {reason}"
            raise InputError(text) from error

    def smallest_inputs(self) -> tuple[Any, ...]:
        """Arguments of the call, as shapes and dtypes, that reach every parameter."""
        raise NotImplementedError

    # ---- what it looks at, and what of it can be left out

    @property
    def image_policy(self) -> ImagePolicy:
        """How the model wants its photographs: `load_images(photographs, model.image_policy)`."""
        raise NotImplementedError

    @property
    def num_special(self) -> int:
        """Tokens per frame that stand before its patches."""
        raise NotImplementedError

    @classmethod
    def head_parameters(cls, head: str) -> tuple[str, ...]:
        """What the names of the parameters begin with that only this head needs."""
        raise NotImplementedError

    @classmethod
    def heads_for(cls, points_from: str | None) -> tuple[str, ...]:
        """The heads that `reconstruction` reads."""
        raise NotImplementedError

    @property
    def heads_in(self) -> Any:
        """The dtype that `heads_dtype` means here."""
        if self.heads_dtype is not None:
            return jnp.dtype(self.heads_dtype)
        half = jnp.dtype(self.dtype).itemsize == 2 and jax.default_backend() == "gpu"
        return jnp.dtype(jnp.float16 if half else jnp.float32)

    def storage(self, name: str) -> Any:
        """The dtype in which a parameter is computed with, of the least size: `dtype` or float32."""
        read = self.read_in_dtype is not None and re.fullmatch(self.read_in_dtype, name)
        return jnp.dtype(self.dtype if read else jnp.float32)

    @property
    def rows(self) -> int | None:
        """Tokens that the MLP of a global block takes at a time; None: all."""
        return ROWS if self.low_memory else None

    @property
    def blocks_chunk(self) -> int | None:
        """Frames that the encoder and a frame block take at a time; None: all."""
        return BLOCKS_CHUNK if self.low_memory else None

    def why_slower_sparse(self) -> str | None:
        """Why its block-sparse attention is slower than dense attention on the default device; None if not,
        or if it is dense.
        """
        if self.sparsity is None or "sparse" not in self.sparsity.plan(self.depth):
            return None
        return slower_sparse(self.dtype, self.embed_dim // self.num_heads, self.sparsity.block)

    def why_unused_float8(self, frames: int, height: int, width: int) -> str | None:
        """Why its float8_scores make nothing faster for so many frames on the default device; None where they
        do, or are off.
        """
        if not self.float8_scores:
            return None
        patch = self.image_policy.patch
        keys = frames * ((height // patch) * (width // patch) + self.num_special)
        sparse = self.sparsity is not None and "sparse" in self.sparsity.plan(self.depth)
        block = self.sparsity.block if self.sparsity is not None and sparse else None
        return unused_float8(self.dtype, self.embed_dim // self.num_heads, keys, block)

    # ---- how it runs

    def refuse_conditions(self, given: Any) -> None:
        """Raises InputError for conditions in the place of points to track."""
        if isinstance(given, Conditions):
            text = f"conditions were given, but a {type(self).__name__} takes none: Pi3X does"
            raise InputError(text, argument="conditions")

    def forward(self, spread: Spread, images: Array, query_points: Array | None, *options: Any) -> Prediction:
        """The prediction of the frames on this device, from arguments that `__call__` has checked."""
        raise NotImplementedError

    def on_mesh(self, images: Array, query_points: Array | None, *options: Any) -> Prediction:
        """`forward` on the devices of the mesh that the images lie on or that is set, see
        `fastvggt_jax.sharding`; without one, here.

        Raises InputError where scenes do not divide by their devices, or intermediates are asked for.
        """
        mesh = None if self.is_initializing() else mesh_of(images)
        if mesh is None:
            return self.forward(Spread(images.shape[1]), images, query_points, *options)
        if self.is_mutable_collection("intermediates"):
            raise InputError("intermediates cannot be captured where a scene's frames are spread over a mesh")
        alone: Any = self.clone(parent=None)

        def run(spread: Spread, variables: Any, images: Array, query_points: Array | None) -> Prediction:
            return alone.apply(variables, spread, images, query_points, *options, method="forward")

        specs = partial(Prediction.specs, type(self))
        return over_mesh(run, mesh, self.variables, images, query_points, specs)

    def patches(self, images: Array) -> Array:
        """What the encoder sees in each patch of each frame alone, of images [B, F, H, W, 3]: f32[B, F, h·w,
        D].

        Raises InputError of a model that has no such encoder.
        """
        text = f"loops are found by an encoder of single frames, and a {type(self).__name__} has none"
        raise InputError(text, argument="loops")

    def describe(self, images: Array) -> Array:
        """By what frames that show the same place are alike: f32[B, F, D] of length 1, the mean of `patches`.

        `model.apply(params, images, method="describe")`; images as for the call.
        """
        mean = self.patches(images).mean(2)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    # ---- what it says

    @classmethod
    def reconstruction(cls, prediction: Prediction, points_from: str | None = None) -> Reconstruction:
        """What the prediction says about the scenes, in the terms that all models share. Can be jitted.

        Args:
          points_from: one of `point_sources`; None is the first of those that the prediction has.

        Raises InputError if the heads that this needs were off.
        """
        raise NotImplementedError

    def training_inputs(self, truth: Truth, query_points: Array | None, key: Array) -> tuple[Any, ...]:
        """What its call takes in training after the images, of a batch of which this is true and with random
        numbers of the key.
        """
        return (query_points,)

    @classmethod
    def loss(cls, prediction: Prediction, truth: Truth, **weights: float) -> tuple[Array, dict[str, Array]]:
        """The training loss that the model was published with, f32[], and its parts by name, unweighted.

        Args:
          truth: in any coordinates and any unit.
          weights: of `loss_weights`.
        """
        raise NotImplementedError

    # ---- checks that models share

    def check_heads(self, known: tuple[str, ...]) -> None:
        unknown = sorted(set(self.heads) - set(known))
        if unknown:
            raise InputError(f"heads={self.heads}: {unknown} is none of {known}", argument="heads")
        if self.frames_chunk < 1:
            raise InputError(f"frames_chunk={self.frames_chunk} must be at least 1", argument="frames_chunk")

    @classmethod
    def check_points_from(cls, points_from: str | None) -> None:
        if points_from not in (None, *cls.point_sources):
            known = " or ".join(map(repr, cls.point_sources))
            text = f"points_from must be {known} for a {cls.__name__}, not {points_from!r}"
            raise InputError(text, argument="points_from")


# Where memory is scarce: tokens of an MLP and frames of a block at a time.
ROWS, BLOCKS_CHUNK = 1 << 17, 64
CONDITIONS = "conditions"  # among a model's heads: the part that reads what is known of the views
COMPUTE = "compute"  # in place of a dtype of parameters: that of `Model.storage`
# Of a transformer block the parameters of its four products.
PRODUCTS = r"/(attn/(qkv|proj)|mlp/fc[12])/(kernel|bias)"

# How a model is run, which its parameters do not depend on.
RUN: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(Model) if field.name not in ("parent", "name")
}


@lru_cache(maxsize=16)
def _abstract_params(model: Model) -> dict[str, Any]:
    """They take seconds to trace."""
    return jax.eval_shape(model.init, jax.random.key(0), *model.smallest_inputs())


def config_fields(cls: type[Model]) -> tuple[str, ...]:
    """Names of the fields that define the weights: a model's own."""
    run = {field.name for field in dataclasses.fields(Model)}
    return tuple(field.name for field in dataclasses.fields(cls) if field.name not in run)


def _checked(cls: type[Model], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `config` as the types that the fields are annotated with."""
    from pydantic import ValidationError

    try:
        schema = _schema(cls)  # type: ignore[arg-type]  # linen's __hash__ is of instances
        values = schema.model_validate_json(json.dumps(dict(config)), strict=True)
    except ValidationError as error:
        wrong = "; ".join(_in_words(cls, one) for one in error.errors())
        raise InputError(f"the config is not one of a {cls.__name__}: {wrong}") from error
    return {name: getattr(values, name) for name in config}


def _in_words(cls: type[Model], error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{name} is no field of it"
    return f"{name}={error['input']!r} is wrong ({error['msg'][0].lower()}{error['msg'][1:]})"


@cache
def _schema(cls: type) -> Any:
    import typing

    from pydantic import ConfigDict, create_model

    hints, defaults = (
        typing.get_type_hints(cls, include_extras=True),
        {field.name: field.default for field in dataclasses.fields(cls)},
    )
    fields: Any = {name: (hints[name], defaults[name]) for name in config_fields(cls)}
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid"), **fields)


_UNIT = np.arange(256, dtype=np.float32) / np.float32(255)


def to_unit(images: Array) -> Array:
    """u8[...] as float32 in [0, 1], float[...] as it is but float32.

    By a table: XLA multiplies by 1/255 where the official loaders divide, which is another number for half of
    the values.
    """
    return jnp.asarray(_UNIT)[images] if images.dtype == jnp.uint8 else images.astype(jnp.float32)


def check_images(images: Array, patch: int) -> None:
    """Raises InputError unless images are [B, F, H, W, 3], of 8 bits or floating point, H and W multiples of
    `patch`.
    """
    if not hasattr(images, "ndim") or not hasattr(images, "dtype"):
        text = f"images must be an array [B, F, H, W, 3], not a {type(images).__name__}"
        raise InputError(f"{text}: load_images(...).pixels[None]", argument="images")
    if images.ndim != 5 or images.shape[-1] != 3:
        hint = ""
        if images.ndim == 5 and images.shape[2] == 3:
            hint = "; these look channels-first, transpose to NHWC"
        raise InputError(
            f"images {images.shape} must be [B, F, H, W, 3] (channels last){hint}", argument="images"
        )
    if not images.shape[0] or not images.shape[1]:
        raise InputError(
            f"images {images.shape} hold no frame: B and F must be at least 1", argument="images"
        )
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        text = f"images are {images.dtype}, they must be uint8, or floating point in [0, 1]"
        raise InputError(text, argument="images")
    mesh_of(images)  # whose axes may be of the wrong kind
    check_sides(patch, H=images.shape[2], W=images.shape[3])
