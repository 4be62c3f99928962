"""Official checkpoints as named tensors that are read one by one: .safetensors, and .pt where PyTorch is
installed.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fastvggt_jax.errors import ExtraError, MissingError, WeightsError
from fastvggt_jax.io.tensors import open_safetensors

_WRAPPERS = ("model", "state_dict")  # under which training scripts store the state_dict
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
}  # as safetensors and as numpy call them


@dataclass(frozen=True)
class Source:
    """A checkpoint: the shape and dtype (its name) of every tensor, and `read`, which loads one as a numpy
    array.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Callable[[str], np.ndarray]


def open_source(path: str | Path) -> Source:
    """Opens a checkpoint by its suffix. Nothing but names, shapes and dtypes is read yet.

    Raises MissingError, ExtraError (.pt without PyTorch), WeightsError.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _open_torch(path)
    if not path.exists():
        raise MissingError(f"{path}: no such file, nor the name of a hub repository (OWNER/NAME)")
    raise WeightsError(f"{path} must be a .safetensors or a .pt file")


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


def _open_torch(path: Path) -> Source:
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    torch = require_torch(path)
    damaged = f"{path} is cut short or damaged: copy or download it again"
    with open(path, "rb") as f:
        zipped = f.read(2) == b"PK"  # as PyTorch has written since 1.6; only this form can be mapped
    if zipped and not zipfile.is_zipfile(path):  # the end, where a zip file has its index, is missing
        raise WeightsError(damaged)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a plain weight file: it is damaged, or holds other objects than tensors, "
            "which are refused"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the reading of a damaged pickle can fail in any way, KeyError for one
        raise WeightsError(damaged) from error
    tensors = _state_dict(data, torch.Tensor)
    if tensors is None:
        raise WeightsError(f"{path} holds no state_dict, neither plain nor under {' or '.join(_WRAPPERS)}")

    def read(key: str) -> np.ndarray:
        tensor = tensors[key]
        if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    dtypes = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items()}
    return Source(path, shapes, dtypes, read)


def _state_dict(data: Any, tensor_type: type) -> dict[str, Any] | None:
    """The dict of tensors in what a .pt file held, or None."""
    candidates = [data, *(data.get(name) for name in _WRAPPERS)] if isinstance(data, dict) else []
    for tensors in candidates:
        if (
            isinstance(tensors, dict)
            and tensors
            and all(isinstance(t, tensor_type) for t in tensors.values())
        ):
            return tensors
    return None
