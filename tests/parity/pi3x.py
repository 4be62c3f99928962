"""Pi3X, tiny and full size: every stage of a golden file from one captured forward pass."""

from __future__ import annotations

import jax
import numpy as np

from fastvggt_jax import Conditions
from fastvggt_jax.models.conditions import prepare
from fastvggt_jax.models.injection import Views
from fastvggt_jax.models.rope import patch_positions
from tests.parity.goldens import Goldens, images_of, load_model
from tests.parity.models import encoder_stages
from tests.parity.pi3 import blocks

Golden = dict[str, np.ndarray]
CAPTURED = ("__call__", "embed", "fuse", "after")
NAMES = {"depths": "depth", "intrinsics": "K", "rays": "rays", "poses": "world_from_cam"}
MASKS = {"mask_add_depth": "depth_mask", "mask_add_ray": "ray_mask", "mask_add_pose": "pose_mask"}


def run(goldens: Goldens, name: str, workdir=None) -> Golden:
    case, golden = goldens.case(name), repeated(goldens.case(name), goldens.load(name))
    model, params = load_model(case["model"], case["checkpoint_seed"], goldens.folder, workdir)
    images, conditions = images_of(golden), conditions_of(golden)
    if conditions is None:  # the part is not needed then
        unread = model.head_parameters("conditions")
        model = model.clone(heads=tuple(head for head in model.heads if head != "conditions"))
        left = {k: v for k, v in params["params"].items() if not f"{k}/".startswith(unread)}
        params = {"params": left}
    captured = jax.jit(
        lambda p, x, c: model.apply(
            p, x, c, capture_intermediates=lambda _, method: method in CAPTURED, mutable=["intermediates"]
        )
    )(params, images, conditions)
    prediction, state = jax.device_get(captured)  # numpy's slices need no compiling
    stages, s = state["intermediates"], case["pixel_stride"]
    B, F, H, W, _ = images.shape
    mine = {
        f"out.{k}": getattr(prediction, k)[:, :, ::s, ::s] for k in ("points", "local_points", "rays", "conf")
    }
    mine |= {"out.camera_poses": prediction.camera_poses, "out.metric": prediction.metric}
    raw = np.moveaxis(np.asarray(stages["point_head"]["__call__"][0]).reshape(B * F, H, W, 3), -1, 1)
    mine["point_head.xy"], mine["point_head.z"] = raw[:, :2, ::s, ::s], raw[:, 2:, ::s, ::s]
    mine["camera_head.t"], mine["camera_head.rot9"] = (
        x.reshape(B * F, -1) for x in stages["camera_head"]["__call__"][0]
    )
    mine |= {f"metric_{x}.out": stages[f"metric_{x}"]["__call__"][0] for x in ("decoder", "head")}
    mine |= full_size_stages(stages, F) if name.startswith("full") else tiny_stages(model, stages, images)
    if conditions is not None:
        mine |= condition_stages(model, params, stages, conditions, images, s)
    for key in golden:
        if key.endswith(".every4") and key.removesuffix(".every4") in mine:
            mine[key] = np.asarray(mine[key.removesuffix(".every4")])[..., ::4]
    return {k: np.asarray(v) for k, v in mine.items()}


def repeated(case: dict, golden: Golden) -> Golden:
    """With the inputs that are stored coarsely at their size."""
    out = dict(golden)
    for key, k in case.get("repeat", {}).items():
        out[key] = np.repeat(np.repeat(golden[key], k, -2), k, -1)
    return out


def conditions_of(arrays: Golden, prefix: str = "in.") -> Conditions | None:
    given = {ours: arrays[prefix + theirs] for theirs, ours in NAMES.items() if prefix + theirs in arrays}
    given |= {
        ours: arrays[prefix + theirs].astype(bool)
        for theirs, ours in MASKS.items()
        if prefix + theirs in arrays
    }
    return Conditions(**given) if given else None


def in_force(conditions: Conditions, name: str, mask: str, shape: tuple[int, int]) -> np.ndarray:
    if getattr(conditions, name) is None:
        return np.zeros(shape, np.uint8)
    given = getattr(conditions, mask)
    return np.asarray(np.ones(shape) if given is None else given, np.uint8)


