"""`Scene`: what a model has found out about photographs, in numpy, the same for every model; and its point
cloud.

Everything that is written to disk starts from a Scene. Conventions as in `fastvggt_jax.geometry`; K is in
model pixels, of which the first one's centre is (0.5, 0.5), and sees each point at the centre of its pixel.
The world is the first camera's frame, about (VGGT) or exactly (π³, whose own world is no camera's), and its
unit is arbitrary unless `metric_scale` is known.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from fastvggt_jax.errors import InputError, whole_number
from fastvggt_jax.geometry.intrinsics import fit_intrinsics
from fastvggt_jax.io import scenes
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.sources import Images, ImageTransform

FOV_LIMITS = np.deg2rad((1.0, 175.0))  # of a K that is recovered from points
HASHED = 1 << 16  # numbers at a time, which stay in a core's cache
LOOSE_FIT = 0.02  # of the longer side: a median error of a recovered K beyond it is worth a warning


@dataclasses.dataclass(frozen=True)
class PointCloud:
    """xyz f32[M, 3] in the world, rgb u8[M, 3], conf f32[M]."""

    xyz: Float[np.ndarray, "M 3"]
    rgb: UInt8[np.ndarray, "M 3"]
    conf: Float[np.ndarray, " M"]

    def __len__(self) -> int:
        return len(self.xyz)

    def at_most(self, count: int) -> PointCloud:
        """This one, or so many points that are evenly spread over it."""
        if len(self) <= count:
            return self
        return self.some(spread(len(self), count))

    def some(self, chosen: np.ndarray) -> PointCloud:
        """The points i64[m] of this one."""
        # `take` needs a third of the time of indexing.
        return PointCloud(*(np.take(x, chosen, axis=0) for x in (self.xyz, self.rgb, self.conf)))


@dataclasses.dataclass(frozen=True)
class Scene:
    """F photographs with cameras, and for each of the model's pixels a depth and a point.

    Attributes:
      names: one per photograph.
      transforms: model pixels <-> original pixels.
      colors: u8[F, H, W, 3], what the model saw.
      valid: bool[F, H, W], False on padding and where a point is not finite.
      K: f32[F, 3, 3] in model pixels.
      cam_from_world: f32[F, 3, 4].
      points: f32[F, H, W, 3] in the world.
      points_conf: f32[F, H, W]; larger is surer, the scale is the model's.
      depth: f32[F, H, W] along the camera's z.
      depth_conf: f32[F, H, W].
      conf_floor: the confidence of nothing, such as sky; what lies below is no surface.
      metric_scale: metres per unit, or None where nobody knows.
      intrinsics: one per photograph, where its K comes from: "predicted" by the model, "recovered" from its
        points (see intrinsics.py), or "guessed", since no camera could be fitted to them; "shared" where all
        photographs were given one, "adjusted" after bundle adjustment, "given" where it was known.
      origin: latitude, longitude (degrees, WGS 84) and altitude (metres) of the world's origin, whose axes
        then point east, north and up; None where nobody knows.
      offset: what the world's coordinates are less by than those that the scene was aligned to.
      paths: one per photograph, the file it is in, "" for what has none; or () where that is not known.
      white: the number that is white in those of more than 8 bits, see `sources.pixels`.
    """

    names: tuple[str, ...]
    transforms: tuple[ImageTransform, ...]
    colors: UInt8[np.ndarray, "F H W 3"]
    valid: Bool[np.ndarray, "F H W"]
    K: Float[np.ndarray, "F 3 3"]
    cam_from_world: Float[np.ndarray, "F 3 4"]
    points: Float[np.ndarray, "F H W 3"]
    points_conf: Float[np.ndarray, "F H W"]
    depth: Float[np.ndarray, "F H W"]
    depth_conf: Float[np.ndarray, "F H W"]
    intrinsics: tuple[str, ...]
    conf_floor: float = -np.inf
    metric_scale: float | None = None
    origin: tuple[float, float, float] | None = None
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    paths: tuple[str, ...] = ()
    white: int | None = None

    @property
    def world_from_cam(self) -> np.ndarray:
        """f32[F, 4, 4]; the last column holds the cameras' centres."""
        # In numpy: a GPU may be at work on the next scene while this one is written.
        rotation, translation = self.cam_from_world[..., :3], self.cam_from_world[..., 3]
        found = np.tile(np.eye(4, dtype=np.float32), (len(rotation), 1, 1))
        found[:, :3, :3] = np.swapaxes(rotation, 1, 2)
        found[:, :3, 3] = -np.einsum("fji,fj->fi", rotation, translation)
        return found

    def K_original(self, frame: int) -> np.ndarray:
        """K f64[3, 3] of a photograph at its original resolution."""
        return self.transforms[frame].K_to_original(self.K[frame])

    def point_cloud(
        self,
        *,
        conf_percentile: float | None = None,
        edge_filter: float | None = None,
        voxel: float | None = None,
        max_points: int | None = None,
    ) -> PointCloud:
        """The valid pixels' points, in the order of frames and pixels; the same input gives the same cloud.

        Args:
          conf_percentile: in [0, 100]; drops the points whose confidence lies below this percentile of all
            valid ones, or below `conf_floor`; None and 0 keep all.
          edge_filter: drops pixels in whose 3x3 neighbourhood the depth varies by more than this share of
            their own depth; where a near object ends, the model smears points between it and the background.
            0.03 is strict.
          voxel: side, in the scene's unit, of cubes of which only the most confident point is kept.
          max_points: at most so many points, spread evenly over the pixels.

        Raises ValueError for values outside their range.
        """
        chosen = self.point_indices(
            conf_percentile=conf_percentile, edge_filter=edge_filter, voxel=voxel, max_points=max_points
        )
        of_all = PointCloud(
            self.points.reshape(-1, 3), self.colors.reshape(-1, 3), self.points_conf.reshape(-1)
        )
        return of_all if len(chosen) == len(of_all) else of_all.some(chosen)  # all need no copy

    def point_indices(
        self,
        *,
        conf_percentile: float | None = None,
        edge_filter: float | None = None,
        voxel: float | None = None,
        max_points: int | None = None,
    ) -> np.ndarray:
        """i64[M], sorted: which of the F·H·W pixels `point_cloud` takes for the same arguments."""
        check_cloud_options(conf_percentile, edge_filter, voxel, max_points)
        keep = self.valid.copy()
        if conf_percentile and keep.any():
            keep &= self.points_conf >= max(
                self.conf_floor, np.percentile(self.points_conf[self.valid], conf_percentile)
            )
        if edge_filter is not None:
            keep &= ~depth_edges(self.depth, self.valid, edge_filter)
        chosen = np.flatnonzero(keep)
        if voxel is not None:
            xyz, conf = self.points.reshape(-1, 3), self.points_conf.reshape(-1)
            chosen = chosen[best_in_voxel(xyz[chosen], conf[chosen], voxel)]
        if max_points is not None and len(chosen) > max_points:
            chosen = chosen[spread(len(chosen), max_points)]
        return chosen

    def save(self, folder: str | os.PathLike) -> None:
        """Writes cameras.json and scene.npz, from which `load` brings all of it back. Raises FileError."""
        scenes.write_cameras(self, Path(folder) / scenes.CAMERAS)
        scenes.write_scene(self, Path(folder) / scenes.SCENE)

    @classmethod
    def load(cls, folder: str | os.PathLike, *, mapped: bool = False) -> Scene:
        """The scene that was saved in a folder, or written there by reconstruct, bit for bit.

        mapped: of a file that will not change; its arrays are read only as they are looked at.
        Raises MissingError, FileError, or InputError for a file that is damaged, of another kind or newer.
        """
        path = Path(folder) / scenes.SCENE
        fields = scenes.read_scene(path, mapped=mapped)
        try:
            fields["transforms"] = tuple(ImageTransform(**t) for t in fields["transforms"])
            for name in ("names", "intrinsics", "paths"):
                fields[name] = tuple(fields.get(name, ()))
            for name in ("offset", "origin"):  # lists in JSON
                if fields.get(name) is not None:
                    fields[name] = tuple(fields[name])
            return cls(**fields)
        except TypeError as error:  # a field that is missing, or of a name that is none
            raise InputError(f"{path} is damaged: its parts are not those of a scene") from error


