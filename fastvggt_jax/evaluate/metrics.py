"""Metrics as the field defines them, in numpy, scipy (which JAX brings along) and float64. Each names where
its definition comes from.

Cameras: `cam_from_world` [F, 3, 4], OpenCV axes. No metric depends on the world that cameras and points are
given in: predictions are compared by what is relative between views, or after alignment.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from fastvggt_jax.errors import InputError
from fastvggt_jax.geometry.alignment import align

NEIGHBOURS = 30  # that a normal is fitted to, as Open3D's default
CHUNK = 100_000  # points whose neighbours are held at a time: 70 MB
ORDERS = I_FROM_J, J_FROM_I, IN_WORLD = "i from j", "j from i", "in the world"  # of a relative pose

# ---- cameras


def pair_errors(
    cam_from_world: Float[np.ndarray, "F 3 4"], truth: Float[np.ndarray, "F 3 4"], order: str = I_FROM_J
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Errors of the relative poses of all pairs of views i < j, in degrees: f64[F·(F-1)/2] twice.

    The first is the angle of the rotation between the two rotations, the second the angle between the two
    translations, up to sign: at most 90°, which it also is where one of them is zero (VGGT's
    evaluation/test_co3d.py, after PoseDiffusion, arXiv 2306.15667 §4).

    order: which relative pose, of T = cam_from_world. I_FROM_J: T_i · inv(T_j), ours. J_FROM_I: T_j ·
      inv(T_i), π³'s (evaluation branch, relpose/metric.py); rotation errors are the same, a translation is
      seen from the other camera. IN_WORLD: inv(T_i) · T_j of cameras given relative to the first one, what
      VGGT's official script computes; both errors are others.
    """
    (R, t), (R_true, t_true) = (
        _relative_poses(np.asarray(poses, np.float64), order) for poses in (cam_from_world, truth)
    )
    chord = (
        np.linalg.norm(R - R_true, axis=(-2, -1)) / 8**0.5
    )  # sin(angle / 2); an arccos of the trace would lose small angles
    rotation = 2 * np.arcsin(np.minimum(chord, 1))
    across, along = np.linalg.norm(np.cross(t, t_true), axis=-1), np.abs((t * t_true).sum(-1))
    translation = np.where((across == 0) & (along == 0), np.pi / 2, np.arctan2(across, along))
    return np.rad2deg(rotation), np.rad2deg(translation)


def baselines(cam_from_world: Float[np.ndarray, "F 3 4"]) -> Float[np.ndarray, " pairs"]:
    """Distances between the cameras of all pairs of views i < j, in the order of `pair_errors`:
    f64[F·(F-1)/2].
    """
    return np.linalg.norm(_relative_poses(np.asarray(cam_from_world, np.float64))[1], axis=-1)


def _relative_poses(poses: np.ndarray, order: str = I_FROM_J) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.triu_indices(len(poses), 1)
    if order == J_FROM_I:
        i, j = j, i
    elif order == IN_WORLD:
        first = poses[0]
        R = np.einsum("fij,kj->fik", poses[:, :, :3], first[:, :3])  # f64[F, 3, 3], cam_from_first
        t = poses[:, :, 3] - np.einsum("fij,j->fi", R, first[:, 3])
        return np.einsum("pji,pjk->pik", R[i], R[j]), np.einsum("pji,pj->pi", R[i], t[j] - t[i])
    elif order != I_FROM_J:
        raise InputError(f"order must be one of {', '.join(ORDERS)}, not {order!r}", argument="order")
    R = poses[i, :, :3] @ poses[j, :, :3].swapaxes(-1, -2)  # [pairs, 3, 3]
    centres = _centres(poses)  # of equal cameras exactly equal, so that no rounding error gives a direction
    return R, np.einsum("pij,pj->pi", poses[i, :, :3], centres[j] - centres[i])


def accuracy_at(errors: Float[np.ndarray, " pairs"], threshold: float) -> float:
    """The share of errors below the threshold, in percent: RRA@τ of rotations, RTA@τ of translations."""
    return 100 * float(np.mean(errors < threshold))


def auc(
    rotation: Float[np.ndarray, " pairs"], translation: Float[np.ndarray, " pairs"], threshold: int
) -> float:
    """AUC@threshold in percent, of the larger of a pair's two errors: the mean of the accuracies at 1°, 2°, …
    threshold°.

    As VGGT computes it, from a histogram with a bin a degree.
    """
    histogram, _ = np.histogram(np.maximum(rotation, translation), np.arange(threshold + 1))
    return 100 * float(np.cumsum(histogram).mean() / len(rotation))


