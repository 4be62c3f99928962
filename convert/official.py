"""Configurations in upstream's words: how a nested one describes a model of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastvggt_jax.errors import InputError
from fastvggt_jax.models.base import Model


@dataclasses.dataclass(frozen=True)
class Official:
    """How a nested config in upstream's words describes a model of ours.

    Attributes:
      fields: path in the nested object -> our field; paths of one field must agree.
      constants: what the architecture fixes: another value would be another model.
      twice_width: paths whose value must be 2 · embed_dim.
      halved: path -> the field that is half of it.
      told: paths of what a checkpoint's keys tell by themselves.
    """

    fields: dict[str, str]
    constants: dict[str, Any]
    twice_width: tuple[str, ...]
    halved: dict[str, str] = dataclasses.field(default_factory=dict)
    told: tuple[str, ...] = ()


ENCODER_CONSTANTS = {
    "encoder.mlp_ratio": 4,
    "encoder.num_register_tokens": 4,
    "encoder.init_values": 1.0,
    "encoder.layernorm_eps": 1e-6,
    "encoder.interpolate_antialias": True,
    "encoder.interpolate_offset": 0.0,
}


def fields_of(config: Mapping[str, Any], cls: type[Model], official: Official) -> dict[str, Any]:
    """What `cls.from_config` takes, from a nested config in upstream's words, or from one in ours as it is.

    Raises InputError: names every key that is unknown, or whose value is not the one that the architecture
      has.
    """
    if not any(isinstance(value, Mapping) for value in config.values()):
        return dict(config)
    flat = _flatten(config)
    known = {*official.fields, *official.constants, *official.halved, *official.twice_width, *official.told}
    wrong = [f"unknown key {key}" for key in flat if key not in known]
    wrong += [
        f"{key}={flat[key]!r} (only {fixed!r} is supported)"
        for key, fixed in official.constants.items()
        if flat.get(key, fixed) != fixed
    ]
    found: dict[str, Any] = {}
    for key, field in official.fields.items():
        if key in flat and found.setdefault(field, flat[key]) != flat[key]:
            wrong.append(f"{key}={flat[key]!r} (must be {found[field]!r}, like the other places of {field})")
    for key, field in official.halved.items():
        if key in flat:
            even = _is_whole(flat[key]) and flat[key] % 2 == 0
            found[field] = flat[key] // 2 if even else flat[key]
            wrong += [] if even else [f"{key}={flat[key]!r} (must be an even number)"]
    width = found.get("embed_dim", cls.embed_dim)  # checked with the rest of ours
    wrong += [
        f"{key}={flat[key]!r} (must be twice embed_dim)"
        for key in official.twice_width
        if key in flat and _is_whole(width) and flat[key] != 2 * width
    ]
    if wrong:
        raise InputError(f"config does not describe a {cls.__name__}: {'; '.join(wrong)}")
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
