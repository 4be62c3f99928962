"""Pi3X, π³'s successor: metres, and known cameras and depth as inputs (upstream: yyfz/Pi3,
pi3/models/pi3x.py, as of May 2026).

It is π³ up to its heads. These are convolutions; a token that attends to everything finds the scene's metres;
and what is known of the views beforehand (`Conditions`) is added to the patch tokens, or, of poses, between
blocks of the decoder. Without conditions that part is neither computed nor needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

from fastvggt_jax import geometry
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.base import CONDITIONS, PRODUCTS, check_images
from fastvggt_jax.models.conditions import Conditions, Fed, drawn, prepare
from fastvggt_jax.models.dinov2 import DinoV2, PatchEmbed, embed_frames
from fastvggt_jax.models.fields import Heads, Layer, Layers, Width
from fastvggt_jax.models.heads.conv import ConvHead
from fastvggt_jax.models.heads.half import in_half
from fastvggt_jax.models.heads.metric import MetricDecoder
from fastvggt_jax.models.injection import InjectionBlock, Views
from fastvggt_jax.models.pi3 import Pi3, camera_poses
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.models.rope import Rope, patch_positions, rope_tables
from fastvggt_jax.models.vit import scan_blocks
from fastvggt_jax.sharding import FRAMES, Spread, mesh_of

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
HEADS = ("point", "conf", "camera", "metric", CONDITIONS)
FARTHEST = 15.0  # largest logarithm of a depth


class ConditionEncoder(DinoV2):
    """The image encoder's architecture, of normalised depth and where it is known: f32[B, H, W, 2] -> f32[B,
    h·w, D].
    """

    def standardise(self, images: Array) -> Array:
        return images


class Pi3X(Pi3):
    """The fields are the configuration, their defaults the released Pi3X. `heads` has "conditions" too: what
    known cameras and depth need, a quarter of the weights.
    """

    conversion: ClassVar[str | None] = "convert.pi3x"
    read_in_dtype: ClassVar[str | None] = (
        r"((encoder|depth_encoder)/blocks|decoder/(frame|global)_blocks|(point|conf|camera)_decoder/blocks"
        r"|pose_inject_blocks)" + PRODUCTS
    )
    tiny: ClassVar[Mapping[str, Any]] = {
        **Pi3.tiny,
        **dict(conv_channels=(32, 32, 16), metric_embed_dim=32, metric_depth=1, metric_num_heads=2),
        **dict(metric_out_dim=32, inject_after=(1,)),
    }
    widths: ClassVar[tuple[tuple[str, str, int, int], ...]] = (
        *Pi3.widths,
        ("embed_dim", "num_heads", 1, 8),  # PRoPE's groups
        ("metric_embed_dim", "metric_num_heads", 1, 4),
    )
    loss_weights: ClassVar[Mapping[str, float]] = {**Pi3.loss_weights, "metric": 0.1}

    conv_channels: tuple[Width, ...] = (256, 128, 64)  # of the dense heads' stages, multiples of 16
    metric_embed_dim: Width = 512
    metric_depth: Layers = 5
    metric_num_heads: Heads = 8
    metric_out_dim: Width = 512
    # The decoder's single blocks, from 0, after which poses enter; odd ones, which attend across frames.
    inject_after: tuple[Layer, ...] = (1, 9, 17, 25, 33)
    heads: tuple[str, ...] = HEADS

    def smallest_inputs(self) -> tuple[Any, ...]:
        """See `Model`. Two views: the pose of one alone is dropped."""
        (images,) = super().smallest_inputs()
        images = jax.ShapeDtypeStruct((1, 2, *images.shape[2:]), images.dtype)
        if CONDITIONS not in self.heads:
            return (images,)
        given = {"depth": images.shape[:4], "K": (1, 2, 3, 3), "world_from_cam": (1, 2, 4, 4)}
        of = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in given.items()}
        return images, Conditions(**of)  # type: ignore[arg-type]

    @classmethod
    def head_parameters(cls, head: str) -> tuple[str, ...]:
        if head == CONDITIONS:
            return ("depth_encoder/", "depth_emb", "ray_embed/", "pose_inject_blocks/")
        return (*super().head_parameters(head), f"{head}_token")

    @classmethod
    def heads_for(cls, points_from: str | None) -> tuple[str, ...]:
        cls.check_points_from(points_from)
        return tuple(head for head in HEADS if head != CONDITIONS)

    def setup(self) -> None:
        super().setup()
        D = self.embed_dim
        token = lambda name, width: self.param(name, nn.initializers.normal(0.02), (1, 1, width), jnp.float32)
        if "metric" in self.heads:
            self.metric_token = token("metric_token", 2 * D)
            self.metric_decoder = MetricDecoder(
                self.metric_embed_dim,
                self.metric_depth,
                self.metric_num_heads,
                self.metric_out_dim,
                self.dtype,
                self.remat,
            )
            self.metric_head = nn.Dense(1)
        if CONDITIONS in self.heads:
            self.depth_encoder = ConditionEncoder(
                self.img_size,
                self.patch_size,
                D,
                self.encoder_depth,
                self.encoder_num_heads,
                dtype=self.dtype,
                remat=self.remat,
            )
            self.depth_emb = token("depth_emb", D)
            self.ray_embed = PatchEmbed(self.patch_size, D, self.dtype)
            self.pose_inject_blocks = InjectionBlock(self.num_heads, self.mlp_ratio, self.dtype, self.rows)

    def dense_head(self, *channels: int) -> nn.Module:
        return ConvHead(self.conv_channels, channels, self.patch_size)

    def dense(self, head: nn.Module, tokens: Array, grid: tuple[int, int]) -> Array:
        """See `Pi3`."""
        if self.heads_in == jnp.float32 or self.is_initializing():
            return head(tokens, grid)
        return in_half(head, tokens, grid, dtype=self.heads_in, frames=0)

    def __call__(
        self,
        images: Num[Array, "B F H W 3"],
        conditions: Conditions | None = None,
        *,
        frames: int | Int[Array, ""] | None = None,
    ) -> Prediction:
        """Reconstructs B scenes of F views each.

        Args:
          images: u8[B, F, H, W, 3], or float in [0, 1]; H and W multiples of `patch_size`.
          conditions: what is known of the views; None: nothing.
          frames: how many of the F views count, the first ones: i32[], from 1 to F, which may be traced. So
            one program serves all scenes that are filled up to F. Nobody attends to the other views, whatever
            they show, and their results mean nothing. None: all.

        Raises:
          InputError: wrong shape or dtype, or conditions that do not fit; or the part that reads them is off;
            `frames` with conditions, or that are no such number.
        """
        check_images(images, self.patch_size)
        self._check_parts(images, conditions)
        if frames is not None and conditions is not None:
            text = "conditions were given with frames, but they are of all frames: leave one of the two out"
            raise InputError(text, argument="frames")
        return self.on_mesh(images, None, conditions, frames=frames)

    def forward(self, spread: Spread, images: Array, query_points: Array | None, *options: Any) -> Prediction:
        """See `Model`; the only option are the conditions."""
        (conditions,) = options
        B, F, H, W, _ = images.shape
        grid = (H // self.patch_size, W // self.patch_size)
        tokens, after = self.embed(images), None
        if conditions is not None:
            fed = prepare(conditions, B, F, (H, W))
            with jax.named_scope("conditions"):
                tokens = self.fuse(tokens, fed)
            after = self.injection(fed, grid)
        raw, density = self.look(spread, tokens, (H, W), after)
        out: dict[str, Any] = {"density": density, "made_by": type(self)}
        metric = jnp.ones(B, jnp.float32)  # the network's own unit, where nobody asks for metres
        if "metric" in self.heads:
            metric = jnp.exp(self.log_metric(spread.all_frames(raw["context"]), grid, spread))
            if FRAMES in spread.axes:  # the same on all devices, which is not known of what was gathered
                metric = jax.lax.pmean(metric, FRAMES)
            out["metric"] = metric
        if "point" in raw:
            local, out["rays"] = activate_points(raw["point"])
            out["local_points"] = local * metric[:, None, None, None, None]
        if "conf" in raw:
            out["conf"] = raw["conf"]
        if "camera" in self.heads:
            pose = camera_poses(raw)
            out["camera_poses"] = pose.at[..., :3, 3].multiply(metric[:, None, None])
            if "point" in raw:
                points = geometry.transform(pose, local)
                out["points"] = points * metric[:, None, None, None, None]
        return Prediction(**out)

    def _check_parts(self, images: Array, conditions: Any) -> None:
        D, stacks = 2 * self.depth, self.inject_after
        if list(stacks) != sorted(set(stacks)) or not all(i % 2 and i < D for i in stacks):
            text = f"inject_after={stacks} must be odd numbers below {D}, in ascending order"
            raise InputError(text, argument="inject_after")
        if any(channels % 16 for channels in self.conv_channels):
            text = f"conv_channels={self.conv_channels} must be multiples of 16"
            raise InputError(text, argument="conv_channels")
        if conditions is None:
            return
        if not isinstance(conditions, Conditions):
            text = f"conditions must be fv.Conditions, not {type(conditions).__name__}"
            raise InputError(text, argument="conditions")
        if CONDITIONS not in self.heads:
            text = "conditions were given, but the model is without the part that reads them"
            raise InputError(f'{text}: load it with "conditions" among its heads', argument="conditions")
        if not self.is_initializing() and mesh_of(images) is not None:
            text = "conditions were given for images that are spread over several devices: compute on one"
            raise InputError(text, argument="conditions")
        conditions.check(images.shape)

    def fuse(self, tokens: Array, fed: Fed) -> Array:
        """Adds what is known of rays and depth to the patches of the tokens f32[B, F, P, D]."""
        B, F = tokens.shape[:2]

        def add(tokens: Array, found: Array, mask: Array | None) -> Array:
            found = found.reshape(B, F, -1, self.embed_dim)
            if mask is not None:  # whatever stands where nothing is known
                found = jnp.where(mask[..., None, None], found, 0)
            return tokens.at[:, :, self.num_special :].add(found)

        if fed.rays is not None:
            rays = self.ray_embed(fed.rays.reshape(B * F, *fed.rays.shape[2:]))
            tokens = add(tokens, rays.astype(jnp.float32), fed.ray_mask)
        if fed.depth is not None:
            none = jnp.zeros((1, F, 0, self.embed_dim))  # special tokens
            depth = embed_frames(self.depth_encoder, none, fed.depth, self.blocks_chunk)
            tokens = add(tokens, depth + self.depth_emb, fed.depth_mask)
        return tokens

    def injection(self, fed: Fed, grid: tuple[int, int]) -> Callable[..., Array] | None:
        """What `alternate` does after each pair of blocks; None where no view can have a pose."""
        if fed.world_from_cam is None:
            return None
        S, pairs = self.num_special, np.arange(self.depth)
        after = np.isin(2 * pairs + 1, self.inject_after)
        slot = jnp.array(np.maximum(np.cumsum(after) - 1, 0))
        wanted, poses = jnp.array(after), fed.world_from_cam
        if fed.pose_mask is not None:
            wanted = wanted & fed.pose_mask.any()
            # What lies far away would outweigh what hides it.
            poses = jnp.where(fed.pose_mask[..., None, None], poses, jnp.eye(4))
        views = Views(poses, fed.pose_mask, patch_positions(*grid, 0) - 1)
        if self.is_initializing():  # makes the parameters of all of them
            B, F = fed.world_from_cam.shape[:2]
            x = jnp.zeros((B, F * grid[0] * grid[1], self.embed_dim))
            scan_blocks(self.pose_inject_blocks, len(self.inject_after), x, views)
        params = self.pose_inject_blocks.variables["params"]
        block: Any = self.pose_inject_blocks.clone(parent=None)

        def add(x: Array, slot: Array, positions: np.ndarray) -> Array:
            (B, F, _, D), here = x.shape, views._replace(positions=positions[S:] - 1)
            one = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, slot, 0, False), params)
            added = block.apply({"params": one}, x[:, :, S:].reshape(B, -1, D), here).reshape(B, F, -1, D)
            if views.posed is not None:
                added = jnp.where(views.posed[..., None, None], added, 0)
            return x.at[:, :, S:].add(added)

        def inject(x: Array, pair: Array, positions: np.ndarray) -> Array:
            here = lambda x: add(x, slot[pair], positions)
            with jax.named_scope("pose_injection"):
                return jax.lax.cond(wanted[pair], here, lambda x: x, x)

        return inject

    def raw_shapes(self, H: int, W: int) -> dict[str, tuple[int, ...]]:
        shapes = super().raw_shapes(H, W)
        if "metric" in self.heads:
            patches = (H // self.patch_size) * (W // self.patch_size)
            shapes["context"] = (self.num_special + patches, self.metric_embed_dim)
        return shapes

    def decode(self, tokens: Array, grid: tuple[int, int]) -> dict[str, Array]:
        """See `Pi3`; and the tokens as the metric decoder has them, f32[B, P, metric_embed_dim]."""
        out = super().decode(tokens, grid)
        if "metric" in self.heads:
            out["context"] = self.metric_decoder.context(tokens)
        return out

    def log_metric(self, context: Array, grid: tuple[int, int], spread: Spread) -> Array:
        """f32[B, F, P, metric_embed_dim] of all frames -> the logarithm of the metric factor, f32[B]."""
        B, F, P, D = context.shape
        rope = rope_tables(patch_positions(*grid, self.num_special), D // self.metric_num_heads)
        all_frames = Rope(*(jnp.tile(t, (F, 1, 1)) for t in rope))
        lengths = spread.lengths(P)
        lengths = lengths and lengths._replace(q=jnp.int32(1))  # the one token
        found = self.metric_decoder(self.metric_token, context.reshape(B, F * P, D), all_frames, lengths)
        return self.metric_head(found)[:, 0, 0]

    @classmethod
    def reconstruction(cls, prediction: Prediction, points_from: str | None = None) -> Reconstruction:
        """See `Pi3`; and its unit is one metre, if the metric head was on. K, which it does not predict, is
        that of its rays: to fit a camera to its points, as `to_scene` does, is to fit it to these.
        """
        found = super().reconstruction(prediction, points_from)
        if prediction.metric is None:
            return found
        return found.replace(metric_scale=jnp.ones_like(prediction.metric))  # type: ignore[attr-defined]

    def training_inputs(self, truth: Truth, query_points: Array | None, key: Array) -> tuple[Any, ...]:
        """See `Model`: of what is true, some; see `conditions.drawn`."""
        return (drawn(key, truth) if CONDITIONS in self.heads else None,)

    @classmethod
    def loss(cls, prediction: Prediction, truth: Truth, **weights: float) -> tuple[Array, dict[str, Array]]:
        """See `Model` and `losses.pi3x.loss`."""
        from fastvggt_jax.models.losses import pi3x as losses

        return losses.loss(prediction, truth, **weights)


def activate_points(raw: Array) -> tuple[Array, Array]:
    """Raw (x, y, z) f32[..., 3] -> points (x·e^z, y·e^z, e^z), z at most `FARTHEST`; and their rays, (x, y,
    1) at length 1.
    """
    z = jnp.exp(jnp.minimum(raw[..., 2:], FARTHEST))
    ray = jnp.concatenate([raw[..., :2], jnp.ones_like(z)], -1)
    return ray * z, ray / jnp.linalg.norm(ray, axis=-1, keepdims=True)
