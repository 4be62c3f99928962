"""scene.json: which files are in the folder, what they hold, in which convention each is, and how the scene
came to be.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvggt_jax.errors import Error, InputError
from fastvggt_jax.export.base import Export, Format, all_formats
from fastvggt_jax.io.files import write_file
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.io.scenes import CONVENTIONS as OF_CAMERAS
from fastvggt_jax.io.scenes import pieces_in, world

FILE, VERSION = "scene.json", 1


def write_conventions(export: Export, folder: Path) -> None:
    """Write of every format that has files in the folder which these are and what they mean. FileError.

    What is known there of the run that made the scene stays.
    """
    formats: dict[str, Any] = {}
    for format in all_formats():
        present = [pattern for pattern in format.files if next(folder.glob(pattern), None) is not None]
        if present and format.name != "conventions":
            formats[format.name] = {"files": present, "about": format.about}
    content = {
        "format": "fastvggt_jax files",
        "format_version": VERSION,
        "world": OF_CAMERAS["world"],
        **world(export.scene),
        "photographs": len(export.scene.names),
        "formats": formats,
    }
    with contextlib.suppress(Error):  # none, or damaged
        content |= {"run": dict(run)} if (run := read_run(folder)) else {}
    write_file(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False).encode())


def keep_run(folder: str | os.PathLike, run: Mapping[str, Any]) -> None:
    """Add to a result's scene.json how it was made, JSON-able; of one in pieces to that of each piece. Raises
    as `read_json`, and FileError.
    """
    whole = Path(folder) / FILE
    for path in [whole] if whole.exists() else [piece / FILE for piece in pieces_in(folder)]:
        content = read_json(path) | {"run": dict(run)}
        write_file(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_run(folder: str | os.PathLike) -> Mapping[str, Any]:
    """What `keep_run` has kept; empty in a folder of before there was any.

    Raises FileError, or InputError for a scene.json that is damaged or of a newer version.
    """
    path = Path(folder) / FILE
    if not os.path.exists(path):
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(run := content.get("run", {}), dict):
        raise InputError(f"{path} is damaged, or no scene.json of fastvggt_jax")
    version = content.get("format_version")
    if type(version) is int and version > VERSION:
        text = f"has format version {version}, this fastvggt_jax reads up to {VERSION}"
        raise InputError(f"{path} {text}: upgrade fastvggt_jax")
    return run


CONVENTIONS = Format("conventions", (FILE,), write_conventions, about="this file", describes=True)
