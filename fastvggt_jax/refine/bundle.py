"""Bundle adjustment by pycolmap (extra `colmap`): the cameras that agree best with what photographs show."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
import warnings
from typing import Any, NamedTuple

import numpy as np

from fastvggt_jax.errors import ExtraError, FailedError
from fastvggt_jax.export.colmap import write_colmap
from fastvggt_jax.export.lenses import as_asked, model_from_original, with_shared_camera
from fastvggt_jax.export.tracks import Tracks, placed, select
from fastvggt_jax.refine.matching import measure_tracks
from fastvggt_jax.scene import Scene

# Whether each round refines focal lengths; each measures from where the one before has moved the cameras.
ZOOMS = (False, True, True)
OUTLIER = 2.0  # model pixels from where adjusted cameras see a point: another thing that looks alike
FAR_OFF = 100.0  # model pixels; what is farther off counts as that
LEAST_POINTS = 50  # with tracks, of a scene
LEAST_SEEN = 20  # of them, by a photograph whose camera is moved
MOST_DEPTH_OFF = 0.05  # that goes unsaid
ROBUST = 0.5  # model pixels beyond which an observation counts less and less (Cauchy)
ITERATIONS = 100
LARGEST_TURN = 30.0  # degrees that a camera may turn; more is no refinement
# And the factor of its focal length. Of few views and little to see focal lengths drift, and the cameras'
# distances with them, for next to no gain.
LARGEST_ZOOM = 1.5


class Adjustment(NamedTuple):
    """What was done.

    before, after: median distance between where photographs show points and where cameras see them, in the
      photographs' pixels; of the same points and observations, each point where the cameras, those of before
      and of after, agree best about it.
    points, observations: that were used. moved: names of the photographs whose cameras were.
    zoomed: whether focal lengths were refined too.
    depth_off: the median share by which the depth maps, which follow by a scale and a shift for each
      photograph, differ from the adjusted points.
    """

    before: float
    after: float
    points: int
    observations: int
    moved: tuple[str, ...]
    zoomed: bool
    depth_off: float


def require() -> None:
    """Raises ExtraError without pycolmap."""
    if importlib.util.find_spec("pycolmap") is None:
        text = "bundle_adjust needs pycolmap: pip install 'fastvggt_jax[colmap]'"
        raise ExtraError(text, argument="bundle_adjust")


def bundle_adjust(
    scene: Scene,
    *,
    conf_percentile: float | None = None,
    shared_camera: bool = False,
    camera_model: str = "PINHOLE",
) -> tuple[Scene, Tracks, Adjustment]:
    """The scene with refined cameras, whose depth and points follow them; the tracks that they were refined
    by, with their points where these came to be; and what was done.

    Poses and focal lengths are refined, with `shared_camera` one for all photographs of a size, with the
    `camera_model` SIMPLE_RADIAL one for x and y; a K that was given stays. The first camera stays, and the
    unit. A photograph's depth follows by the scale and the shift that bring it nearest to the adjusted points
    that it sees. A photograph that sees too few tracks keeps its camera.

    Raises ExtraError without pycolmap; FailedError if there is too little to go by, or if the error does not
    fall or a camera runs away, so that the scene is better left as it is.
    """
    require()
    scene = as_asked(scene, shared_camera=shared_camera, camera_model=camera_model)
    one_focal = shared_camera or camera_model == "SIMPLE_RADIAL"
    adjusted, used, done = scene, None, None
    for zoom in ZOOMS:
        try:
            tracks = measure_tracks(adjusted, conf_percentile=conf_percentile)
            _enough(tracks, scene)
            found, kept = _adjusted(adjusted, tracks, shared_camera, one_focal, zoom)
            if shared_camera:
                # Photographs that are turned have a camera of their own, of the same focal length.
                level = with_shared_camera(found)
                if not np.allclose(level.K, found.K, rtol=1e-5):
                    found, kept = _adjusted(level, tracks, shared_camera, one_focal, zoom=False)
            before, after = _error(scene, tracks), _error(found, tracks)
            _check_better(scene, found, before, after)
            if done is not None and after.cost >= _error(adjusted, tracks).cost:
                break
        except FailedError:
            if done is None:
                raise
            break
        moved = tuple(name for name, is_in in zip(scene.names, _enough(kept, scene), strict=True) if is_in)
        zoomed = not np.allclose(found.K, scene.K, rtol=1e-6)
        adjusted, used = found, kept
        done = Adjustment(
            before.median, after.median, len(kept), len(kept.point), moved, zoomed, depth_off(found, kept)
        )
    assert used is not None and done is not None  # there is at least one round
    return adjusted, used, done


def adjusted_or_as_it_is(scene: Scene, **how: Any) -> tuple[Scene, Tracks | None, dict[str, Any]]:
    """(the adjusted scene and its tracks, or with a warning this one and None where that fails; a JSON-able
    account). `how` as `bundle_adjust` takes it.
    """
    try:
        scene, tracks, done = bundle_adjust(scene, **how)
    except FailedError as error:
        warnings.warn(f"{error}; the cameras are left as the model has them", stacklevel=2)
        return scene, None, {"failed": str(error)}
    if done.depth_off > MOST_DEPTH_OFF:
        text = (
            f"depth, and points made of it, follow the adjusted cameras to within {done.depth_off:.0%} only"
        )
        warnings.warn(f"{text}: the points with tracks are surer", stacklevel=2)
    return scene, tracks, done._asdict() | {"moved": list(done.moved)}


class _Error(NamedTuple):
    """Of the distances between where photographs show points and where cameras see them: the median, in
    original pixels, and the mean of what the solver minimises.
    """

    median: float
    cost: float


def _error(scene: Scene, tracks: Tracks) -> _Error:
    """Of these cameras, if the points alone are adjusted to them."""
    off, original = _distances(tracks, _solved(scene, tracks, points_alone=True), scene)
    off = np.minimum(off, FAR_OFF)  # some points come to be behind a camera
    return _Error(float(np.median(original)), float(np.log1p((off / ROBUST) ** 2).mean()))


def _enough(tracks: Tracks, scene: Scene) -> np.ndarray:
    """bool[F], whether a photograph's camera can be moved. FailedError if there is too little for a scene."""
    seen = np.bincount(tracks.frame, minlength=len(scene.names)) >= LEAST_SEEN
    if len(tracks) < LEAST_POINTS or seen.sum() < 2:
        text = f"there is too little for bundle_adjust: {len(tracks)} points with texture are found in two"
        text += f" photographs or more, and {int(seen.sum())} photographs have {LEAST_SEEN} of them"
        raise FailedError(text, argument="bundle_adjust")
    return seen


