"""Models with their weights, by name: a file, a hub repository, or what comes with the package.

Official weights are converted once into the user's cache, and found there the next time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fastvggt_jax.errors import FileError, InputError, MissingError, WeightsError, printable
from fastvggt_jax.io.cache import cache_folder
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.io.tensors import compare_shapes
from fastvggt_jax.io.weights import (
    FORMAT_VERSION,
    WeightFile,
    abstract_tensors,
    is_native,
    open_weights,
    read_tensors,
)
from fastvggt_jax.models import registry
from fastvggt_jax.models.base import COMPUTE, Model
from fastvggt_jax.sharding import check_mesh
from fastvggt_jax.sparsity import Sparsity


class Bundled(NamedTuple):
    """A model that comes with the package. block: (queries, keys) of sparse attention that suits its size."""

    path: Path
    block: tuple[int, int]


BUNDLED = {"mini": Bundled(Path(__file__).parent / "bundled" / "mini.safetensors", (64, 32))}


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    heads: Sequence[str] | None = None,
    param_dtype: jax.typing.DTypeLike | Literal["compute"] | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    heads_dtype: jax.typing.DTypeLike | None = None,
    sparsity: Sparsity | None = None,
    frames_chunk: int | None = None,
    remat: bool | None = None,
    mesh: Mesh | None = None,
    quiet: bool = False,
) -> tuple[Model, dict[str, Any]]:
    """Builds a model and loads its parameters onto the default device.

    Args:
      name: "mini" for the model that comes with the package; a native weight file; official weights, which
        are converted once and kept (see `weight_file`): a .safetensors or .pt file, a folder that holds one,
        or a hub repository such as "facebook/VGGT-1B", of `revision`.
      heads: those to load, out of the model's `heads`; None means all in the file. The others' tensors are
        not read.
      param_dtype: float32 or bfloat16 casts the parameters on load; None keeps the stored one. "compute"
        stores those that products of matrices read in `dtype` in it, and the others as float32: for
        inference, the same numbers of fewer bytes.
      dtype: of the backbone's matrix products. This and the next four say how the model is run, see `Model`;
        None keeps its defaults.
      heads_dtype: of the convolutions of DPT heads.
      sparsity: block-sparse global attention.
      frames_chunk: how many frames the dense heads take at a time.
      remat: whether derivatives recompute instead of keeping.
      mesh: with an axis `frames` or `scenes`: the parameters lie whole on each of its devices, and the model
        is to be run under `jax.set_mesh(mesh)`, see `fastvggt_jax.sharding`. None: the default device.
      quiet: say nothing of a conversion on stderr.

    Tensors are read one by one, so the host holds no second copy.

    Returns (model, params) for `model.apply(params, images)`. Raises MissingError; WeightsError if the file
    is damaged, of a newer version or of another model, or if names or shapes are not the model's; InputError
    for a head that it does not have, or an option of the wrong kind; what conversion and the hub raise
    (ExtraError, FileError, FailedError).
    """
    options = _options(
        param_dtype,
        dtype=dtype,
        heads_dtype=heads_dtype,
        sparsity=sparsity,
        frames_chunk=frames_chunk,
        remat=remat,
    )
    if mesh is not None:
        check_mesh(mesh)
    if isinstance(heads, str):
        raise InputError(
            f"heads must be a tuple of names, such as ({heads!r},), not a text", argument="heads"
        )
    weights = open_weights(weight_file(name, revision=revision, quiet=quiet))
    model = _model(weights).clone(**options)
    try:
        wanted = {key: spec.shape for key, spec in abstract_tensors(model).items()}
    except InputError as error:
        raise WeightsError(f"the config of {weights.path} {error}") from error
    text = compare_shapes(weights.shapes, wanted)
    if text:
        raise WeightsError(f"{name} does not fit its model {type(model).__name__}: {text}")
    keys = list(wanted)
    if heads is not None:
        absent = [head for head in heads if head not in model.heads]
        if absent:
            text = f"{name} has no {', '.join(absent)} head; it has {', '.join(model.heads)}"
            raise InputError(text, argument="heads")
        left_out = [head for head in model.heads if head not in heads]
        unread = tuple(prefix for head in left_out for prefix in model.head_parameters(head))
        keys = [key for key in keys if not key.startswith(unread)]
        model = model.clone(heads=tuple(head for head in model.heads if head in heads))
    stored = model.storage if param_dtype == COMPUTE else lambda _: param_dtype
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return model, {"params": read_tensors(weights.file, keys, stored, whole)}


def _options(param_dtype: Any, **options: Any) -> dict[str, Any]:
    """Those that are given. Raises InputError for one of the wrong kind."""
    given = {name: value for name, value in options.items() if value is not None}
    dtypes = {name: options[name] for name in ("dtype", "heads_dtype")}
    if not (isinstance(param_dtype, str) and param_dtype == COMPUTE):
        dtypes["param_dtype"] = param_dtype
    for name, dtype in dtypes.items():
        try:
            fits = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        except TypeError:
            fits = False
        if not fits:
            text = f"{name} must be a floating-point type such as bfloat16 or float32, not {dtype!r}"
            raise InputError(text, argument=name)
    kinds = {
        "sparsity": (Sparsity, "a Sparsity"),
        "frames_chunk": (int, "a whole number"),
        "remat": (bool, "a bool"),
    }
    for name, (kind, words) in kinds.items():
        value = given.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if value is not None and wrong:
            raise InputError(f"{name} must be {words}, not {given[name]!r}", argument=name)
    if given.get("frames_chunk", 1) < 1:
        text = f"frames_chunk must be at least 1, not {given['frames_chunk']}"
        raise InputError(text, argument="frames_chunk")
    return given


def read_model(name: str | Path, *, revision: str | None = None, quiet: bool = False) -> Model:
    """The model, without its parameters. Takes and raises what `from_pretrained` does."""
    return _model(open_weights(weight_file(name, revision=revision, quiet=quiet)))


def recommended_block(name: str | Path) -> tuple[int, int]:
    """(queries, keys) of a block of sparse attention: a bundled model's own, else the method's."""
    return BUNDLED[str(name)].block if str(name) in BUNDLED else (128, 64)


def weight_file(name: str | Path, *, revision: str | None = None, quiet: bool = False) -> Path:
    """The native weight file of a name that `from_pretrained` takes, converted if it is not there yet.

    Converted files lie in the user's cache (FASTVGGT_CACHE, XDG_CACHE_HOME), under the repository's commit,
    or under path, size and time of a file: new weights are converted anew. Raises as `from_pretrained`.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"name must be a text or a path, not {type(name).__name__}", argument="name")
    if str(name) in BUNDLED:
        return BUNDLED[str(name)].path
    from convert import hub
    from convert.sources import in_folder

    if hub.is_repository(str(name)):
        commit = hub.commit_of(hub.fetch(str(name), revision))
        # That commit and no other: a branch may move between the two.
        return _converted(str(name), f"{str(name).replace('/', '--')}-{commit}", commit, quiet)
    path = in_folder(Path(name)) if os.path.isdir(name) else Path(name)
    if not os.path.exists(path):
        known = f"bundled is {', '.join(BUNDLED)}; a hub repository is named OWNER/NAME"
        raise MissingError(f"{path}: no such weight file; {known}", argument="weights")
    regular_file(path, "weights")
    if is_native(path):
        return path
    state = path.stat()
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    return _converted(str(path), f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}", None, quiet)


