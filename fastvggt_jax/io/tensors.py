"""Safetensors files, tensor by tensor: opened with clear errors, written as a stream, compared strictly.

The safetensors library reads one tensor at a time but writes only from a dictionary that holds them all. A
model of 5 GB must not be in memory twice, so the writer here takes names, shapes and dtypes first and the
data afterwards.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from fastvggt_jax.errors import FileError, InputError, WeightsError
from fastvggt_jax.io.files import check_space, new_file, reason, regular_file

_TAGS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LISTED = 10  # names that an error spells out before it only counts


def open_safetensors(path: str | Path) -> safe_open:
    """Opens `path` for reading tensor by tensor as numpy arrays (bfloat16 as `ml_dtypes.bfloat16`),
    memory-mapped.

    Raises MissingError, FileError, InputError for what is no file, or WeightsError if it is not safetensors
    or is cut short.
    """
    path = regular_file(path)
    try:
        # A permission that is missing gets its own words here, not safetensors' "no such file".
        with open(path, "rb"):
            pass
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", cause=error) from error
    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        with open(path, "rb") as f:
            start = f.read(9)
        if is_safetensors(start):
            remedy = "copy, download or convert it again"
            text = f"{path} is a safetensors file that is cut short or damaged: {remedy}"
        else:
            text = f"{path} is not a safetensors file"
        raise WeightsError(text) from error


def is_safetensors(start: bytes) -> bool:
    """By the first nine bytes: eight of the header's length, then the header, which is JSON."""
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def is_torch(start: bytes) -> bool:
    """Whether a file that starts so may be PyTorch's: a zip file, or a pickle."""
    return start[:2] == b"PK" or start[:1] == b"\x80"


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, jax.ShapeDtypeStruct],
    chunks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str],
) -> int:
    """Writes a safetensors file as a stream and returns its size in bytes.

    tensors: name -> shape and dtype (float32, bfloat16, float16). chunks(name) yields the tensor's data as
    arrays of that dtype which, each flattened in C order and laid end to end, make the whole; only one is
    held at a time.
    The data go to a temporary file beside `path`, which replaces it at the end: on an error nothing is left
    and an older file stays. Raises FileError (no space), InputError (dtype not storable).
    """
    path = Path(path)
    for name, spec in tensors.items():
        if str(spec.dtype) not in _TAGS:
            raise InputError(f"parameter {name} is {spec.dtype}; a weight file holds {', '.join(_TAGS)}")
    # Wider elements first, as the format asks, so that every tensor starts at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        spec = tensors[name]
        start, end = end, end + math.prod(spec.shape) * spec.dtype.itemsize
        header[name] = {
            "dtype": _TAGS[str(spec.dtype)],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    check_space(path, 8 + len(raw) + end)
    try:
        with new_file(path) as f:
            f.write(struct.pack("<Q", len(raw)) + raw)
            for name in names:
                _write_tensor(f, name, tensors[name], chunks(name))
    except FileError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        needed = (8 + len(raw) + end) / 1e9
        text = f"could not write {path} ({needed:.2f} GB): {reason(cause)}; nothing was left behind"
        raise FileError(text, cause=cause) from error
    return 8 + len(raw) + end


def _write_tensor(f: BinaryIO, name: str, spec: jax.ShapeDtypeStruct, chunks: Iterable[np.ndarray]) -> None:
    written = 0
    for chunk in chunks:
        if chunk.dtype != spec.dtype:
            raise TypeError(f"{name} was announced as {spec.dtype} but its data are {chunk.dtype}")
        data = chunk.reshape(-1).view(np.uint8)  # as bytes: bfloat16 exports no buffer
        written += data.nbytes
        f.write(data)
    if written != math.prod(spec.shape) * spec.dtype.itemsize:
        raise ValueError(f"{name} was announced as {spec.dtype}{list(spec.shape)} but {written} bytes came")


def compare_shapes(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> str:
    """What separates two sets of named shapes, as text for an error; empty if they are equal."""
    return differences(
        missing=[name for name in wanted if name not in found],
        unexpected=[name for name in found if name not in wanted],
        wrong=[(n, found[n], wanted[n]) for n in wanted if n in found and list(found[n]) != list(wanted[n])],
    )


def differences(
    missing: Sequence[str],
    unexpected: Sequence[str],
    wrong: Sequence[tuple[str, Sequence[int], Sequence[int]]],
) -> str:
    """Text that names missing and unexpected tensors and those of a wrong shape (name, found, wanted).

    At most ten of each kind are spelled out, the rest counted; empty if there is none.
    """
    shapes = [f"{name} is {list(found)} instead of {list(wanted)}" for name, found, wanted in wrong]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
    return "; ".join(f"{len(items)} {kind}: {listed(items)}" for kind, items in kinds if items)


def listed(items: Sequence[str]) -> str:
    more = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")