def _of_enough(tracks: Tracks, scene: Scene) -> Tracks:
    """Without the observations of photographs whose cameras cannot be moved. Raises as `_enough`."""
    while not (seen := _enough(tracks, scene))[tracks.frame].all():
        tracks = select(tracks, seen[tracks.frame])
    return tracks


def _check_better(scene: Scene, adjusted: Scene, before: _Error, after: _Error) -> None:
    finite = all(np.isfinite(x).all() for x in (adjusted.K, adjusted.cam_from_world, after))
    wrong = "its numbers are not finite" if not finite else None
    if finite:
        turned = np.einsum("fij,fij->f", scene.cam_from_world[..., :3], adjusted.cam_from_world[..., :3])
        degrees = np.rad2deg(np.arccos(np.clip((turned - 1) / 2, -1, 1)))
        zoom = np.exp(np.abs(np.log(adjusted.K[:, [0, 1], [0, 1]] / scene.K[:, [0, 1], [0, 1]])).max(-1))
        for name, angle, factor in zip(scene.names, degrees, zoom, strict=True):
            if angle > LARGEST_TURN or factor > LARGEST_ZOOM:
                wrong = f"it turns the camera of {name} by {angle:.0f} degrees and zooms by {factor:.2f}"
        if after.median >= before.median or after.cost >= before.cost:
            fall = f"{before.median:.2f} to {after.median:.2f} pixels"
            wrong = f"the reprojection error does not fall ({fall})"
            if after.median < before.median:
                wrong = f"the reprojection error falls for some points ({fall}), and rises more for others"
    if wrong:
        raise FailedError(f"bundle_adjust has failed: {wrong}", argument="bundle_adjust")


