"""Official checkpoints as named tensors that are read one by one: safetensors, whole or in shards, and files
of PyTorch where it is installed. What a file holds decides what it is, not its name.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fastvggt_jax.errors import ExtraError, FileError, InputError, MissingError, WeightsError
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.io.tensors import is_safetensors, is_torch, listed, open_safetensors

# Under which training scripts keep the weights, in the order in which they are looked for.
WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "ema", "ema_state_dict", "model_ema")
INDEX = ".safetensors.index.json"  # how the name of a list of shards ends
SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".bin",
    ".pth.tar",
    INDEX,
)  # of what a folder is searched for
# As safetensors and as numpy call them.
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint: the shape and dtype (its name) of every tensor, and `read`, which loads one as a numpy
    array. notes: what a person should know of how it was read.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Callable[[str], np.ndarray]
    notes: tuple[str, ...] = ()

    def renamed(self, old: Mapping[str, str], note: str) -> Source:
        """With other keys: new -> old; those that are not named are left out."""
        return dataclasses.replace(
            self,
            shapes={new: self.shapes[key] for new, key in old.items()},
            dtypes={new: self.dtypes[key] for new, key in old.items()},
            read=lambda key: self.read(old[key]),
            notes=(*self.notes, note),
        )


def open_source(path: str | Path) -> Source:
    """Opens a checkpoint: a file, a list of shards, or a folder with one of these. Nothing but names, shapes
    and dtypes is read yet.

    Raises MissingError, FileError, ExtraError (PyTorch's without PyTorch), InputError, WeightsError.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = in_folder(path)
    if not os.path.isfile(path):
        what = "no file" if os.path.lexists(path) else "no such file"
        raise MissingError(
            f"{path}: {what}, nor the name of a hub repository (OWNER/NAME)", argument="source"
        )
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", cause=error, argument="source") from error
    if path.name.endswith(INDEX):
        return _open_shards(path)
    if is_safetensors(start):
        return _open_safetensors(path)
    if is_torch(start) or path.suffix in (".pt", ".pth"):
        return _open_torch(path)
    if path.suffix == ".safetensors":  # damaged, which it says
        return _open_safetensors(path)
    raise WeightsError(f"{path} is neither a safetensors file nor one of PyTorch", argument="source")


def in_folder(folder: Path) -> Path:
    """The weight file of a folder: a list of shards, model.safetensors, or the only one. Raises MissingError,
    InputError.
    """
    found = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.is_file())
    indices = [path for path in found if path.name.endswith(INDEX)]
    first = indices or [path for path in found if path.name == "model.safetensors"]
    if len(found) == 1 or len(first) == 1:
        return (first or found)[0]
    if not found:
        text = f"the folder {folder} holds no weight file ({', '.join(SUFFIXES)})"
        raise MissingError(text, argument="weights")
    names = ", ".join(path.name for path in found)
    text = f"the folder {folder} holds several weight files ({names}): give the path of one"
    raise InputError(text, argument="weights")


def require_torch(path: str | Path) -> Any:
    """The torch module; ExtraError, naming `path` and the extra, if it is not installed."""
    try:
        import torch
    except ImportError as error:
        text = (
            f"{path} is a PyTorch file: reading it needs the extra torch (pip install 'fastvggt_jax[torch]')"
        )
        raise ExtraError(text) from error
    return torch


def _open_safetensors(path: Path) -> Source:
    file = open_safetensors(path)
    slices = {key: file.get_slice(key) for key in file.keys()}
    shapes = {key: tuple(entry.get_shape()) for key, entry in slices.items()}
    dtypes = {key: _DTYPES.get(entry.get_dtype(), entry.get_dtype()) for key, entry in slices.items()}
    return Source(path, shapes, dtypes, file.get_tensor)


def _open_shards(path: Path) -> Source:
    """Of a list of shards: {"weight_map": {key: file}}, files that lie beside it."""
    try:
        entries = {str(key): str(name) for key, name in read_json(path)["weight_map"].items()}
    except (AttributeError, InputError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not a list of shards (no weight_map of keys and files)") from error
    outside = [name for name in entries.values() if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise WeightsError(f"{path} names {outside[0]!r}: shards must lie beside their list")
    shards = {name: _open_safetensors(path.parent / name) for name in sorted(set(entries.values()))}
    absent = [key for key, name in entries.items() if key not in shards[name].shapes]
    if absent:
        text = f"{path} names tensors that its shards do not hold: {listed(absent)}"
        raise WeightsError(f"{text}; download it again")
    return Source(
        path,
        {key: shards[name].shapes[key] for key, name in entries.items()},
        {key: shards[name].dtypes[key] for key, name in entries.items()},
        lambda key: shards[entries[key]].read(key),
        (f"{len(shards)} shards",),
    )


def _open_torch(path: Path) -> Source:
    torch = require_torch(path)
    damaged = f"{path} is cut short or damaged: copy or download it again"
    with open(path, "rb") as f:
        zipped = f.read(2) == b"PK"  # as PyTorch has written since 1.6; only this form can be mapped
    if zipped and not zipfile.is_zipfile(path):  # the end, where a zip file has its index, is missing
        raise WeightsError(damaged)
    try:
        with torch.serialization.safe_globals(_harmless()):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(torch, path, zipped)) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the reading of a damaged pickle can fail in any way, KeyError for one
        raise WeightsError(damaged) from error
    found = dict(_state_dicts(data, torch.Tensor))
    if not found:
        where = ", ".join(WRAPPERS)
        raise WeightsError(f"{path} holds no state_dict, neither plain nor under one of {where}")
    name, tensors = next(iter(found.items()))
    strange = [
        key for key, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized
    ]
    if strange:
        raise WeightsError(f"{path} holds sparse or quantised tensors, which are not read: {listed(strange)}")

    def read(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    dtypes = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items()}
    others = [other for other in found if other != name]
    notes = [f"its weights are those under {name}" + (f", not {' or '.join(others)}" if others else "")]
    return Source(path, shapes, dtypes, read, tuple(notes) if name else ())


def _harmless() -> list[Any]:
    """Numpy's scalars, such as a loss beside the weights, are data and no code."""
    module: Any = getattr(np, "_core", None) or getattr(np, "core")  # noqa: B009
    kinds = {type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}
    old = (module.multiarray.scalar, "numpy.core.multiarray.scalar")  # as numpy 1 called it
    return [module.multiarray.scalar, old, np.dtype, *kinds]


def _refused(torch: Any, path: Path, zipped: bool) -> str:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    if names:
        what = f"{path} holds {', '.join(sorted(names)[:3])}, which only running its code could read"
        return f"{what}: save the weights alone, torch.save(model.state_dict(), ...)"
    return f"{path} is damaged, or holds other objects than tensors, which are refused"


def _state_dicts(data: Any, tensor_type: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is, a dict of tensors by name) of all that a file held; "" is the file itself."""
    if not isinstance(data, dict):
        return
    for name, tensors in {"": data, **{name: data.get(name) for name in WRAPPERS}}.items():
        if (
            isinstance(tensors, dict)
            and tensors
            and all(isinstance(key, str) and isinstance(t, tensor_type) for key, t in tensors.items())
        ):
            yield name, tensors
