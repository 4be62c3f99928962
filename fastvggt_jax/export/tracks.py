"""Points that several photographs see, and where: what COLMAP's points3D is made of."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

from fastvggt_jax.scene import Scene, best_in_voxel, spread

DEPTH_TOLERANCE = 0.04  # of the depth: a view whose own depth differs by more sees another surface
COLOR_TOLERANCE = 64  # of 255, mean over the channels: exposures differ, another thing differs by more
MAX_TRACK = 24  # observations of a point, at most; more bring nothing but size
OVERSAMPLING = 4  # candidates tried for each point that is wanted
LEAST_SURE = 0.25  # of a followed point: as likely as not visible, and as likely as not right
FOLLOWED_TOLERANCE = 0.01  # of the longer side, from where the cameras see it; beyond, it is another point
CHUNK = 1 << 15  # points at a time of each thread, at most,
CHUNK_VIEWS = 1 << 20  # and points times views, which bounds the memory
THREADS = 4  # at most; numpy computes outside the GIL


@dataclasses.dataclass(frozen=True)
class Tracks:
    """M points and their N observations, sorted by point, then by frame.

    pixel: i64[M], which of the F·H·W pixels each is of. xyz: f64[M, 3] in the world. rgb: u8[M, 3]. conf:
      f32[M], the model's.
    point: i64[N], index of the point. frame: i64[N]. xy: f64[N, 2], where it is observed, in model pixels.
    residual: f64[N, 2], the observation minus the projection of the point, in model pixels.
    """

    pixel: np.ndarray
    xyz: np.ndarray
    rgb: np.ndarray
    conf: np.ndarray
    point: np.ndarray
    frame: np.ndarray
    xy: np.ndarray
    residual: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    def lengths(self) -> np.ndarray:
        """i64[M], observations of each point."""
        return np.bincount(self.point, minlength=len(self))

    def in_pixels(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """(where points are observed, f64[N, 2], and the residuals' lengths, f64[N]) in the photographs' own
        pixels.
        """
        per_frame = [(t.scale_x, t.scale_y, t.offset_x, t.offset_y) for t in scene.transforms]
        of = np.hsplit(np.array(per_frame, np.float64).reshape(-1, 4), 2)
        scale, offset = (np.take(one, self.frame, axis=0) for one in of)  # [N, 2]
        return (self.xy - offset) / scale, np.hypot(*(self.residual / scale).T)

    def errors(self, residuals: np.ndarray) -> np.ndarray:
        """f64[M], the mean distance between a point's projections and its observations, whose residuals'
        lengths are f64[N], as `in_pixels` gives them.
        """
        return np.bincount(self.point, residuals, len(self)) / np.maximum(self.lengths(), 1)


@dataclasses.dataclass(frozen=True)
class Followed:
    """Q points that a model has followed through the photographs.

    pixel: i64[Q], which of the F·H·W pixels each is of. xy: f32[F, Q, 2], where it is seen, in model pixels.
    conf: f32[F, Q], the probability that it is, and there.
    """

    pixel: np.ndarray
    xy: np.ndarray
    conf: np.ndarray


def select(tracks: Tracks, kept: np.ndarray) -> Tracks:
    """With these observations, bool[N], alone, of points that two or more of them are left of."""
    kept = kept & (np.bincount(tracks.point[kept], minlength=len(tracks)) >= 2)[tracks.point]
    points, new = np.unique(tracks.point[kept], return_inverse=True)
    return Tracks(
        pixel=tracks.pixel[points],
        xyz=tracks.xyz[points],
        rgb=tracks.rgb[points],
        conf=tracks.conf[points],
        point=new,
        frame=tracks.frame[kept],
        xy=tracks.xy[kept],
        residual=tracks.residual[kept],
    )


def placed(tracks: Tracks, scene: Scene, xyz: np.ndarray) -> Tracks:
    """The same observations of points that are at xyz f64[M, 3] in the world of a scene now."""
    at = np.einsum("nij,nj->ni", _pixel_from_world(scene)[tracks.frame, :, :3], xyz[tracks.point])
    at += _pixel_from_world(scene)[tracks.frame, :, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = tracks.xy - at[:, :2] / at[:, 2:]
    return dataclasses.replace(tracks, xyz=xyz, residual=residual)


def thinned(tracks: Tracks, max_points: int, voxel: float | None = None) -> Tracks:
    """At most so many points of these, evenly spread, and of every cube of this side one."""
    if voxel is not None:
        best = best_in_voxel(tracks.xyz, tracks.conf, voxel)
        tracks = select(tracks, np.isin(np.arange(len(tracks)), best)[tracks.point])
    if len(tracks) <= max_points:
        return tracks
    chosen = np.isin(np.arange(len(tracks)), spread(len(tracks), max_points))
    return select(tracks, chosen[tracks.point])


def find_tracks(
    scene: Scene,
    max_points: int,
    *,
    conf_percentile: float | None = None,
    edge_filter: float | None = None,
    voxel: float | None = None,
    threads: int | None = None,
) -> Tracks:
    """Points of the cloud that two views or more agree on, at most `max_points`, evenly spread.

    A point is the model's for the centre of one pixel. It is observed there, and in every other view where it
    projects onto a pixel that is valid, no nothing (`conf_floor`), of about its colour, and whose own depth
    is the point's within DEPTH_TOLERANCE: a view that sees something nearer is left out, as hidden, one that
    sees farther as contradicting. It is observed exactly where the cameras project it. Of more than MAX_TRACK
    observations an even choice is kept.
    The filters are those of `Scene.point_cloud`. The same scene gives the same tracks; memory is bounded by
    `max_points` and the scene's own arrays. threads: by default as many as cores, up to THREADS.
    """
    chosen = scene.point_indices(conf_percentile=conf_percentile, edge_filter=edge_filter, voxel=voxel)
    return tracks_of_pixels(scene, chosen, max_points, threads)


def tracks_of_pixels(scene: Scene, chosen: np.ndarray, max_points: int, threads: int | None = None) -> Tracks:
    """`find_tracks` among the points of the pixels i64[K], sorted."""
    if len(chosen) > OVERSAMPLING * max_points:
        chosen = chosen[spread(len(chosen), OVERSAMPLING * max_points)]
    views = _Views(scene)
    size = max(min(CHUNK, CHUNK_VIEWS // len(scene.names)), 1)
    chunks = max(1, -(-len(chosen) // size))
    parts: list[_Part] = []
    found = 0
    with ThreadPoolExecutor(threads or min(THREADS, os.cpu_count() or 1)) as pool:
        # every so many, so that each chunk has some of all photographs
        observed = pool.map(lambda k: views.observe(chosen[k::chunks]), range(chunks))
        with closing(observed):  # type: ignore[type-var]  # a generator, which cancels what is left
            for part in observed:
                parts.append(part)
                found += len(part.index)
                if found >= max_points:
                    break
    return _joined(scene, parts, max_points)


def followed_tracks(
    scene: Scene,
    followed: Followed,
    max_points: int,
    *,
    conf_percentile: float | None = None,
    edge_filter: float | None = None,
) -> Tracks:
    """Tracks of followed points whose pixels the cloud takes, at most `max_points`, evenly spread.

    A point is the model's for its pixel, and observed at that pixel's centre; elsewhere where it was followed
    to, if that is a valid pixel, at least LEAST_SURE, and within FOLLOWED_TOLERANCE of where the camera sees
    the point. Observations beyond MAX_TRACK are thinned as `find_tracks` does. The filters are those of
    `Scene.point_cloud`.
    """
    frames, height, width = scene.valid.shape
    taken = scene.point_indices(conf_percentile=conf_percentile, edge_filter=edge_filter)
    alone, first = np.unique(followed.pixel, return_index=True)
    first = first[np.isin(alone, taken)]
    pixel = followed.pixel[first]  # i64[m], sorted
    source, rest = np.divmod(pixel, height * width)
    xyz = scene.points.reshape(-1, 3)[pixel].astype(np.float64)
    project = _pixel_from_world(scene)
    at = xyz @ np.swapaxes(project[..., :3], 1, 2) + project[:, None, :, 3]
    xy = followed.xy[:, first].astype(np.float64)  # [F, m, 2]
    own = source == np.arange(frames)[:, None]  # [F, m]
    xy[own] = np.stack([rest % width, rest // width], -1) + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = xy - at[..., :2] / at[..., 2:]
        x, y = xy[..., 0], xy[..., 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # False for NaN
        u, v = np.where(inside[..., None], xy, 0).astype(np.int64).transpose(2, 0, 1)
        seen = inside & (at[..., 2] > 0) & scene.valid[np.arange(frames)[:, None], v, u]
        seen &= followed.conf[:, first] >= LEAST_SURE
        seen &= np.linalg.norm(residual, axis=-1) <= FOLLOWED_TOLERANCE * max(height, width)
    return _joined(scene, [_Part.of(pixel, _evenly(seen | own, source), xy, residual)], max_points)


def _pixel_from_world(scene: Scene) -> np.ndarray:
    """f64[F, 3, 4]; its third row is depth."""
    return scene.K.astype(np.float64) @ scene.cam_from_world.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Part:
    """index: i64[m] of the points, among all pixels. lengths: i64[m], observations of each. The rest as in
    Tracks.
    """

    index: np.ndarray
    lengths: np.ndarray
    frame: np.ndarray
    xy: np.ndarray
    residual: np.ndarray

    @classmethod
    def of(cls, index: np.ndarray, chosen: np.ndarray, xy: np.ndarray, residual: np.ndarray) -> _Part:
        """chosen: bool[F, k], which observations of the points i64[k] count, of xy and residual, both
        f64[F, k, 2]. Points of none are left out.
        """
        point, frame = np.divmod(np.flatnonzero(chosen.T), len(chosen))  # in a third of `nonzero`'s time
        at = frame * len(index) + point
        lengths = chosen.sum(0)
        some = lengths > 0
        xy, residual = (np.take(all.reshape(-1, 2), at, axis=0) for all in (xy, residual))
        return cls(index[some], lengths[some], frame, xy, residual)


class _Views:
    """The scene's cameras and maps, ready for looking points up."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.shows = scene.valid & (scene.points_conf >= scene.conf_floor)
        self.pixel_from_world = _pixel_from_world(scene)

    def observe(self, index: np.ndarray) -> _Part:
        """What all views see of the points of these pixels; only points of two observations or more."""
        scene = self.scene
        frames, height, width = scene.valid.shape
        xyz = np.take(scene.points.reshape(-1, 3), index, axis=0)
        rgb = np.take(scene.colors.reshape(-1, 3), index, axis=0)
        source, pixel = np.divmod(index, height * width)
        own = source, np.arange(len(index))
        columns = np.ascontiguousarray(xyz.T)
        seen = np.stack([self._sees(frame, columns, rgb) for frame in range(frames)])  # [F, m]
        seen[own] = True
        chosen = _evenly(seen, source)
        columns = columns.astype(np.float64)
        xy, residual = np.empty((*seen.shape, 2)), np.zeros((*seen.shape, 2))
        with np.errstate(divide="ignore", invalid="ignore"):  # of what is not seen
            for camera, out in zip(self.pixel_from_world, xy, strict=True):
                x, y, z = camera[:, :3] @ columns + camera[:, 3:]
                out[:, 0], out[:, 1] = x / z, y / z
        centre = np.stack([pixel % width, pixel // width], -1) + 0.5
        residual[own] = centre - xy[own]
        xy[own] = centre
        return _Part.of(index, chosen, xy, residual)

    def _sees(self, frame: int, xyz: np.ndarray, rgb: np.ndarray) -> np.ndarray:
        """bool[m]: whether this view sees the points f32[3, m] of these colours u8[m, 3] themselves."""
        scene, (height, width) = self.scene, self.scene.valid.shape[1:]
        camera = self.pixel_from_world[frame].astype(np.float32)
        x, y, z = camera[:, :3] @ xyz + camera[:, 3:]
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = x / z, y / z
        at = np.flatnonzero((z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height))
        pixel = v[at].astype(np.int64) * width + u[at].astype(np.int64)
        same = np.abs(z[at] - scene.depth[frame].reshape(-1)[pixel]) <= DEPTH_TOLERANCE * z[at]
        same &= self.shows[frame].reshape(-1)[pixel]
        at, pixel = at[same], pixel[same]
        colors = np.take(scene.colors[frame].reshape(-1, 3), pixel, axis=0)
        r, g, b = np.abs(np.subtract(colors, np.take(rgb, at, axis=0), dtype=np.int16)).T
        seen = np.zeros(xyz.shape[1], bool)
        seen[at] = r + g + b <= 3 * COLOR_TOLERANCE
        return seen


def _evenly(seen: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Of what is seen, bool[F, m], an even choice of about MAX_TRACK views of each point, its source among
    them; none of a point that is seen once.
    """
    length = seen.sum(0)
    share = MAX_TRACK / np.maximum(length, MAX_TRACK)
    chosen = np.empty_like(seen)
    rank, before = np.full(len(share), -1.0), np.full(len(share), -1.0)
    for one, out in zip(seen, chosen, strict=True):
        rank += one
        now = np.floor(rank * share)
        np.greater(now, before, out=out)
        before = now
    chosen[source, np.arange(len(source))] = True
    return chosen & (length >= 2)


def _joined(scene: Scene, parts: list[_Part], max_points: int) -> Tracks:
    """One set of tracks, sorted by the points' pixels, of at most `max_points`."""
    index, lengths, frame = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "lengths", "frame")
    )
    kept = np.argsort(index)
    if len(kept) > max_points:
        kept = kept[spread(len(kept), max_points)]
    # The observations of a point lie together: those of the kept ones, one point after the other.
    starts, counts = np.cumsum(lengths) - lengths, lengths[kept]
    order = np.repeat(starts[kept] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    xy, residual = (
        np.take(np.concatenate([getattr(part, name) for part in parts]), order, axis=0)
        for name in ("xy", "residual")
    )
    pixel = index[kept]
    return Tracks(
        pixel=pixel,
        xyz=scene.points.reshape(-1, 3)[pixel].astype(np.float64),
        rgb=scene.colors.reshape(-1, 3)[pixel],
        conf=scene.points_conf.reshape(-1)[pixel],
        point=np.repeat(np.arange(len(kept)), counts),
        frame=frame[order],
        xy=xy,
        residual=residual,
    )
