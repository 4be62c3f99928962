"""Which tuning config an implementation runs with: the one that `autotune` measured on such a device, else
the implementation's heuristic.

tuned/DEVICE.json holds what was measured: `{"device": ..., OPERATION: {IMPLEMENTATION: [entry, ...]}}`, an
entry being `{"head_dim": ..., "block": [queries, keys], "config": {field: value, ...}, "setting": {...}}`.
The setting says how it was measured, and nothing reads it. A config changes the speed only: where the file is
damaged, or another version's config does not run, the heuristic's is taken, and the log says so once.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from pallas_kernels.implementation import ATTENTION, Device, Implementation

log = logging.getLogger(__name__)
Key = tuple[int, tuple[int, int]]  # head dim and block, see `Implementation.tuning_key`


@cache
def _warn_once(what: str) -> None:
    log.warning("%s; configs are guessed until python -m pallas_kernels.autotune writes it anew", what)


def tuned_file(device_kind: str) -> str:
    """Its name for a device of that name."""
    return device_kind.replace(" ", "_").replace("/", "_") + ".json"


def read(path: Traversable) -> dict[str, Any]:
    """A tuned file; empty where there is none. ValueError, which names it, if it is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        for entries in content.get(ATTENTION, {}).values():
            for entry in entries:
                key_of(entry), dict(entry["config"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no file of tuned configs ({type(error).__name__}: {error})") from None
    return dict(content)


def key_of(entry: dict[str, Any]) -> Key:
    queries, keys = entry["block"]
    return entry["head_dim"], (queries, keys)


@cache
def _tuned(device_kind: str) -> dict[str, Any]:
    try:
        return read(resources.files("pallas_kernels") / "tuned" / tuned_file(device_kind))
    except ValueError as error:
        _warn_once(str(error))
        return {}


def lookup(implementation: Implementation, device: Device, head_dim: int, block: tuple[int, int]) -> Any:
    """A `config_type` for attention; None where none fits, or where there is nothing to tune."""
    if implementation.config_type is None:
        return None
    key = implementation.tuning_key(head_dim, block)
    for entry in _tuned(device.kind).get(ATTENTION, {}).get(implementation.name, []):
        if key_of(entry) == key:
            try:
                config = implementation.config_type(**entry["config"])
            except TypeError:  # other fields
                config = None
            if config in implementation.search_space(*key, device):
                return config
            _warn_once(
                f"{tuned_file(device.kind)} has a config that {implementation.name!r} cannot run: {entry}"
            )
    return implementation.heuristic(*key, device)