def encoded(conditions: Conditions, shape: tuple[int, int], size: tuple[int, int]) -> Golden:
    """What upstream's `encode` returns and feeds."""
    fed = prepare(conditions, *shape, size)
    pose = np.tile(np.eye(4, dtype=np.float32), (*shape, 1, 1))
    mine = {"poses": pose, "norm_factor": fed.unit, "mask_pose": np.zeros(shape, np.uint8)}
    if fed.world_from_cam is not None:
        mine["poses"] = fed.world_from_cam
        mine["mask_pose"] = np.ones(shape) if fed.pose_mask is None else fed.pose_mask
    mine["mask_depth"] = in_force(conditions, "depth", "depth_mask", shape)
    frames = lambda x: np.moveaxis(np.asarray(x).reshape(-1, *x.shape[2:]), -1, 1)
    if fed.depth is not None:
        mine["depth_encoder.in"] = frames(fed.depth)
    if fed.rays is not None:
        mine["ray_embed.in"] = frames(fed.rays)
    return {k: np.asarray(v, np.uint8 if k.startswith("mask") else np.float32) for k, v in mine.items()}


def condition_stages(model, params, stages, conditions, images, stride: int) -> Golden:
    B, F, H, W, _ = images.shape
    mine = {}
    for key, value in encoded(conditions, (B, F), (H, W)).items():
        if key.endswith(".in"):
            mine[key] = value[..., ::stride, ::stride]
        else:
            mine[f"cond.{key}"] = value
    if "depth_encoder" in stages:
        mine["depth_encoder.patch_tokens"] = stages["depth_encoder"]["__call__"][0]
    if "ray_embed" in stages:
        mine["ray_embed.out"] = stages["ray_embed"]["__call__"][0]
    mine["enc.fused"] = stages["fuse"][0][:, :, model.num_special :].reshape(B * F, -1, model.embed_dim)
    after = stages["decoder"]["global_blocks"].get("after")
    if after is None:
        return mine
    fed = prepare(conditions, B, F, (H, W))
    grid = (H // model.patch_size, W // model.patch_size)
    positions = patch_positions(*grid, model.num_special)
    for j, i in enumerate(model.inject_after):
        x = np.asarray(after[0][i // 2])
        mine |= summary(f"dec.after_inject.{i}", x)
        mine[f"dec.after_inject.{i}"] = x
        # What is added alone: from zeros it would be another thing, so the block is asked again.
        before = np.asarray(blocks(stages)[i]).reshape(x.shape)
        added = model.apply(params, before, fed, j, positions, grid, method=added_by)
        mine[f"pose_inject.{j}.out"] = added
    return mine


def added_by(model, x, fed, j, positions, grid):
    patches = x[:, :, model.num_special :]
    params = jax.tree.map(lambda p: p[j], model.pose_inject_blocks.variables["params"])
    views = Views(fed.world_from_cam, fed.pose_mask, positions[model.num_special :] - 1)
    block = model.pose_inject_blocks.clone(parent=None)
    out = block.apply({"params": params}, patches.reshape(len(x), -1, x.shape[-1]), views).reshape(
        patches.shape
    )
    return out if fed.pose_mask is None else np.where(fed.pose_mask[..., None, None], out, 0)


def tiny_stages(model, stages: dict, images: np.ndarray) -> Golden:
    B, F, H, W, _ = images.shape
    h, w = H // model.patch_size, W // model.patch_size
    mine = encoder_stages(stages["encoder"])
    mine["dec.tokens_in"] = stages.get("fuse", stages["embed"])[0].reshape(B * F, -1, model.embed_dim)
    mine["dec.pos"] = np.tile(patch_positions(h, w, model.num_register_tokens), (B * F, 1, 1))
    mine |= {f"dec.block.{i}": x.reshape(B, F, -1, model.embed_dim) for i, x in enumerate(blocks(stages))}
    mine["dec.out"] = stages["decoder"]["__call__"][0][0].reshape(B * F, -1, 2 * model.embed_dim)
    mine |= {f"{x}_decoder.out": stages[f"{x}_decoder"]["__call__"][0] for x in ("point", "conf", "camera")}
    return mine


def full_size_stages(stages: dict, frames: int) -> Golden:
    mine = {}
    for i, x in enumerate(blocks(stages)):
        mine |= summary(f"dec.block.{i}", x.reshape(1, frames, -1, x.shape[-1]))
    return mine


def summary(name: str, x: np.ndarray) -> Golden:
    return {
        f"{name}.mean_std_per_frame": np.stack([x.mean((0, 2, 3)), x.std((0, 2, 3))], -1),
        f"{name}.first64": x.reshape(-1)[:64],
        f"{name}.register_and_patch": x[0, :, [0, 1, 5, 6, -1], ::16].swapaxes(0, 1),
    }
