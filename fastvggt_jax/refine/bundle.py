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
from fastvggt_jax.export.lenses import model_from_original
from fastvggt_jax.export.tracks import Tracks, select
from fastvggt_jax.refine.matching import measure_tracks
from fastvggt_jax.scene import Scene

ROUNDS = 3  # each measures from where the one before has moved the cameras; the first keeps focal lengths
OUTLIER = 2.0  # model pixels from where adjusted cameras see a point: another thing that looks alike
LEAST_POINTS = 50  # with tracks, of a scene
LEAST_SEEN = 20  # of them, by a photograph whose camera is moved
ROBUST = 0.5  # model pixels beyond which an observation counts less and less (Cauchy)
ITERATIONS = 100
LARGEST_TURN = 30.0  # degrees that a camera may turn; more is no refinement
LARGEST_ZOOM = 2.0  # and the factor of its focal length


class Adjustment(NamedTuple):
    """What was done.

    before, after: median distance between where photographs show points and where cameras see them, in the
      photographs' pixels; before of the model's points, after of points that were adjusted with the cameras.
    points, observations: that were used. moved: names of the photographs whose cameras were.
    zoomed: whether focal lengths were refined too.
    """

    before: float
    after: float
    points: int
    observations: int
    moved: tuple[str, ...]
    zoomed: bool


def require() -> None:
    """Raises ExtraError without pycolmap."""
    if importlib.util.find_spec("pycolmap") is None:
        text = "bundle_adjust needs pycolmap: pip install 'fastvggt_jax[colmap]'"
        raise ExtraError(text, argument="bundle_adjust")


def bundle_adjust(
    scene: Scene, *, conf_percentile: float | None = None, shared_camera: bool = False
) -> tuple[Scene, Adjustment]:
    """The scene with refined cameras, whose depth and points follow them.

    Poses and focal lengths are refined, with `shared_camera` one for all photographs of a size; the first
    camera stays, and the unit. A photograph's depth is scaled by the median of what its own points' depths
    have changed by. A photograph that sees too few tracks keeps its camera.

    Raises ExtraError without pycolmap; FailedError if there is too little to go by, or if the error does not
    fall or a camera runs away, so that the scene is better left as it is.
    """
    require()
    tracks = measure_tracks(scene, conf_percentile=conf_percentile)
    before, adjusted, done = _error(scene, tracks), scene, None
    for number in range(ROUNDS):
        try:
            if number:
                tracks = measure_tracks(adjusted, conf_percentile=conf_percentile)
            found, used, after = _adjust(adjusted, tracks, shared_camera=shared_camera, zoom=number > 0)
            _check_better(scene, found, before, after)
        except FailedError:
            if done is None:
                raise
            break
        moved = tuple(name for name, is_in in zip(scene.names, _enough(used, scene), strict=True) if is_in)
        adjusted = found
        done = Adjustment(before, after, len(used), len(used.point), moved, number > 0)
    assert done is not None  # there is at least one round
    return adjusted, done


def adjusted_or_as_it_is(
    scene: Scene, *, conf_percentile: float | None = None, shared_camera: bool = False
) -> tuple[Scene, dict[str, Any]]:
    """(the adjusted scene, or with a warning this one where that fails; a JSON-able account)."""
    try:
        scene, done = bundle_adjust(scene, conf_percentile=conf_percentile, shared_camera=shared_camera)
    except FailedError as error:
        warnings.warn(f"{error}; the cameras are left as the model has them", stacklevel=2)
        return scene, {"failed": str(error)}
    return scene, done._asdict() | {"moved": list(done.moved)}


def _error(scene: Scene, tracks: Tracks) -> float:
    """The median distance in original pixels of where photographs show points from where cameras see them."""
    return float(np.median(tracks.in_pixels(scene)[1])) if len(tracks) else float("inf")