def _converted(source: str, key: str, revision: str | None, quiet: bool) -> Path:
    """The native file of official weights, from the cache or made now; `key` tells them from all others."""
    from convert.conversion import convert

    target = cache_folder("weights") / f"{key}-v{FORMAT_VERSION}.safetensors"
    if target.exists():
        return target
    if not quiet:
        text = f"converting {source}, once, into {target}"
        print(printable(text), file=sys.stderr, flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set FASTVGGT_CACHE to another folder"
        text = f"the cache {target.parent} cannot be made: {error.strerror}; {remedy}"
        raise FileError(text, cause=error) from error
    # Written under another name and then renamed: another process that converts the same writes the same.
    shown = None if quiet or not sys.stderr.isatty() else _show
    convert(source, target, overwrite=True, revision=revision, progress=shown)
    return target


def _show(done: int, total: int) -> None:
    """A counter on stderr that writes over itself."""
    end = "\n" if done >= total else ""
    print(f"\r{done} of {total} tensors", end=end, file=sys.stderr, flush=True)


def _model(weights: WeightFile) -> Model:
    try:
        cls = registry.of_class(weights.model)
    except InputError as error:
        known = ", ".join(registry.names())
        text = f"{weights.path} holds the model {weights.model!r}; this fastvggt_jax knows {known}"
        raise WeightsError(text) from error
    try:
        return cls.from_config(weights.config)
    except InputError as error:
        raise WeightsError(f"{weights.path} has no usable config: {error}") from error
