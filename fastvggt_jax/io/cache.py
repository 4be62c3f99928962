"""Where this package keeps what it can make again: compiled programs and converted weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The user's folder for caches of one kind: in FASTVGGT_CACHE, or where the system keeps such."""
    if given := os.environ.get("FASTVGGT_CACHE"):
        return Path(given) / name
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "fastvggt_jax" / name
