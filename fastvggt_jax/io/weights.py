"""The one native weight file: safetensors, '/'-joined parameter names, its metadata naming model, config and
source.

Metadata: format "fastvggt_jax", format_version, model (class name), config (JSON, what the model's
`from_config` takes), source (where the weights come from), license (what holds for them).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.json_files import parse_json
from fastvggt_jax.io.tensors import (
    compare_shapes,
    is_safetensors,
    is_torch,
    open_safetensors,
    write_safetensors,
)

if TYPE_CHECKING:
    from safetensors import safe_open

    from fastvggt_jax.models.base import Model

FORMAT = "fastvggt_jax"
FORMAT_VERSION = 1  # of the names and layouts of parameters; a file of a newer one is refused
STORED = ("F32", "BF16", "F16")  # as safetensors calls them
UNKNOWN = "unknown, see the source"


class WeightFile(NamedTuple):
    """An opened native file. model: the name of its class. config: what the class's `from_config` takes."""

    path: Path
    file: safe_open
    model: str
    config: dict[str, Any]
    source: str
    license: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by its name."""
        return {name: tuple(self.file.get_slice(name).get_shape()) for name in self.file.keys()}


def open_weights(path: str | Path) -> WeightFile:
    """Opens a native file and reads its metadata.

    Raises MissingError, FileError, or WeightsError if the file is damaged, not native, or of a newer version.
    """
    path = Path(path)
    file = open_safetensors(path)
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is a safetensors file, but not a weight file of fastvggt_jax")
    version = metadata.get("format_version", "")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        newer = f"has format version {version[:20]!r}, this fastvggt_jax reads up to {FORMAT_VERSION}"
        raise WeightsError(f"{path} {newer}: upgrade fastvggt_jax or convert the weights again")
    try:
        config = parse_json(metadata["config"])
        if not isinstance(config, dict):
            raise TypeError(f"it is {config!r}, not an object")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} has no usable config: {_in_short(error)}") from error
    wrong = [name for name in file.keys() if file.get_slice(name).get_dtype() not in STORED]
    if wrong:
        tensor = f"{wrong[0]}, which is {file.get_slice(wrong[0]).get_dtype()}"
        text = f"{path} holds numbers that are no weights: {tensor}; they must be {', '.join(STORED)}"
        raise WeightsError(text)
    model, source = metadata.get("model", ""), metadata.get("source", "")
    return WeightFile(path, file, model, config, source, metadata.get("license", UNKNOWN))


def _in_short(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)[:200]


def is_native(path: str | Path) -> bool:
    """Whether a file is one of ours, whatever its name. Raises as `open_safetensors` for a damaged one."""
    path = Path(path)
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(9)
        if not is_safetensors(start) and (is_torch(start) or path.suffix != ".safetensors"):
            return False
    return (open_safetensors(path).metadata() or {}).get("format") == FORMAT


def abstract_tensors(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter of `model`, by its name in the native file. Nothing is computed.

    Raises InputError if the model's fields do not fit together.
    """
    tree = model.abstract_params()
    return flax.traverse_util.flatten_dict(tree["params"], sep="/")


def native_metadata(model: Model, source: str, license: str) -> dict[str, str]:
    """The metadata of a native file that holds weights of `model`."""
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "model": type(model).__name__,
        "config": json.dumps(model.config()),
        "source": source,
        "license": license,
    }


def save_params(
    path: str | Path, params: Mapping[str, Any], model: Model, source: str = "", license: str = UNKNOWN
) -> None:
    """Writes the parameters of `model` to a native weight file, one tensor at a time and each in its own
    dtype.

    params: {"params": tree} as `model.init` returns it. An existing file is replaced, once the new one is
    complete. Raises WeightsError if names or shapes are not the model's, FileError if the file cannot be
    written.
    """
    arrays = flax.traverse_util.flatten_dict(params["params"], sep="/")
    wanted = {name: spec.shape for name, spec in abstract_tensors(model).items()}
    text = compare_shapes({name: array.shape for name, array in arrays.items()}, wanted)
    if text:
        raise WeightsError(f"the parameters do not fit {type(model).__name__}: {text}")
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    metadata = native_metadata(model, source, license)
    write_safetensors(path, specs, lambda name: [np.asarray(arrays[name])], metadata)


def read_tensors(
    file: safe_open,
    names: Iterable[str],
    stored: Callable[[str], Any] = lambda _: None,
    sharding: jax.sharding.Sharding | None = None,
) -> dict[str, Any]:
    """The named tensors as a tree of arrays on the default device, each moved before the next is read.

    stored: the dtype to have a tensor in, by its name; None as it is. sharding: where instead to.
    """
    arrays = {}
    for name in names:
        tensor, dtype = file.get_tensor(name), stored(name)
        # Waiting keeps the host from reading ahead of the transfer and so from holding many tensors at once.
        arrays[name] = jax.block_until_ready(
            jax.device_put(tensor if dtype is None else tensor.astype(dtype), sharding)
        )
    return flax.traverse_util.unflatten_dict(arrays, sep="/")
