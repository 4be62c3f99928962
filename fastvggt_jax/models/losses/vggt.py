"""VGGT's training loss (arXiv 2503.11651 §3.4; upstream's training/loss.py and its default configuration):
cameras, depth, points, tracks.

The paper's Huber loss on cameras is L1 upstream, "more stable". Its depth and point losses are upstream three
terms each: the error weighted by the predicted confidence, the error alone, and the error of spatial
differences at four scales (the paper's gradient; for points upstream's default compares normals instead).
Upstream has not released the tracks' loss: it is the paper's, with CoTracker3's (arXiv 2410.11831) target for
the confidence. Left out: upstream's training code also drops the worst 2 % of the confidence-weighted errors,
and cameras that see hardly any valid point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from fastvggt_jax.geometry import encode_pose, invert_se3, quat_xyzw_to_rotation
from fastvggt_jax.models.losses.parts import TINY, mean_where, norm, normalise, steps_between
from fastvggt_jax.models.prediction import Prediction

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
CAMERA, DEPTH, POINT, TRACK = 5.0, 1.0, 1.0, 0.05  # weights of the parts
FIELD_OF_VIEW = 0.5  # weight within the camera's part
STAGE_DECAY = 0.6  # of the camera head's iterations, from the last one back
LOG_CONFIDENCE = 0.2  # α: what high confidence is worth
SCALES = 4
LARGEST_ERROR = 100.0  # of a translation or a spatial difference; what is beyond has no gradient
NEAR = 0.02  # of the mean point distance: cameras that are nearer have hardly a direction
TRACK_DECAY = 0.8  # of the tracker's iterations, from the last one back (CoTracker)
RIGHT_TRACK = 12.0  # pixels: a track that is nearer is one to be confident of


def loss(
    prediction: Prediction, truth: Truth, background: float = 0.0, pairs: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum f32[] over the heads that are on, and its parts by name, unweighted.

    truth: in any coordinates; compared with is what `normalise` makes of it.
    background: what log confidence costs where nothing is valid. Upstream's 0 leaves it free there, since
    real scans have holes; where all that is not valid is sky, a cost makes the confidence say so.
    pairs: weight of `pair_loss`, 0 upstream.
    """
    total: Any = jnp.float32(0)
    parts: dict[str, Array] = {}
    truth = normalise(truth)
    if prediction.pose_enc_list is not None:
        pose_enc = encode_pose(truth.cam_from_world, truth.K, *truth.depth.shape[2:])
        camera = camera_loss(prediction.pose_enc_list, pose_enc)
        parts |= camera
        total += CAMERA * (
            camera["translation"] + camera["rotation"] + FIELD_OF_VIEW * camera["field of view"]
        )
        if pairs:
            parts["pairs"] = pair_loss(prediction.pose_enc_list, pose_enc)
            total += pairs * parts["pairs"]
    for name, weight, values, conf, target in (
        ("depth", DEPTH, prediction.depth, prediction.depth_conf, truth.depth[..., None]),
        ("point", POINT, prediction.world_points, prediction.world_points_conf, truth.points),
    ):
        if values is not None and conf is not None:
            dense = dense_loss(values, conf, target, truth.valid)
            if background:
                dense["background"] = background * mean_where(jnp.log(conf), ~truth.valid)
            parts |= {f"{name} {key}": value for key, value in dense.items()}
            total += weight * sum(dense.values())
    if prediction.track_list is not None and truth.tracks is not None and truth.visible is not None:
        vis, conf = prediction.need("track", "vis", "conf")
        track = track_loss(prediction.track_list, vis, conf, truth.tracks, truth.visible)
        parts |= track
        total += TRACK * sum(track.values())
    return total, parts


def camera_loss(pose_enc_list: tuple[Array, ...], target: Array) -> dict[str, Array]:
    """Mean absolute errors of pose encodings f32[B, F, 9] over the iterations; the later ones weigh more."""
    errors = jnp.abs(jnp.stack(pose_enc_list) - target)  # [iterations, B, F, 9]
    decay = _decay(STAGE_DECAY, len(errors))
    mean = lambda x: (decay * x.mean((1, 2, 3))).sum()
    return {
        "translation": mean(jnp.minimum(errors[..., :3], LARGEST_ERROR)),
        "rotation": mean(errors[..., 3:7]),
        "field of view": mean(errors[..., 7:]),
    }


