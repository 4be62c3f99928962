"""The one native weight file: safetensors, '/'-joined parameter names, its metadata naming model, config and
source.

Metadata: format "fastvggt_jax", format_version, model (class name), config (JSON, what the model's
`from_config` takes), source (where the weights come from), license (what holds for them).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax.models.pi3 import Pi3
from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.tensors import compare_shapes, open_safetensors, write_safetensors

FORMAT = "fastvggt_jax"
FORMAT_VERSION = 1  # of the names and layouts of parameters; a file of a newer one is refused
UNKNOWN = "unknown, see the source"

BUNDLED = {"mini": Path(__file__).parent / "bundled" / "mini.safetensors"}  # come with the package, by name

_CONVERT = "convert it first: python -m convert.convert_weights"
_CLASSES: dict[str, type[nn.Module]] = {"VGGT": VGGT, "Pi3": Pi3}


def abstract_tensors(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter of `model`, by its name in the native file. Nothing is computed."""
    return flax.traverse_util.flatten_dict(model.abstract_params()["params"], sep="/")


def native_metadata(model: nn.Module, source: str, license: str) -> dict[str, str]:
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
    path: str | Path, params: Mapping[str, Any], model: nn.Module, source: str = "", license: str = UNKNOWN
) -> None:
    """Writes the parameters of `model` to a native weight file, one tensor at a time and each in its own
    dtype.

    params: {"params": tree} as `model.init` returns it. An existing file is replaced, once the new one is
    complete. Raises WeightsError if names or shapes are not the model's, OSError if the file cannot be
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


def load_params(path: str | Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Reads a native weight file: (model class name, its config, {"params": tree of arrays on the default
    device}).

    Arrays keep the dtype in which they are stored. Raises as `from_pretrained`.
    """
    model, params = from_pretrained(path)
    return type(model).__name__, model.config(), params


def from_pretrained(
    path_or_name: str | Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    heads: Sequence[str] | None = None,
    **module_fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model of a native weight file and loads its parameters onto the default device.

    path_or_name: a file, or "mini" for the model that comes with the package.
    dtype: None keeps the stored dtype (float32 unless converted otherwise) and the model's own policy for
    computing; float32 or bfloat16 casts the parameters on load and becomes the model's `dtype`, that of its
    matrix products.
    heads: the heads of a VGGT to load, out of "camera", "depth", "point", "track"; None means all in the
      file. The
    tensors of the others are not read. module_fields: further fields of the model, such as `sparsity`.
    Tensors are read one by one, so the host holds no second copy.

    Returns (model, params) for `model.apply(params, images)`. Raises FileNotFoundError; WeightsError if
    the file is damaged, not native, of a newer version or of another model, or if names or shapes are not the
    model's; ValueError for a head that the file does not have.
    """
    file, model = _open(path_or_name)
    if dtype is not None:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating-point type such as bfloat16 or float32, not {dtype}")
        module_fields["dtype"] = dtype
    model = model.clone(**module_fields)
    wanted = {name: spec.shape for name, spec in abstract_tensors(model).items()}
    found = {name: file.get_slice(name).get_shape() for name in file.keys()}
    text = compare_shapes(found, wanted)
    if text:
        raise WeightsError(f"{path_or_name} does not fit its model {type(model).__name__}: {text}")
    names = list(wanted)
    if heads is not None and isinstance(model, Pi3):
        raise ValueError(f"{path_or_name} is a π³, whose heads belong together: leave `heads` out")
    if heads is not None:
        absent = [head for head in heads if head not in model.heads]
        if absent:
            raise ValueError(
                f"{path_or_name} has no {', '.join(absent)} head; it has {', '.join(model.heads)}"
            )
        left_out = tuple(f"{head}_head/" for head in model.heads if head not in heads)
        names = [name for name in names if not name.startswith(left_out)]
        model = model.clone(heads=tuple(head for head in model.heads if head in heads))
    return model, {"params": _read(file, names, dtype)}


def read_model(path_or_name: str | Path) -> nn.Module:
    """The model of a native weight file, without its parameters. Takes and raises what `from_pretrained`
    does.
    """
    return _open(path_or_name)[1]


def weight_file(path_or_name: str | Path) -> Path:
    """The file itself, or that of a bundled model's name. Raises FileNotFoundError."""
    path = BUNDLED.get(str(path_or_name), Path(path_or_name))
    if not path.exists():
        names = ", ".join(BUNDLED)
        raise FileNotFoundError(
            f"{path}: no such weight file; bundled is {names} (an official checkpoint must be converted first)"
        )
    return path


def _read(file, names: Iterable[str], dtype) -> dict[str, Any]:
    """The named tensors as a tree of arrays on the default device, each moved before the next is read."""
    arrays = {}
    for name in names:
        tensor = file.get_tensor(name)
        # Waiting keeps the host from reading ahead of the transfer and so from holding many tensors at once.
        arrays[name] = jax.block_until_ready(
            jax.device_put(tensor if dtype is None else tensor.astype(dtype))
        )
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def _open(path_or_name: str | Path):
    """The opened native file and the model that its metadata describe."""
    path = weight_file(path_or_name)
    if path.suffix in (".pt", ".pth"):
        raise WeightsError(
            f"{path} is a PyTorch file, not a native weight file; {_CONVERT} {path} OUT.safetensors"
        )
    file = open_safetensors(path)
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        if any("." in key for key in file.keys()):
            kind = "an official checkpoint in PyTorch's layout, not a native weight file"
            raise WeightsError(f"{path} is {kind}; {_CONVERT} {path} OUT.safetensors")
        raise WeightsError(f"{path} is a safetensors file, but not a weight file of fastvggt_jax")
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        newer = f"has format version {version}, this fastvggt_jax reads up to {FORMAT_VERSION}"
        raise WeightsError(f"{path} {newer}: upgrade fastvggt_jax or convert the weights again")
    name = metadata.get("model", "")
    if name not in _CLASSES:
        raise WeightsError(
            f"{path} holds the model {name!r}; this fastvggt_jax knows {', '.join(_CLASSES)}"
        )
    try:
        return file, _CLASSES[name].from_config(json.loads(metadata["config"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} has no usable config for {name}: {error}") from error
