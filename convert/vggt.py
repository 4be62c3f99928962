"""facebookresearch/vggt (facebook/VGGT-1B and its variants): which official key becomes which parameter.

A native name is the official one with '/' for '.'; the index of a scanned stack is dropped and its members
are stacked, any other index is joined with '_'; `weight` is named after what it is (kernel, scale).
"""

from convert.official import ENCODER_CONSTANTS, Official
from convert.rules import Rule, conv, conv_transpose, linear, norm
from convert.table import Repository, Table, Variant

KEY = r"aggregator\..+"  # the keys by which a checkpoint is known to be a VGGT

_UPDATEFORMER = r"track_head\.tracker\.updateformer"
_BLOCK = (
    r"(?P<stack>aggregator\.(?:patch_embed\.blocks|frame_blocks|global_blocks)|camera_head\.trunk|"
    + _UPDATEFORMER
    + r"\.(?:time|space_virtual|space_point2virtual|space_virtual2point)_blocks)\.(?P<layer>\d+)\."
)
_DPT = r"(?P<head>point_head|depth_head|track_head\.feature_extractor)\."

RULES = (
    # Transformer blocks, every stack scanned.
    *norm(_BLOCK + r"(?P<name>norm1|norm2|norm_context|attn\.[qk]_norm)", "{stack}/{name}"),
    *linear(_BLOCK + r"(?P<name>attn\.(?:qkv|proj)|mlp\.fc[12])", "{stack}/{name}"),
    Rule(_BLOCK + r"(?P<name>ls[12]\.gamma)", "{stack}/{name}"),
    # torch.nn.MultiheadAttention, in the tracker only.
    Rule(_BLOCK + r"(?P<name>(?:cross_)?attn)\.in_proj_weight", "{stack}/{name}/in_proj/kernel", "linear"),
    Rule(_BLOCK + r"(?P<name>(?:cross_)?attn)\.in_proj_bias", "{stack}/{name}/in_proj/bias"),
    *linear(_BLOCK + r"(?P<name>(?:cross_)?attn\.out_proj)", "{stack}/{name}"),
    # Encoder and aggregator outside their blocks.
    Rule(r"aggregator\.(?P<name>camera_token|register_token)", "aggregator/{name}"),
    Rule(
        r"aggregator\.patch_embed\.(?P<name>cls_token|pos_embed|register_tokens)",
        "aggregator/patch_embed/{name}",
    ),
    *conv(r"aggregator\.patch_embed\.patch_embed\.proj", "aggregator/patch_embed/patch_embed/proj"),
    *norm(r"aggregator\.patch_embed\.norm", "aggregator/patch_embed/norm"),
    # Camera head.
    Rule(r"camera_head\.empty_pose_tokens", "camera_head/empty_pose_tokens"),
    *norm(r"camera_head\.(?P<name>token_norm|trunk_norm)", "camera_head/{name}"),
    *linear(r"camera_head\.(?P<name>embed_pose|pose_branch\.fc[12])", "camera_head/{name}"),
    *linear(r"camera_head\.poseLN_modulation\.1", "camera_head/poseLN_modulation_1"),
    # Dense heads, and the tracker's feature extractor, which is one.
    *norm(_DPT + "norm", "{head}/norm"),
    *conv(_DPT + r"projects\.(?P<index>[0-3])", "{head}/projects_{index}"),
    *conv_transpose(_DPT + r"resize_layers\.(?P<index>[01])", "{head}/resize_layers_{index}"),
    *conv(_DPT + r"resize_layers\.3", "{head}/resize_layers_3"),
    *conv(_DPT + r"scratch\.(?P<name>layer[1-4]_rn|output_conv1)", "{head}/scratch/{name}"),
    *conv(
        _DPT + r"scratch\.(?P<name>refinenet[1-4]\.(?:out_conv|resConfUnit[12]\.conv[12]))",
        "{head}/scratch/{name}",
    ),
    *conv(_DPT + r"scratch\.output_conv2\.(?P<index>[02])", "{head}/scratch/output_conv2_{index}"),
    # Tracker.
    Rule(r"track_head\.tracker\.query_ref_token", "track_head/tracker/query_ref_token"),
    Rule(_UPDATEFORMER + r"\.virual_tracks", "track_head/tracker/updateformer/virual_tracks"),  # (sic)
    *norm(
        r"track_head\.tracker\.(?P<name>(?:fmap|ffeat|updateformer\.input|updateformer\.output)_norm)",
        "track_head/tracker/{name}",
    ),
    *linear(r"track_head\.tracker\.(?P<name>corr_mlp\.fc[12])", "track_head/tracker/{name}"),
    *linear(
        _UPDATEFORMER + r"\.(?P<name>input_transform|flow_head)", "track_head/tracker/updateformer/{name}"
    ),
    *linear(
        r"track_head\.tracker\.(?P<name>ffeat_updater|vis_predictor|conf_predictor)\.0",
        "track_head/tracker/{name}_0",
    ),
)

IGNORE = {
    r"aggregator\.patch_embed\.mask_token": "it serves masked training only; no output depends on it",
}

OFFICIAL = Official(
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

TABLE = Table(
    key=KEY,
    rules=RULES,
    ignore=IGNORE,
    official=OFFICIAL,
    sizes="VGGT-1B",
    variants={
        "1b": Variant({"track_pos_embed": False}, None, "track features without position embedding", "track"),
        "tracker-fixed": Variant(
            {"track_pos_embed": True}, "tracker_fixed", "track features with position embedding", "track"
        ),
    },
    published={
        "facebook/VGGT-1B": Repository("model.safetensors", "CC BY-NC 4.0 (non-commercial use only)"),
        "facebook/VGGT-1B-Commercial": Repository(
            "vggt_1B_commercial.pt",
            "VGGT Commercial License (commercial use allowed on its terms; see "
            "huggingface.co/facebook/VGGT-1B-Commercial)",
        ),
        "facebook/VGGT_tracker_fixed": Repository("model_tracker_fixed_e20.pt"),
    },
)