def pair_loss(pose_enc_list: tuple[Array, ...], target: Array) -> Array:
    """Mean error of the translations cam_i_from_cam_j of all pairs of cameras, in units of their distance,
    weighed over the iterations as the camera's; f32[].

    How well poses are recovered is measured by the directions of these translations. An absolute error that
    is small beside the scene can turn them by any angle where two cameras are near each other, and what a
    wrong rotation does to them has to go with it.
    """
    true = _between(target)
    errors = norm(_between(jnp.stack(pose_enc_list)) - true)  # [iterations, B, F, F], 0 on the diagonal
    errors /= jnp.linalg.norm(true, axis=-1) + NEAR
    frames = target.shape[1]
    decay = _decay(STAGE_DECAY, len(errors))
    return (decay * errors.sum((2, 3)).mean(1)).sum() / max(frames * (frames - 1), 1)


def _between(pose_enc: Array) -> Array:
    """Translations of cam_i_from_cam_j, f32[..., F, 9] -> f32[..., F, F, 3]."""
    R, t = quat_xyzw_to_rotation(pose_enc[..., 3:7]), pose_enc[..., :3, None]
    world_from_cam = invert_se3(jnp.concatenate([R, t], -1))
    return steps_between(world_from_cam[..., :3, :3], world_from_cam[..., :3, 3])


def _decay(base: float, iterations: int) -> Array:
    """How much each iteration of a head weighs, f32[iterations]: the last one most."""
    return base ** jnp.arange(iterations)[::-1] / iterations


def dense_loss(values: Array, conf: Array, target: Array, valid: Array) -> dict[str, Array]:
    """Of f32[B, F, H, W, C] with confidence f32[B, F, H, W] where `valid`; each a mean over the valid pixels,
    0 if there are none.
    """
    difference = jnp.where(valid[..., None], values - target, 0)
    error = norm(difference)
    weighted = error * conf - LOG_CONFIDENCE * jnp.log(conf)
    steps = [2**scale for scale in range(SCALES)]
    gradient: Any = (
        sum(_gradient(difference[..., ::s, ::s, :], valid[..., ::s, ::s], conf[..., ::s, ::s]) for s in steps)
        / SCALES
    )
    return {
        "confidence": mean_where(weighted, valid),
        "error": mean_where(error, valid),
        "gradient": gradient,
    }


def track_loss(track_list: Array, vis: Array, conf: Array, tracks: Array, visible: Array) -> dict[str, Array]:
    """Of tracks f32[iterations, B, F, Q, 2] where the point is seen, in pixels, and of the probabilities
    f32[B, F, Q] that it is seen and that the last iteration's track is right; each a mean.
    """
    errors = jnp.minimum(jnp.abs(track_list - tracks).mean(-1), LARGEST_ERROR)
    decay = _decay(TRACK_DECAY, len(errors))
    seen = visible / jnp.maximum(visible.sum(), 1)
    right = jax.lax.stop_gradient(jnp.linalg.norm(track_list[-1] - tracks, axis=-1)) < RIGHT_TRACK
    return {
        "track": (decay * (errors * seen).sum((1, 2, 3))).sum(),
        "visibility": _cross_entropy(vis, visible).mean(),
        "track confidence": (_cross_entropy(conf, right) * seen).sum(),
    }


def _cross_entropy(probability: Array, target: Array) -> Array:
    likely = jnp.where(target, probability, 1 - probability)
    return -jnp.log(jnp.maximum(likely, TINY))


def _gradient(difference: Array, valid: Array, conf: Array) -> Array:
    """How much the error changes between neighbours that are both valid, weighted by confidence as the error
    itself; a mean a channel.
    """
    total = jnp.float32(0)
    for axis in (-3, -2):
        n = difference.shape[axis]
        after, before = (jax.lax.slice_in_dim(difference, a, b, axis=axis) for a, b in ((1, n), (0, n - 1)))
        both = jnp.logical_and(
            *(jax.lax.slice_in_dim(valid, a, b, axis=axis + 1) for a, b in ((1, n), (0, n - 1)))
        )
        weight = jax.lax.slice_in_dim(conf, 1, n, axis=axis + 1)
        change = jnp.minimum(jnp.abs(after - before), LARGEST_ERROR).mean(-1)
        total += jnp.where(both, change * weight - LOG_CONFIDENCE * jnp.log(weight), 0).sum()
    return total / jnp.maximum(valid.sum(), 1)