def _adjusted(
    scene: Scene, tracks: Tracks, shared_camera: bool, one_focal: bool, zoom: bool
) -> tuple[Scene, Tracks]:
    """The scene adjusted to these tracks, twice, the second time without what the first has left far off; and
    the tracks that were kept, in its world.

    zoom: whether focal lengths are refined; one_focal: of a camera they are one.
    """
    how = dict(shared_camera=shared_camera, one_focal=one_focal, zoom=zoom)
    tracks = _of_enough(tracks, scene)
    model = _solved(scene, tracks, **how)
    kept = _of_enough(select(tracks, _distances(tracks, model, scene)[0] <= OUTLIER), scene)
    return _followed(scene, kept, _solved(scene, kept, **how))


def _solved(
    scene: Scene,
    tracks: Tracks,
    *,
    shared_camera: bool = False,
    one_focal: bool = False,
    zoom: bool = False,
    points_alone: bool = False,
) -> Any:
    """pycolmap's Reconstruction of the scene and these tracks, adjusted: the cameras of photographs that have
    observations, or `points_alone`.
    """
    import pycolmap

    with tempfile.TemporaryDirectory() as folder:
        kind = "SIMPLE_RADIAL" if one_focal else "PINHOLE"  # without distortion, which is not refined
        write_colmap(scene, tracks, folder, shared_camera=shared_camera, camera_model=kind)
        model = pycolmap.Reconstruction(folder)
    config = pycolmap.BundleAdjustmentConfig()
    for frame in np.unique(tracks.frame):
        image = model.images[int(frame) + 1]
        config.add_image(image.image_id)
        if points_alone:
            config.set_constant_rig_from_world_pose(image.frame_id)
        if scene.intrinsics[frame] == "given":
            config.set_constant_cam_intrinsics(image.camera_id)
    if not points_alone:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = zoom
    options.refine_extra_params = False
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = ROBUST / min(t.scale_x for t in scene.transforms)
    options.ceres.solver_options.max_num_iterations = ITERATIONS
    level, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, pycolmap.logging.Level.FATAL.value
    try:
        summary = pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    finally:
        pycolmap.logging.minloglevel = level
    if not summary.is_solution_usable():
        raise FailedError("bundle_adjust has failed: the solver found nothing", argument="bundle_adjust")
    return model


