"""Point clouds as Spann3R, CUT3R and π³ compare them: ICP, then distances and normals of nearest points.

By Open3D where it is installed (extra `clouds`), else by scipy's KD-tree; the two agree to 1e-3. Source of
the definitions: π³'s evaluation branch, mv_recon/eval.py and utils.py, and Open3D's documentation.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fastvggt_jax.errors import ExtraError, InputError
from fastvggt_jax.evaluate.metrics import Surface
from fastvggt_jax.geometry.alignment import best_rotation

LIBRARIES = OPEN3D, SCIPY = "open3d", "scipy"
SIZES = 1e-3, 1e3  # that a prediction may have, by `from_median`
ROUNDS, CHANGE = 30, 1e-6  # of Open3D's ICP: rounds at most, and of fitness and error when it ends


class Rigid(NamedTuple):
    """x -> rotation · x + translation; rotation f64[3, 3], translation f64[3]."""

    rotation: np.ndarray
    translation: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return np.einsum("...j,ij->...i", points, self.rotation) + self.translation


@functools.cache
def library() -> str:
    """Which one there is: Open3D, if it can be imported."""
    if importlib.util.find_spec("open3d") is None:
        return SCIPY
    try:
        import open3d  # noqa: F401
    except ImportError:  # it is there, but a library of the system's is not
        return SCIPY
    return OPEN3D


def cloud_errors(
    points: Float[np.ndarray, "M 3"],
    truth: Float[np.ndarray, "Q 3"],
    *,
    reach: float,
    by: str | None = None,
) -> dict[str, float]:
    """How far a predicted cloud is from the true one, in their unit, after ICP from where it is.

    "Acc mean", "Acc median": of distances from each predicted point to the nearest true one; "Comp ...": from
    each true point to the nearest predicted one; "NC1 ..." and "NC2 ...": of |cosines| between the normals of
    these pairs; "NC mean", "NC median": the mean of the two.

    reach: how far ICP looks for a point's partner. by: one of LIBRARIES, None for `library()`. Raises
    InputError for fewer than three points, ExtraError for a library that is not installed.
    """
    by = _checked(by)
    if min(len(points), len(truth)) < 3:
        raise InputError(f"clouds must have three points at least, not {len(points)} and {len(truth)}")
    if by == OPEN3D:
        there, back, cosine_there, cosine_back = _by_open3d(points, truth, reach)
    else:
        target = Surface(truth)
        source = Surface(icp(points, target, reach)(points))
        there, partner = target.nearest(source.points, threads=-1)
        back, partner_back = source.nearest(target.points, threads=-1)
        ours, theirs = (surface.normals(surface.points, threads=-1) for surface in (source, target))
        cosine_there = np.abs((ours * theirs[partner]).sum(-1))
        cosine_back = np.abs((theirs * ours[partner_back]).sum(-1))
    found: dict[str, float] = {}
    for name, values in (("Acc", there), ("Comp", back), ("NC1", cosine_there), ("NC2", cosine_back)):
        found |= {f"{name} mean": float(values.mean()), f"{name} median": float(np.median(values))}
    for kind in ("mean", "median"):
        found[f"NC {kind}"] = (found[f"NC1 {kind}"] + found[f"NC2 {kind}"]) / 2
    return found


def from_median(
    points: Float[np.ndarray, "M 3"], cam_from_world: Float[np.ndarray, "3 4"]
) -> tuple[Float[np.ndarray, "M 3"], float]:
    """The points f64[M, 3] seen from a camera, with their median depth as 0, and how large they are: the
    median distance from the median of each coordinate.

    What CUT3R and Spann3R compare by (`Regr3D_t_ScaleShiftInv` of eval/mv_recon/criterion.py, after DUSt3R's
    losses), of the first view's camera; a median of an even number is the lower of the two in the middle.
    """
    median = lambda x: np.quantile(x, 0.5, axis=0, method="lower")
    seen = Rigid(cam_from_world[:, :3], cam_from_world[:, 3])(np.asarray(points, np.float64))
    seen[:, 2] -= median(seen[:, 2])
    return seen, float(median(np.linalg.norm(seen - median(seen), axis=-1)))


def icp(points: Float[np.ndarray, "M 3"], target: Surface, reach: float) -> Rigid:
    """The rigid motion that iterated closest points end at, as Open3D's `registration_icp` from where the
    points are: by point to point, partners nearer than `reach`.
    """
    moved = Rigid(np.eye(3), np.zeros(3))
    points = np.asarray(points, np.float64)
    share, error, partners = _partners(points, target, reach)
    for _ in range(ROUNDS):
        found, numbers = partners
        if len(found) < 3:
            break
        there = target.points[numbers]
        mean, mean_there = points[found].mean(0), there.mean(0)
        rotation, _ = best_rotation(np.einsum("mi,mj->ij", there - mean_there, points[found] - mean))
        step = Rigid(rotation, mean_there - rotation @ mean)
        points = step(points)
        moved = Rigid(rotation @ moved.rotation, step(moved.translation))
        before = share, error
        share, error, partners = _partners(points, target, reach)
        if abs(before[0] - share) < CHANGE and abs(before[1] - error) < CHANGE:
            break
    return moved


def _partners(
    points: np.ndarray, target: Surface, reach: float
) -> tuple[float, float, tuple[np.ndarray, np.ndarray]]:
    """The share of points that have a partner, the root mean square distance to it, and the numbers of
    both."""
    distance, number = target.tree.query(points, distance_upper_bound=reach, workers=-1)
    found = np.flatnonzero(np.isfinite(distance))
    error = float(np.sqrt(np.square(distance[found]).mean())) if len(found) else 0.0
    return len(found) / len(points), error, (found, number[found])


def _by_open3d(points: np.ndarray, truth: np.ndarray, reach: float) -> tuple[np.ndarray, ...]:
    import open3d

    def cloud(values: np.ndarray) -> Any:
        made = open3d.geometry.PointCloud()
        made.points = open3d.utility.Vector3dVector(np.asarray(values, np.float64))
        return made

    def one_way(source: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
        tree = Surface(np.asarray(target.points))  # Open3D gives distances, but not of which points
        distance, number = tree.nearest(np.asarray(source.points), threads=-1)
        return distance, np.abs((np.asarray(source.normals) * np.asarray(target.normals)[number]).sum(-1))

    source, target = cloud(points), cloud(truth)
    found = open3d.pipelines.registration.registration_icp(source, target, reach, np.eye(4))
    source.transform(found.transformation)
    source.estimate_normals()
    target.estimate_normals()
    (there, cosine_there), (back, cosine_back) = one_way(source, target), one_way(target, source)
    return there, back, cosine_there, cosine_back


def _checked(by: str | None) -> str:
    if by is not None and by not in LIBRARIES:
        raise InputError(f"by must be one of {', '.join(LIBRARIES)}, not {by!r}", argument="by")
    if by == OPEN3D and library() != OPEN3D:
        raise ExtraError("Open3D is not installed: pip install 'fastvggt_jax[clouds]'")
    return by or library()
