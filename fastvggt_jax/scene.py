"""`Scene`: what a model has found out about photographs, in numpy, the same for every model; and its point
cloud.

Everything that is written to disk or measured starts from a Scene. Conventions as in geometry.py: OpenCV
axes, `cam_from_world` [R | t], K in model pixels. The world is the first camera's frame, about (VGGT) or
exactly (π³, whose own world is no camera's), and its unit is arbitrary: neither model's reconstructions are
metric.
"""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from fastvggt_jax import geometry
from fastvggt_jax.sources.photographs import Images, ImageTransform
from fastvggt_jax.geometry.intrinsics import fit_intrinsics

if TYPE_CHECKING:  # neutral to the model: any object with these fields will do
    from fastvggt_jax.models.prediction import Prediction

# The camera head ends in a relu and has no upper bound, but a field of view of 0 or of half a turn has no K.
FOV_LIMITS = np.deg2rad((1.0, 175.0))
# The confidence of nothing at all, such as sky. VGGT's is 1 + eˣ, trained to be 0.2 / error (`train.losses`):
# below 1.1 it expects to be wrong by 18 % of the scene's size. π³'s is a probability, and what lies below 0.1
# upstream's example.py drops.
VGGT_CONF_FLOOR, PI3_CONF_FLOOR = 1.1, 0.1
LOOSE_FIT = 0.02  # of the longer side: a median error of a recovered K beyond it is worth a warning


@dataclasses.dataclass(frozen=True)
class PointCloud:
    """xyz f32[M, 3] in the world, rgb u8[M, 3], conf f32[M]."""

    xyz: np.ndarray
    rgb: np.ndarray
    conf: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)


@dataclasses.dataclass(frozen=True)
class Scene:
    """F photographs with cameras, and for each of the model's pixels a depth and a point.

    names: one a photograph. transforms: model pixels <-> original pixels.
    colors: u8[F, H, W, 3], what the model saw. valid: bool[F, H, W], False on padding and where a point is
      not finite.
    K: f32[F, 3, 3] in model pixels. cam_from_world: f32[F, 3, 4].
    points: f32[F, H, W, 3] in the world. points_conf: f32[F, H, W]; larger is surer, the scale is the
      model's.
    depth: f32[F, H, W] along the camera's z. depth_conf: f32[F, H, W]. Both None if the model has no depth.
    conf_floor: the confidence of nothing, such as sky; what lies below is no surface.
    intrinsics: one a photograph, where its K comes from: "predicted" by the model, "recovered" from its
      points (see intrinsics.py), or "guessed", since no camera could be fitted to them.
    """

    names: tuple[str, ...]
    transforms: tuple[ImageTransform, ...]
    colors: np.ndarray
    valid: np.ndarray
    K: np.ndarray
    cam_from_world: np.ndarray
    points: np.ndarray
    points_conf: np.ndarray
    intrinsics: tuple[Literal["predicted", "recovered", "guessed"], ...]
    depth: np.ndarray | None = None
    depth_conf: np.ndarray | None = None
    conf_floor: float = -np.inf

    @property
    def world_from_cam(self) -> np.ndarray:
        """f32[F, 4, 4]; the last column holds the cameras' centres."""
        return np.asarray(geometry.invert_se3(self.cam_from_world))

    def K_original(self, frame: int) -> np.ndarray:
        """K f64[3, 3] of a photograph at its original resolution."""
        return self.transforms[frame].K_to_original(self.K[frame])

    def point_cloud(
        self,
        *,
        conf_percentile: float | None = None,
        edge_filter: float | None = None,
        voxel: float | None = None,
        limit: int | None = None,
    ) -> PointCloud:
        """The valid pixels' points, in the order of frames and pixels; the same input gives the same cloud.

        conf_percentile: in [0, 100]; drops the points whose confidence lies below this percentile of all
          valid ones, or below `conf_floor`; None and 0 keep all.
        edge_filter: drops pixels in whose 3x3 neighbourhood the depth varies by more than this share of their
          own depth; where a near object ends, the model smears points between it and the background. 0.03 is
          strict.
        voxel: side, in the scene's unit, of cubes of which only the most confident point is kept.
        limit: at most so many points, spread evenly over the pixels.
        Raises ValueError for values outside their range.
        """
        check_cloud_options(conf_percentile, edge_filter, voxel, limit)
        keep = self.valid.copy()
        if conf_percentile and keep.any():
            keep &= self.points_conf >= max(
                self.conf_floor, np.percentile(self.points_conf[self.valid], conf_percentile)
            )
        if edge_filter is not None:
            keep &= ~depth_edges(self._z(), self.valid, edge_filter)
        chosen = np.flatnonzero(keep)
        xyz, conf = self.points.reshape(-1, 3), self.points_conf.reshape(-1)
        if voxel is not None:
            chosen = chosen[_best_in_voxel(xyz[chosen], conf[chosen], voxel)]
        if limit is not None and len(chosen) > limit:
            chosen = chosen[_spread(len(chosen), limit)]
        return PointCloud(xyz[chosen], self.colors.reshape(-1, 3)[chosen], conf[chosen])

    def _z(self) -> np.ndarray:
        """Depth of every pixel f32[F, H, W]; of the points, if the model has given no depth."""
        if self.depth is not None:
            return self.depth
        row = self.cam_from_world[:, 2]  # [F, 4]
        return np.einsum("fhwi,fi->fhw", self.points, row[:, :3]) + row[:, None, None, 3]


