"""VGGT: photographs of a scene to cameras, depth, points and tracks in one pass (arXiv 2503.11651; upstream:
facebookresearch/vggt).

An image encoder (DINOv2) turns each frame into patch tokens; the aggregator lets them attend within their
frame and across all frames in turn, 24 times each; four heads read four tapped layers. Letters: B batch, F
frames, P tokens a frame (special + patches), D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Num

from fastvggt_jax import geometry
from fastvggt_jax.attention import varying_as
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.alternating import alternate
from fastvggt_jax.models.base import PRODUCTS, Model, check_images
from fastvggt_jax.models.dinov2 import DinoV2, embed_frames
from fastvggt_jax.models.fields import (
    Four,
    Heads,
    Layer,
    Layers,
    Levels,
    Pixels,
    Ratio,
    Rounds,
    Tokens,
    Width,
)
from fastvggt_jax.models.heads.camera import CameraHead
from fastvggt_jax.models.heads.dpt import (
    DPTHead,
    activate_depth,
    activate_points,
    over_frame_chunks,
)
from fastvggt_jax.models.heads.half import in_half
from fastvggt_jax.models.heads.track import Tracker
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.models.vit import Block
from fastvggt_jax.sharding import Spread
from fastvggt_jax.sources.sizing import ImagePolicy
from fastvggt_jax.sparsity import Sparsity

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
HEADS = ("camera", "depth", "point", "track")
# The camera head ends in a relu and has no upper bound, but a field of view of 0 or of half a turn has no K.
FOV_LIMITS = (float(np.deg2rad(1.0)), float(np.deg2rad(175.0)))
# Confidence is 1 + eˣ, trained to be 0.2 / error (`losses.vggt`): below 1.1 it expects to be wrong by 18 % of
# the scene's size.
CONF_FLOOR = 1.1


class Aggregator(nn.Module):
    """Alternating attention. LayerNorm eps 1e-5, QK-norm, RoPE; special tokens: one camera token and the
    registers, in front.

    The fields are VGGT's of the same names.
    """

    img_size: int
    patch_size: int
    embed_dim: int
    encoder_depth: int
    encoder_num_heads: int
    depth: int
    num_heads: int
    mlp_ratio: float
    num_register_tokens: int
    taps: tuple[int, ...]
    sparsity: Sparsity | None
    dtype: DTypeLike
    remat: bool = False
    low_memory: bool = False
    rows: int | None = None
    blocks_chunk: int | None = None
    float8_scores: bool = False

    def setup(self) -> None:
        D, normal = self.embed_dim, nn.initializers.normal(1e-6)
        self.patch_embed = DinoV2(
            self.img_size,
            self.patch_size,
            D,
            self.encoder_depth,
            self.encoder_num_heads,
            dtype=self.dtype,
            remat=self.remat,
        )
        # Index 0 is for the first frame, which fixes the coordinates; index 1 for all others.
        self.camera_token = self.param("camera_token", normal, (1, 2, 1, D), jnp.float32)
        self.register_token = self.param(
            "register_token", normal, (1, 2, self.num_register_tokens, D), jnp.float32
        )
        how: dict[str, Any] = dict(qk_norm=True, dtype=self.dtype)
        self.frame_blocks = Block(self.num_heads, 1e-5, self.mlp_ratio, **how)
        self.global_blocks = Block(self.num_heads, 1e-5, self.mlp_ratio, rows=self.rows, **how)

    def embed(self, images: Array, spread: Spread) -> Array:
        """[B, F, H, W, 3] -> f32[B, F, P, D]."""
        special = jnp.concatenate([self.camera_token, self.register_token], 2)  # [1, 2, 1 + registers, D]
        special = special[:, (spread.numbers() > 0).astype(int)]
        return embed_frames(self.patch_embed, special, images, self.blocks_chunk)

    def __call__(self, images: Array, spread: Spread | None = None) -> tuple[Array, Array, Array | None]:
        """[B, F, H, W, 3], the frames of this device (`spread`; None: all) -> the tapped layers
        dtype[taps, B, F, P, 2D], the last camera tokens f32[B, F, 2D], and the density f32[depth] of sparse
        global attention.
        """
        spread = spread or Spread(images.shape[1])
        return alternate(
            self.frame_blocks,
            self.global_blocks,
            self.embed(images, spread),
            spread=spread,
            grid=(images.shape[2] // self.patch_size, images.shape[3] // self.patch_size),
            num_special=1 + self.num_register_tokens,
            taps=self.taps,
            sparsity=self.sparsity,
            dtype=self.dtype,
            remat=self.remat,
            low_memory=self.low_memory,
            chunk=self.blocks_chunk,
            float8_scores=self.float8_scores,
        )


class TrackHead(nn.Module):
    """Feature maps at half resolution from a DPT of its own, then the tracker."""

    dpt: dict[str, Any]
    tracker_args: dict[str, Any]

    def setup(self) -> None:
        self.feature_extractor = DPTHead(**self.dpt)
        self.tracker = Tracker(**self.tracker_args)


class VGGT(Model):
    """The fields are the configuration, their defaults the released VGGT-1B; a tiny model is the same class
    with smaller numbers. How it is run (`dtype`, `sparsity`, ...) is `Model`'s.
    """

    conversion: ClassVar[str | None] = "convert.vggt"
    read_in_dtype: ClassVar[str | None] = (
        r"aggregator/(patch_embed/blocks|frame_blocks|global_blocks)" + PRODUCTS
    )
    tiny: ClassVar[Mapping[str, Any]] = dict(
        img_size=98,
        embed_dim=64,
        encoder_depth=2,
        encoder_num_heads=2,
        num_heads=2,
        depth=4,
        taps=(0, 1, 2, 3),
        camera_trunk_depth=1,
        camera_num_heads=2,
        dpt_features=32,
        dpt_level_channels=(16, 32, 32, 32),
        heads=("camera", "depth", "point"),
    )
    point_sources: ClassVar[tuple[str, ...]] = ("depth", "point_head")
    loss_weights: ClassVar[Mapping[str, float]] = {"background": 0.0, "pairs": 0.0}
    widths: ClassVar[tuple[tuple[str, str, int, int], ...]] = (
        ("embed_dim", "encoder_num_heads", 1, 1),
        ("embed_dim", "num_heads", 1, 4),
        ("embed_dim", "camera_num_heads", 2, 1),
        ("track_hidden", "track_num_heads", 1, 1),
    )

    # The square image that the position table was made for; any multiple of patch_size runs.
    img_size: Pixels = 518
    patch_size: Pixels = 14
    embed_dim: Width = 1024
    encoder_depth: Layers = 24
    encoder_num_heads: Heads = 16
    depth: Layers = 24  # pairs of a frame and a global block
    num_heads: Heads = 16
    mlp_ratio: Ratio = 4.0
    num_register_tokens: Tokens = 4
    taps: Annotated[tuple[Layer, ...], Four] = (4, 11, 17, 23)
    camera_trunk_depth: Layers = 4
    camera_num_heads: Heads = 16
    camera_iterations: Rounds = 4
    dpt_features: Width = 256
    dpt_level_channels: Annotated[tuple[Width, ...], Four] = (256, 512, 1024, 1024)
    track_features: Width = 128
    track_iterations: Rounds = 4
    track_stride: Rounds = 2
    track_corr_levels: Levels = 7
    track_corr_radius: Rounds = 4
    track_hidden: Width = 384
    track_depth: Layers = 6
    track_num_heads: Heads = 8
    track_num_virtual: Tokens = 64
    track_max_scale: Pixels = 518
    heads: tuple[str, ...] = HEADS
    track_pos_embed: bool = False  # True for the "tracker fixed" checkpoint

    def smallest_inputs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
        """Images and query points that reach every parameter, for `init`."""
        side = -(-max(self.img_size, self.smallest_tracked) // self.patch_size) * self.patch_size
        images = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32)
        return images, jax.ShapeDtypeStruct((1, 1, 2), jnp.float32) if "track" in self.heads else None

    @property
    def image_policy(self) -> ImagePolicy:
        return ImagePolicy("crop", self.img_size, self.patch_size)

    @property
    def num_special(self) -> int:
        return 1 + self.num_register_tokens

    @classmethod
    def head_parameters(cls, head: str) -> tuple[str, ...]:
        return (f"{head}_head/",)

    @classmethod
    def heads_for(cls, points_from: str | None) -> tuple[str, ...]:
        cls.check_points_from(points_from)
        return ("camera", "depth", "point") if points_from == "point_head" else ("camera", "depth")

    @property
    def smallest_tracked(self) -> int:
        """The shortest side of an image, in pixels, of which the tracker's coarsest level still holds
        something.
        """
        return self.track_stride << (self.track_corr_levels - 1)

    def setup(self) -> None:
        self.check_heads(HEADS)
        if (
            len(self.taps) != 4
            or list(self.taps) != sorted(set(self.taps))
            or self.taps[0] < 0
            or self.taps[-1] != self.depth - 1
        ):
            order = f"four layers in ascending order, the last one the last of {self.depth}"
            raise InputError(f"taps={self.taps} must be {order}", argument="taps")
        shared = [
            field.name for field in dataclasses.fields(Aggregator) if field.name not in ("parent", "name")
        ]
        self.aggregator = Aggregator(**{name: getattr(self, name) for name in shared})
        if "camera" in self.heads:
            self.camera_head = CameraHead(
                2 * self.embed_dim,
                self.camera_trunk_depth,
                self.camera_num_heads,
                num_iterations=self.camera_iterations,
            )
        if "depth" in self.heads:
            self.depth_head = DPTHead(self.dpt_features, self.dpt_level_channels, out_channels=2)
        if "point" in self.heads:
            self.point_head = DPTHead(self.dpt_features, self.dpt_level_channels, out_channels=4)
        if "track" in self.heads:
            self.track_head = TrackHead(
                dpt={
                    "features": self.track_features,
                    "level_channels": self.dpt_level_channels,
                    "out_channels": 0,
                    "down_ratio": self.track_stride,
                    "uv": self.track_pos_embed,
                },
                tracker_args={
                    "iters": self.track_iterations,
                    "stride": self.track_stride,
                    "corr_levels": self.track_corr_levels,
                    "corr_radius": self.track_corr_radius,
                    "hidden": self.track_hidden,
                    "depth": self.track_depth,
                    "num_heads": self.track_num_heads,
                    "num_virtual": self.track_num_virtual,
                    "max_scale": self.track_max_scale,
                    "features": self.track_features,
                },
            )

    def __call__(
        self,
        images: Num[Array, "B F H W 3"],
        query_points: Float[Array, "B Q 2"] | None = None,
        query_frames: tuple[int, ...] = (0,),
    ) -> Prediction:
        """Reconstructs B scenes of F views each.

        Args:
          images: u8[B, F, H, W, 3], or float in [0, 1]; H and W multiples of `patch_size`. The first frame
            fixes the coordinates.
          query_points: float[B, Q, 2], pixels (x, y) to track, the first one's centre at (0, 0) as upstream
            has it; None leaves the track head out.
          query_frames: K frames that they are of, a divisor of Q: the first Q/K points are of the first of
            these, and so on. Upstream knows frame 0 alone.

        Raises:
          InputError: wrong shape or dtype.
        """
        check_images(images, self.patch_size)
        self.refuse_conditions(query_points)
        if query_points is not None:
            self.check_query_points(images, query_points, query_frames)
        return self.on_mesh(images, query_points, query_frames)

    def patches(self, images: Array) -> Array:
        """See `Model`."""
        check_images(images, self.patch_size)
        return self.aggregator.embed(images, Spread(images.shape[1]))[:, :, self.num_special :]

    def forward(
        self, spread: Spread, images: Array, query_points: Array | None, *options: tuple[int, ...]
    ) -> Prediction:
        """See `Model`. Cameras and tracks are computed of all frames on every device."""
        (query_frames,) = options
        H, W = images.shape[2:4]
        taps, camera_tokens, density = self.aggregator(images, spread)
        out: dict[str, Any] = {"density": density, "made_by": type(self)}
        if "camera" in self.heads:
            out["pose_enc_list"] = spread.own_frames(self.camera_head(spread.all_frames(camera_tokens)))
            out["pose_enc"] = out["pose_enc_list"][-1]
        if "depth" in self.heads:
            out["depth"], out["depth_conf"] = self.dense(self.depth_head, activate_depth, taps, (H, W), 1)
        if "point" in self.heads:
            out["world_points"], out["world_points_conf"] = self.dense(
                self.point_head, activate_points, taps, (H, W), 3
            )
        if query_points is not None:
            head = self.track_head.feature_extractor
            shape = (H // self.track_stride, W // self.track_stride, self.track_features)
            (maps,) = over_frame_chunks(
                head,
                lambda head, taps: (self.logits(head, taps, (H, W)),),
                taps,
                (shape,),
                self.frames_chunk,
                self.remat,
                self.low_memory,
            )
            maps = spread.all_frames(maps)
            points = varying_as(query_points.astype(jnp.float32), maps)
            tracks, *seen = self.track_head.tracker(points, maps, query_frames)
            out["track_list"] = spread.own_frames(tracks, 2)
            out["track"] = out["track_list"][-1]
            out["vis"], out["conf"] = spread.own_frames(seen)
        return Prediction(**out)

    @classmethod
    def reconstruction(cls, prediction: Prediction, points_from: str | None = None) -> Reconstruction:
        """See `Model`. Points come from the depth, unprojected with the cameras, which upstream recommends as
        more accurate, or from the point head.

        Upstream counts pixels from the centre of the first one and has the principal point at W/2, H/2: in
        our coordinates, half a pixel further.
        """
        cls.check_points_from(points_from)
        p = prediction
        (pose_enc,) = p.need("camera", "pose_enc")
        if p.depth is None and points_from != "depth":
            points_from = "point_head"
        dense, conf = (
            p.need("point", "world_points", "world_points_conf")
            if points_from == "point_head"
            else p.need("depth", "depth", "depth_conf")
        )
        height, width = dense.shape[2:4]
        fov = jnp.clip(pose_enc[..., 7:9], *FOV_LIMITS)
        limited = jnp.concatenate([pose_enc[..., :7], fov], -1)
        cam_from_world, K = geometry.decode_pose(limited, height, width)
        points = dense
        if points_from != "point_head":
            points = geometry.unproject_depth(dense, K, cam_from_world)
        if p.depth is None or p.depth_conf is None:
            depth, depth_conf = geometry.depth_of(points, cam_from_world), conf
        else:
            depth, depth_conf = p.depth[..., 0], p.depth_conf
        return Reconstruction(
            cam_from_world=cam_from_world,
            K=geometry.move_origin(K, 0.5),
            depth=depth,
            depth_conf=depth_conf,
            points=points,
            conf=conf,
            clipped=(fov != pose_enc[..., 7:9]).any(-1),
            track=None if p.track is None else p.track + 0.5,
            track_conf=None if p.vis is None or p.conf is None else p.vis * p.conf,
            conf_floor=CONF_FLOOR,
        )

    @classmethod
    def loss(cls, prediction: Prediction, truth: Truth, **weights: float) -> tuple[Array, dict[str, Array]]:
        """See `Model` and `losses.vggt.loss`."""
        from fastvggt_jax.models.losses import vggt as losses

        return losses.loss(prediction, truth, **weights)

    def check_query_points(
        self, images: Array, query_points: Array, query_frames: tuple[int, ...] = (0,)
    ) -> None:
        if "track" not in self.heads:
            text = f"query_points were given, but the model has no track head: heads={self.heads}"
            raise InputError(text, argument="query_points")
        B, F, H, W, _ = images.shape
        if query_points.ndim != 3 or query_points.shape[::2] != (B, 2) or not query_points.shape[1]:
            text = f"query_points {query_points.shape} must be [B={B}, Q, 2], pixels (x, y) of query_frames"
            raise InputError(text, argument="query_points")
        if not query_frames or any(not 0 <= frame < F for frame in query_frames):
            text = f"query_frames={query_frames} must be numbers of frames, from 0 to {F - 1}"
            raise InputError(text, argument="query_frames")
        if query_points.shape[1] % len(query_frames):
            text = f"query_points {query_points.shape} must be as many of each of {len(query_frames)} frames"
            raise InputError(text, argument="query_points")
        if min(H, W) < self.smallest_tracked:
            need = f"both sides need {self.smallest_tracked} pixels or more"
            raise InputError(f"images of {H}×{W} are too small to track points in: {need}", argument="images")

    def logits(self, head: DPTHead, taps: Array, image_size: tuple[int, int]) -> Array:
        taps, dtype = taps[:, :, self.num_special :], self.heads_in
        tracked = not head.out_channels  # its features go through a chaotic tracker
        if dtype == jnp.float32 or tracked or self.is_initializing():
            return head(taps, image_size, self.patch_size)
        return in_half(head, taps, image_size, self.patch_size, dtype=dtype, frames=1)

    def dense(
        self,
        head: DPTHead,
        activate: Callable[[Array], tuple[Array, Array]],
        taps: Array,
        image_size: tuple[int, int],
        channels: int,
    ) -> tuple[Array, ...]:
        """A dense head's values [B, F, H, W, channels] and confidence [B, F, H, W]."""
        with jax.named_scope(head.name or ""):
            return over_frame_chunks(
                head,
                lambda head, taps: activate(self.logits(head, taps, image_size)),
                taps,
                ((*image_size, channels), image_size),
                self.frames_chunk,
                self.remat,
                self.low_memory,
            )