def to_scene(
    prediction: Prediction | Reconstruction, images: Images, *, points_from: str | None = None
) -> Scene:
    """The Scene of the first batch element of a prediction, made from `images.pixels[None]`.

    Args:
      points_from: one of the model's `point_sources`, see its `reconstruction`.

    Raises InputError if the heads needed are off, the prediction is not of these images, or a camera is not
    finite.
    """
    if not isinstance(prediction, Prediction | Reconstruction):
        text = f"prediction must be what a model returns, not {type(prediction).__name__}"
        raise InputError(text, argument="prediction")
    if not isinstance(images, Images):
        text = f"images must be what load_images returns, not {type(images).__name__}"
        raise InputError(text, argument="images")
    found = _reconstruct(prediction, points_from) if isinstance(prediction, Prediction) else prediction
    _check_same_images(found, images)
    # Indexed on the host, since a GPU would make a copy first.
    first: Callable[[jax.Array], np.ndarray] = lambda x: np.asarray(x)[0]
    cam_from_world = first(found.cam_from_world)
    _check_cameras(np.isfinite(cam_from_world).all((1, 2)), images)
    points, conf, depth, depth_conf = map(first, (found.points, found.conf, found.depth, found.depth_conf))
    _check_maps(
        images, {"points": points, "confidence": conf, "depth": depth, "confidence of depth": depth_conf}
    )
    if found.K is None:
        K, intrinsics = _recovered_intrinsics(_in_cameras(points, cam_from_world), conf, images)
    else:
        K, intrinsics = first(found.K), ("predicted",) * len(images.names)
    if found.clipped is not None:
        _warn_of_clipped(first(found.clipped))
    return Scene(
        names=images.names,
        transforms=images.transforms,
        colors=images.pixels,
        valid=images.shown() & scenes.all_finite(points) & np.isfinite(conf),
        K=K,
        cam_from_world=cam_from_world,
        points=points,
        points_conf=conf,
        depth=depth,
        depth_conf=depth_conf,
        intrinsics=intrinsics,
        conf_floor=found.conf_floor,
        metric_scale=None if found.metric_scale is None else float(first(found.metric_scale)),
        paths=tuple(
            "" if frame is None or frame.path is None else os.path.abspath(frame.path)
            for frame in images.frames
        ),
        white=images.white,
    )


