"""Camera head: one token a frame to a pose, refined in a few iterations (upstream:
vggt/heads/camera_head.py).
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fastvggt_jax.attention import Lengths, dense_attention, varying_as
from fastvggt_jax.models.vit import Attend, Block, Mlp, layer_norm, scan_blocks

Array = jax.Array
POSE_DIM = 9  # translation 3, quaternion 4, fields of view 2
FIRST_POSE = (0.0, 0, 0, 0, 0, 0, 1, 1, 1)


def activate_pose(raw: Array) -> Array:
    """Translation and quaternion are linear, the two fields of view pass through relu."""
    return jnp.concatenate([raw[..., :7], jax.nn.relu(raw[..., 7:])], -1)


class CameraHead(nn.Module):
    """Float32 throughout; norms have eps 1e-5, but the adaptive one 1e-6. `width` is that of the tokens."""

    width: int
    trunk_depth: int = 4
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_iterations: int = 4

    def first_bias(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        """Where training starts: at the identity with 1 rad of view, since relu has no gradient below 0. The
        iterations add up.
        """
        return jnp.array(FIRST_POSE, dtype) / self.num_iterations

    def setup(self) -> None:
        D = self.width
        self.token_norm = layer_norm(1e-5)
        self.adaln_norm = nn.LayerNorm(
            epsilon=1e-6, use_scale=False, use_bias=False, use_fast_variance=False, dtype=jnp.float32
        )
        self.empty_pose_tokens = self.param(
            "empty_pose_tokens", nn.initializers.zeros, (1, 1, POSE_DIM), jnp.float32
        )
        self.embed_pose = nn.Dense(D)
        self.poseLN_modulation_1 = nn.Dense(3 * D)
        self.trunk = Block(self.num_heads, 1e-5, self.mlp_ratio)
        self.trunk_norm = layer_norm(1e-5)
        self.pose_branch = Mlp(D // 2, POSE_DIM, out_bias=self.first_bias)

    def __call__(self, tokens: Array, lengths: Lengths | None = None) -> tuple[Array, ...]:
        """f32[B, F, D], the camera tokens of the last layer, of which so many count, -> the pose encoding
        f32[B, F, 9] after each iteration.
        """
        attend = partial(dense_attention, lengths=lengths)
        tokens = self.token_norm(tokens)
        normed = self.adaln_norm(tokens)
        empty = self.empty_pose_tokens.astype(jnp.float32)  # parameters may be bfloat16
        seen = jnp.broadcast_to(empty, (*tokens.shape[:2], POSE_DIM))

        def refine(
            head: CameraHead, poses: tuple[Array, Array], _: None
        ) -> tuple[tuple[Array, Array], Array]:
            raw, seen = poses
            raw = raw + head.change(seen, tokens, normed, attend)
            # The next iteration sees the raw pose (the relu of the fields of view is not fed back) and sends
            # no gradient through it.
            stopped = jax.lax.stop_gradient(raw)
            return (stopped, stopped), raw

        # One iteration is compiled, not all of them.
        scan = nn.scan(
            refine, variable_broadcast="params", split_rngs={"params": False}, length=self.num_iterations
        )
        start = varying_as((jnp.zeros_like(seen), seen), tokens)
        _, raw = scan(self, start, None)
        for one in raw:
            self.sow("intermediates", "pose_raw", one)
        return tuple(activate_pose(one) for one in raw)

    def change(self, seen: Array, tokens: Array, normed: Array, attend: Attend = dense_attention) -> Array:
        """What an iteration adds to the raw poses f32[B, F, 9] that it sees."""
        shift, scale, gate = jnp.split(self.poseLN_modulation_1(jax.nn.silu(self.embed_pose(seen))), 3, -1)
        x = gate * (normed * (1 + scale) + shift) + tokens
        x = scan_blocks(self.trunk, self.trunk_depth, x, None, attend)
        return self.pose_branch(self.trunk_norm(x))