def to_scene(
    prediction: "Prediction", images: Images, *, points_from: Literal["depth", "point_head"] | None = None
) -> Scene:
    """The Scene of a prediction's first batch element, made from `images.pixels[None]`.

    points_from: of VGGT. "depth", the default, unprojects the depth with the cameras, which upstream
      recommends as more accurate; "point_head" takes the point head's, which are also taken if the depth head
      is off. π³ has only its point head: points_conf are the sigmoids of its logits, depth the points' z, and
      K is recovered from the points.
    Raises ValueError if the heads needed are off, the prediction is not of these images, or a camera is not
    finite.
    """
    if points_from not in (None, "depth", "point_head"):
        raise ValueError(f"points_from must be 'depth' or 'point_head', not {points_from!r}")
    make = _scene_of_pi3 if prediction.camera_poses is not None else _scene_of_vggt
    return make(prediction, images, points_from)


def _scene_of_vggt(prediction: "Prediction", images: Images, points_from: str | None) -> Scene:
    if prediction.pose_enc is None:
        raise ValueError("a scene needs cameras: run the model with its camera head on")
    if points_from == "point_head" and prediction.world_points is None:
        raise ValueError("points_from='point_head' needs the point head: run the model with it on")
    if prediction.depth is None and prediction.world_points is None:
        raise ValueError("a scene needs points: run the model with its depth head or its point head on")
    height, width = images.pixels.shape[1:3]
    _check_same_images(
        prediction.depth if prediction.depth is not None else prediction.world_points,
        prediction.pose_enc,
        images,
    )
    pose_enc = np.asarray(prediction.pose_enc[0], np.float32)
    _check_cameras(np.isfinite(pose_enc).all(-1) & pose_enc[:, 3:7].any(-1), images)
    cam_from_world, K = _cameras(pose_enc, height, width)
    depth = depth_conf = None
    if prediction.depth is not None:
        depth = np.asarray(prediction.depth[0, ..., 0])
        depth_conf = np.asarray(prediction.depth_conf[0])
    if points_from != "point_head" and depth is not None:
        points, points_conf = _unproject(depth, K, cam_from_world), depth_conf
    else:
        points = np.asarray(prediction.world_points[0])
        points_conf = np.asarray(prediction.world_points_conf[0])
    return _scene(
        images,
        K=K,
        cam_from_world=cam_from_world,
        points=points,
        points_conf=points_conf,
        depth=depth,
        depth_conf=depth_conf,
        intrinsics=("predicted",) * len(K),
        conf_floor=VGGT_CONF_FLOOR,
    )


