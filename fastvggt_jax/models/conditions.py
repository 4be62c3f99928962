"""What may be known of the views beforehand, and how Pi3X is told (upstream: pi3/models/pi3x.py)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fastvggt_jax import geometry
from fastvggt_jax.errors import InputError
from fastvggt_jax.geometry.alignment import is_rotation

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Truth

Array = jax.Array
AT_REST = 2e-2  # the largest translation, from which on a scene is scaled to the mean one
LARGEST = 1e9  # of a depth or position, in whatever unit; what lies beyond stands for something else
COARSE = 1e-3  # of the extent of a scene's positions: a float32's step there, from which on it blurs them


@flax.struct.dataclass
class Conditions:
    """What is known of F views of each of B scenes, every field None by default.

    Pixels as everywhere: the outer corner of the first one is (0, 0), its centre (0.5, 0.5). The unit of
    depth and poses is arbitrary: the model divides it out and finds the metres by itself.

    Attributes:
      depth: [B, F, H, W] along the optical axis, 0 where it is not known; in one unit with world_from_cam.
      K: [B, F, 3, 3] in pixels of the model's images.
      rays: [B, F, H, W, 3] instead of K, the direction of each pixel in camera coordinates, z > 0, of any
        length.
      world_from_cam: [B, F, 4, 4] rigid, OpenCV axes, in any world. A scene with one posed view alone loses
        it. Where depth is known of no view, the mean distance from view 0 is the unit, also of views whose
        mask is off: put these where they do not change it, or make them NaN.
      depth_mask, ray_mask, pose_mask: [B, F] the views for which depth, K or rays, and world_from_cam hold;
        None: all. One program serves every choice. What is off may hold NaN or infinity, which then do not
        count.
    """

    depth: Float[Array, "B F H W"] | None = None
    K: Float[Array, "B F 3 3"] | None = None
    rays: Float[Array, "B F H W 3"] | None = None
    world_from_cam: Float[Array, "B F 4 4"] | None = None
    depth_mask: Bool[Array, "B F"] | None = None
    ray_mask: Bool[Array, "B F"] | None = None
    pose_mask: Bool[Array, "B F"] | None = None

    def check(self, images: tuple[int, ...]) -> None:
        """Raises InputError unless these are of images [B, F, H, W, 3]; numbers are looked at where they are
        known, which under jit they are not. Warns of a pose that is dropped.
        """
        B, F, H, W, _ = images
        shapes = {"depth": (H, W), "K": (3, 3), "rays": (H, W, 3), "world_from_cam": (4, 4)}
        shapes |= {"depth_mask": (), "ray_mask": (), "pose_mask": ()}
        for name, rest in shapes.items():
            x, wanted = getattr(self, name), (B, F, *rest)
            if x is None:
                continue
            kind, is_mask = getattr(x, "dtype", None), name in _MASKS
            right = (jnp.bool_,) if is_mask else (jnp.floating, jnp.integer)
            if kind is None or not any(jnp.issubdtype(kind, one) for one in right):
                text = f"{name} must be an array of {'bool' if is_mask else 'real numbers'}"
                raise InputError(f"{text}, not {kind or type(x).__name__}", argument="conditions")
            if tuple(np.shape(x)) != wanted:
                of = f"{B}x{F} images of {W}x{H} pixels"
                text = f"{name} is {list(np.shape(x))}, of {of} it must be {list(wanted)}"
                raise InputError(text, argument="conditions")
        if self.K is not None and self.rays is not None:
            text = "K and rays were given, which say the same: give one of them"
            raise InputError(text, argument="conditions")
        for mask, about in _MASKS.items():
            if getattr(self, mask) is not None and all(getattr(self, name) is None for name in about):
                text = f"{mask} was given, but not what it is about: give {' or '.join(about)} too"
                raise InputError(text, argument="conditions")
        self._check_numbers()
        if self.world_from_cam is not None:
            alone = F == 1 or (_known(self.pose_mask) and (np.asarray(self.pose_mask).sum(1) == 1).any())
            if alone:
                text = "one posed view alone says nothing, the model drops its pose: give another view's too"
                warnings.warn(text, stacklevel=4)

    def _check_numbers(self) -> None:
        def bad(name: str, where: Any, what: str) -> None:
            """where: bool[B, F, ...]"""
            wrong: Any = np.asarray(where).reshape(*where.shape[:2], -1).any(-1)
            mask = {one: mask for mask, of in _MASKS.items() for one in of}[name]
            if _known(getattr(self, mask)):
                wrong = wrong & np.asarray(getattr(self, mask))
            if wrong.any():
                b, f = (int(i) for i in np.argwhere(wrong)[0])
                view = f"view {f}" + (f" of scene {b}" if len(wrong) > 1 else "")
                raise InputError(f"{name} of {view} {what}", argument="conditions")

        if _known(self.depth):
            depth = np.asarray(self.depth)
            bad("depth", ~np.isfinite(depth), "has NaN or infinity: 0 is what is not known")
            bad("depth", depth < 0, "is negative somewhere: 0 is what is not known")
            bad("depth", depth > LARGEST, f"is beyond {LARGEST:.0e} somewhere: 0 is what is not known")
        if _known(self.K):
            K = np.asarray(self.K, np.float64)
            fine = np.isfinite(K).all((-1, -2)) & (np.abs(np.linalg.det(np.nan_to_num(K))) > 1e-6)
            fine &= np.isclose(K[..., 2, :], (0, 0, 1)).all(-1)  # where its transpose has cx and cy
            what = "has no inverse, or another last row than 0 0 1: it must be"
            bad("K", ~fine, f"{what} [[fx, s, cx], [0, fy, cy], [0, 0, 1]], fx and fy not 0")
        if _known(self.rays):
            rays = np.asarray(self.rays)
            bad("rays", ~(np.isfinite(rays).all(-1) & (rays[..., 2] > 0)), "must be finite, with z above 0")
        if _known(self.world_from_cam):
            pose = np.asarray(self.world_from_cam)
            rigid = np.isfinite(pose).all((-1, -2)) & is_rotation(pose[..., :3, :3])
            rigid &= np.isclose(pose[..., 3, :], (0, 0, 0, 1)).all(-1)
            rigid &= (np.abs(pose[..., :3, 3]) <= LARGEST).all(-1)
            what = "is no rigid transform of 4x4 with the last row 0 0 0 1 and a position within"
            bad("world_from_cam", ~rigid, f"{what} {LARGEST:.0e}")
            self._warn_of_far(pose[..., :3, 3])

    def _warn_of_far(self, places: np.ndarray) -> None:
        """places: [B, F, 3], float64 where they were given so."""
        if self.pose_mask is not None and not _known(self.pose_mask):
            return
        on = np.ones(places.shape[:2], bool) if self.pose_mask is None else np.asarray(self.pose_mask)
        for scene in (one[mask] for one, mask in zip(places, on, strict=True) if mask.any()):
            step = float(np.spacing(np.abs(scene).max().astype(np.float32)))
            if 0 < np.ptp(scene, axis=0).max() * COARSE < step:
                text = "world_from_cam lies so far from 0 that float32, which the model computes in, blurs it"
                warnings.warn(f"{text}: take the first position off all of them", stacklevel=5)


_MASKS: Mapping[str, tuple[str, ...]] = {
    "depth_mask": ("depth",),
    "ray_mask": ("K", "rays"),
    "pose_mask": ("world_from_cam",),
}


def _known(x: object) -> bool:
    return x is not None and not isinstance(x, jax.core.Tracer)


def drawn(key: Array, truth: Truth) -> Conditions:
    """Of what is true some, for training: in each scene each of depth, K and poses is known with probability
    1/2, and then of all views or, as often, of each with probability 1/2. So an eighth of the scenes have
    nothing. Upstream has not published its shares.
    """
    B, F = truth.valid.shape[:2]
    of_kind, of_all, of_view = jax.random.split(key, 3)
    half = lambda key, *shape: jax.random.bernoulli(key, 0.5, (3, B, *shape))
    depth_mask, ray_mask, pose_mask = half(of_kind, 1) & (half(of_all, 1) | half(of_view, F))
    return Conditions(
        depth=jnp.where(truth.valid, truth.depth, 0),
        K=truth.K,
        world_from_cam=geometry.invert_se3(truth.cam_from_world),
        depth_mask=depth_mask,
        ray_mask=ray_mask,
        pose_mask=pose_mask,
    )


class Fed(NamedTuple):
    """What the model is fed. A mask that is None holds for every view of what is given.

    Attributes:
      rays: f32[B, F, H, W, 2], (x/z, y/z), or None.
      depth: f32[B, F, H, W, 2], in units of `unit`, and 1 where it is known, or None.
      world_from_cam: f32[B, F, 4, 4], in the coordinates of the first view that has numbers and a unit of the
        scene's own, or None where no scene can have a pose.
      unit: f32[B], by which depth and translations were divided.
    """

    rays: Array | None
    ray_mask: Array | None
    depth: Array | None
    depth_mask: Array | None
    world_from_cam: Array | None
    pose_mask: Array | None
    unit: Array


def prepare(conditions: Conditions, batch: int, frames: int, size: tuple[int, int]) -> Fed:
    """Normalises what is known of `batch` scenes of `frames` views of (H, W) pixels, in float32.

    Depth is divided by the mean of all of a scene that is known, whether or not its mask is on; so are the
    poses' translations, once they are relative to view 0, whether or not that one's mask is on. Only where no
    view of a scene has its depth on, they are then divided by the mean length of the others' (all of them),
    unless the scene is at rest. NaN and infinity where a mask is off enter nowhere; depth's are not known.
    """
    c = jax.tree.map(lambda x: jnp.asarray(x, bool if x.dtype == bool else jnp.float32), conditions)
    unit, known = jnp.ones(batch, jnp.float32), None
    if c.depth is not None:
        c = c.replace(depth=jnp.where(jnp.isfinite(c.depth), c.depth, 0))
        known = c.depth > 0
        count = known.sum((1, 2, 3))
        mean = jnp.where(known, c.depth, 0).sum((1, 2, 3)) / jnp.maximum(count, 1)
        unit = jnp.where(count > 0, mean, 1)
    pose, posed, length = None, None, jnp.ones(batch, jnp.float32)
    if c.world_from_cam is not None and frames > 1:
        by_depth = jnp.zeros(batch, bool)  # scenes whose depth gives the unit
        if c.depth is not None:
            by_depth = jnp.ones(batch, bool) if c.depth_mask is None else c.depth_mask.any(1)
        pose, there = c.world_from_cam, jnp.ones((batch, frames), bool)
        if c.pose_mask is not None:
            there = c.pose_mask | jnp.isfinite(pose).all((-1, -2))
            pose = jnp.where(there[..., None, None], pose, jnp.eye(4))
        first = there.argmax(1)
        start = jnp.take_along_axis(pose, first[:, None, None, None], 1)
        pose = geometry.compose(geometry.invert_se3(start), pose)
        pose = jnp.where(there[..., None, None], pose, jnp.eye(4))
        step = pose[..., :3, 3] / unit[:, None, None]
        counted = there & (jnp.arange(frames) != first[:, None])
        length = jnp.where(by_depth, 1, step_length(step, counted))
        pose = pose.at[..., :3, 3].set(step / length[:, None, None])
        if c.pose_mask is not None:
            posed = c.pose_mask & (c.pose_mask.sum(1, keepdims=True) != 1)
    depth = None
    if c.depth is not None:
        divide = lambda x: x[:, None, None, None]
        depth = c.depth / divide(unit + 1e-8) / divide(length)
        depth = jnp.stack([depth, known.astype(jnp.float32)], -1)  # type: ignore[union-attr]
    rays = None
    if c.K is not None:
        rays = rays_of(c.K, *size)[..., :2]
    elif c.rays is not None:
        rays = c.rays[..., :2] / (c.rays[..., 2:] + 1e-6)
    if rays is not None and c.ray_mask is not None:
        rays = jnp.where(c.ray_mask[..., None, None, None] | jnp.isfinite(rays), rays, 0)
    return Fed(rays, c.ray_mask, depth, c.depth_mask, pose, posed, unit * length)


def step_length(step: Array, counted: Array) -> Array:
    """f32[B]: of the translations f32[B, F, 3] of those that are counted, bool[B, F], the mean length; 1 of a
    scene at rest, where the longest is below `AT_REST`.
    """
    length = jnp.where(counted, jnp.linalg.norm(jax.lax.stop_gradient(step), axis=-1), 0)  # [B, F]
    mean = length.sum(1) / jnp.maximum(counted.sum(1), 1)
    return jnp.where(length.max(1) >= AT_REST, mean + 1e-8, 1)


def rays_of(K: Array, height: int, width: int) -> Array:
    """K f32[..., 3, 3] -> f32[..., H, W, 3]: (x, y, 1) of each pixel's centre, (0.5, 0.5) of the first."""
    u, v = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    pixels = jnp.stack([u, v, jnp.ones_like(u)], -1)  # [H, W, 3]
    return geometry.einsum("...ij,hwj->...hwi", jnp.linalg.inv(K), pixels)
