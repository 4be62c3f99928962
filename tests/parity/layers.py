"""Single layers and functions: blocks, attention, RoPE, position tables, heads."""

from __future__ import annotations

import re

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from convert.rules import TRANSFORMS
from fastvggt_jax.models.dinov2 import resize_pos_embed
from fastvggt_jax.models.heads import dpt, track
from fastvggt_jax.models.heads.camera import activate_pose
from fastvggt_jax.models.heads.pi3 import PixelShuffleHead, PoseHead, decode_rotation
from fastvggt_jax.models.rope import apply_rope, rope_tables
from fastvggt_jax.models.vit import Attention, Block, gelu
from tests.parity.goldens import Goldens, load_model
from tests.parity.pi3x_layers import CASES as PI3X_CASES

Golden = dict[str, np.ndarray]


def run(goldens: Goldens, name: str) -> Golden:
    golden = goldens.load(name)
    kind = next(kind for kind in CASES if name.startswith(kind))
    return {k: np.asarray(v) for k, v in CASES[kind](goldens, name, golden).items()}


def native_params(golden: Golden, prefix: str) -> dict:
    """The `w.*` weights of a layer case, which are in torch layout, as a parameter tree."""
    flat = {}
    for key, value in golden.items():
        if not key.startswith(prefix):
            continue
        path = key[len(prefix) :].replace(".", "/")
        if value.ndim == 2:
            path, value = path.replace("/weight", "/kernel"), value.transpose(TRANSFORMS["linear"])
        flat[path.replace("norm1/weight", "norm1/scale").replace("/weight", "/scale")] = value
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def captured(module: nn.Module, params: dict, *args, **kwargs):
    capture = lambda _, method: method in ("__call__", "normalise")
    found = jax.jit(
        lambda p, a: module.apply(p, *a, **kwargs, capture_intermediates=capture, mutable=["intermediates"])
    )(params, args)
    return jax.device_get(found)  # numpy's slices need no compiling


