"""π³: photographs to points and cameras without a reference view (arXiv 2507.13347; upstream: yyfz/Pi3).

An image encoder (DINOv2) turns each frame into patch tokens; a decoder lets them attend within their frame
and across all frames in turn, 18 times each; three transformers within the frame lead to points in the
camera's own coordinates, their confidence, and the camera. No frame is special: permuting the frames permutes
the output. Letters: B batch, F frames, P tokens a frame (register + patches), D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastvggt_jax.models.alternating import alternate
from fastvggt_jax.models.config import Configured
from fastvggt_jax.models.dinov2 import DinoV2
from fastvggt_jax.models.heads.dpt import over_frame_chunks
from fastvggt_jax.models.heads.pi3 import (
    FrameDecoder,
    PixelShuffleHead,
    PoseHead,
    activate_points,
    decode_rotation,
)
from fastvggt_jax.models.prediction import Prediction
from fastvggt_jax.models.rope import patch_positions, rope_tables
from fastvggt_jax.models.vggt import check_images
from fastvggt_jax.models.vit import Block
from fastvggt_jax.sparsity import Sparsity

Array = jax.Array


class Decoder(nn.Module):
    """The alternating blocks: upstream's even ones within a frame, its odd ones across frames. LayerNorm eps
    1e-6, QK-norm, RoPE.
    """

    num_heads: int
    mlp_ratio: float
    dtype: jnp.dtype

    def setup(self) -> None:
        self.frame_blocks = Block(self.num_heads, 1e-6, self.mlp_ratio, qk_norm=True, dtype=self.dtype)
        self.global_blocks = Block(self.num_heads, 1e-6, self.mlp_ratio, qk_norm=True, dtype=self.dtype)

    def __call__(self, x: Array, **how: Any) -> Array:
        """f32[B, F, P, D] -> dtype[B, F, P, 2D], the last frame block's output beside the last global
        block's.
        """
        return alternate(self.frame_blocks, self.global_blocks, x, dtype=self.dtype, **how)[0][0]


class Pi3(Configured, nn.Module):
    """The fields are the configuration, their defaults the released π³; a tiny model is the same class with
    smaller numbers.

    Those before `dtype` define the weights (`config()`); the rest only how they are run:

    Attributes:
      dtype: of the matrix products of encoder, decoder and the three frame decoders; heads, norms, RoPE,
        softmax statistics and geometry are float32 always.
      sparsity: block-sparse attention across frames; None = dense.
      frames_chunk: how many frames the heads take at a time, at least one of each scene.
      remat: whether derivatives recompute what blocks and chunks of frames hold instead of keeping it.
    """

    image_mode: ClassVar[str] = "area"  # of `load_images`: how upstream sizes photographs for this model
    image_size: ClassVar[int | None] = None  # of `load_images`: upstream's number of pixels
    img_size: int = (
        518  # the square image that the position table was made for; any multiple of patch_size runs
    )
    patch_size: int = 14
    embed_dim: int = 1024
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    depth: int = 18  # pairs of a frame and a global block
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 5
    head_embed_dim: int = 1024  # of the three frame decoders
    head_depth: int = 5
    head_num_heads: int = 16
    head_out_dim: int = 1024
    camera_out_dim: int = 512

    dtype: Any = jnp.bfloat16
    sparsity: Sparsity | None = None
    frames_chunk: int = 8
    remat: bool = False

    def abstract_params(self) -> dict[str, Any]:
        """{"params": tree of jax.ShapeDtypeStruct}, without computing anything."""
        return jax.eval_shape(self.init, jax.random.key(0), *self.smallest_inputs())

    def smallest_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Images that reach every parameter, for `init`."""
        return (jax.ShapeDtypeStruct((1, 1, self.img_size, self.img_size, 3), jnp.float32),)

    def setup(self) -> None:
        if self.frames_chunk < 1:
            raise ValueError(f"frames_chunk={self.frames_chunk} must be at least 1")
        D = self.embed_dim
        self.encoder = DinoV2(
            self.img_size,
            self.patch_size,
            D,
            self.encoder_depth,
            self.encoder_num_heads,
            dtype=self.dtype,
            remat=self.remat,
        )
        self.register_token = self.param(
            "register_token", nn.initializers.normal(1e-6), (1, 1, self.num_register_tokens, D)
        )
        self.decoder = Decoder(self.num_heads, self.mlp_ratio, self.dtype)
        shape = (self.head_embed_dim, self.head_depth, self.head_num_heads)
        self.point_decoder = FrameDecoder(*shape, self.head_out_dim, self.dtype, self.remat)
        self.conf_decoder = FrameDecoder(*shape, self.head_out_dim, self.dtype, self.remat)
        self.camera_decoder = FrameDecoder(*shape, self.camera_out_dim, self.dtype, self.remat)
        self.point_head = PixelShuffleHead(3, self.patch_size)
        self.conf_head = PixelShuffleHead(1, self.patch_size)
        self.camera_head = PoseHead()

    def embed(self, images: Array) -> Array:
        """[B, F, H, W, 3] -> f32[B, F, P, D]: the same register tokens before every frame's patches."""
        B, F = images.shape[:2]
        patches = self.encoder(images.reshape(B * F, *images.shape[2:])).reshape(B, F, -1, self.embed_dim)
        return jnp.concatenate(
            [jnp.broadcast_to(self.register_token, (B, F, *self.register_token.shape[2:])), patches], 2
        )

    def __call__(self, images: Array, query_points: None = None) -> Prediction:
        """Reconstructs B scenes of F views each.

        Args:
          images: float[B, F, H, W, 3] in [0, 1]; H and W multiples of `patch_size`.
          query_points: must be None, π³ tracks no points; it is there so that both models are called in one
            way.

        Raises:
          ValueError: wrong shape or dtype, or query points.
        """
        check_images(images, self.patch_size)
        if query_points is not None:
            raise ValueError("query_points were given, but π³ has no track head: use VGGT to track points")
        B, F, H, W, _ = images.shape
        grid = (H // self.patch_size, W // self.patch_size)
        tokens = self.decoder(
            self.embed(images.astype(jnp.float32)),
            grid=grid,
            num_special=self.num_register_tokens,
            taps=(self.depth - 1,),
            sparsity=self.sparsity,
            remat=self.remat,
        )
        raw, conf, translation, matrix = over_frame_chunks(
            self,
            lambda self, tokens: self.heads(tokens[0], grid),
            tokens[None],
            ((H, W, 3), (H, W, 1), (3,), (9,)),
            self.frames_chunk,
            self.remat,
        )
        local = activate_points(raw)
        rotation = decode_rotation(matrix.reshape(B, F, 3, 3))
        points = (
            jnp.einsum("bfij,bfhwj->bfhwi", rotation, local, precision="highest")
            + translation[:, :, None, None]
        )
        upper = jnp.concatenate([rotation, translation[..., None]], -1)
        poses = jnp.concatenate([upper, jnp.broadcast_to(jnp.array([0.0, 0, 0, 1]), (B, F, 1, 4))], -2)
        return Prediction(points=points, local_points=local, conf=conf, camera_poses=poses)

    def heads(self, tokens: Array, grid: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
        """dtype[B, P, 2D] -> points before activation f32[B, H, W, 3], confidence logits f32[B, H, W, 1],
        translation, matrix.
        """
        rope = rope_tables(
            patch_positions(*grid, self.num_register_tokens), self.head_embed_dim // self.head_num_heads
        )
        patches = lambda decoder: decoder(tokens, rope)[:, self.num_register_tokens :]
        return (
            self.point_head(patches(self.point_decoder), grid),
            self.conf_head(patches(self.conf_decoder), grid),
            *self.camera_head(patches(self.camera_decoder)),
        )