def ate(cam_from_world: Float[np.ndarray, "F 3 4"], truth: Float[np.ndarray, "F 3 4"]) -> float:
    """Absolute trajectory error: the root mean square distance between camera centres after `align`, in the
    truth's unit.
    """
    centres, centres_true = _centres(cam_from_world), _centres(truth)
    return float(np.sqrt(np.square(align(centres, centres_true)(centres) - centres_true).sum(-1).mean()))


def _centres(cam_from_world: np.ndarray) -> np.ndarray:
    poses = np.asarray(cam_from_world, np.float64)
    return -np.einsum("fji,fj->fi", poses[:, :, :3], poses[:, :, 3])  # -Rᵀ t


# ---- depth


def depth_scale(depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"]) -> float:
    """The s that makes Σ |s · depth - truth| smallest: [M] and [M] > 0, in one unit each.

    The scale-only alignment of MonST3R's, CUT3R's and π³'s evaluation, which iterate towards it; a weighted
    median hits it exactly.
    """
    depth, truth = np.asarray(depth, np.float64), np.asarray(truth, np.float64)
    some = depth != 0
    ratio, weight = truth[some] / depth[some], np.abs(depth[some])
    order = np.argsort(ratio)
    total = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(total, total[-1] / 2)]) if len(order) else 1.0


def abs_rel(depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"]) -> float:
    """The mean of |depth - truth| / truth."""
    return float(np.mean(np.abs(depth - truth) / truth))


def delta(depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"], limit: float = 1.25) -> float:
    """How many of the depths are wrong by a factor below `limit`, in percent: max(depth / truth, truth /
    depth) < limit.
    """
    return 100 * float(np.mean((depth * limit > truth) & (depth < truth * limit)))


def rank_correlation(depth: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"]) -> float:
    """Spearman's ρ of depths [M]: 1 for every depth that orders the pixels as the truth does.

    So neither unit nor scale counts, and the truth may be any decreasing function of a disparity.
    """
    from scipy.stats import spearmanr  # it takes seconds, and whoever reconstructs imports this module

    return float(spearmanr(np.asarray(depth, np.float64), np.asarray(truth, np.float64)).statistic)


# ---- surfaces


class Surface:
    """Points [M, 3] to look neighbours up in."""

    def __init__(self, points: Float[np.ndarray, "M 3"]) -> None:
        self.points = np.asarray(points, np.float64)
        self.tree = cKDTree(self.points)

    def nearest(
        self, points: Float[np.ndarray, "Q 3"], *, threads: int = 1
    ) -> tuple[Float[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
        """The distances f64[Q] to the nearest points of the surface, and their numbers i64[Q]. threads: -1 is
        one a core.
        """
        return self.tree.query(points, workers=threads)

    def normals(self, points: Float[np.ndarray, "Q 3"], *, threads: int = 1) -> Float[np.ndarray, "Q 3"]:
        """Unit normals f64[Q, 3], up to sign: across the plane through each point's nearest neighbours."""
        normals = np.empty((len(points), 3))
        for start in range(0, len(points), CHUNK):
            some = slice(start, start + CHUNK)
            _, found = self.tree.query(points[some], min(NEIGHBOURS, len(self.points)), workers=threads)
            around = self.points[found.reshape(len(found), -1)]  # [q, neighbours, 3]
            around -= around.mean(1, keepdims=True)
            normals[some] = np.linalg.eigh(np.einsum("qni,qnj->qij", around, around))[1][..., 0]
        return normals


def surface_errors(surface: Surface, truth: Surface, queries: slice = slice(None)) -> dict[str, float]:
    """How far two surfaces in one unit, already aligned, are apart.

    "accuracy": the mean distance from a point to the nearest true one; "completeness": from a true point to
    the nearest of ours (the two of DTU); "Chamfer": their mean; "normal consistency": the mean |cosine|
    between the normals at both ends, over both directions. So in the evaluations of Spann3R, CUT3R and π³ on
    7-Scenes and DTU, but for a refinement by ICP.

    queries: which points of each are looked up in the other.
    """
    there, back = (_one_way(a, b, queries) for a, b in ((surface, truth), (truth, surface)))
    return {
        "accuracy": there[0],
        "completeness": back[0],
        "Chamfer": (there[0] + back[0]) / 2,
        "normal consistency": (there[1] + back[1]) / 2,
    }


def _one_way(source: Surface, target: Surface, queries: slice) -> tuple[float, float]:
    points = source.points[queries]
    distance, number = target.nearest(points)
    cosine = (source.normals(points) * target.normals(target.points[number])).sum(-1)
    return float(distance.mean()), float(np.abs(cosine).mean())