def _cameras(model: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(cam_from_world f64[F, 3, 4], K f64[F, 3, 3] in original pixels)."""
    images = [model.images[i + 1] for i in range(count)]
    K = np.stack([model.cameras[image.camera_id].calibration_matrix() for image in images])
    return np.stack([image.cam_from_world().matrix() for image in images]), K


def _points(model: Any, count: int) -> np.ndarray:
    return np.array([model.points3D[i + 1].xyz for i in range(count)])  # f64[M, 3]


def _distances(tracks: Tracks, model: Any, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """f64[N] between each observation and the projection, in the model's and in original pixels; inf for a
    point behind the camera.
    """
    cam_from_world, K = _cameras(model, len(scene.names))
    xyz = _points(model, len(tracks))[tracks.point]
    at = np.einsum("nij,nj->ni", (K @ cam_from_world)[tracks.frame, :, :3], xyz)
    at += (K @ cam_from_world)[tracks.frame, :, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = at[:, :2] / at[:, 2:]
    away = np.where(at[:, 2:] > 0, seen - tracks.in_pixels(scene)[0], np.inf)
    scale = np.array([(t.scale_x, t.scale_y) for t in scene.transforms])[tracks.frame]
    return np.linalg.norm(away * scale, axis=-1), np.linalg.norm(away, axis=-1)


def _in_the_old_unit(
    cam_from_world: np.ndarray, xyz: np.ndarray, moved: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cameras f64[F, 3, 4] and points f64[M, 3], larger by a factor, about the first camera. What fixes the
    solver's unit is one coordinate of one camera, which the model may have quite wrong. A camera that was not
    moved is in the old unit already.
    """
    rotation, translation = cam_from_world[:, :, :3], cam_from_world[:, :, 3]
    centres = -np.einsum("fji,fj->fi", rotation, translation)
    first = centres[0]
    centres = np.where(moved[:, None], first + scale * (centres - first), centres)
    translation = -np.einsum("fij,fj->fi", rotation, centres)
    return np.concatenate([rotation, translation[..., None]], -1), first + scale * (xyz - first)


def _depth_fit(depth: np.ndarray, valid: np.ndarray, seen: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """(scale, shift) that bring a photograph's depths f[n] at its observations nearest to those of the points
    f[n], relative to these, and keep all of its valid depth f32[H, W] well above 0; (1, 0) of too few.
    """
    known = np.isfinite(seen) & (seen > 0) & (z > 0)
    seen, z = seen[known].astype(np.float64), z[known]
    if len(z) < LEAST_SEEN:
        return 1.0, 0.0
    only = float(np.median(z / seen))
    weight = np.ones(len(z))
    for _ in range(20):  # reweighted, so that depths that are wrong count little
        rows = np.stack([seen, np.ones(len(z))], -1) / z[:, None] * weight[:, None]
        scale, shift = np.linalg.lstsq(rows, weight, rcond=None)[0]
        off = np.abs(scale * seen + shift - z) / z
        weight = 1 / np.sqrt(1 + (off / max(1.5 * float(np.median(off)), 1e-6)) ** 2)
    nearest = np.percentile(depth[valid & np.isfinite(depth)], 0.1)
    if scale <= 0 or not 0.5 < (scale * nearest + shift) / (only * nearest) < 2:
        return only, 0.0
    return float(scale), float(shift)


def depth_off(scene: Scene, tracks: Tracks) -> float:
    """The median share by which the depth maps differ from the points that tracks observe there."""
    pose = scene.cam_from_world.astype(np.float64)[tracks.frame, 2]
    z = np.einsum("ni,ni->n", tracks.xyz[tracks.point], pose[:, :3]) + pose[:, 3]
    u, v = tracks.xy.astype(np.int64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.median(np.abs(scene.depth[tracks.frame, v, u] / z - 1)))


def _followed(scene: Scene, tracks: Tracks, model: Any) -> tuple[Scene, Tracks]:
    """The scene with the model's cameras, in the unit in which the median of its depths stays, and the tracks
    with the model's points.
    """
    frames = range(len(scene.names))
    cam_from_world, original = _cameras(model, len(scene.names))
    K = np.stack([model_from_original(t) @ k for t, k in zip(scene.transforms, original, strict=True)])
    xyz = _points(model, len(tracks))
    source = tracks.pixel // scene.valid[0].size
    then = np.einsum("ni,ni->n", tracks.xyz, scene.cam_from_world[source, 2, :3].astype(np.float64))
    then += scene.cam_from_world[source, 2, 3]

    def ratios() -> np.ndarray:
        now = np.einsum("ni,ni->n", xyz, cam_from_world[source, 2, :3]) + cam_from_world[source, 2, 3]
        return now / then

    moved = _enough(tracks, scene)
    unit = np.median(ratios()[moved[source]])
    if not 0 < unit < np.inf:
        raise FailedError("bundle_adjust has failed: its points are behind cameras", argument="bundle_adjust")
    cam_from_world, xyz = _in_the_old_unit(cam_from_world, xyz, moved, 1 / unit)
    points, depth = np.empty_like(scene.points), np.empty_like(scene.depth)
    for i in frames:
        seen = tracks.frame == i
        z = xyz[tracks.point[seen]] @ cam_from_world[i, 2, :3] + cam_from_world[i, 2, 3]
        u, v = tracks.xy[seen].astype(np.int64).T
        scale, shift = _depth_fit(scene.depth[i], scene.valid[i], scene.depth[i, v, u], z)
        pose = scene.cam_from_world[i].astype(np.float64)
        local = scene.points[i] @ pose[:, :3].T + pose[:, 3]
        local = local @ (np.linalg.inv(K[i]) @ scene.K[i]).T  # seen in the same pixel
        with np.errstate(divide="ignore", invalid="ignore"):
            local = local * (scale + shift / local[..., 2:])
        points[i] = (local - cam_from_world[i, :, 3]) @ cam_from_world[i, :, :3]
        depth[i] = scale * scene.depth[i] + shift
    stays = np.isclose(K, scene.K, rtol=1e-6).all((1, 2))
    found = dataclasses.replace(
        scene,
        K=K.astype(np.float32),
        cam_from_world=cam_from_world.astype(np.float32),
        points=points,
        depth=depth,
        intrinsics=tuple(
            old if same else "adjusted" for old, same in zip(scene.intrinsics, stays, strict=True)
        ),
    )
    return found, placed(tracks, found, xyz)
