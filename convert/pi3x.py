"""yyfz233/Pi3X: which official key becomes which parameter. What it shares with π³ is in `convert.pi3`."""

from convert.official import Official
from convert.pi3 import IGNORE, OFFICIAL, PI3X_KEY, SHARED, block
from convert.rules import Rule, conv, conv_transpose, linear, norm
from convert.table import Repository, Table

_HEAD = r"(?P<head>(?:point|conf)_head)\."
_STAGE, _STAGE_TARGET = _HEAD + r"upsample_blocks\.(?P<stage>\d)\.", "{head}/upsample_blocks_{stage}"
_METRIC = (r"metric_decoder\.blocks\.(?P<layer>\d+)\.", "metric_decoder/blocks")

RULES = (
    *SHARED,
    # the dense heads
    *conv_transpose(_STAGE + r"0\.0", _STAGE_TARGET + "_0_0"),
    *conv(_STAGE + r"0\.1", _STAGE_TARGET + "_0_1"),
    *norm(_STAGE + r"(?P<unit>[12])\.layers\.(?P<i>[03])", _STAGE_TARGET + "_{unit}/layers_{i}"),
    *conv(_STAGE + r"(?P<unit>[12])\.layers\.(?P<i>[25])", _STAGE_TARGET + "_{unit}/layers_{i}"),
    *conv(_HEAD + r"output_block\.(?P<k>\d)\.(?P<i>[02])", "{head}/output_block_{k}_{i}"),
    # the metric scale
    Rule("metric_token", "metric_token"),
    *linear(r"metric_decoder\.(?P<name>projects_x|projects_y|linear_out)", "metric_decoder/{name}"),
    *norm(_METRIC[0] + r"(?P<name>norm2|norm_y|norm3)", _METRIC[1] + "/{name}"),
    *linear(
        _METRIC[0] + r"(?P<name>cross_attn\.(?:[qkv]_)?proj|mlp\.fc[12])",
        _METRIC[1] + "/{name}",
    ),
    *linear("metric_head", "metric_head"),
    # the conditions
    *block(r"depth_encoder\.blocks\.(?P<layer>\d+)\.", "depth_encoder/blocks"),
    Rule(r"depth_encoder\.(?P<name>cls_token|pos_embed|register_tokens)", "depth_encoder/{name}"),
    *conv(r"depth_encoder\.patch_embed\.proj", "depth_encoder/patch_embed/proj"),
    *norm(r"depth_encoder\.norm", "depth_encoder/norm"),
    Rule("depth_emb", "depth_emb"),
    *conv(r"ray_embed\.proj", "ray_embed/proj"),
    *block(r"pose_inject_blk\.(?P<layer>\d+)\.", "pose_inject_blocks"),
)

_ENCODER = {f"encoder.{name}": f"depth_encoder.{name}" for name in ("embed_dim", "depth", "num_heads")}
_HEADS = ("point_head", "conf_head")
_SHARED_CONSTANTS = {
    key: value for key, value in OFFICIAL.constants.items() if not key.startswith("encoder.")
} | {
    f"{encoder}{key.removeprefix('encoder.')}": value
    for key, value in OFFICIAL.constants.items()
    if key.startswith("encoder.")
    for encoder in ("encoder.", "depth_encoder.")
}

TABLE = Table(
    key=PI3X_KEY,
    rules=RULES,
    ignore=IGNORE | {r"depth_encoder\.mask_token": IGNORE[r"encoder\.mask_token"]},
    official=Official(
        fields={
            **OFFICIAL.fields,
            **{theirs: OFFICIAL.fields[ours] for ours, theirs in _ENCODER.items()},
            **{f"{head}.dim_in": "head_out_dim" for head in _HEADS},
            **{f"{head}.dim_upsample": "conv_channels" for head in _HEADS},
            "metric_decoder.dec_embed_dim": "metric_embed_dim",
            "metric_decoder.depth": "metric_depth",
            "metric_decoder.num_heads": "metric_num_heads",
            "metric_decoder.out_dim": "metric_out_dim",
            "ray_embed.embed_dim": "embed_dim",
            "pose_inject.after_blocks": "inject_after",
            "pose_inject.embed_dim": "embed_dim",
            "pose_inject.num_heads": "num_heads",
            "pose_inject.mlp_ratio": "mlp_ratio",
        },
        constants={
            **_SHARED_CONSTANTS,
            "metric_decoder.layernorm_eps": 1e-6,
            "depth_encoder.in_chans": 2,
            "ray_embed.in_chans": 2,
            **{f"{head}.num_res_blocks": 2 for head in _HEADS},
            **{f"{head}.hidden_factor": 2 for head in _HEADS},
            **{f"{head}.group_size": 32 for head in _HEADS},
            **{f"{head}.groupnorm_eps": 1e-5 for head in _HEADS},
            **{f"{head}.last_channels": 32 for head in _HEADS},
            "point_head.dim_out": [2, 1],
            "conf_head.dim_out": [1],
            "pose_inject.qk_norm": True,
            "pose_inject.layernorm_eps": 1e-6,
            "pose_inject.qk_norm_eps": 1e-5,
            "pose_inject.init_values": 0.01,
            "pose_inject.rope_freq": 100.0,
        },
        twice_width=(*OFFICIAL.twice_width, "metric_decoder.in_dim"),
        halved=OFFICIAL.halved,
        told=("multimodal",),
    ),
    sizes="the released Pi3X",
    published={
        "yyfz233/Pi3X": Repository(
            "model.safetensors", "CC BY-NC 4.0 (non-commercial use only; github.com/yyfz/Pi3, README)"
        ),
    },
)
