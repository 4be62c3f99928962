"""Track head: where points of one frame are seen in the other frames (upstream: vggt/heads/track_head.py and
track_modules/, from VGGSfM and CoTracker). Float32. B batch, F frames, Q query points, C channels, h w
feature-map pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax.attention import dense_attention
from fastvggt_jax.models.vit import Mlp, gelu, layer_norm

Array = jax.Array
FLOW_FREQUENCY = 1000.0
POSITION_BASE = 10000.0


def embed_flow(flow: Array, channels: int) -> Array:
    """[..., 2] -> [..., 2·channels], x before y; sine and cosine interleaved at frequencies k·1000/channels,
    k = 0, 2, 4 …

    Frequencies grow linearly, not exponentially: up to 1000 radians a pixel, which is what makes the tracker
      chaotic.
    """
    frequency = np.arange(0, channels, 2, dtype=np.float32) * np.float32(FLOW_FREQUENCY / channels)
    angle = flow[..., None] * frequency  # [..., 2, channels/2]
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*flow.shape[:-1], 2 * channels)


def position_table(size: int, channels: int) -> np.ndarray:
    """f32[size, channels]: [sin, cos] of the pixel index, base 10000."""
    omega = POSITION_BASE ** (-np.arange(channels // 2) / (channels / 2))
    angle = np.arange(size)[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def _corners(coords: Array, size: int) -> tuple[Array, Array, Array]:
    """Pixel below, pixel above and the weight of the latter; coordinates are clamped to 0 … size-1."""
    coords = jnp.clip(coords, 0, size - 1)
    low = jnp.floor(coords).astype(jnp.int32)
    return low, jnp.minimum(low + 1, size - 1), coords - low


def sample_position(coords: Array, h: int, w: int, channels: int) -> Array:
    """The position embedding of an h×w map at coords [..., 2] (x, y), sampled bilinearly: [..., channels], x
    half then y half.
    """
    parts = []
    for axis, size in ((0, w), (1, h)):
        table = jnp.asarray(position_table(size, channels // 2))
        low, high, weight = _corners(coords[..., axis], size)
        parts.append(table[low] * (1 - weight[..., None]) + table[high] * weight[..., None])
    return jnp.concatenate(parts, -1)


def sample_border(maps: Array, coords: Array) -> Array:
    """Bilinear at pixel coordinates [B, Q, 2] (x, y) of [B, h, w, C], outside the border -> [B, Q, C]."""
    x0, x1, wx = _corners(coords[..., 0], maps.shape[2])
    y0, y1, wy = _corners(coords[..., 1], maps.shape[1])
    at = jax.vmap(lambda m, y, x: m[y, x])
    wx, wy = wx[..., None], wy[..., None]
    top = at(maps, y0, x0) * (1 - wx) + at(maps, y0, x1) * wx
    bottom = at(maps, y1, x0) * (1 - wx) + at(maps, y1, x1) * wx
    return top * (1 - wy) + bottom * wy


def feature_pyramid(maps: Array, levels: int) -> list[Array]:
    """[M, h, w, C] and its 2×2 average pools (floor sizes)."""
    pyramid = [maps]
    for _ in range(levels - 1):
        maps = nn.avg_pool(maps, (2, 2), (2, 2))
        pyramid.append(maps)
    return pyramid


def correlate(maps: Array, features: Array, coords: Array, radius: int) -> Array:
    """Correlation of a feature with its neighbourhood in a map, bilinear, zero outside.

    maps [M, h, w, C], features [M, Q, C], coords [M, Q, 2] (x, y) pixels of the map -> [M, Q, (2r+1)²]; the
    slow index moves x, the fast y. The features' products are taken at whole pixels, then interpolated: the
    same number as interpolating the map, with fewer products. A map of height (width) 1 is always read at row
    (column) 0: upstream divides by size - 1 there.
    """
    M, h, w, C = maps.shape
    coords = coords * jnp.array([w > 1, h > 1], coords.dtype)
    moves = np.array([w > 1, h > 1], np.int32)
    base = jnp.floor(coords)
    weight = coords - base
    span = np.arange(-radius, radius + 2)
    offsets = np.stack(np.meshgrid(span, span, indexing="ij"), -1) * moves  # [2r+2 (x), 2r+2 (y), 2]
    pixels = base.astype(jnp.int32)[:, :, None, None] + offsets

    def one_map(
        args: tuple[Array, Array, Array],
    ) -> Array:  # a map at a time: the gathered features are large
        map_, feature, pixel = args
        x, y = pixel[..., 0], pixel[..., 1]
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        near = map_[jnp.clip(y, 0, h - 1), jnp.clip(x, 0, w - 1)]  # [Q, 2r+2, 2r+2, C]
        return jnp.where(inside, jnp.einsum("qxyc,qc->qxy", near, feature), 0.0) / np.sqrt(C)

    corr = jax.lax.map(one_map, (maps, features, pixels))  # [M, Q, 2r+2, 2r+2]
    wx, wy = weight[..., 0, None, None], weight[..., 1, None, None]
    corr = corr[:, :, :-1] * (1 - wx) + corr[:, :, 1:] * wx
    corr = corr[..., :-1] * (1 - wy) + corr[..., 1:] * wy
    return corr.reshape(M, -1, (2 * radius + 1) ** 2)


class MultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention: one in_proj of q, k, v."""

    num_heads: int

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        B, T, E = x.shape
        in_proj = nn.Dense(3 * E, name="in_proj")
        q = in_proj(x)[..., :E].reshape(B, T, self.num_heads, -1)
        kv = in_proj(context)[..., E:].reshape(B, context.shape[1], 2, self.num_heads, -1)
        out = dense_attention(q, kv[:, :, 0], kv[:, :, 1])
        return nn.Dense(E, name="out_proj")(out.reshape(B, T, E))


