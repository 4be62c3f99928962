"""Camera head: one token a frame to a pose, refined in a few iterations (upstream:
vggt/heads/camera_head.py).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.models.vit import Block, Mlp, layer_norm, scan_blocks

Array = jax.Array
POSE_DIM = 9  # translation 3, quaternion 4, fields of view 2
FIRST_POSE = (0.0, 0, 0, 0, 0, 0, 1, 1, 1)


def activate_pose(raw: Array) -> Array:
    """Translation and quaternion are linear, the two fields of view pass through relu."""
    return jnp.concatenate([raw[..., :7], jax.nn.relu(raw[..., 7:])], -1)


class CameraHead(nn.Module):
    """Float32 throughout; norms have eps 1e-5, but the adaptive one 1e-6."""

    trunk_depth: int = 4
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_iterations: int = 4

    def first_bias(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        """Where training starts: at the identity with 1 rad of view, since relu has no gradient below 0. The
        iterations add up.
        """
        return jnp.array(FIRST_POSE, dtype) / self.num_iterations

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, ...]:
        """f32[B, F, D], the camera tokens of the last layer -> the pose encoding f32[B, F, 9] after each
        iteration.
        """
        D = tokens.shape[-1]
        tokens = layer_norm(1e-5, "token_norm")(tokens)
        normed = nn.LayerNorm(
            epsilon=1e-6,
            use_scale=False,
            use_bias=False,
            use_fast_variance=False,
            dtype=jnp.float32,
            name="adaln_norm",
        )(tokens)
        embed_pose = nn.Dense(D, name="embed_pose")
        modulation = nn.Dense(3 * D, name="poseLN_modulation_1")
        trunk = Block(self.num_heads, 1e-5, self.mlp_ratio, name="trunk")
        trunk_norm = layer_norm(1e-5, "trunk_norm")
        pose_branch = Mlp(D // 2, POSE_DIM, out_bias=self.first_bias, name="pose_branch")

        empty_pose = self.param("empty_pose_tokens", nn.initializers.zeros, (1, 1, POSE_DIM), jnp.float32)
        raw, poses = None, []
        for _ in range(self.num_iterations):
            # The next iteration sees the raw pose (the relu of the fields of view is not fed back) and sends
            # no gradient through it.
            raw = None if raw is None else jax.lax.stop_gradient(raw)
            condition = embed_pose(
                jnp.broadcast_to(empty_pose, (*tokens.shape[:2], POSE_DIM)) if raw is None else raw
            )
            shift, scale, gate = jnp.split(modulation(jax.nn.silu(condition)), 3, -1)
            x = gate * (normed * (1 + scale) + shift) + tokens
            delta = pose_branch(trunk_norm(scan_blocks(trunk, self.trunk_depth, x)))
            raw = delta if raw is None else raw + delta
            self.sow("intermediates", "pose_raw", raw)
            poses.append(activate_pose(raw))
        return tuple(poses)