@partial(jax.jit, static_argnums=1)
def _reconstruct(prediction: Prediction, points_from: str | None) -> Reconstruction:
    if prediction.made_by is None:
        raise InputError("prediction.made_by must be the class of its model, which knows what it means")
    return prediction.made_by.reconstruction(prediction, points_from)


def _in_cameras(points: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """World points f32[F, H, W, 3] in each camera's coordinates; a frame at a time, since those of hundreds
    of views are gigabytes.
    """
    return np.stack([p @ m[:, :3].T + m[:, 3] for p, m in zip(points, cam_from_world, strict=True)])


def _warn_of_clipped(clipped: np.ndarray) -> None:
    if clipped.any():
        warnings.warn(
            f"the model gives {int(clipped.sum())} of {len(clipped)} cameras a field of view that has no K; "
            "it is clipped, and their points mean little",
            stacklevel=3,
        )


def _check_same_images(found: Reconstruction, images: Images) -> None:
    frames, height, width, _ = images.pixels.shape
    if found.depth.shape[1:] != (frames, height, width):
        _, F, H, W = found.depth.shape
        text = (
            f"the prediction is of {F} images of {W}x{H} pixels, but {frames} of {width}x{height} were given"
        )
        raise InputError(text, argument="images")


def _check_cameras(usable: np.ndarray, images: Images) -> None:
    for name, fine in zip(images.names, usable, strict=True):
        if not fine:
            raise InputError(
                f"the model's camera for {name} is not finite; the checkpoint is damaged or not its own"
            )


def _check_maps(images: Images, maps: Mapping[str, np.ndarray]) -> None:
    for what, values in maps.items():
        for name, one in zip(images.names, values, strict=True):
            # Mostly the first row says it.
            if not np.isfinite(one[0]).any() and not np.isfinite(one).any():
                text = f"the model's {what} of {name} has no finite number"
                raise InputError(f"{text}; the checkpoint is damaged or not its own")


def _recovered_intrinsics(
    local_points: np.ndarray, conf: np.ndarray, images: Images
) -> tuple[np.ndarray, tuple[str, ...]]:
    """K f32[F, 3, 3] in model pixels, and whether it was "recovered" or "guessed": the longer side of the
    photograph as focal length.
    """
    height, width = images.pixels.shape[1:3]
    found, how, loose = [], [], []
    for name, points, weights, t, shown in zip(
        images.names, local_points, conf, images.transforms, images.shown(), strict=True
    ):
        K, error = fit_intrinsics(points, weights * shown)
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


def best_in_voxel(xyz: np.ndarray, conf: np.ndarray, voxel: float) -> np.ndarray:
    """Sorted indices of the most confident point of every cube; the first one where confidences are equal."""
    cube = np.floor(xyz.astype(np.float64) / voxel)  # kept as floats: integers would overflow on far points
    order = np.lexsort((-conf, cube[:, 2], cube[:, 1], cube[:, 0]))
    ordered = cube[order]
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(-1)
    return np.sort(order[first])


def spread(count: int, limit: int) -> np.ndarray:
    """`limit` sorted indices out of `count`, evenly spread but without the stripes that a constant stride
    would give.

    They are those of the smallest hash (the mixing steps of splitmix64, one to one, so without ties); unlike
    a random generator's, their choice cannot change from one numpy to the next.
    """
    # Hashes are as good as uniform, so that of a few more than are wanted the smallest are among them.
    for bound in (int(min(1.0, 1.1 * limit / count) * float(2**64 - 2**12)), 2**64 - 1):
        some, hashes = [], []
        for first in range(0, count, HASHED):
            hashed = _hash(first, min(first + HASHED, count))
            few = np.flatnonzero(hashed <= np.uint64(bound))
            some.append(few + first)
            hashes.append(hashed[few])
        found, of = np.concatenate(some), np.concatenate(hashes)
        if len(found) >= limit:
            break
    return found[of <= np.partition(of, limit - 1)[limit - 1]]


def _hash(start: int, stop: int) -> np.ndarray:
    """u64[stop - start]."""
    hashed = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)


def check_cloud_options(
    conf_percentile: float | None, edge_filter: float | None, voxel: float | None, max_points: int | None
) -> None:
    """Raises ValueError for a value that Scene.point_cloud cannot take, long before there is a scene."""
    if conf_percentile is not None and not (_is(Real, conf_percentile) and 0 <= conf_percentile <= 100):
        text = f"conf_percentile must be in [0, 100], not {conf_percentile}"
        raise InputError(text, argument="conf_percentile")
    if edge_filter is not None and not (_is(Real, edge_filter) and edge_filter > 0):
        text = f"edge_filter must be above 0 (a share of the depth, such as 0.03), not {edge_filter}"
        raise InputError(text, argument="edge_filter")
    if voxel is not None and not (_is(Real, voxel) and 0 < voxel < np.inf):
        text = f"voxel must be above 0 (in the scene's unit), not {voxel}"
        raise InputError(text, argument="voxel")
    if max_points is not None:
        whole_number("max_points", max_points, least=1)


def _is(kind: type, value: object) -> bool:
    """Whether it is a number of this kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)