def block(goldens: Goldens, name: str, golden: Golden) -> Golden:
    eps, qk_norm, has_rope, layer_scale = {
        "layer_block_dino": (1e-6, False, False, True),
        "layer_block_aggregator": (1e-5, True, True, True),
        "layer_block_camera_trunk": (1e-5, False, False, True),
        "layer_block_pi3_decoder": (1e-6, True, True, True),
        "layer_block_pi3_head": (1e-6, False, True, False),
    }[name]
    params, mine = native_params(golden, "w."), {}
    for suffix in ("", "_small"):
        x = golden[f"in.x{suffix}"]
        # The goldens have positions a batch element; ours are shared, so the elements run one by one.
        parts = []
        for b in range(len(x)):
            rope = rope_tables(golden["in.pos"][b], 32) if has_rope else None
            out, state = captured(
                Block(2, eps, qk_norm=qk_norm, layer_scale=layer_scale), params, x[b : b + 1], rope
            )
            parts.append({"out": out, **stages_of(state["intermediates"])})
        mine |= {f"{k}{suffix}": np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return {k: v for k, v in mine.items() if k not in ("q_norm_small", "k_norm_small")}


def stages_of(state: dict) -> Golden:
    stages = {k: state[k]["__call__"][0] for k in ("norm1", "attn", "norm2", "mlp")}
    if "q_norm" in state["attn"]:
        stages |= {k: jnp.swapaxes(state["attn"][k]["normalise"][0], 1, 2) for k in ("q_norm", "k_norm")}
    return stages


def attention(goldens: Goldens, name: str, golden: Golden) -> Golden:
    mine = {}
    for head_dim, heads in ((32, 2), (64, 1)):
        suffix, params, parts = f"hd{head_dim}", native_params(golden, f"w.hd{head_dim}."), []
        for b in range(2):
            rope = rope_tables(golden["in.pos"][b], head_dim)
            out, state = captured(
                Attention(heads, qk_norm=True), params, golden[f"in.x_{suffix}"][b : b + 1], rope
            )
            state = state["intermediates"]
            norms = {k: jnp.swapaxes(state[k]["normalise"][0], 1, 2) for k in ("q_norm", "k_norm")}
            parts.append({"out": out, "qkv": state["qkv"]["__call__"][0], **norms})
        mine |= {f"{k}_{suffix}": np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return mine


def rope2d(goldens: Goldens, name: str, golden: Golden) -> Golden:
    mine = {}
    for d in (32, 64):
        q = golden[f"in.q_d{d}"].swapaxes(1, 2)  # [B, T, N, H]
        parts = [apply_rope(q[b : b + 1], rope_tables(golden[f"in.pos_d{d}"][b], d)) for b in range(len(q))]
        mine[f"out_d{d}"] = np.concatenate(parts).swapaxes(1, 2)
    return mine


def pi3_heads(goldens: Goldens, name: str, golden: Golden) -> Golden:
    mine = {}
    for channels in (1, 3):
        params = native_params(golden, f"w.lin{channels}.")
        mine[f"lin{channels}"] = PixelShuffleHead(channels, 14).apply(
            params, golden[f"in.lin{channels}"], (2, 3)
        )
    renamed = {re.sub(r"(res_conv|more_mlps)\.(\d)", r"\1_\2", key): value for key, value in golden.items()}
    mine["cam.t"], mine["cam.rot9"] = PoseHead().apply(native_params(renamed, "w.cam."), golden["in.cam"])
    pose = np.tile(np.eye(4, dtype=np.float32), (len(mine["cam.t"]), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = decode_rotation(mine["cam.rot9"].reshape(-1, 3, 3)), mine["cam.t"]
    return mine | {"cam.pose": pose, "svd": decode_rotation(golden["in.svd"].reshape(-1, 3, 3))}


def pos_embed(goldens: Goldens, name: str, golden: Golden) -> Golden:
    sizes = [
        (k, *map(int, re.fullmatch(r"out_(\d+)x(\d+)", k).groups())) for k in golden if k.startswith("out_")
    ]
    return {k: resize_pos_embed(golden["in.pos_embed"], H // 14, W // 14) for k, H, W in sizes}


def camera_head(goldens: Goldens, name: str, golden: Golden) -> Golden:
    from fastvggt_jax.models.heads.camera import CameraHead

    _, params = load_model("vggt_tiny", 0, goldens.folder)
    params = params["params"]["camera_head"]
    head, mine = CameraHead(golden["in.tokens"].shape[-1], trunk_depth=2, num_heads=8), {}
    for suffix, bias in (("", None), ("_neg", golden["w_neg.pose_branch.fc2.bias"])):
        if bias is not None:
            fc2 = params["pose_branch"]["fc2"] | {"bias": bias}
            params = params | {"pose_branch": params["pose_branch"] | {"fc2": fc2}}
        poses, state = captured(head, {"params": params}, golden["in.tokens"][:, :, 0])
        state = state["intermediates"]
        mine |= {f"pose_enc{suffix}.{k}": pose for k, pose in enumerate(poses)}
        mine |= {f"pose_raw{suffix}.{k}": pose for k, pose in enumerate(state["pose_raw"])}
        if bias is None:
            mine["token_norm"], normed = (state[one]["__call__"][0] for one in ("token_norm", "adaln_norm"))
            first = jnp.broadcast_to(params["empty_pose_tokens"], state["pose_raw"][0].shape)
            for k, seen in enumerate((first, state["pose_raw"][0])):  # iterations, which the head scans
                arguments = (seen, mine["token_norm"], normed)
                _, state_k = captured(head, {"params": params}, *arguments, method="change")
                inside = state_k["intermediates"]
                mine[f"modulation.{k}"] = inside["poseLN_modulation_1"]["__call__"][0]
                if k == 0:
                    mine["trunk.0"] = inside["trunk"]["__call__"][0][-1]  # after the last trunk block
    return mine


def dpt_heads(goldens: Goldens, name: str, golden: Golden) -> Golden:
    case = goldens.case(name)
    model, params = load_model("vggt_tiny", 0, goldens.folder)
    taps = jnp.stack([golden[f"in.tokens.{i}"][0, :, 5:] for i in range(4)])
    size, patch = (case["H"], case["W"]), 14
    common = {"features": model.dpt_features, "level_channels": model.dpt_level_channels}
    nchw = lambda x: jnp.moveaxis(x, -1, 1)

    head = dpt.DPTHead(**common, out_channels=4)
    run_head = lambda head, params: captured(
        head, {"params": params}, taps, image_size=size, patch_size=patch
    )
    logits, state = run_head(head, params["params"]["point_head"])
    state = state["intermediates"]
    scratch = state["scratch"]
    mine = {f"project.{i}": state[f"projects_{i}"]["__call__"][0] for i in range(4)}
    mine |= {f"resize.{i}": state[f"resize_layers_{i}"]["__call__"][0] for i in (0, 1, 3)}
    mine["resize.2"] = dpt.add_uv(mine["project.2"], size[1] / size[0], True)
    mine |= {
        f"{k}": scratch[k]["__call__"][0]
        for k in scratch
        if k.startswith(("layer", "refinenet", "output_conv1"))
    }
    mine["output_conv2"] = logits
    mine = {f"point_head.{k}": nchw(v) for k, v in mine.items()}
    points, conf = dpt.activate_points(logits)
    mine |= {"point_head.pred": points[None], "point_head.conf": conf[None]}

    logits, _ = run_head(dpt.DPTHead(**common, out_channels=2), params["params"]["depth_head"])
    depth, conf = dpt.activate_depth(logits)
    mine |= {"depth_head.pred": depth[None], "depth_head.conf": conf[None]}
    extractor = dpt.DPTHead(
        model.track_features, model.dpt_level_channels, out_channels=0, down_ratio=2, uv=False
    )
    maps, _ = run_head(extractor, params["params"]["track_head"]["feature_extractor"])
    return mine | {"track_features.out": nchw(maps)[None]}


def functions(goldens: Goldens, name: str, golden: Golden) -> Golden:
    logits = jnp.moveaxis(golden["in.head"], 1, -1)
    depth, _ = dpt.activate_depth(logits)
    points, conf = dpt.activate_points(logits)
    mine = {
        "gelu": gelu(golden["in.scalar"]),
        "silu": jax.nn.silu(golden["in.scalar"]),
        "pose_activated": activate_pose(golden["in.pose"]),
        "head_inv_log": points,
        "head_exp": jnp.concatenate([dpt.activate_depth(logits[..., i : i + 2])[0] for i in range(3)], -1),
        "head_conf_expp1": conf,
        "inverse_log": dpt.activate_points(jnp.tile(golden["in.scalar"][:, None], 4))[0][:, 0],
        "track_flow_embed_16": track.embed_flow(golden["in.flow"], 16),
        "sample_border": track.sample_border(
            jnp.moveaxis(golden["in.sample_map"], 1, -1), golden["in.sample_xy"]
        ),
    }
    h, w = 5, 6
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).astype(np.float32)
    mine["track_pos_embed_100_5x6"] = jnp.moveaxis(track.sample_position(grid, h, w, 100), -1, 0)[None]
    x = jnp.moveaxis(golden["in.resize_x"], 1, -1)
    for key in golden:
        if match := re.fullmatch(r"resize_(\d+)x(\d+)", key):
            mine[key] = jnp.moveaxis(dpt.resize_align_corners(x, *map(int, match.groups())), -1, 1)
        if match := re.fullmatch(r"uv_(embed_)?(w(\d+)h(\d+)c(\d+))", key):
            embed, label, w, h, c = match[1], match[2], *map(int, match.groups()[2:])
            aspect = float(golden[f"in.aspect_{label}"][0])
            grid = np.stack(np.meshgrid(*dpt.uv_axes(h, w, aspect)), -1).astype(np.float32)
            mine[key] = dpt.uv_embedding(h, w, c, aspect) if embed else grid
    mine["resize_x2"] = jnp.moveaxis(dpt.resize_align_corners(x, 10, 14), -1, 1)
    return mine | correlations(golden)


def correlations(golden: Golden) -> Golden:
    maps = jnp.moveaxis(golden["in.corr_fmaps"][0], 1, -1)  # [F, h, w, C]
    targets, coords = golden["in.corr_targets"][0], golden["in.corr_coords"][0]
    mine = {}
    for levels in (3, 4):
        pyramid = track.feature_pyramid(maps, levels)
        corr = [track.correlate(level, targets, coords / 2**i, 2) for i, level in enumerate(pyramid)]
        mine[f"corr_l{levels}_r2"] = jnp.concatenate(corr, -1)[None]
    return mine


def tracker(goldens: Goldens, name: str, golden: Golden) -> Golden:
    model, params = load_model("vggt_tiny", 0, goldens.folder)
    params = {"params": params["params"]["track_head"]["tracker"]}
    module = track.Tracker(
        iters=4,
        stride=2,
        corr_levels=model.track_corr_levels,
        corr_radius=model.track_corr_radius,
        hidden=model.track_hidden,
        depth=model.track_depth,
        num_heads=model.track_num_heads,
        num_virtual=model.track_num_virtual,
        max_scale=model.track_max_scale,
        features=model.track_features,
    )
    maps = jnp.moveaxis(golden["in.fmaps"], 2, -1)
    (tracks, vis, conf), state = captured(module, params, golden["in.query_points"], maps)
    state = state["intermediates"]
    mine = {"vis": vis, "conf": conf} | {f"coords.{k}": x for k, x in enumerate(tracks)}
    state = state["updateformer"]
    mine |= {f"update_in.{k}": x for k, x in enumerate(state["update_in"][0])}
    mine |= {f"delta.{k}": x for k, x in enumerate(state["__call__"][0])}
    corr = state["corr_in"][0]  # [iters, B·F, Q, L]
    mine |= {
        f"corr.{k}": x.reshape(1, maps.shape[1], *x.shape[1:])[0].swapaxes(0, 1) for k, x in enumerate(corr)
    }

    former = track.UpdateFormer(
        model.track_hidden,
        model.track_depth,
        model.track_num_heads,
        model.track_num_virtual,
        model.track_features + 2,
    )
    out, state = captured(former, {"params": params["params"]["updateformer"]}, golden["in.update_x"])
    state = state["intermediates"]
    names = {
        "time_block.0": "time_blocks",
        "virtual2point.0": "space_virtual2point_blocks",
        "virtual.0": "space_virtual_blocks",
        "point2virtual.0": "space_point2virtual_blocks",
    }
    return mine | {"update_out": out} | {k: state[v]["__call__"][0][0] for k, v in names.items()}


CASES = {
    "layer_block": block,
    "layer_attention": attention,
    "layer_rope2d": rope2d,
    "layer_pos_embed": pos_embed,
    "layer_camera_head": camera_head,
    "layer_dpt_heads": dpt_heads,
    "layer_functions": functions,
    "layer_pi3_heads": pi3_heads,
    "layer_tracker": tracker,
    **PI3X_CASES,
}