def _scene_of_pi3(prediction: "Prediction", images: Images, points_from: str | None) -> Scene:
    if points_from == "depth":
        raise ValueError("points_from='depth' is VGGT's: π³'s depth is the z of its points")
    _check_same_images(prediction.local_points, prediction.camera_poses, images)
    poses = np.asarray(prediction.camera_poses, np.float64)[0]
    _check_cameras(np.isfinite(poses).all((1, 2)), images)
    first_from_cam = (
        np.linalg.inv(poses[0]) @ poses
    )  # π³'s own world is any; ours is the first camera's frame
    cam_from_first = np.linalg.inv(first_from_cam)[:, :3].astype(np.float32)
    local = np.asarray(prediction.local_points)[0]  # indexed here, since a GPU would make a copy first
    # A frame at a time: the points of hundreds of views are gigabytes.
    points = np.stack(
        [p @ m[:3, :3].T + m[:3, 3] for p, m in zip(local, first_from_cam.astype(np.float32), strict=True)]
    )
    conf = 0.5 + 0.5 * np.tanh(np.asarray(prediction.conf)[0, ..., 0] / 2)  # the sigmoid, without overflow
    K, intrinsics = _recovered_intrinsics(local, conf, images)
    return _scene(
        images,
        K=K,
        cam_from_world=cam_from_first,
        points=points,
        points_conf=conf,
        depth=local[..., 2].copy(),  # a view would keep all of `local`
        depth_conf=conf,
        intrinsics=intrinsics,
        conf_floor=PI3_CONF_FLOOR,
    )


def _scene(images: Images, points: np.ndarray, points_conf: np.ndarray, **fields: Any) -> Scene:
    on_photo = np.stack([t.valid_mask() for t in images.transforms])
    return Scene(
        names=images.names,
        transforms=images.transforms,
        colors=np.rint(images.pixels * 255).astype(np.uint8),
        valid=on_photo & np.isfinite(points).all(-1) & np.isfinite(points_conf),
        points=points,
        points_conf=points_conf,
        **fields,
    )


def _check_same_images(dense: jax.Array, cameras: jax.Array, images: Images) -> None:
    frames, height, width, _ = images.pixels.shape
    if dense.shape[1:4] != images.pixels.shape[:3] or cameras.shape[1] != frames:
        raise ValueError(
            f"the prediction is of {cameras.shape[1]} images of {dense.shape[3]}x{dense.shape[2]} pixels, "
            f"but {frames} of {width}x{height} were given"
        )


def _check_cameras(usable: np.ndarray, images: Images) -> None:
    for name, fine in zip(images.names, usable, strict=True):
        if not fine:
            raise ValueError(
                f"the model's camera for {name} is not finite; the checkpoint is damaged or not its own"
            )


