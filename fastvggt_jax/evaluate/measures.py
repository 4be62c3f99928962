"""What is measured of a scene: groups of metrics, each for the parts of the truth that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fastvggt_jax.datasets.base import MEDIANS, Field, Sample
from fastvggt_jax.errors import FailedError, SceneError
from fastvggt_jax.evaluate import clouds, depths, metrics, normalised, trajectories
from fastvggt_jax.evaluate.truth import in_model_pixels, known, unprojected
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.sources import ImageTransform

# Of a scene's pixels: among which neighbours are looked up, and for how many.
SURFACE_POINTS, SURFACE_QUERIES = 50_000, 2_500
ACCURACIES, AREAS = (5, 15, 30), (5, 15, 30)  # thresholds in degrees
NEAREST = 1e-4  # of true depths, from which on they make a point of a cloud
VIDEO = ("AbsRel", "delta")  # of a video's depth, after
ALIGNMENTS = (depths.SCALE, depths.SCALE_SHIFT)
WEIGHT = "valid pixels"
DEFINITIONS = {
    "scene's size": "the mean distance of its true points from the first camera, VGGT's unit; of a data set "
    "without points, the mean distance of the other cameras from the first; percentages of lengths are of it",
    "rotation error": "degrees, the median over all pairs of views of all scenes",
    "translation error": "degrees between directions, up to sign; the median over all pairs of views of all "
    "scenes",
    **{
        f"RRA@{limit}": f"percent of pairs of views whose rotation error is below {limit}°"
        for limit in ACCURACIES
    },
    **{
        f"RTA@{limit}": f"percent of pairs of views whose translation error is below {limit}°"
        for limit in ACCURACIES
    },
    **{
        f"AUC@{limit}": "percent; the mean of the shares of pairs whose larger error is below 1°, 2°, ... "
        f"{limit}°"
        for limit in AREAS
    },
    "ATE": "percent; root mean square distance of camera centres after alignment by a similarity, 0 for 2 "
    "views; the mean over scenes",
    "AbsRel": "mean of |depth - truth| / truth after one scale for all views of a scene; the mean over "
    "scenes",
    "delta": "percent of depths wrong by a factor below 1.25 after the same scale; the mean over scenes",
    "point error": "percent; the median distance of points from the true ones after alignment by a "
    "similarity; the mean over scenes",
    "accuracy": "percent; mean distance from predicted points to the nearest true ones, after the same "
    "alignment; the mean over scenes. This and the next three: nearest among the points of "
    f"{SURFACE_POINTS:,} random pixels, for {SURFACE_QUERIES:,} of them",
    "completeness": "percent; mean distance from true points to the nearest predicted ones; the mean over "
    "scenes",
    "Chamfer": "percent; the mean of accuracy and completeness",
    "normal consistency": "mean |cosine| between the normals of nearest points, over both directions; the "
    "mean over scenes",
    "rank correlation": "Spearman's ρ between predicted and true depth in the photographs' own pixels; the "
    "mean over scenes",
    "ranked pixels": "of how many pixels that is, where both depths are known; the mean over scenes",
    "ranked share": "percent; how many that is of the pixels of the photographs with true depth; the mean "
    "over scenes",
    "normalised ATE": "Tanks & Temples' ATE: camera centres of truth and prediction are centred and brought "
    "to length 1, then aligned by Procrustes; the root mean square over all 3F numbers, without unit, "
    "falling as 1/√F; the mean over scenes",
    "trajectory ATE": "in the data set's unit; evo's APE of translations, root mean square after alignment "
    "by a similarity; the mean over scenes",
    "RPE translation": "in the data set's unit; evo's RPE of each two frames that follow one another, root "
    "mean square after the same alignment; the mean over scenes",
    "RPE rotation": "the same in degrees",
    **{
        f"{name} {kind}": f"{text}, the {kind} of a scene, after the protocol's alignment over all valid "
        f"pixels, and ICP; the mean over scenes"
        for name, text in (
            ("Acc", "in the data set's unit; distance from predicted points to the nearest true ones"),
            ("Comp", "in the data set's unit; distance from true points to the nearest predicted ones"),
            ("NC", "|cosine| of the normals of nearest points, over both directions"),
            ("NC1", "|cosine| of the normals of predicted points and the nearest true ones"),
            ("NC2", "|cosine| of the normals of true points and the nearest predicted ones"),
        )
        for kind in ("mean", "median")
    },
    **{
        name: f"{text}; seen from the first view, in units of the mean distance of valid points from there; "
        "the mean over views, then over scenes"
        for name, text in (
            (
                "points AbsRel",
                "mean of a point's distance from the true one, by that one's from the first view",
            ),
            (
                "points within 3 %",
                "percent of points whose distance from the first view is wrong by a factor below 1.03",
            ),
            ("z AbsRel", "mean of |depth - truth| / truth"),
            ("z within 3 %", "percent of depths wrong by a factor below 1.03"),
        )
    },
    "ray error": "degrees between the predicted and the true rays of all pixels; the mean over scenes",
    "rigid ATE": "mean distance of camera centres after a rotation and a translation, in the same units; the "
    "mean over scenes",
    "scale AbsRel": "|s - s*| / s* of the two units in metres, of a model that finds no metres as if its own "
    "unit were one; the mean over scenes",
    "point clouds": "Chamfer distance, in the data set's unit: the mean of Acc mean and Comp mean",
    **{
        f"{name}, {how}": f"{text} after one {how.replace('&', ' and ')} for all frames of a video; the mean "
        "over videos, weighted by their valid pixels"
        for name, text in (
            ("AbsRel", "mean of |depth - truth| / truth"),
            ("delta", "percent of depths wrong by a factor below 1.25"),
        )
        for how in ALIGNMENTS
    },
    WEIGHT: "of a video, whose true depth is known; the mean over videos",
    "baselines": "the same errors of pairs by the distance of their two cameras, from one percentage of the "
    "scene's size to another",
    "effective sparsity": "share of the blocks of patch queries that were not computed, special keys "
    "counted; mean over layers and scenes",
}


class Reference:
    """What is true of a scene, in numpy, with what only needs to be computed once.

    wanted: of `datasets.base.METRICS` and FIELD; what the truth has no part for is left out. field: how
    papers measure the latter. order: of relative poses, see `metrics.pair_errors`. Raises SceneError where a
    cloud or a video has no true depth.

    Attributes:
      baselines: f64[pairs], the distance of each two cameras in percent of the scene's size; none without
        cameras.
    """

    def __init__(
        self,
        sample: Sample,
        transforms: Sequence[ImageTransform],
        wanted: Sequence[str],
        field: Field | None = None,
        order: str = metrics.I_FROM_J,
    ) -> None:
        self.name, self.transforms, self.order, self.field = (
            sample.name,
            transforms,
            order,
            field or Field(()),
        )
        if {"clouds", "video depth"} & {*wanted}:
            self._read_depth(sample, wanted)
        given = sample.truth
        if not {"depth", "points", "rank correlation", "normalised views"} & {*wanted}:
            given = dataclasses.replace(given, depth=None, points=None, valid=None)
        truth = in_model_pixels(given, transforms)
        pixels = 0 if truth.valid is None else int(truth.valid.sum())
        some = pixels > 0
        cameras = truth.cam_from_world is not None
        there = {
            "cameras": cameras and len(transforms) > 1,
            "depth": some and truth.depth is not None,
            # Alignment and normals are of three points at least.
            "points": pixels >= 3 and cameras and truth.points is not None,
            "rank correlation": some and truth.depth is not None,
            "Procrustes": cameras and len(transforms) > 1,
            "trajectory": cameras and len(transforms) > 1,
            "clouds": True,
            "video depth": True,
            "normalised views": pixels >= 3 and cameras and truth.points is not None and truth.K is not None,
        }
        self.groups = [group for group in wanted if there[group]]
        self.cam_from_world, self.valid = truth.cam_from_world, truth.valid
        if "depth" in self.groups:
            self.depth = np.asarray(truth.depth)[self.valid].astype(np.float64)
        if there["points"]:
            self.points = np.asarray(truth.points)[self.valid].astype(np.float64)
        if cameras:
            self.size = self._size(self.points if there["points"] else None)
        self.baselines = np.zeros(0)
        if "cameras" in self.groups:
            self.baselines = self.percent * metrics.baselines(self.cam_from_world)
        if "points" in self.groups:
            # The same pixels of truth and prediction; in random order, so that any first few are spread over
            # all.
            self.chosen = np.random.default_rng(0).permutation(len(self.points))[:SURFACE_POINTS]
            self.surface = metrics.Surface(self.points[self.chosen])
        if "normalised views" in self.groups:
            points = np.asarray(truth.points, np.float64)
            rays = normalised.rays_of(truth.K, *points.shape[1:3])
            depth = np.asarray(truth.depth, np.float64)
            self.views = normalised.Views(np.asarray(truth.cam_from_world, np.float64), points, depth, rays)
        elif "normalised views" in wanted:
            raise SceneError("hardly a pixel has a known depth", scene=self.name)
        if "rank correlation" in self.groups:
            self.original_depth = [np.asarray(depth, np.float64) for depth in sample.truth.depth]
            self.original_valid = known(sample.truth) or []

    def _size(self, points: np.ndarray | None) -> float:
        centres = -np.einsum("fji,fj->fi", self.cam_from_world[:, :, :3], self.cam_from_world[:, :, 3])
        distances = np.linalg.norm((centres[1:] if points is None else points) - centres[0], axis=-1)
        return float(distances.mean()) if len(distances) else 0.0

    def _read_depth(self, sample: Sample, wanted: Sequence[str]) -> None:
        """True points at the size at which clouds are compared, and true depth; one photograph at a time."""
        truth, clouded = sample.truth, "clouds" in wanted
        self.cloud_valid: list[np.ndarray] = []
        self.video_depth: list[np.ndarray] = []
        points = []
        for f in range(len(self.transforms)):
            depth = np.asarray(truth.depth[f])
            if truth.valid is not None:
                depth = np.where(truth.valid[f], depth, 0)
            if clouded:
                where, valid = _cloud(depth, truth.K[f], truth.cam_from_world[f], self.field)
                points.append(where[valid])
                self.cloud_valid.append(valid)
            if "video depth" in wanted:
                far = np.inf if self.field.farthest is None else self.field.farthest
                self.video_depth.append(np.where(np.isfinite(depth) & (depth > 0) & (depth < far), depth, 0))
        if clouded:
            self.cloud = np.concatenate(points).astype(np.float64)
            self.kept = np.concatenate([_middle(valid, self.field.crop)[valid] for valid in self.cloud_valid])
            if self.kept.sum() < 3:
                raise SceneError("hardly a pixel has a known depth", scene=self.name)
        elif not any(depth.any() for depth in self.video_depth):
            raise SceneError("no pixel has a known depth", scene=self.name)

    @property
    def percent(self) -> float:
        """What a length is multiplied by to be a percentage of the scene's size; 0 if it has none."""
        return 100 / self.size if self.size > 0 else 0.0


