"""Whole models, tiny and full size, dense and sparse: every stage of a golden file from one captured forward
pass.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from fastvggt_jax import Sparsity
from fastvggt_jax.attention import hilbert_order, split_tokens
from fastvggt_jax.models.rope import apply_rope, patch_positions, rope_tables
from pallas_kernels import pooled_block_mask, reference
from tests.parity.goldens import Goldens, images_of, load_model

CAPTURED = ("__call__", "embed", "normalise")


def sparsity_of(case: dict) -> Sparsity | None:
    if "block_q" not in case:
        return None
    return Sparsity(
        sparse_ratio=case["sparse_ratio"],
        cdf_threshold=case["cdf_threshold"],
        block=(case["block_q"], case["block_k"]),
        special_keys="official",
        pool={"avg": "mean", "max": "max"}[case["pool"]],
        order="hilbert" if case["hilbert"] else "raster",
    )


def run(goldens: Goldens, name: str, workdir=None) -> dict[str, np.ndarray]:
    case, golden = goldens.case(name), goldens.load(name)
    model, params = load_model(case["model"], case["checkpoint_seed"], goldens.folder, workdir)
    model = model.clone(sparsity=sparsity_of(case))
    images, points = images_of(golden), golden.get("in.query_points")
    heads = tuple(h for h in model.heads if h != "track" or points is not None)
    model = model.clone(heads=heads)
    params = {
        "params": {
            k: v for k, v in params["params"].items() if k.removesuffix("_head") in (*heads, "aggregator")
        }
    }
    captured = jax.jit(
        lambda p, x, q: model.apply(
            p, x, q, capture_intermediates=lambda _, method: method in CAPTURED, mutable=["intermediates"]
        )
    )(params, images, points)
    prediction, state = jax.device_get(captured)  # numpy's slices need no compiling
    stages = state["intermediates"]
    grid = tuple(side // model.patch_size for side in images.shape[2:4])
    mine = outputs(prediction, case["pixel_stride"])
    if name.startswith("full"):
        mine |= full_size_stages(stages, images.shape[1])
    else:
        mine |= backbone_stages(model, stages, images) | head_stages(stages, name, images)
    if model.sparsity is not None:
        mine |= global_masks(model, stages["aggregator"]["global_blocks"]["attn"], images.shape[1], *grid)
    return mine


def outputs(prediction, stride: int) -> dict[str, np.ndarray]:
    subsample = lambda x: np.asarray(x)[:, :, ::stride, ::stride]
    mine = {
        "depth.depth": subsample(prediction.depth),
        "depth.conf": subsample(prediction.depth_conf),
        "point.world_points": subsample(prediction.world_points),
        "point.conf": subsample(prediction.world_points_conf),
        "track.coords.3": prediction.track,  # the earlier iterations are the tracker's own
        "track.vis": prediction.vis,
        "track.conf": prediction.conf,
    }
    poses = (*prediction.pose_enc_list[:-1], prediction.pose_enc)
    mine |= {f"camera.pose_enc.{k}": pose for k, pose in enumerate(poses)}
    return {k: np.asarray(v) for k, v in mine.items() if v is not None}


def encoder_stages(encoder: dict) -> dict[str, np.ndarray]:
    mine = {"enc.tokens_in": encoder["embed"][0], "enc.patch_tokens": encoder["__call__"][0]}
    return mine | {f"enc.block.{i}": x for i, x in enumerate(encoder["blocks"]["__call__"][0])}


def backbone_stages(model, stages: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    B, F, H, W, _ = images.shape
    agg = stages["aggregator"]
    h, w = H // model.patch_size, W // model.patch_size
    mine = encoder_stages(agg["patch_embed"]) | {
        "agg.tokens_in": agg["embed"][0].reshape(B * F, -1, model.embed_dim),
        "agg.pos": np.tile(patch_positions(h, w, 5), (B * F, 1, 1)),
    }
    for kind in ("frame", "global"):
        layers = agg[f"{kind}_blocks"]["__call__"][0]
        mine |= {f"agg.{kind}.{i}": x.reshape(B, F, -1, model.embed_dim) for i, x in enumerate(layers)}
    for i in range(model.depth):
        mine[f"agg.concat.{i}"] = np.concatenate([mine[f"agg.frame.{i}"], mine[f"agg.global.{i}"]], -1)
    return {k: np.asarray(v) for k, v in mine.items()}


def head_stages(stages: dict, name: str, images: np.ndarray) -> dict[str, np.ndarray]:
    B, F = images.shape[:2]
    camera = stages["camera_head"]
    mine = {"camera.token": camera["token_norm"]["__call__"][0]}
    mine |= {f"camera.pose_raw.{k}": x for k, x in enumerate(camera["pose_raw"])}
    mine["depth.logits"] = np.moveaxis(stages["depth_head"]["__call__"][0], -1, 1)
    if "track_head" in stages:
        maps = stages["track_head"]["feature_extractor"]["__call__"][0]
        maps = np.moveaxis(maps.reshape(B, F, *maps.shape[1:]), -1, 2)
        mine["track.fmaps"] = maps if name == "vggt_tiny_b1n3_56x84" else maps[..., ::4, ::4]
        tracks = stages["track_head"]["tracker"]["__call__"][0][0]
        mine |= {f"track.coords.{k}": x for k, x in enumerate(tracks[:-1])}
    return {k: np.asarray(v) for k, v in mine.items()}


def full_size_stages(stages: dict, frames: int) -> dict[str, np.ndarray]:
    agg = stages["aggregator"]
    mine = {f"camera.pose_raw.{k}": x for k, x in enumerate(stages["camera_head"]["pose_raw"])}
    if "track_head" in stages:
        tracks = stages["track_head"]["tracker"]["__call__"][0][0]
        mine |= {f"track.coords.{k}": x for k, x in enumerate(tracks[:-1])}
    for i in (4, 11, 17, 23):
        parts = [agg[f"{kind}_blocks"]["__call__"][0][i] for kind in ("frame", "global")]
        x = np.concatenate([np.asarray(p).reshape(1, frames, -1, p.shape[-1]) for p in parts], -1)
        mine[f"agg.concat.{i}.mean_std_per_frame"] = np.stack([x.mean((0, 2, 3)), x.std((0, 2, 3))], -1)
        mine[f"agg.concat.{i}.first64"] = x.reshape(-1)[:64]
        mine[f"agg.concat.{i}.camera_and_patch"] = x[0, :, [0, 1, 5, 6, -1], ::16].swapaxes(0, 1)
    return {k: np.asarray(v) for k, v in mine.items()}


def global_masks(model, attn: dict, F: int, h: int, w: int) -> dict[str, np.ndarray]:
    """Pooled probabilities and masks of each global layer, from the layer's own q and k."""
    sparsity = model.sparsity
    positions = patch_positions(h, w, 5)
    if sparsity.order == "hilbert":
        positions = positions[np.r_[0:5, 5 + np.array(hilbert_order(h, w))]]
    mine = {}
    for i in range(model.depth):
        q, k = (attn[f"{x}_norm"]["normalise"][0][i] for x in "qk")  # [B, F·P, N, H]
        keep = sparsity.keep_counts(sparsity.num_kv_blocks(F * h * w), model.depth)
        kept = jax.jit(partial(selected, sparsity=sparsity, F=F, keep_count=keep and keep[i]))
        mine[f"pooled_prob.{i}"], mask = kept(q, k, np.tile(positions, (F, 1)))
        mine[f"mask.{i}"] = mask.to_dense().astype(np.uint8)
    return {k: np.asarray(v) for k, v in mine.items()}


def selected(q, k, positions, *, sparsity: Sparsity, F: int, keep_count: int | None):
    """The pooled probabilities and the mask of a layer's normalised q and k."""
    rope = rope_tables(positions, q.shape[-1])
    (_, q), (_, k) = (split_tokens(apply_rope(x, rope), F, 5) for x in (q, k))
    pooled = [reference.pool_blocks(x, b, sparsity.pool) for x, b in zip((q, k), sparsity.block, strict=True)]
    mask = pooled_block_mask(
        q,
        k,
        keep_count=keep_count,
        cdf_threshold=sparsity.cdf_threshold,
        block=sparsity.block,
        kv_runs=(q.shape[1] + 5 * F,),
        pool=sparsity.pool,
    )
    return reference.pooled_probabilities(*pooled), mask