def _enough(tracks: Tracks, scene: Scene) -> np.ndarray:
    """bool[F], whether a photograph's camera can be moved. FailedError if there is too little for a scene."""
    seen = np.bincount(tracks.frame, minlength=len(scene.names)) >= LEAST_SEEN
    if len(tracks) < LEAST_POINTS or seen.sum() < 2:
        text = f"there is too little for bundle_adjust: {len(tracks)} points with texture are found in two"
        text += f" photographs or more, and {int(seen.sum())} photographs have {LEAST_SEEN} of them"
        raise FailedError(text, argument="bundle_adjust")
    return seen


def _check_better(scene: Scene, adjusted: Scene, before: float, after: float) -> None:
    finite = all(np.isfinite(x).all() for x in (adjusted.K, adjusted.cam_from_world)) and np.isfinite(after)
    wrong = "its numbers are not finite" if not finite else None
    if finite:
        turned = np.einsum("fij,fij->f", scene.cam_from_world[..., :3], adjusted.cam_from_world[..., :3])
        degrees = np.rad2deg(np.arccos(np.clip((turned - 1) / 2, -1, 1)))
        zoom = np.exp(np.abs(np.log(adjusted.K[:, [0, 1], [0, 1]] / scene.K[:, [0, 1], [0, 1]])).max(-1))
        for name, angle, factor in zip(scene.names, degrees, zoom, strict=True):
            if angle > LARGEST_TURN or factor > LARGEST_ZOOM:
                wrong = f"it turns the camera of {name} by {angle:.0f} degrees and zooms by {factor:.2f}"
        if after >= before:
            wrong = f"the reprojection error does not fall ({before:.2f} to {after:.2f} pixels)"
    if wrong:
        raise FailedError(f"bundle_adjust has failed: {wrong}", argument="bundle_adjust")


def _adjust(scene: Scene, tracks: Tracks, *, shared_camera: bool, zoom: bool) -> tuple[Scene, Tracks, float]:
    """The scene adjusted to these tracks, twice, the second time without what the first has left far off; the
    tracks that were kept; and the median distance, in original pixels, of all from where they are seen now.

    zoom: whether focal lengths are refined.
    """
    model = _solved(scene, tracks, shared_camera, zoom)
    kept = select(tracks, _distances(tracks, model, scene)[0] <= OUTLIER)
    model = _solved(scene, kept, shared_camera, zoom)
    _, off = _distances(kept, model, scene)
    left_out = len(tracks.point) - len(kept.point)
    after = float(np.median(np.concatenate([off, np.full(left_out, np.inf)])))
    return _followed(scene, kept, model), kept, after


def _solved(scene: Scene, tracks: Tracks, shared_camera: bool, zoom: bool) -> Any:
    """pycolmap's Reconstruction of the scene and these tracks, adjusted."""
    import pycolmap

    with tempfile.TemporaryDirectory() as folder:
        write_colmap(scene, tracks, folder, shared_camera=shared_camera)
        model = pycolmap.Reconstruction(folder)
    config = pycolmap.BundleAdjustmentConfig()
    for frame in np.flatnonzero(_enough(tracks, scene)):
        config.add_image(int(frame) + 1)
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


def _followed(scene: Scene, tracks: Tracks, model: Any) -> Scene:
    """The scene with the model's cameras, in the unit in which the median of its depths stays."""
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
    ratio = ratios()
    points, depth = np.empty_like(scene.points), np.empty_like(scene.depth)
    for i in frames:
        own = ratio[source == i]
        scale = np.median(own if len(own) >= LEAST_SEEN else ratio)
        pose = scene.cam_from_world[i].astype(np.float64)
        local = scene.points[i] @ pose[:, :3].T + pose[:, 3]
        local = scale * local @ (np.linalg.inv(K[i]) @ scene.K[i]).T  # seen in the same pixel
        points[i] = (local - cam_from_world[i, :, 3]) @ cam_from_world[i, :, :3]
        depth[i] = scale * scene.depth[i]
    return dataclasses.replace(
        scene,
        K=K.astype(np.float32),
        cam_from_world=cam_from_world.astype(np.float32),
        points=points,
        depth=depth,
        intrinsics=("adjusted",) * len(scene.names),
    )
