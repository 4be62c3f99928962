"""The mask selection and the block-sparse attention on given q, k, v; the Hilbert order."""

from __future__ import annotations

import re

import jax
import numpy as np

from fastvggt_jax import Sparsity
from fastvggt_jax.attention import hilbert_order, sparse_global_attention, split_tokens
from pallas_kernels import pooled_block_mask, reference
from tests.parity.goldens import Goldens


def run(goldens: Goldens, name: str) -> dict[str, np.ndarray]:
    golden, case = goldens.load(name), goldens.case(name)
    if name == "sparse_hilbert":
        return hilbert(golden)
    frames, special = case["frames"], case["special_tokens"]
    block = (case["block_q"], case["block_k"])
    q, k, v = (golden[f"in.{x}"].swapaxes(1, 2) for x in "qkv")  # [B, F·P, N, H]
    (_, q_patch), (_, k_patch) = split_tokens(q, frames, special), split_tokens(k, frames, special)
    mine = {}
    for pool in ("mean", "max"):

        @jax.jit
        def probabilities(*patches, pool=pool):
            pooled = [reference.pool_blocks(x, b, pool) for x, b in zip(patches, block, strict=True)]
            return reference.pooled_probabilities(*pooled)

        mine[f"pooled_prob.{'avg' if pool == 'mean' else pool}"] = probabilities(q_patch, k_patch)
    for label, setting in case["settings"].items():
        if f"mask.{label}" not in golden:
            continue
        sparsity = Sparsity(
            setting["sparse_ratio"],
            setting["cdf_threshold"],
            block,
            special_keys="official",
            pool={"avg": "mean", "max": "max"}[setting["pool"]],
        )
        keep = sparsity.keep_counts(sparsity.num_kv_blocks(k_patch.shape[1]), 1)
        selection = {"keep_count": keep and keep[0], "cdf_threshold": sparsity.cdf_threshold}
        mask = jax.jit(
            lambda q, k, selection=selection, sparsity=sparsity: pooled_block_mask(
                q, k, **selection, block=block, kv_runs=(k.shape[1] + frames * special,), pool=sparsity.pool
            )
        )(q_patch, k_patch)
        mine[f"mask.{label}"] = mask.to_dense().astype(np.uint8)
        if f"out.{label}" in golden:
            out, _ = jax.jit(
                lambda q, k, v, selection=selection, sparsity=sparsity: sparse_global_attention(
                    q, k, v, frames=frames, num_special=special, sparsity=sparsity, **selection
                )
            )(q, k, v)
            mine[f"out.{label}"] = out.swapaxes(1, 2)
    return {k: np.asarray(v) for k, v in mine.items()}


def hilbert(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mine = {}
    for key in golden:
        label, w, h = re.fullmatch(r"(\w+)_w(\d+)h(\d+)", key).groups()
        order = np.array(hilbert_order(int(h), int(w)))
        mine[key] = order if label == "gather" else np.argsort(order)
    return {k: v.astype(np.int32) for k, v in mine.items()}
