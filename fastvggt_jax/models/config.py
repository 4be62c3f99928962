"""A model's configuration: the flat dict of its fields, and the nested object in upstream's words that describes the same model."""

from __future__ import annotations

import dataclasses
from typing import Any

# path in the nested object -> field of VGGT
OFFICIAL_FIELDS = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "encoder.depth": "encoder_depth",
    "encoder.num_heads": "encoder_num_heads",
    "aggregator.depth": "depth",
    "aggregator.num_heads": "num_heads",
    "aggregator.mlp_ratio": "mlp_ratio",
    "aggregator.num_register_tokens": "num_register_tokens",
    "camera_head.trunk_depth": "camera_trunk_depth",
    "camera_head.num_heads": "camera_num_heads",
    "camera_head.num_iterations": "camera_iterations",
    "dpt.features": "dpt_features",
    "dpt.out_channels": "dpt_level_channels",
    "dpt.intermediate_layer_idx": "taps",
    "track_head.features": "track_features",
    "track_head.iters": "track_iterations",
    "track_head.stride": "track_stride",
    "track_head.corr_levels": "track_corr_levels",
    "track_head.corr_radius": "track_corr_radius",
    "track_head.hidden_size": "track_hidden",
    "track_head.depth": "track_depth",
    "track_head.updateformer_num_heads": "track_num_heads",
    "track_head.num_virtual_tracks": "track_num_virtual",
    "track_head.max_scale": "track_max_scale",
}
# What the architecture fixes: another value would be another model.
OFFICIAL_CONSTANTS = {
    "encoder.mlp_ratio": 4,
    "encoder.num_register_tokens": 4,
    "encoder.init_values": 1.0,
    "encoder.layernorm_eps": 1e-6,
    "encoder.interpolate_antialias": True,
    "encoder.interpolate_offset": 0.0,
    "aggregator.qk_norm": True,
    "aggregator.rope_freq": 100,
    "aggregator.aa_order": ["frame", "global"],
    "aggregator.aa_block_size": 1,
    "aggregator.layernorm_eps": 1e-5,
    "aggregator.qk_norm_eps": 1e-5,
    "camera_head.mlp_ratio": 4,
}
DERIVED = ("camera_head.dim_in", "dpt.dim_in")  # 2 · embed_dim


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _field_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _weight_fields(cls: type, stop: str) -> list[str]:
    names = [field.name for field in dataclasses.fields(cls)]
    return names[: names.index(stop)]


def from_official(cls: type, config: dict[str, Any], stop: str) -> dict[str, Any]:
    """Field values of `cls` from a nested config or from the flat dict that `to_json` writes (its fields before `stop`).

    Raises:
      ValueError: names every key that is unknown, or whose value is not the one that the architecture has.
    """
    if not any(isinstance(value, dict) for value in config.values()):
        unknown = sorted(set(config) - set(_weight_fields(cls, stop)))
        if unknown:
            raise ValueError(f"config has keys that {cls.__name__} does not: {', '.join(unknown)}")
        return {key: _field_value(value) for key, value in config.items()}
    flat = _flatten(config)
    wrong = [f"unknown key {key}" for key in flat if key not in OFFICIAL_FIELDS | OFFICIAL_CONSTANTS and key not in DERIVED]
    wrong += [
        f"{key}={flat[key]!r} (only {fixed!r} is supported)" for key, fixed in OFFICIAL_CONSTANTS.items() if flat.get(key, fixed) != fixed
    ]
    wrong += [
        f"{key}={flat[key]!r} (must be twice embed_dim)"
        for key in DERIVED
        if key in flat and flat[key] != 2 * flat.get("embed_dim", cls.embed_dim)
    ]
    if wrong:
        raise ValueError(f"config does not describe a {cls.__name__}: {'; '.join(wrong)}")
    return {field: _field_value(flat[key]) for key, field in OFFICIAL_FIELDS.items() if key in flat}


def to_json(model: Any, stop: str) -> dict[str, Any]:
    """The model's fields before `stop`, as JSON values."""
    values = {name: getattr(model, name) for name in _weight_fields(type(model), stop)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
