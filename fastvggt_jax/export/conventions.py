"""scene.json: which files are in the folder, what they hold, and in which convention each is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastvggt_jax.export.base import Export, Format, all_formats
from fastvggt_jax.io.files import write_file
from fastvggt_jax.io.scenes import CONVENTIONS as OF_CAMERAS
from fastvggt_jax.io.scenes import world

FILE = "scene.json"


def write_conventions(export: Export, folder: Path) -> None:
    """Write of every format that has files in the folder which these are and what they mean. FileError."""
    formats: dict[str, Any] = {}
    for format in all_formats():
        present = [pattern for pattern in format.files if next(folder.glob(pattern), None) is not None]
        if present and format.name != "conventions":
            formats[format.name] = {"files": present, "about": format.about}
    content = {
        "format": "fastvggt_jax files",
        "format_version": 1,
        "world": OF_CAMERAS["world"],
        **world(export.scene),
        "photographs": len(export.scene.names),
        "formats": formats,
    }
    write_file(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False).encode())


CONVENTIONS = Format("conventions", (FILE,), write_conventions, about="this file", describes=True)
