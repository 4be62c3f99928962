"""π³: photographs to points and cameras without a reference view (arXiv 2507.13347; upstream: yyfz/Pi3).

An image encoder (DINOv2) turns each frame into patch tokens; a decoder lets them attend within their frame
and across all frames in turn, 18 times each; three transformers within the frame lead to points in the
camera's own coordinates, their confidence, and the camera. No frame is special: permuting the frames permutes
the output. Letters: B batch, F frames, P tokens a frame (register + patches), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Num

from fastvggt_jax import geometry
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.alternating import alternate
from fastvggt_jax.models.base import PRODUCTS, Model, check_images
from fastvggt_jax.models.dinov2 import DinoV2, embed_frames
from fastvggt_jax.models.fields import Heads, Layers, Pixels, Ratio, Tokens, Width
from fastvggt_jax.models.heads.dpt import over_frame_chunks
from fastvggt_jax.models.heads.pi3 import (
    FrameDecoder,
    PixelShuffleHead,
    PoseHead,
    activate_points,
    decode_rotation,
)
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.models.rope import patch_positions, rope_tables
from fastvggt_jax.models.vit import Block
from fastvggt_jax.sharding import Spread
from fastvggt_jax.sources.sizing import ImagePolicy

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
HEADS = ("point", "conf", "camera")
CONF_FLOOR = 0.1  # of a probability; what lies below, upstream's example.py drops


class Decoder(nn.Module):
    """The alternating blocks: upstream's even ones within a frame, its odd ones across frames. LayerNorm eps
    1e-6, QK-norm, RoPE.
    """

    num_heads: int
    mlp_ratio: float
    dtype: DTypeLike
    rows: int | None = None

    def setup(self) -> None:
        how: dict[str, Any] = dict(qk_norm=True, dtype=self.dtype)
        self.frame_blocks = Block(self.num_heads, 1e-6, self.mlp_ratio, **how)
        self.global_blocks = Block(self.num_heads, 1e-6, self.mlp_ratio, rows=self.rows, **how)

    def __call__(self, x: Array, **how: Any) -> tuple[Array, Array | None]:
        """f32[B, F, P, D] -> dtype[1, B, F, P, 2D], the last frame block's output beside the last global
        block's, and the density f32[depth] of sparse global attention.
        """
        taps, _, density = alternate(self.frame_blocks, self.global_blocks, x, dtype=self.dtype, **how)
        return taps, density


class Pi3(Model):
    """The fields are the configuration, their defaults the released π³; a tiny model is the same class with
    smaller numbers. How it is run (`dtype`, `sparsity`, ...) is `Model`'s.
    """

    conversion: ClassVar[str | None] = "convert.pi3"
    read_in_dtype: ClassVar[str | None] = (
        r"(encoder/blocks|decoder/(frame|global)_blocks|\w+_decoder/blocks)" + PRODUCTS
    )
    tiny: ClassVar[Mapping[str, Any]] = dict(
        img_size=98,
        embed_dim=64,
        encoder_depth=2,
        encoder_num_heads=2,
        num_heads=2,
        depth=2,
        head_embed_dim=64,
        head_depth=1,
        head_num_heads=2,
        head_out_dim=64,
        camera_out_dim=32,
    )
    point_sources: ClassVar[tuple[str, ...]] = ("point_head",)
    loss_weights: ClassVar[Mapping[str, float]] = {"background": 0.0}
    widths: ClassVar[tuple[tuple[str, str, int, int], ...]] = (
        ("embed_dim", "encoder_num_heads", 1, 1),
        ("embed_dim", "num_heads", 1, 4),
        ("head_embed_dim", "head_num_heads", 1, 4),
    )

    # The square image that the position table was made for; any multiple of patch_size runs.
    img_size: Pixels = 518
    patch_size: Pixels = 14
    embed_dim: Width = 1024
    encoder_depth: Layers = 24
    encoder_num_heads: Heads = 16
    depth: Layers = 18  # pairs of a frame and a global block
    num_heads: Heads = 16
    mlp_ratio: Ratio = 4.0
    num_register_tokens: Tokens = 5
    head_embed_dim: Width = 1024  # of the three frame decoders
    head_depth: Layers = 5
    head_num_heads: Heads = 16
    head_out_dim: Width = 1024
    camera_out_dim: Width = 512
    heads: tuple[str, ...] = HEADS

    def smallest_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Images that reach every parameter, for `init`."""
        return (jax.ShapeDtypeStruct((1, 1, self.img_size, self.img_size, 3), jnp.float32),)

    @property
    def image_policy(self) -> ImagePolicy:
        return ImagePolicy("area", None, self.patch_size)

    @property
    def num_special(self) -> int:
        return self.num_register_tokens

    @classmethod
    def head_parameters(cls, head: str) -> tuple[str, ...]:
        return (f"{head}_decoder/", f"{head}_head/")

    @classmethod
    def heads_for(cls, points_from: str | None) -> tuple[str, ...]:
        cls.check_points_from(points_from)
        return HEADS

    def setup(self) -> None:
        self.check_heads(type(self).heads)
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
            "register_token", nn.initializers.normal(1e-6), (1, 1, self.num_register_tokens, D), jnp.float32
        )
        self.decoder = Decoder(self.num_heads, self.mlp_ratio, self.dtype, self.rows)
        shape = (self.head_embed_dim, self.head_depth, self.head_num_heads)
        if "point" in self.heads:
            self.point_decoder = FrameDecoder(*shape, self.head_out_dim, self.dtype, self.remat)
            self.point_head = self.dense_head(2, 1)
        if "conf" in self.heads:
            self.conf_decoder = FrameDecoder(*shape, self.head_out_dim, self.dtype, self.remat)
            self.conf_head = self.dense_head(1)
        if "camera" in self.heads:
            self.camera_decoder = FrameDecoder(*shape, self.camera_out_dim, self.dtype, self.remat)
            self.camera_head = PoseHead()

    def dense_head(self, *channels: int) -> nn.Module:
        """From patch tokens f32[B, h·w, head_out_dim] and (h, w) to f32[B, H, W, C], groups of so many
        channels one after another.
        """
        return PixelShuffleHead(sum(channels), self.patch_size)

    def dense(self, head: nn.Module, tokens: Array, grid: tuple[int, int]) -> Array:
        """What a `dense_head` makes of patch tokens."""
        return head(tokens, grid)

    def embed(self, images: Array) -> Array:
        """[B, F, H, W, 3] -> f32[B, F, P, D]: the same register tokens before every frame's patches."""
        special = jnp.broadcast_to(self.register_token, (1, images.shape[1], *self.register_token.shape[2:]))
        return embed_frames(self.encoder, special, images, self.blocks_chunk)

    def patches(self, images: Array) -> Array:
        """See `Model`."""
        check_images(images, self.patch_size)
        return self.embed(images)[:, :, self.num_special :]

    def __call__(self, images: Num[Array, "B F H W 3"], query_points: None = None) -> Prediction:
        """Reconstructs B scenes of F views each.

        Args:
          images: u8[B, F, H, W, 3], or float in [0, 1]; H and W multiples of `patch_size`.
          query_points: must be None, π³ tracks no points; it is there so that all models are called in one
            way.

        Raises:
          InputError: wrong shape or dtype, or query points.
        """
        check_images(images, self.patch_size)
        self.refuse_conditions(query_points)
        if query_points is not None:
            text = "query_points were given, but π³ has no track head: use VGGT to track points"
            raise InputError(text, argument="query_points")
        return self.on_mesh(images, None)

    def forward(self, spread: Spread, images: Array, query_points: Array | None, *options: Any) -> Prediction:
        """See `Model`."""
        raw, density = self.look(spread, self.embed(images), (images.shape[2], images.shape[3]))
        out: dict[str, Any] = {"density": density, "made_by": type(self)}
        if "point" in raw:
            out["local_points"] = activate_points(raw["point"])
        if "conf" in raw:
            out["conf"] = raw["conf"]
        if "camera" in self.heads:
            out["camera_poses"] = camera_poses(raw)
            if "point" in raw:
                out["points"] = geometry.transform(out["camera_poses"], out["local_points"])
        return Prediction(**out)

    def look(
        self,
        spread: Spread,
        tokens: Array,
        size: tuple[int, int],
        after: Callable[..., Array] | None = None,
    ) -> tuple[dict[str, Array], Array | None]:
        """What `decode` finds in the tokens f32[B, F, P, D] of images of (H, W) pixels, each f32[B, F, ...],
        after the decoder; and its density. `after` is what `alternate` does after a pair of blocks.
        """
        H, W = size
        grid = (H // self.patch_size, W // self.patch_size)
        taps, density = self.decoder(
            tokens,
            spread=spread,
            grid=grid,
            num_special=self.num_special,
            taps=(self.depth - 1,),
            sparsity=self.sparsity,
            remat=self.remat,
            low_memory=self.low_memory,
            chunk=self.blocks_chunk,
            float8_scores=self.float8_scores,
            after=after,
        )
        shapes = self.raw_shapes(H, W)
        found = over_frame_chunks(
            self,
            lambda self, tokens: tuple(self.decode(tokens[0], grid).values()),
            taps,
            tuple(shapes.values()),
            self.frames_chunk,
            self.remat,
            self.low_memory,
        )
        return dict(zip(shapes, found, strict=True)), density

    def raw_shapes(self, H: int, W: int) -> dict[str, tuple[int, ...]]:
        """Of what `decode` finds in one frame, by name, in its order."""
        shapes: dict[str, tuple[int, ...]] = {}
        shapes |= {"point": (H, W, 3)} if "point" in self.heads else {}
        shapes |= {"conf": (H, W, 1)} if "conf" in self.heads else {}
        shapes |= {"translation": (3,), "matrix": (9,)} if "camera" in self.heads else {}
        return shapes

    def decode(self, tokens: Array, grid: tuple[int, int]) -> dict[str, Array]:
        """dtype[B, P, 2D] -> of the heads that are on: points before activation f32[B, H, W, 3], confidence
        logits f32[B, H, W, 1], translation f32[B, 3] and matrix f32[B, 9].
        """
        rope = rope_tables(
            patch_positions(*grid, self.num_special), self.head_embed_dim // self.head_num_heads
        )
        patches = lambda decoder: decoder(tokens, rope)[:, self.num_special :]
        out: dict[str, Array] = {}
        if "point" in self.heads:
            out["point"] = self.dense(self.point_head, patches(self.point_decoder), grid)
        if "conf" in self.heads:
            out["conf"] = self.dense(self.conf_head, patches(self.conf_decoder), grid)
        if "camera" in self.heads:
            out["translation"], out["matrix"] = self.camera_head(patches(self.camera_decoder))
        return out

    @classmethod
    def reconstruction(cls, prediction: Prediction, points_from: str | None = None) -> Reconstruction:
        """See `Model`. π³'s own world is no camera's, ours is the first one's; depth is the z of its points,
        whose confidence is the sigmoid of a logit. It predicts no K.
        """
        cls.check_points_from(points_from)
        (local,) = prediction.need("point", "local_points")
        (logits,) = prediction.need("conf", "conf")
        (world_from_cam,) = prediction.need("camera", "camera_poses")
        first_from_world = geometry.invert_se3(world_from_cam[:, :1])
        first_from_cam = geometry.compose(first_from_world, world_from_cam)  # [B, F, 4, 4]
        conf = jax.nn.sigmoid(logits[..., 0])
        return Reconstruction(
            cam_from_world=geometry.invert_se3(first_from_cam)[..., :3, :],
            K=None,
            depth=local[..., 2],
            depth_conf=conf,
            points=geometry.transform(first_from_cam, local),
            conf=conf,
            conf_floor=CONF_FLOOR,
        )

    @classmethod
    def loss(cls, prediction: Prediction, truth: Truth, **weights: float) -> tuple[Array, dict[str, Array]]:
        """See `Model` and `losses.pi3.loss`."""
        from fastvggt_jax.models.losses import pi3 as losses

        return losses.loss(prediction, truth, **weights)


def camera_poses(raw: Mapping[str, Array]) -> Array:
    """World_from_cam f32[B, F, 4, 4] of a raw translation f32[B, F, 3] and matrix f32[B, F, 9]."""
    matrix, translation = raw["matrix"], raw["translation"]
    rotation = decode_rotation(matrix.reshape(*matrix.shape[:2], 3, 3))
    return geometry.to_4x4(jnp.concatenate([rotation, translation[..., None]], -1))
