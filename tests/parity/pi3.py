"""π³, tiny and full size, dense and sparse: every stage of a golden file from one captured forward pass."""

from __future__ import annotations

import jax
import numpy as np

from fastvggt_jax.models.rope import patch_positions
from tests.parity.goldens import Goldens, images_of, load_model
from tests.parity.models import CAPTURED, encoder_stages, global_masks, sparsity_of

Golden = dict[str, np.ndarray]


def run(goldens: Goldens, name: str, workdir=None) -> Golden:
    case, golden = goldens.case(name), goldens.load(name)
    model, params = load_model(case["model"], case["checkpoint_seed"], goldens.folder, workdir)
    model = model.clone(sparsity=sparsity_of(case))
    images = images_of(golden)
    captured = jax.jit(
        lambda p, x: model.apply(
            p, x, capture_intermediates=lambda _, method: method in CAPTURED, mutable=["intermediates"]
        )
    )(params, images)
    prediction, state = jax.device_get(captured)  # numpy's slices need no compiling
    stages = state["intermediates"]
    s = case["pixel_stride"]
    mine = {
        "out.points": prediction.points[:, :, ::s, ::s],
        "out.local_points": prediction.local_points[:, :, ::s, ::s],
        "out.conf": prediction.conf[:, :, ::s, ::s],
        "out.camera_poses": prediction.camera_poses,
    }
    mine |= full_size_stages(stages) if name.startswith("full") else tiny_stages(model, stages, images)
    if model.sparsity is not None:
        h, w = (side // model.patch_size for side in images.shape[2:4])
        mine |= global_masks(model, stages["decoder"]["global_blocks"]["attn"], images.shape[1], h, w)
    return {k: np.asarray(v) for k, v in mine.items()}


def blocks(stages: dict) -> list[np.ndarray]:
    """Outputs of the decoder's blocks in upstream's order, [B, F·P, D] or [B·F, P, D]."""
    pairs = zip(
        *(stages["decoder"][f"{kind}_blocks"]["__call__"][0] for kind in ("frame", "global")), strict=True
    )
    return [np.asarray(x) for pair in pairs for x in pair]


def tiny_stages(model, stages: dict, images: np.ndarray) -> Golden:
    B, F, H, W, _ = images.shape
    h, w = H // model.patch_size, W // model.patch_size
    mine = encoder_stages(stages["encoder"])
    mine["dec.tokens_in"] = stages["embed"][0].reshape(B * F, -1, model.embed_dim)
    mine["dec.pos"] = np.tile(patch_positions(h, w, model.num_register_tokens), (B * F, 1, 1))
    mine |= {f"dec.block.{i}": x.reshape(B, F, -1, model.embed_dim) for i, x in enumerate(blocks(stages))}
    mine["dec.out"] = stages["decoder"]["__call__"][0][0].reshape(B * F, -1, 2 * model.embed_dim)
    mine |= {f"{x}_decoder.out": stages[f"{x}_decoder"]["__call__"][0] for x in ("point", "conf", "camera")}
    mine["point_head.raw"] = stages["point_head"]["__call__"][0].reshape(B, F, H, W, 3)
    mine["camera_head.t"], mine["camera_head.rot9"] = stages["camera_head"]["__call__"][0]
    return mine


def full_size_stages(stages: dict) -> Golden:
    mine = {}
    frames = stages["decoder"]["__call__"][0][0].shape[1]
    for i, x in enumerate(blocks(stages)):
        x = x.reshape(1, frames, -1, x.shape[-1])
        mine[f"dec.block.{i}.mean_std_per_frame"] = np.stack([x.mean((0, 2, 3)), x.std((0, 2, 3))], -1)
        mine[f"dec.block.{i}.first64"] = x.reshape(-1)[:64]
        mine[f"dec.block.{i}.register_and_patch"] = x[0, :, [0, 1, 5, 6, -1], ::16].swapaxes(0, 1)
    return mine
