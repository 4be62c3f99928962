"""yyfz233/Pi3: which official key becomes which parameter. Names as in `convert.vggt`; of the decoder's
blocks the even ones attend within a frame, the odd ones across frames, and each kind is a stack of its own.
"""

import dataclasses

from convert.official import ENCODER_CONSTANTS, Official
from convert.rules import Rule, conv, linear, norm
from convert.table import Repository, Table

KEY = r"(?:point|conf|camera)_decoder\..+"  # the keys by which a checkpoint is known to be a π³
# which only Pi3X has, a later model
PI3X_KEY = r"metric_token|metric_(?:head|decoder)\..+|depth_encoder\..+"

_STACKS = (
    r"(?P<stack>(?:encoder|point_decoder|conf_decoder|camera_decoder)\.blocks)\.(?P<layer>\d+)\.",
    "{stack}",
)
_FRAME = (r"decoder\.(?P<layer>\d*[02468])\.", "decoder/frame_blocks")
_GLOBAL = (r"decoder\.(?P<layer>\d*[13579])\.", "decoder/global_blocks")


def block(path: str, target: str, every: int = 1) -> list[Rule]:
    rules = (
        *norm(path + r"(?P<name>norm[12]|attn\.[qk]_norm)", target + "/{name}"),
        *linear(path + r"(?P<name>attn\.(?:qkv|proj)|mlp\.fc[12])", target + "/{name}"),
        Rule(path + r"(?P<name>ls[12]\.gamma)", target + "/{name}"),
    )
    return [dataclasses.replace(rule, every=every) for rule in rules]


SHARED = (  # with Pi3X
    *block(*_STACKS),
    *block(*_FRAME, every=2),
    *block(*_GLOBAL, every=2),
    Rule("register_token", "register_token"),
    Rule(r"encoder\.(?P<name>cls_token|pos_embed|register_tokens)", "encoder/{name}"),
    *conv(r"encoder\.patch_embed\.proj", "encoder/patch_embed/proj"),
    *norm(r"encoder\.norm", "encoder/norm"),
    *linear(r"(?P<name>(?:point|conf|camera)_decoder\.(?:projects|linear_out))", "{name}"),
    *linear(
        r"camera_head\.res_conv\.(?P<index>[01])\.(?P<name>res_conv[123])",
        "camera_head/res_conv_{index}/{name}",
    ),
    *linear(r"camera_head\.more_mlps\.(?P<index>[02])", "camera_head/more_mlps_{index}"),
    *linear(r"camera_head\.(?P<name>fc_t|fc_rot)", "camera_head/{name}"),
)
RULES = (*SHARED, *linear(r"(?P<name>(?:point|conf)_head\.proj)", "{name}"))

IGNORE = {
    r"image_(?:mean|std)": "the constants of ImageNet, which the encoder has",
    r"encoder\.mask_token": "it serves masked training only; no output depends on it",
}

_DECODERS = ("point_decoder", "conf_decoder", "camera_decoder")
OFFICIAL = Official(
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
        **{f"{decoder}.dec_embed_dim": "head_embed_dim" for decoder in _DECODERS},
        **{f"{decoder}.depth": "head_depth" for decoder in _DECODERS},
        **{f"{decoder}.num_heads": "head_num_heads" for decoder in _DECODERS},
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
        **{f"{decoder}.layernorm_eps": 1e-6 for decoder in _DECODERS},
    },
    twice_width=tuple(f"{decoder}.in_dim" for decoder in _DECODERS),
    halved={"decoder.depth": "depth"},  # upstream counts blocks, we pairs of a frame and a global one
)

TABLE = Table(
    key=KEY,
    rules=RULES,
    ignore=IGNORE,
    official=OFFICIAL,
    sizes="the released π³",
    others=PI3X_KEY,
    published={
        "yyfz233/Pi3": Repository(
            "model.safetensors", "CC BY-NC 4.0 (non-commercial use only; github.com/yyfz/Pi3, README)"
        ),
    },
)
