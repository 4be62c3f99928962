"""Pi3X's single layers and functions: heads, metric scale, conditions, pose injection, geometry."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax import geometry
from fastvggt_jax.export.lenses import model_from_original
from fastvggt_jax.geometry.intrinsics import fit_intrinsics
from fastvggt_jax.models.dinov2 import PatchEmbed
from fastvggt_jax.models.heads import conv
from fastvggt_jax.models.heads.dpt import uv_axes
from fastvggt_jax.models.heads.metric import MetricDecoder
from fastvggt_jax.models.injection import InjectionBlock, Views, restore
from fastvggt_jax.models.injection import _seen_from as seen_from
from fastvggt_jax.models.pi3x import ConditionEncoder, activate_points
from fastvggt_jax.models.rope import patch_positions, rope_tables
from fastvggt_jax.refine.given import in_model
from fastvggt_jax.sources import ImageTransform
from tests.parity.goldens import Goldens, load_model
from tests.parity.pi3x import conditions_of, encoded

Golden = dict[str, np.ndarray]
nchw = lambda x: np.moveaxis(np.asarray(x), -1, 1)
nhwc = lambda x: np.moveaxis(x, 1, -1)
heads_first = lambda x: np.swapaxes(np.asarray(x), 1, 2)


def captured(module: nn.Module, params, *args, **kwargs):
    """Outputs of every submodule; only what is asked for by name is looked at."""
    capture = lambda _, method: method in ("__call__", "context", "normalise", "embed")
    return jax.jit(
        lambda p: module.apply(
            {"params": p}, *args, **kwargs, capture_intermediates=capture, mutable=["intermediates"]
        )
    )(params)


def call(state: dict, *path: str):
    for name in path:
        state = state[name]
    return state["__call__"][0]


def with_uv(x, aspect: float):
    """The channels that upstream concatenates; ours are convolved apart."""
    planes = conv.uv_planes(*x.shape[1:3], aspect)
    return np.concatenate([x, np.broadcast_to(planes, (len(x), *planes.shape[1:]))], -1)


def conv_heads(goldens: Goldens, name: str, golden: Golden) -> Golden:
    case = goldens.case(name)
    model, params = load_model(case["model"], 0, goldens.folder)
    grid, aspect = (case["patch_h"], case["patch_w"]), case["patch_w"] / case["patch_h"]
    every2, every3 = (lambda x, s=s: nchw(x)[..., ::s, ::s] for s in (2, 3))
    mine, tokens = {}, golden["in.tokens"]
    point = params["params"]["point_head"]
    out, state = captured(conv.ConvHead(model.conv_channels, (2, 1), 14), point, tokens, grid)
    inside = state["intermediates"]
    x = tokens.reshape(1, *grid, -1)
    for s in range(3):
        at = every2 if s == 2 else nchw
        stage = f"upsample_blocks_{s}"
        mine[f"point_head.stage.{s}.in"] = at(with_uv(x, aspect))
        mine[f"point_head.stage.{s}.transposed"] = at(call(inside, f"{stage}_0_0"))
        mine[f"point_head.stage.{s}.conv"] = at(call(inside, f"{stage}_0_1"))
        for r in (1, 2):
            x = call(inside, f"{stage}_{r}")
            mine[f"point_head.stage.{s}.res.{r - 1}"] = at(x)
    H, W = 14 * grid[0], 14 * grid[1]
    resized = jax.image.resize(x, (1, H, W, x.shape[-1]), "bilinear")
    mine["point_head.resized"] = every3(with_uv(resized, aspect))
    for k, (a, b) in enumerate(((0, 2), (2, 3))):
        mine[f"point_head.output.{k}"] = nchw(out[..., a:b])
        mine[f"point_head.output.{k}.hidden"] = every3(call(inside, f"output_block_{k}_0"))
    out, _ = captured(
        conv.ConvHead(model.conv_channels, (1,), 14), params["params"]["conf_head"], tokens, grid
    )
    mine["conf_head.output.0"] = nchw(out)
    for case_ in ("res", "res_small"):
        unit = point["upsample_blocks_1_1"]
        out, state = captured(conv.Residual(), unit, nhwc(golden[f"in.{case_}"]))
        mine[f"{case_}.out"] = nchw(out)
        mine |= {f"{case_}.layers.{i}": nchw(call(state["intermediates"], f"layers_{i}")) for i in (0, 2, 3)}
    for key in golden:
        if match := re.fullmatch(r"resize_(\d+)x(\d+)", key):
            x = nhwc(golden[f"in.{key}"])
            shape = (1, *(14 * int(side) for side in match.groups()), x.shape[-1])
            mine[key] = nchw(jax.image.resize(x, shape, "bilinear"))
        if match := re.fullmatch(r"uv_w(\d+)h(\d+)", key):
            w, h = map(int, match.groups())
            aspect = {(6, 4): 1.5, (1, 5): 0.2, (40, 3): 1.25, (24, 16): 1.5}[w, h]
            mine[key] = np.stack(np.meshgrid(*uv_axes(h, w, aspect)), -1).astype(np.float32)
    return mine


def metric(goldens: Goldens, name: str, golden: Golden) -> Golden:
    model, params = load_model(goldens.case(name)["model"], 0, goldens.folder)
    params, mine = params["params"], {}
    decoder = MetricDecoder(
        model.metric_embed_dim, model.metric_depth, model.metric_num_heads, model.metric_out_dim
    )
    rope = rope_tables(golden["in.pos"][0], model.metric_embed_dim // model.metric_num_heads)

    class Whole(nn.Module):
        def setup(self):
            self.metric_decoder = decoder.clone()

        def __call__(self, token, tokens):
            context = self.metric_decoder.context(tokens)
            return self.metric_decoder(token, context, rope), context

    for suffix in ("", "_small"):
        given = {"metric_decoder": params["metric_decoder"]}
        (out, context), state = captured(
            Whole(), given, params["metric_token"], golden[f"in.context{suffix}"]
        )
        inside = state["intermediates"]["metric_decoder"]
        block = inside["blocks"]
        head = nn.Dense(1).apply({"params": params["metric_head"]}, out)
        mine |= {f"out{suffix}": out, f"head{suffix}": head, f"metric{suffix}": np.exp(head)[:, 0, 0]}
        mine |= {f"block{suffix}.{i}.out": x for i, x in enumerate(call(block))}
        if suffix:
            continue
        shape = (len(context), 1, context.shape[-1])
        mine["projects_x"] = np.broadcast_to(call(inside, "projects_x"), shape)
        mine["projects_y"] = context
        for ours in ("cross_attn", "mlp", "norm2", "norm3", "norm_y"):
            mine[f"block.0.{ours}"] = call(block, ours)[0]
        mine |= {f"block.0.{x}": call(block, "cross_attn", f"{x}_proj")[0] for x in "qkv"}
    return mine


def prope(goldens: Goldens, name: str, golden: Golden) -> Golden:
    case = goldens.case(name)
    pose = golden["in.camera_to_world"]
    positions = patch_positions(case["patch_h"], case["patch_w"], 0) - 1
    views, mine = Views(pose, None, positions), {"camera_from_world": geometry.invert_se3(pose)}
    for d in (32, 64):
        x = heads_first(golden[f"in.x_d{d}"])
        q, k, v = seen_from(x, x, x, views)
        np.testing.assert_array_equal(k, v)
        mine |= {f"q_d{d}": heads_first(q), f"kv_d{d}": heads_first(k)}
        mine[f"o_d{d}"] = heads_first(restore(jnp.asarray(x), views))
    # One row of 40 patches. The golden is of view 0 of scene 0.
    wide = Views(pose[:1, :1], None, patch_positions(1, 40, 0) - 1)
    x = heads_first(golden["in.x_wide"])
    return mine | {"q_wide": heads_first(seen_from(x, x, x, wide)[0])}


def pose_inject(goldens: Goldens, name: str, golden: Golden) -> Golden:
    case = goldens.case(name)
    model, params = load_model(case["model"], 0, goldens.folder)
    params = jax.tree.map(lambda p: p[0], params["params"]["pose_inject_blocks"])
    views = Views(golden["in.poses"], None, patch_positions(case["patch_h"], case["patch_w"], 0) - 1)
    block, mine = InjectionBlock(model.num_heads), {}
    for suffix in ("", "_small"):
        out, state = captured(block, params, golden[f"in.x{suffix}"], views)
        inside = state["intermediates"]
        mine |= {f"out{suffix}": out, f"attn{suffix}": call(inside, "attn")}
        if not suffix:
            mine |= {x: call(inside, x) for x in ("norm1", "norm2", "mlp")}
            q, k = (call(inside, "attn", f"{x}_norm") for x in "qk")
            qkv = call(inside, "attn", "qkv")
            v = qkv.reshape(*qkv.shape[:2], 3, model.num_heads, -1)[:, :, 2]
            mine |= {"q_norm": heads_first(q), "k_norm": heads_first(k)}
            q, k, v = seen_from(q, k, v, views)
            mine |= {"q": heads_first(q), "k": heads_first(k), "v": heads_first(v)}
            attended = restore(jax.nn.dot_product_attention(q, k, v), views)
            mine["attn_before_proj"] = attended.reshape(golden["in.x"].shape)
    posed = golden["in.view_mask"].astype(bool)
    out = block.apply({"params": params}, golden["in.x"], views._replace(posed=posed))
    shape = (*posed.shape, -1, out.shape[-1])
    mine["out_masked"] = np.where(posed[..., None, None], out.reshape(shape), 0).reshape(out.shape)
    return mine


def embeddings(goldens: Goldens, name: str, golden: Golden) -> Golden:
    model, params = load_model(goldens.case(name)["model"], 0, goldens.folder)
    params = params["params"]
    encoder = ConditionEncoder(
        model.img_size, 14, model.embed_dim, model.encoder_depth, model.encoder_num_heads
    )
    out, state = captured(encoder, params["depth_encoder"], nhwc(golden["in.depth"]))
    rays = PatchEmbed(14, model.embed_dim, jnp.float32).apply(
        {"params": params["ray_embed"]}, nhwc(golden["in.rays"])
    )
    return {
        "depth_encoder.patch_tokens": out,
        "depth_encoder.tokens_in": state["intermediates"]["embed"][0],
        "depth_encoder.with_depth_emb": out + params["depth_emb"],
        "ray_embed.out": rays,
    }


def conditions(goldens: Goldens, name: str, golden: Golden) -> Golden:
    case, mine = goldens.case(name), {}
    shape, size = (case["B"], case["N"]), (case["H"], case["W"])
    for scene, asked in case["scenes"].items():
        given = {k: golden[v] for k, v in asked["arguments"].items()}
        masks = {k: np.array(v) for k, v in asked.items() if k.startswith("mask")}
        if not asked.get("with_prior", True):  # none is on that is not given
            masks |= {f"mask_add_{x}": np.zeros(shape) for x in ("depth", "ray", "pose")}
        if "mask_add_depth" in masks and "depths" not in given:  # upstream feeds zeros then, ours says no
            given["depths"] = np.zeros((*shape, *size), np.float32)
        found = encoded(conditions_of(given | masks, ""), shape, size)
        mine |= {f"{scene}.{k}": v for k, v in found.items() if f"{scene}.{k}" in golden}
    return mine


def outputs(goldens: Goldens, name: str, golden: Golden) -> Golden:
    views = lambda x: nhwc(x)[None]
    metric = np.exp(golden["in.log_metric"])[:, 0, 0]
    pose = golden["in.camera_poses"][None]
    mine = {"out.metric": metric, "out.conf": views(golden["in.conf"])}
    for suffix, z in (("", "in.z"), ("_limit", "in.z_limit")):
        local, rays = activate_points(jnp.asarray(views(np.concatenate([golden["in.xy"], golden[z]], 1))))
        mine[f"out{suffix}.local_points"] = local * metric
        mine[f"out{suffix}.points"] = geometry.transform(pose, local) * metric
        mine |= {} if suffix else {"out.rays": rays}
    mine["out.camera_poses"] = jnp.asarray(pose).at[..., :3, 3].multiply(metric)
    return mine


def beside(goldens: Goldens, name: str, golden: Golden) -> Golden:
    """K from rays, and what is known of a photograph at the model's size."""
    found = np.stack([fit_intrinsics(p, np.ones(p.shape[:2]))[0] for p in golden["in.local_points"]])
    mine = {"intrinsics_free": geometry.move_origin(found, -0.5)}  # upstream's count from the first centre
    depth, K = golden["in.resize.depths"], golden["in.resize.intrinsics"]
    (h, w), (H, W) = depth.shape[1:], golden["resize.depths"].shape[1:]
    t = ImageTransform(w, h, W, H, W / w, H / h, 0, 0)
    usable = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
    mine["resize.depths"] = np.stack([in_model(one, t) for one in usable])
    return mine | {"resize.intrinsics": model_from_original(t) @ K}


CASES = {
    "layer_pi3x_geometry": beside,
    "layer_pi3x_conv_heads": conv_heads,
    "layer_pi3x_metric": metric,
    "layer_pi3x_prope": prope,
    "layer_pi3x_pose_inject": pose_inject,
    "layer_pi3x_embeddings": embeddings,
    "layer_pi3x_conditions": conditions,
    "layer_pi3x_outputs": outputs,
}