class TrackBlock(nn.Module):
    """Upstream replaces x by norm1(x) before adding to it, so the residual stream is normalised. With a
    context: cross-attention.
    """

    num_heads: int
    cross: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        x = layer_norm(1e-5, "norm1")(x)
        context = layer_norm(1e-5, "norm_context")(context) if self.cross else x
        x = x + MultiheadAttention(self.num_heads, name="cross_attn" if self.cross else "attn")(x, context)
        return x + Mlp(4 * x.shape[-1], x.shape[-1], name="mlp")(layer_norm(1e-5, "norm2")(x))


class UpdateFormer(nn.Module):
    """Alternates attention over the frames of a track and over the tracks of a frame, the latter through
    virtual tracks.
    """

    hidden: int
    depth: int
    num_heads: int
    num_virtual: int
    out: int

    def setup(self) -> None:
        self.input_norm = layer_norm(1e-5)
        self.input_transform = nn.Dense(self.hidden)
        self.virual_tracks = self.param(  # sic
            "virual_tracks", nn.initializers.normal(1.0), (1, self.num_virtual, 1, self.hidden), jnp.float32
        )
        self.time_blocks = TrackBlock(self.num_heads)
        self.space_virtual_blocks = TrackBlock(self.num_heads)
        self.space_point2virtual_blocks = TrackBlock(self.num_heads, cross=True)
        self.space_virtual2point_blocks = TrackBlock(self.num_heads, cross=True)
        self.output_norm = layer_norm(1e-5)
        self.flow_head = nn.Dense(self.out)

    def __call__(self, x: Array) -> Array:
        """[B, Q, F, D] -> [B, Q, F, out]."""
        tokens = self.input_transform(self.input_norm(x))
        B, Q, F, D = tokens.shape
        virtual = jnp.broadcast_to(self.virual_tracks, (B, self.num_virtual, F, D))

        def body(
            time: TrackBlock,
            x: Array,
            _: None,
            virtual_self: TrackBlock,
            to_point: TrackBlock,
            to_virtual: TrackBlock,
        ) -> tuple[Array, None]:
            x = time(x.reshape(-1, F, D)).reshape(B, -1, F, D)
            x = x.transpose(0, 2, 1, 3).reshape(B * F, -1, D)
            point, virtual = x[:, :Q], x[:, Q:]
            virtual = virtual_self(to_virtual(virtual, point))
            x = jnp.concatenate([to_point(point, virtual), virtual], 1)
            return x.reshape(B, F, -1, D).transpose(0, 2, 1, 3), None

        scan = nn.scan(
            body,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
        )
        x, _ = scan(
            self.time_blocks,
            jnp.concatenate([tokens, virtual], 1),
            None,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            self.space_virtual2point_blocks,
        )
        return self.flow_head(self.output_norm(x[:, :Q] + tokens))