def measure(found: Reconstruction, truth: Reference) -> tuple[np.ndarray, dict[str, float]]:
    """Of one scene, whose reconstruction has no axis B and is in numpy: the errors of all pairs of views,
    f64[2, pairs] (rotation, translation), and its other metrics (DEFINITIONS).
    """
    pairs = np.zeros((2, 0))
    values: dict[str, float] = {}
    if "cameras" in truth.groups:
        poses = np.asarray(found.cam_from_world)
        pairs = np.stack(metrics.pair_errors(poses, truth.cam_from_world, truth.order))
        values |= of_pairs(pairs)
        if truth.percent:  # cameras that all stand in one place have no size to measure by
            values["ATE"] = truth.percent * metrics.ate(poses, truth.cam_from_world)
    if "depth" in truth.groups:
        depth = np.asarray(found.depth)[truth.valid].astype(np.float64)
        depth *= metrics.depth_scale(depth, truth.depth)
        values |= {
            "AbsRel": metrics.abs_rel(depth, truth.depth),
            "delta": metrics.delta(depth, truth.depth),
        }
    if "points" in truth.groups:
        values |= _of_points(np.asarray(found.points)[truth.valid].astype(np.float64), truth)
    if "rank correlation" in truth.groups:
        values |= _ranks(found, truth)
    if "Procrustes" in truth.groups:
        poses = np.asarray(found.cam_from_world)
        values["normalised ATE"] = trajectories.procrustes_ate(poses, truth.cam_from_world)
    if "trajectory" in truth.groups:
        errors = trajectories.trajectory_errors(np.asarray(found.cam_from_world), truth.cam_from_world)
        values |= {"trajectory ATE" if name == "ATE" else name: value for name, value in errors.items()}
    if "clouds" in truth.groups:
        values |= _of_clouds(found, truth)
    if "video depth" in truth.groups:
        values |= _of_video(np.asarray(found.depth), truth)
    if "normalised views" in truth.groups:
        values |= _of_views(found, truth)
    return pairs, values


