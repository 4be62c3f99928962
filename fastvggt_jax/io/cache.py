"""Where this package keeps what it can make again: compiled programs and converted weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fastvggt_jax.errors import MissingError


def cache_folder(name: str) -> Path:
    """The user's folder for caches of one kind: in FASTVGGT_CACHE, or where the system keeps such.

    Raises MissingError if the system knows no home of the user's.
    """
    if given := os.environ.get("FASTVGGT_CACHE"):
        return Path(given) / name
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(base))
    if folder.parts[0] == "~":  # it would be a folder of this name, wherever the program runs
        raise MissingError(
            "no home folder is known here: set FASTVGGT_CACHE to a folder for what can be kept"
        )
    return folder / "fastvggt_jax" / name
