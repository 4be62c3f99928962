"""A model's configuration: the flat dict of its fields, and the nested object in upstream's words that
describes the same model.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Official:
    """How a nested config in upstream's words describes a model of ours.

    Attributes:
      fields: path in the nested object -> our field; paths of one field must agree.
      constants: what the architecture fixes: another value would be another model.
      twice_width: paths whose value must be 2 · embed_dim.
      halved: path -> the field that is half of it.
    """

    fields: dict[str, str]
    constants: dict[str, Any]
    twice_width: tuple[str, ...]
    halved: dict[str, str] = dataclasses.field(default_factory=dict)


ENCODER_CONSTANTS = {
    "encoder.mlp_ratio": 4,
    "encoder.num_register_tokens": 4,
    "encoder.init_values": 1.0,
    "encoder.layernorm_eps": 1e-6,
    "encoder.interpolate_antialias": True,
    "encoder.interpolate_offset": 0.0,
}
VGGT = Official(
    fields={
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
    },
    constants=ENCODER_CONSTANTS
    | {
        "aggregator.qk_norm": True,
        "aggregator.rope_freq": 100,
        "aggregator.aa_order": ["frame", "global"],
        "aggregator.aa_block_size": 1,
        "aggregator.layernorm_eps": 1e-5,
        "aggregator.qk_norm_eps": 1e-5,
        "camera_head.mlp_ratio": 4,
    },
    twice_width=("camera_head.dim_in", "dpt.dim_in"),
)
PI3_DECODERS = ("point_decoder", "conf_decoder", "camera_decoder")
PI3 = Official(
    fields={
        "img_size": "img_size",
        "patch_size": "patch_size",
        "encoder.embed_dim": "embed_dim",
        "encoder.depth": "encoder_depth",
        "encoder.num_heads": "encoder_num_heads",
        "decoder.embed_dim": "embed_dim",
        "decoder.num_heads": "num_heads",
        "decoder.mlp_ratio": "mlp_ratio",
        "decoder.num_register_tokens": "num_register_tokens",
        **{f"{decoder}.dec_embed_dim": "head_embed_dim" for decoder in PI3_DECODERS},
        **{f"{decoder}.depth": "head_depth" for decoder in PI3_DECODERS},
        **{f"{decoder}.num_heads": "head_num_heads" for decoder in PI3_DECODERS},
        "point_decoder.out_dim": "head_out_dim",
        "conf_decoder.out_dim": "head_out_dim",
        "camera_decoder.out_dim": "camera_out_dim",
        "camera_head.dim": "camera_out_dim",
    },
    constants=ENCODER_CONSTANTS
    | {
        "decoder.qk_norm": True,
        "decoder.layernorm_eps": 1e-6,
        "decoder.qk_norm_eps": 1e-5,
        "decoder.rope_freq": 100.0,
        "decoder.init_values": 0.01,
        **{f"{decoder}.layernorm_eps": 1e-6 for decoder in PI3_DECODERS},
    },
    twice_width=tuple(f"{decoder}.in_dim" for decoder in PI3_DECODERS),
    halved={"decoder.depth": "depth"},  # upstream counts blocks, we pairs of a frame and a global one
)
OFFICIAL = {"VGGT": VGGT, "Pi3": PI3}


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _field_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FIRST_RUN_FIELD = (
    "dtype"  # it and the fields after it say how a model is run; those before it define its weights
)


class Configured:
    """A model whose fields before `dtype` are its configuration."""

    @classmethod
    def from_config(cls, config: dict[str, Any], **fields: Any) -> Self:
        """From `config()`'s dict or a nested one in upstream's words; `fields` override.

        Raises:
          ValueError: names every key that is unknown, or whose value is not the one that the architecture
            has.
        """
        nested = any(isinstance(value, dict) for value in config.values())
        return cls(**{**(_from_official if nested else _from_fields)(cls, config), **fields})

    def config(self) -> dict[str, Any]:
        """The fields that define the weights, as JSON values."""
        values = {name: getattr(self, name) for name in _weight_fields(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _weight_fields(cls: type) -> list[str]:
    names = [field.name for field in dataclasses.fields(cls)]
    return names[: names.index(FIRST_RUN_FIELD)]


def _from_fields(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(_weight_fields(cls)))
    if unknown:
        raise ValueError(f"config has keys that {cls.__name__} does not: {', '.join(unknown)}")
    return {key: _field_value(value) for key, value in config.items()}


def _from_official(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    flat, official = _flatten(config), OFFICIAL[cls.__name__]
    known = official.fields | official.constants | official.halved
    wrong = [f"unknown key {key}" for key in flat if key not in known and key not in official.twice_width]
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
            found[field], odd = divmod(flat[key], 2)
            wrong += [f"{key}={flat[key]!r} (must be even)"] if odd else []
    wrong += [
        f"{key}={flat[key]!r} (must be twice embed_dim)"
        for key in official.twice_width
        if key in flat and flat[key] != 2 * found.get("embed_dim", cls.embed_dim)
    ]
    if wrong:
        raise ValueError(f"config does not describe a {cls.__name__}: {'; '.join(wrong)}")
    return {field: _field_value(value) for field, value in found.items()}
