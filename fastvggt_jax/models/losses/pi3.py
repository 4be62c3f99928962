"""π³'s training loss (arXiv 2507.13347 §3.4; upstream's pi3/models/loss.py and its constants): points, their
normals, confidence, cameras.

Nothing is measured against a frame of reference: points in each camera's own coordinates, cameras relative to
each other, all of it after one scale a scene, which a weighted median finds. All parts are trained at once,
as in the paper's sum; upstream trains confidence in a run of its own, with everything else frozen, for which
`TrainConfig.frozen` serves. What differs from upstream, and why:
  - The angle between rotations comes from its sine and cosine: upstream's arccos is clamped at 0.0014 rad and
    has no gradient nearer.
  - A scene of fewer than 4096 valid points is aligned by each of them once; upstream repeats some of them,
    which weighs them twice.
  - A scene without a valid point has no scale, so its translations do not count; upstream's numbers are not
    finite then.
  - What confidence costs in the sky is `background`: upstream finds the sky with a segmentation network, here
    the caller knows.
  - Normals count in every scene: upstream leaves out data sets whose depth is noisy, here depth is rendered.
Left out: upstream's optional loss on the points of a global head, which the released model does not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fastvggt_jax import geometry
from fastvggt_jax.errors import InputError
from fastvggt_jax.models.losses.parts import mean_where, norm, normalise, steps_between
from fastvggt_jax.models.prediction import Prediction

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
NORMAL, CONFIDENCE, CAMERA = 1.0, 0.05, 0.1  # weights of the parts; the points' is 1
TRANSLATION = 100.0  # weight within the camera's part, where the rotation's is 1
LARGEST_STEP = 0.1  # of a relative translation, from which on its loss is linear (Huber)
NEAREST = 0.1  # of a frame's mean depth: what is nearer weighs no more
ALIGNED = 4096  # points that find the scale
RIGHT_POINT = 0.02  # relative error: a point that is nearer is one to be confident of
EDGE = 0.03  # relative step in depth: no normal is taken across one
ANGLES = (jnp.pi / 180, jnp.pi / 2)  # between normals; below and above there is no gradient
SMALL_ANGLE = jnp.pi / 60  # below, the loss of an angle is quadratic
SHORTEST = 1e-15  # a normal that is shorter, before it is normalised, has no direction


def loss(prediction: Prediction, truth: Truth, background: float = 0.0) -> tuple[Array, dict[str, Array]]:
    """The weighted sum f32[] and its parts by name, unweighted. It depends neither on the scale nor on the
    world of the prediction.

    background: what confidence costs where nothing is valid; 0 leaves it free there, since real scans have
    holes. Where all that is not valid is sky, 1 is upstream's.
    """
    if prediction.local_points is None or prediction.conf is None or prediction.camera_poses is None:
        text = "π³'s loss needs the heads point, conf, camera: train the model with all of them on"
        raise InputError(text, argument="heads")
    truth = normalise(truth)
    valid, mask = truth.valid, truth.valid[..., None]
    cam_from_world = truth.cam_from_world
    target, weight = targets(truth)

    points = jnp.where(mask, prediction.local_points, 0)
    count = valid.sum((1, 2, 3))
    size = jnp.where(count > 0, norm(points).sum((1, 2, 3), where=valid) / jnp.maximum(count, 1), 1)  # [B]
    scale = jax.vmap(align_scale)(*jax.lax.stop_gradient((points, target, weight, valid)))
    # No derivative is taken of s*, but that of a prediction of mean distance 1.
    scale = jax.lax.stop_gradient(scale * size) / size
    points = scale[:, None, None, None, None] * points
    error = (jnp.abs(points - target) * weight[..., None]).mean(-1)

    pose = prediction.camera_poses
    camera = camera_loss(
        pose[..., :3, :3],
        scale[:, None, None] * pose[..., :3, 3],
        geometry.invert_se3(cam_from_world),
        count > 0,
    )
    cross_entropy = lambda right: optax.sigmoid_binary_cross_entropy(
        prediction.conf[..., 0], right.astype(jnp.float32)
    )
    parts = {
        "point error": mean_where(error, valid),
        "normal": normal_loss(points, target, valid),
        "confidence": mean_where(cross_entropy(error < RIGHT_POINT), valid),
        **camera,
    }
    if background:
        parts["background"] = background * mean_where(cross_entropy(jnp.zeros_like(valid)), ~valid)
    confidence = parts["confidence"] + parts.get("background", 0)
    cameras = parts["rotation"] + TRANSLATION * parts["translation"]
    return parts["point error"] + NORMAL * parts["normal"] + CONFIDENCE * confidence + CAMERA * cameras, parts


def targets(truth: Truth) -> tuple[Array, Array]:
    """The true points in each camera, f32[B, F, H, W, 3], and what each weighs, f32[B, F, H, W]: 0 where
    nothing is valid.
    """
    valid = truth.valid
    target = jnp.where(valid[..., None], geometry.transform(truth.cam_from_world, truth.points), 0)
    depth = target[..., 2]
    nearest = NEAREST * depth.sum((2, 3)) / jnp.maximum(valid.sum((2, 3)), 1)  # [B, F]
    return target, jnp.where(valid, 1 / (jnp.maximum(depth, nearest[..., None, None]) + 1e-6), 0)


def align_scale(points: Array, target: Array, weight: Array, valid: Array) -> Array:
    """The s* f32[] that minimises Σ weight·|s·points - target|₁ of f32[..., 3], f32[..., 3], f32[...] where
    `valid`; 1 if that is nowhere.

    As a function of s the sum has its corners at the ratios target / points of all coordinates, and its
    minimum is at their median weighted by weight·|points|: exact, and no outlier moves it far (MoGe, arXiv
    2410.19115, supplement). More than ALIGNED points are thinned out evenly. Where coordinates of the other
    sign outweigh, it would be negative and upstream's, taken here, is its absolute value.
    """
    n = min(ALIGNED, valid.size)
    count = valid.sum()
    taken = jnp.clip(count, 1, n)
    i = jnp.arange(n)
    rank = (
        i * (count // taken) + i * (count % taken) // taken
    )  # floor(i·count / taken), whose product may overflow
    index = jnp.searchsorted(
        jnp.cumsum(valid.ravel()), rank + 1
    )  # of the valid point of that rank; beyond the last point where i >= count
    points, target = (x.reshape(-1, 3).at[index].get(mode="fill", fill_value=0) for x in (points, target))
    mass = jnp.abs(points) * weight.ravel().at[index].get(mode="fill", fill_value=0)[:, None]
    ratio = target / jnp.where(points == 0, 1, points)
    ratio, mass = jax.lax.sort((ratio.ravel(), mass.ravel()), num_keys=1)
    below = jnp.cumsum(mass)
    return jnp.where(below[-1] > 0, jnp.abs(ratio[jnp.argmax(below >= below[-1] / 2)]), 1)


def normal_loss(points: Array, target: Array, valid: Array) -> Array:
    """Of the angles between the normals of f32[B, F, H, W, 3] and those of the truth, four a square of
    pixels, not across edges; f32[].

    As upstream's and MoGe's, a mean over all squares, also those that do not count, divided by 4 max(H, W):
    the derivative of an angle by a point grows with the resolution. At the truth it is not 0 but what the
    smallest of ANGLES costs.
    """
    depth = target[..., 2:]
    spread = nn.max_pool(depth, (3, 3), padding="SAME") + nn.max_pool(-depth, (3, 3), padding="SAME")
    corners = _corners(valid & (spread <= EDGE * depth)[..., 0])
    counts = jnp.stack([corners[k - 1] & corners[k] & corners[(k + 1) % 4] for k in range(4)])
    a, b = _normals(points), _normals(target)
    angle = jnp.clip(jnp.arctan2(norm(jnp.cross(a, b)), (a * b).sum(-1)), *ANGLES)
    cost = optax.huber_loss(angle, delta=SMALL_ANGLE) / SMALL_ANGLE
    return jnp.where(counts, cost, 0).sum(0).mean() / (4 * max(valid.shape[2:]))


def camera_loss(rotation: Array, centre: Array, world_from_cam: Array, has_scale: Array) -> dict[str, Array]:
    """Of all ordered pairs of different cameras f32[B, F, 3, 3], f32[B, F, 3] in any world against f32[B, F,
    4, 4]; each a mean, 0 of one.

    The angle between relative rotations in radians, and Huber's loss of relative translations in the scenes
    where bool[B] is true.
    """
    frames = rotation.shape[1]
    pairs = jnp.broadcast_to(~jnp.eye(frames, dtype=bool), (len(rotation), frames, frames))
    turn, step = _relative(rotation, centre)
    true_turn, true_step = _relative(world_from_cam[..., :3, :3], world_from_cam[..., :3, 3])
    between = jnp.einsum("bfgji,bfgjk->bfgik", turn, true_turn, precision="highest")
    skew = between - jnp.swapaxes(between, -1, -2)  # 2 sin(angle) [axis]×
    sine = norm(jnp.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)) / 2
    angle = jnp.arctan2(sine, (jnp.trace(between, axis1=-2, axis2=-1) - 1) / 2)
    huber = optax.huber_loss(step, true_step, delta=LARGEST_STEP).mean(-1)
    return {
        "rotation": mean_where(angle, pairs),
        "translation": mean_where(huber, pairs & has_scale[:, None, None]),
    }


def _relative(rotation: Array, centre: Array) -> tuple[Array, Array]:
    """World_from_cam f32[B, F, 3, 3], f32[B, F, 3] -> each second camera in the first one's coordinates, [B,
    F, F, 3, 3], [B, F, F, 3].
    """
    turn = jnp.einsum("bfji,bgjk->bfgik", rotation, rotation, precision="highest")
    return turn, steps_between(rotation, centre)


def _corners(x: Array) -> list[Array]:
    """The four corners of each square of neighbouring pixels, going round: [B, F, H, W, ...] -> four of [B,
    F, H - 1, W - 1, ...].
    """
    return [x[:, :, :-1, :-1], x[:, :, :-1, 1:], x[:, :, 1:, 1:], x[:, :, 1:, :-1]]


def _normals(points: Array) -> Array:
    """Unit normals f32[4, B, F, H - 1, W - 1, 3] at the corners of each square; (0, 0, 1) where there is
    none.
    """
    corners = _corners(points)
    normals = jnp.stack(
        [jnp.cross(corners[k - 1] - corners[k], corners[(k + 1) % 4] - corners[k]) for k in range(4)]
    )
    square = jnp.square(normals).sum(-1, keepdims=True)
    flat = square < SHORTEST**2
    return jnp.where(flat, jnp.array([0.0, 0, 1]), normals / jnp.sqrt(jnp.where(flat, 1, square)))