def _cloud(
    depth: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray, field: Field
) -> tuple[np.ndarray, np.ndarray]:
    """(points f32[H, W, 3], valid bool[H, W]) of a photograph at the size of clouds: from the nearest pixel
    as OpenCV counts them, K scaled by the larger of both ratios (π³'s evaluation branch,
    datasets/utils/cropping.py).
    """
    (height, width), wide = depth.shape, field.width
    tall = max(1, round(height * wide / width / field.multiple)) * field.multiple
    rows = np.minimum(np.arange(tall) * height // tall, height - 1)
    columns = np.minimum(np.arange(wide) * width // wide, width - 1)
    depth = depth[rows[:, None], columns]
    valid = np.isfinite(depth) & (depth > NEAREST)
    K = np.array(K, np.float64)
    K[:2] *= max(wide / width, tall / height)
    x, y = np.arange(wide) + 0.5, np.arange(tall) + 0.5
    return unprojected(np.where(valid, depth, 0), x, y, K, np.asarray(cam_from_world, np.float64)), valid


def _middle(valid: np.ndarray, crop: int | None) -> np.ndarray:
    """bool[H, W]: the square of so many pixels a side in the middle, all for None."""
    inside = np.full(valid.shape, crop is None)
    if crop is not None:
        top, left = (max(0, side // 2 - crop // 2) for side in valid.shape)
        inside[top : top + crop, left : left + crop] = True
    return inside


def _of_clouds(found: Reconstruction, truth: Reference) -> dict[str, float]:
    pairs = zip(np.asarray(found.points), truth.cloud_valid, strict=True)
    # A point at a time is a pixel's: the same pixels of truth and prediction.
    predicted = np.concatenate([_resized(one, *valid.shape)[valid] for one, valid in pairs]).astype(
        np.float64
    )
    true = truth.cloud
    if truth.field.alignment == MEDIANS:
        cameras = np.asarray(found.cam_from_world, np.float64)[0], truth.cam_from_world[0]
        (predicted, size), (true, size_true) = map(clouds.from_median, (predicted, true), cameras)
        predicted = predicted * size_true / np.clip(size, *clouds.SIZES)
    else:
        predicted = metrics.align(predicted, true)(predicted)
    errors = clouds.cloud_errors(predicted[truth.kept], true[truth.kept], reach=truth.field.reach)
    return errors | {"point clouds": (errors["Acc mean"] + errors["Comp mean"]) / 2}


def _of_views(found: Reconstruction, truth: Reference) -> dict[str, float]:
    poses, points, depth = (
        np.asarray(x, np.float64) for x in (found.cam_from_world, found.points, found.depth)
    )
    views = normalised.Views(poses, points, depth, points)
    K = found.K
    rays = normalised.rays_to(views) if K is None else normalised.rays_of(np.asarray(K), *depth.shape[1:])
    scale = 1.0 if found.metric_scale is None else float(found.metric_scale)
    return normalised.normalised_errors(views._replace(rays=rays), truth.views, truth.valid, scale)


def _resized(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """f32[height, width, 3] of f32[h, w, 3], bilinear, smoothed where it shrinks."""
    if points.shape[:2] == (height, width):
        return points
    parts = [Image.fromarray(np.ascontiguousarray(points[..., i], np.float32)) for i in range(3)]
    resized = [np.asarray(one.resize((width, height), Image.Resampling.BILINEAR)) for one in parts]
    return np.stack(resized, -1)


def _of_video(depth: np.ndarray, truth: Reference) -> dict[str, float]:
    ours, theirs = [], []
    for one, true in zip(depth, truth.video_depth, strict=True):
        valid = true > 0
        if valid.any():
            ours.append(depths.cubic_resized(one, *true.shape)[valid])
            theirs.append(true[valid].astype(np.float64))
    predicted, true = np.concatenate(ours), np.concatenate(theirs)
    values: dict[str, float] = {WEIGHT: len(true)}
    for how in ALIGNMENTS:
        aligned = depths.aligned(predicted, true, how)
        if truth.field.clipped:
            aligned = np.clip(aligned, None, truth.field.farthest)
        found = depths.depth_errors(aligned, true)
        values |= {f"{name}, {how}": found[name] for name in VIDEO}
    return values


def of_pairs(pairs: np.ndarray) -> dict[str, float]:
    """The metrics of pairs of views from their errors, f64[2, pairs]."""
    rotation, translation = pairs
    return {
        "rotation error": float(np.median(rotation)),
        "translation error": float(np.median(translation)),
        **{f"RRA@{limit}": metrics.accuracy_at(rotation, limit) for limit in ACCURACIES},
        **{f"RTA@{limit}": metrics.accuracy_at(translation, limit) for limit in ACCURACIES},
        **{f"AUC@{limit}": metrics.auc(rotation, translation, limit) for limit in AREAS},
    }


def _of_points(points: np.ndarray, truth: Reference) -> dict[str, float]:
    points = metrics.align(points, truth.points)(points)
    surface = metrics.surface_errors(
        metrics.Surface(points[truth.chosen]), truth.surface, slice(SURFACE_QUERIES)
    )
    return {
        "point error": truth.percent * float(np.median(np.linalg.norm(points - truth.points, axis=-1))),
        **{
            name: value if name == "normal consistency" else truth.percent * value
            for name, value in surface.items()
        },
    }


def _ranks(found: Reconstruction, truth: Reference) -> dict[str, float]:
    ours, theirs, pixels = [], [], 0
    for depth, true, valid, transform in zip(
        found.depth, truth.original_depth, truth.original_valid, truth.transforms, strict=True
    ):
        if valid.any():
            pixels += valid.size
            seen = transform.map_to_original(np.asarray(depth))[valid]
            both = np.isfinite(seen) & (seen > 0)
            ours.append(seen[both])
            theirs.append(true[valid][both])
    depths, true = np.concatenate(ours), np.concatenate(theirs)
    if len(depths) < 2:
        raise FailedError(
            f"the model gives hardly any pixel of {truth.name} with a known depth one: damaged weights?"
        )
    return {
        "rank correlation": metrics.rank_correlation(depths, true),
        "ranked pixels": len(depths),
        "ranked share": 100 * len(depths) / pixels,
    }
