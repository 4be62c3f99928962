"""JSON that anybody may have written."""

from __future__ import annotations

import json
import os
from collections import Counter
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


def read_cameras(path: str | os.PathLike, argument: str | None = None) -> dict[str, Any]:
    """What a cameras.json holds, ours or one that is written like it: its "images" have a name of their own
    each, and "K", "width", "height" and "world_from_cam", of which nothing is checked.

    Raises as `read_json`.
    """
    return check_cameras(read_json(path, argument), path, argument)


def check_cameras(content: Any, path: str | os.PathLike, argument: str | None = None) -> dict[str, Any]:
    """What was read of a path, if it is that. Raises InputError."""
    label = f"{argument} {path}" if argument else str(path)
    text = f"{label} is no cameras.json"
    try:
        images, _ = content["images"], content.get("metric_scale")
        for one in images:
            _ = one["K"], one["width"], one["height"], one["world_from_cam"]
            if not isinstance(one["name"], str):
                raise InputError(f"{text}: {one['name']!r} is no name", argument=argument)
    except (AttributeError, KeyError, TypeError) as error:
        what = f": {error} is missing" if isinstance(error, KeyError) else ""
        raise InputError(text + what, argument=argument) from error
    count = Counter(one["name"] for one in images)
    if twice := [name for name in count if count[name] > 1]:
        raise InputError(f"{label} names {twice[0]} twice", argument=argument)
    return content


def parse_json(data: bytes | str) -> Any:
    """Raises ValueError for whatever is no JSON."""
    try:
        # json's own guess would take UTF-16 too, and the sentence of a wrong byte is as good.
        return json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
