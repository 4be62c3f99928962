"""Which tuning config an implementation runs with: the one that `autotune` measured on such a device, else
the implementation's heuristic.

tuned/DEVICE.json holds what was measured: `{"device": ..., OPERATION: {IMPLEMENTATION: [entry, ...]}}`, an
entry being `{"head_dim": ..., "block": [queries, keys], "config": {field: value, ...}, "setting": {...}}`.
The setting says how it was measured, and nothing reads it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from pallas_kernels.implementation import ATTENTION, Device, Implementation

Key = tuple[int, tuple[int, int]]  # head dim and block, see `Implementation.tuning_key`


def tuned_file(device_kind: str) -> str:
    """Its name for a device of that name."""
    return device_kind.replace(" ", "_").replace("/", "_") + ".json"


def read(path: Traversable) -> dict[str, Any]:
    """A tuned file; empty where there is none."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def key_of(entry: dict[str, Any]) -> Key:
    queries, keys = entry["block"]
    return entry["head_dim"], (queries, keys)


@cache
def _tuned(device_kind: str) -> dict[str, Any]:
    return read(resources.files("pallas_kernels") / "tuned" / tuned_file(device_kind))


def lookup(implementation: Implementation, device: Device, head_dim: int, block: tuple[int, int]) -> Any:
    """A `config_type` for attention; None where none fits, or where there is nothing to tune."""
    if implementation.config_type is None:
        return None
    key = implementation.tuning_key(head_dim, block)
    for entry in _tuned(device.kind).get(ATTENTION, {}).get(implementation.name, []):
        if key_of(entry) == key:
            return implementation.config_type(**entry["config"])
    return implementation.heuristic(*key, device)