def _recovered_intrinsics(
    local_points: np.ndarray, conf: np.ndarray, images: Images
) -> tuple[np.ndarray, tuple[str, ...]]:
    """K f32[F, 3, 3] in model pixels, and whether it was "recovered" or "guessed": the longer side of the
    photograph as focal length.
    """
    height, width = images.pixels.shape[1:3]
    found, how, loose = [], [], []
    for name, points, weights, t in zip(images.names, local_points, conf, images.transforms, strict=True):
        K, error = fit_intrinsics(points, weights * t.valid_mask())
        fov = 2 * np.arctan2((width / 2, height / 2), (K[0, 0], K[1, 1]))
        fits = ((fov >= FOV_LIMITS[0]) & (fov <= FOV_LIMITS[1])).all()  # False for NaN
        if not fits:
            focal, (cx, cy) = (
                max(t.original_width, t.original_height),
                t.to_model((t.original_width / 2, t.original_height / 2)),
            )
            K = np.array([[focal * t.scale_x, 0, cx], [0, focal * t.scale_y, cy], [0, 0, 1]])
        elif error > LOOSE_FIT * max(height, width):
            loose.append(name)
        found.append(K)
        how.append("recovered" if fits else "guessed")
    guessed = [name for name, kind in zip(images.names, how, strict=True) if kind == "guessed"]
    if guessed:
        warnings.warn(
            f"no pinhole camera could be fitted to the points of {_some(guessed)}: K is a guess there",
            stacklevel=4,
        )
    if loose:
        where = f"lie more than {LOOSE_FIT:.0%} of the image from where the recovered K sees them"
        warnings.warn(f"half of the points or more of {_some(loose)} {where}", stacklevel=4)
    return np.stack(found).astype(np.float32), tuple(how)


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cameras(pose_enc: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(cam_from_world, K) in numpy, with fields of view within FOV_LIMITS."""
    fov = np.clip(pose_enc[:, 7:9], *FOV_LIMITS)
    odd = int((fov != pose_enc[:, 7:9]).any(-1).sum())
    if odd:
        low, high = np.rad2deg(FOV_LIMITS)
        warnings.warn(
            f"the model gives {odd} of {len(pose_enc)} cameras a field of view outside {low:g}° to {high:g}°; "
            "it is clipped, and their points mean little",
            stacklevel=3,
        )
    pose_enc = np.concatenate([pose_enc[:, :7], fov], -1)
    cam_from_world, K = geometry.decode_pose(pose_enc, height, width)
    return np.asarray(cam_from_world), np.asarray(K)


def _unproject(depth: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """f32[F, H, W, 3], one frame at a time: beside a model that fills the GPU there is no room for all of
    them.
    """
    unproject = jax.jit(geometry.unproject_depth)
    frames = zip(depth[..., None], K, cam_from_world, strict=True)
    return np.stack([np.asarray(unproject(*frame)) for frame in frames])


def depth_edges(depth: np.ndarray, valid: np.ndarray, relative_jump: float) -> np.ndarray:
    """bool[F, H, W]: where the depth f32[F, H, W] varies by more than relative_jump · depth within 3x3 valid
    pixels.
    """
    highest = _window(np.where(valid, depth, -np.inf), np.maximum)
    lowest = _window(np.where(valid, depth, np.inf), np.minimum)
    return highest - lowest > relative_jump * np.abs(depth)


def _window(values: np.ndarray, reduce: np.ufunc) -> np.ndarray:
    """The 3x3 maximum or minimum of [F, H, W], one axis after the other."""
    for axis in (1, 2):
        values = np.moveaxis(values, axis, 0)
        out = values.copy()
        reduce(out[1:], values[:-1], out=out[1:])
        reduce(out[:-1], values[1:], out=out[:-1])
        values = np.moveaxis(out, 0, axis)
    return values


def _best_in_voxel(xyz: np.ndarray, conf: np.ndarray, voxel: float) -> np.ndarray:
    """Sorted indices of the most confident point of every cube; the first one where confidences are equal."""
    cube = np.floor(xyz.astype(np.float64) / voxel)  # kept as floats: integers would overflow on far points
    order = np.lexsort((-conf, cube[:, 2], cube[:, 1], cube[:, 0]))
    ordered = cube[order]
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(-1)
    return np.sort(order[first])


def _spread(count: int, limit: int) -> np.ndarray:
    """`limit` sorted indices out of `count`, evenly spread but without the stripes that a constant stride
    would give.

    They are those of the smallest hash (the mixing steps of splitmix64, one to one, so without ties); unlike
    a random generator's, their choice cannot change from one numpy to the next.
    """
    hashed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.sort(np.argpartition(hashed, limit - 1)[:limit])


def check_cloud_options(
    conf_percentile: float | None, edge_filter: float | None, voxel: float | None, limit: int | None
) -> None:
    """Raises ValueError for a value that Scene.point_cloud cannot take, long before there is a scene."""
    if conf_percentile is not None and not 0 <= conf_percentile <= 100:
        raise ValueError(f"conf_percentile must be in [0, 100], not {conf_percentile}")
    if edge_filter is not None and not edge_filter > 0:
        raise ValueError(
            f"edge_filter must be above 0 (a share of the depth, such as 0.03), not {edge_filter}"
        )
    if voxel is not None and not 0 < voxel < np.inf:
        raise ValueError(f"voxel must be above 0 (in the scene's unit), not {voxel}")
    if limit is not None and limit < 1:
        raise ValueError(f"the limit of points must be at least 1, not {limit}")
