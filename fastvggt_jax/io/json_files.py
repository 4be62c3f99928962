"""JSON that anybody may have written."""

from __future__ import annotations

import json
import os
from typing import Any

from fastvggt_jax.errors import FileError, InputError
from fastvggt_jax.io.files import reason, regular_file

LARGEST = 256 * 2**20  # bytes


def read_json(path: str | os.PathLike, argument: str | None = None) -> Any:
    """What a file holds.

    Raises MissingError, FileError, or InputError for what is no JSON, all of this argument.
    """
    path = regular_file(path, argument)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(
                f"{path} is larger than {LARGEST >> 20} MiB, so it is not read", argument=argument
            )
        data = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"{path} could not be read: {reason(error)}", cause=error, argument=argument
        ) from error
    try:
        return parse_json(data)
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: {error}", argument=argument) from error


def parse_json(data: bytes | str) -> Any:
    """Raises ValueError for whatever is no JSON."""
    try:
        # json's own guess would take UTF-16 too, and the sentence of a wrong byte is as good.
        return json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