class Tracker(nn.Module):
    """Iterative refinement of tracks against a correlation pyramid. `stride` is image pixels a feature-map
    pixel.
    """

    iters: int
    stride: int
    corr_levels: int
    corr_radius: int
    hidden: int
    depth: int
    num_heads: int
    num_virtual: int
    max_scale: int

    features: int  # C

    def setup(self) -> None:
        C = self.features
        self.fmap_norm = layer_norm(1e-5)
        self.corr_mlp = Mlp(self.hidden, C)
        self.updateformer = UpdateFormer(self.hidden, self.depth, self.num_heads, self.num_virtual, C + 2)
        self.ffeat_norm = layer_norm(1e-5)  # upstream: GroupNorm of one group, the same thing on [tokens, C]
        self.ffeat_updater_0 = nn.Dense(C)
        self.vis_predictor_0 = nn.Dense(1)
        self.conf_predictor_0 = nn.Dense(1)
        self.query_ref_token = self.param(
            "query_ref_token", nn.initializers.normal(1.0), (1, 2, 3 * C + 4), jnp.float32
        )

    def __call__(
        self, query_points: Array, maps: Array, frames: tuple[int, ...] = (0,)
    ) -> tuple[Array, Array, Array]:
        """query_points [B, Q, 2] pixels (x, y), feature maps [B, F, h, w, C] -> tracks [iters, B, F, Q, 2]
        after each iteration, in image pixels; vis and conf [B, F, Q] of the last.

        frames: K of them, a divisor of Q; the first Q/K points are of the first of these frames, and so on.
        Those of one frame are followed together, as upstream does with those of frame 0. Upstream's order of
        frames means nothing else here: but for which is the query's, all are alike to the tracker.
        """
        B, F, h, w, C = maps.shape
        maps = self.fmap_norm(maps)
        pyramid = feature_pyramid(maps.reshape(B * F, h, w, C), self.corr_levels)
        if len(frames) == 1:
            return self.follow(query_points, maps, pyramid, jnp.asarray(frames[0]))
        groups = query_points.reshape(B, len(frames), -1, 2).swapaxes(0, 1)  # [K, B, Q/K, 2]

        def one_group(
            tracker: Tracker, _: None, group: tuple[Array, Array]
        ) -> tuple[None, tuple[Array, Array, Array]]:
            return None, tracker.follow(group[0], maps, pyramid, group[1])

        scan = nn.scan(
            one_group,
            variable_broadcast="params",
            variable_axes={"intermediates": 0},
            split_rngs={"params": False},
        )
        _, found = scan(self, None, (groups, jnp.asarray(frames)))
        tracks, vis, conf = (jnp.moveaxis(x, 0, -3 if x.ndim == 6 else -2) for x in found)
        return (
            tracks.reshape(self.iters, B, F, -1, 2),  # [iters, B, F, K, Q/K, 2]
            vis.reshape(B, F, -1),
            conf.reshape(B, F, -1),
        )

    def follow(
        self, query_points: Array, maps: Array, pyramid: list[Array], frame: Array
    ) -> tuple[Array, Array, Array]:
        """Points that are all of `frame`, i32[]. maps: normalised, of which the pyramid is."""
        B, F, h, w, C = maps.shape
        Q = query_points.shape[1]
        start = query_points / self.stride  # [B, Q, 2]
        own = (jnp.arange(F) == frame)[None, :, None, None]  # [1, F, 1, 1]
        of_frame: Callable[[Array], Array] = lambda x: jax.lax.dynamic_index_in_dim(x, frame, 1)
        coords = jnp.broadcast_to(start[:, None], (B, F, Q, 2))
        features = jnp.broadcast_to(sample_border(of_frame(maps)[:, 0], start)[:, None], (B, F, Q, C))
        # The same in every iteration, since the query does not move.
        first, others = self.query_ref_token[:, :1], self.query_ref_token[:, 1:]
        ref = jnp.where(own[..., 0], first, others)[:, None]  # [1, 1, F, 3C + 4]
        constant = sample_position(start, h, w, 3 * C + 4)[:, :, None] + ref  # [B, Q, F, 3C + 4]

        def iteration(
            update: UpdateFormer,
            carry: tuple[Array, Array],
            _: None,
            corr_mlp: Mlp,
            feature_norm: nn.LayerNorm,
            feature_update: nn.Dense,
        ) -> tuple[tuple[Array, Array], Array]:
            # Upstream too: no gradient from an iteration's start.
            coords, features = jax.lax.stop_gradient(carry[0]), carry[1]
            flat_coords, flat_features = coords.reshape(B * F, Q, 2), features.reshape(B * F, Q, C)
            levels = [
                correlate(level, flat_features, flat_coords / 2**i, self.corr_radius)
                for i, level in enumerate(pyramid)
            ]
            corr = jnp.concatenate(levels, -1)  # [B·F, Q, levels·(2r+1)²]
            flow = coords - of_frame(coords)
            scaled = flow / self.max_scale
            parts = [embed_flow(flow, C // 2), scaled, scaled, corr_mlp(corr).reshape(B, F, Q, C), features]
            x = jnp.concatenate(parts, -1).transpose(0, 2, 1, 3) + constant  # [B, Q, F, 3C + 4]
            update.sow("intermediates", "corr_in", corr)
            update.sow("intermediates", "update_in", x)
            delta = update(x).transpose(0, 2, 1, 3)  # [B, F, Q, 2 + C]
            features = features + gelu(feature_update(feature_norm(delta[..., 2:])))
            coords = jnp.where(own, start[:, None], coords + delta[..., :2])
            return (coords, features), coords * self.stride

        scan = nn.scan(
            iteration,
            variable_broadcast="params",
            variable_axes={"intermediates": 0},
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.iters,
        )
        modules = (self.corr_mlp, self.ffeat_norm, self.ffeat_updater_0)
        (_, features), tracks = scan(self.updateformer, (coords, features), None, *modules)
        vis = jax.nn.sigmoid(self.vis_predictor_0(features)[..., 0])
        conf = jax.nn.sigmoid(self.conf_predictor_0(features)[..., 0])
        return tracks, vis, conf
