"""Surfaces: each photograph's depth grid as triangles, cut where the depth jumps, with few faces left."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Iterator

import numpy as np

from fastvggt_jax.errors import ExtraError
from fastvggt_jax.scene import Scene

DEPTH_JUMP = 0.05  # of the nearest depth: corners that differ by more are of two things
FINER = 4  # vertices that the decimator has to choose from, for each that is wanted
LEAST_FACES = 100  # of a photograph that has so many, whatever its share
# The decimator's thresholds are lengths; so long, the diagonal of what it gets makes it end where it should.
DIAGONAL = 100.0


@dataclasses.dataclass(frozen=True)
class Surface:
    """What a photograph shows, as V vertices and T triangles whose front is towards its camera.

    xyz: f64[V, 3] in the world. faces: i64[T, 3]. pixel: f64[V, 2], where the photograph shows each vertex,
    in model pixels.
    """

    xyz: np.ndarray
    faces: np.ndarray
    pixel: np.ndarray


def require() -> None:
    """Raises ExtraError without the decimator."""
    if importlib.util.find_spec("fast_simplification") is None:
        text = "glb_mesh needs fast_simplification: pip install 'fastvggt_jax[glb]'"
        raise ExtraError(text, argument="glb_mesh")


def surfaces(
    scene: Scene, max_points: int, *, conf_percentile: float | None = None, edge_filter: float | None = None
) -> Iterator[Surface]:
    """One Surface for each photograph, empty where it shows nothing; about `max_points` vertices in all.

    A vertex is the model's point of a pixel that `Scene.point_cloud` takes for the same conf_percentile.
    Three that are neighbours make a triangle unless their depths differ by more than `edge_filter` of the
    nearest, by default DEPTH_JUMP. Photographs are decimated in proportion to their triangles; one surface at
    a time is held. Where there are far more pixels than vertices wanted, only every second, third, ... of a
    row and of a column becomes one, before the decimator chooses. Raises ExtraError without
    fast_simplification.
    """
    require()
    kept = np.zeros(scene.valid.shape, bool)
    kept.reshape(-1)[scene.point_indices(conf_percentile=conf_percentile)] = True
    jump = DEPTH_JUMP if edge_filter is None else edge_filter
    # A surface has about two triangles for each vertex. They are counted first, to be made one at a time.
    step = max(1, int(math.sqrt(kept.sum() / (FINER * max_points))))
    grid = lambda frame: _triangles(scene.depth[frame], kept[frame], jump, step, scene.valid[frame])
    counts = [len(grid(frame)) for frame in range(len(scene.names))]
    share = min(1.0, 2 * max_points / max(1, sum(counts)))
    for frame, count in enumerate(counts):
        whole = _whole(scene, frame, grid(frame))
        few = max(LEAST_FACES, int(share * count))
        yield _decimated(scene, frame, whole, few) if few < count else whole


def _triangles(
    depth: np.ndarray, kept: np.ndarray, jump: float, step: int = 1, shown: np.ndarray | None = None
) -> np.ndarray:
    """i64[T, 3], indices of pixels, every `step` of which are corners. Four neighbours are two triangles that
    meet where their depths differ least; so three of them are one if the fourth is not kept. None spans a
    jump between two of its pixels, or one that is not `shown`, as a masked one.
    """
    depth = np.where(kept & (depth > 0), depth.astype(np.float64), np.inf)
    index = np.arange(depth.size).reshape(depth.shape)[::step, ::step]
    # Corners [h, w]: a b above c d.
    corners = [index[y, x] for y in (_FIRST, _SECOND) for x in (_FIRST, _SECOND)]
    if step > 1:
        cells = ~_jumps(depth, jump, step, shown)
        corners = [corner[cells] for corner in corners]
    a, b, c, d = (corner.ravel() for corner in corners)
    z = depth.ravel()
    with np.errstate(invalid="ignore"):  # inf - inf: fewer than three are kept, or the other diagonal's are
        falling = np.abs(z[a] - z[d]) <= np.abs(z[b] - z[c])
    lower = np.where(falling, [a, c, d], [a, c, b])
    upper = np.where(falling, [a, d, b], [b, c, d])
    faces = np.concatenate([lower, upper], 1).T
    of_faces = z[faces]
    nearest = of_faces.min(-1)
    with np.errstate(invalid="ignore"):
        return faces[of_faces.max(-1) - nearest <= jump * nearest]  # False where one is not kept


_FIRST, _SECOND = slice(None, -1), slice(1, None)


def _jumps(depth: np.ndarray, jump: float, step: int, shown: np.ndarray | None) -> np.ndarray:
    """bool[h, w] of the cells of step x step pixels: whether the depth jumps between two neighbours in it, or
    one is not shown.
    """
    height, width = ((side - 1) // step for side in depth.shape)

    def somewhere(found: np.ndarray) -> np.ndarray:
        cells = found[: height * step, : width * step].reshape(height, step, width, step)
        return np.asarray(cells.any((1, 3)))

    def between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        near, far = np.minimum(one, other), np.maximum(one, other)
        return somewhere(np.isfinite(far) & (far > (1 + jump) * near))

    jumps = between(depth[:, :-1], depth[:, 1:]) | between(depth[:-1], depth[1:])
    return jumps if shown is None else jumps | somewhere(~shown)


def _whole(scene: Scene, frame: int, faces: np.ndarray) -> Surface:
    """With a vertex for every pixel that is in a triangle."""
    index, faces = np.unique(faces, return_inverse=True)
    width = scene.depth.shape[2]
    pixel = np.stack([index % width, index // width], -1) + 0.5
    return Surface(scene.points[frame].reshape(-1, 3)[index].astype(np.float64), faces.reshape(-1, 3), pixel)


def _decimated(scene: Scene, frame: int, whole: Surface, few: int) -> Surface:
    """The surface in about `few` triangles."""
    import fast_simplification
    from scipy.spatial import cKDTree

    low, high = whole.xyz.min(0), whole.xyz.max(0)
    unit = (float(np.linalg.norm(high - low)) or 1.0) / DIAGONAL
    # Without the shift float32, in which it counts, loses scenes that lie far from the origin.
    scaled = ((whole.xyz - low) / unit).astype(np.float32)
    xyz, faces = fast_simplification.simplify(scaled, whole.faces.astype(np.int32), target_count=few)[:2]
    xyz = np.asarray(xyz, np.float64) * unit + low
    # Where it is seen: as far from the nearest old vertex's pixel as the camera says, since cameras that are
    # fitted to points do not see each exactly in its pixel.
    _, near = cKDTree(whole.xyz).query(xyz)
    moved = _projected(scene, frame, xyz) - _projected(scene, frame, whole.xyz[near])
    height, width = scene.depth.shape[1:]
    moved = np.where(np.isfinite(moved).all(-1, keepdims=True), moved, 0)
    pixel = np.clip(whole.pixel[near] + moved, 0, (width, height))
    return Surface(xyz, np.asarray(faces, np.int64), pixel)


def _projected(scene: Scene, frame: int, xyz: np.ndarray) -> np.ndarray:
    """f64[n, 2], model pixels."""
    pose = scene.cam_from_world[frame].astype(np.float64)
    x, y, z = scene.K[frame].astype(np.float64) @ (xyz @ pose[:, :3].T + pose[:, 3]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([x / z, y / z], -1)
