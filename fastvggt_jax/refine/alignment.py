"""A scene brought to where its cameras are known to have stood."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, NamedTuple

import numpy as np

from fastvggt_jax.errors import FailedError
from fastvggt_jax.export.tracks import Tracks, placed
from fastvggt_jax.geometry.alignment import Similarity, align, best_rotation
from fastvggt_jax.refine.camera_files import key_of
from fastvggt_jax.refine.positions import ON_A_LINE, Positions, known_positions, leaves_a_line
from fastvggt_jax.scene import Scene

ROUNDS = 50  # of reweighting
FAR = 100  # times the extent of positions, from where on they are taken nearer


class Alignment(NamedTuple):
    """What was done.

    photographs: how many positions were known. residual: their median distance from where the cameras are
      now, in the given unit; largest: the largest of these.
    scale, rotation, translation: what brings a point x of before to where it is now, scale·rotation·x +
      translation; scale is of the given unit per unit of before.
    origin: latitude, longitude (degrees) and altitude (metres) of the world's origin, whose axes point east,
      north and up; None where positions were Cartesian. offset: what was taken off these, (0, 0, 0) but for
      large ones: a position in the scene is that much less than the given one.
    """

    photographs: int
    residual: float
    largest: float
    scale: float
    rotation: tuple[tuple[float, ...], ...]
    translation: tuple[float, ...]
    origin: tuple[float, float, float] | None
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)

    def similarity(self) -> Similarity:
        return Similarity(self.scale, np.array(self.rotation), np.array(self.translation))


def aligned_to(scene: Scene, path: str) -> tuple[Scene, Alignment]:
    """The scene in given coordinates, by the similarity that brings its cameras nearest to where they are
    said to have stood; positions that do not fit the others weigh little.

    path: a cameras.json, whose metric_scale becomes the scene's, if it has one; a transforms.json of
      nerfstudio; the folder of a COLMAP model; or a CSV file whose first line names its columns:
      name, and x, y, z in metres, or latitude, longitude (degrees, WGS 84) and altitude (metres), which
      become metres east, north and up of the first photograph that it names. It may name some of the
      photographs only.

    Raises MissingError, or InputError if the file is none of these, or what it knows does not determine a
      similarity: three positions that are not on a line, or two and the cameras' rotations. FailedError if
      the model's cameras do not.
    """
    return aligned(scene, known_positions(path, scene.names))


def aligned(scene: Scene, positions: Positions) -> tuple[Scene, Alignment]:
    """The same for positions that were read already. Raises FailedError."""
    path, known, names = positions
    here = [scene.names.index(name) for name in names]
    pose = scene.world_from_cam.astype(np.float64)[here]
    truth = np.stack([known.centres[key_of(name, known.centres)] for name in names])  # type: ignore[index]
    rotations = None
    if known.rotations:
        rotations = np.stack([known.rotations[key_of(name, known.rotations)] for name in names])  # type: ignore[index]
    offset = _offset(truth)
    truth = truth - offset
    found = _fitted(pose, truth, rotations, path)
    moved = dataclasses.replace(
        _moved(scene, found),
        metric_scale=known.metric_scale or (scene.metric_scale and scene.metric_scale / found.scale),
        origin=known.origin,
        offset=tuple(offset.tolist()),
    )
    residuals = np.linalg.norm(moved.world_from_cam[here, :3, 3] - truth, axis=-1)
    middle, largest = float(np.median(residuals)), float(residuals.max())
    done = Alignment(
        len(names),
        middle,
        largest,
        found.scale,
        tuple(map(tuple, found.rotation.tolist())),
        tuple(found.translation.tolist()),
        known.origin,
        tuple(offset.tolist()),
    )
    if offset.any():
        numbers = ", ".join(f"{x:.0f}" for x in offset)
        text = f"the positions of {path} lie so far from 0 that float32 is too coarse there"
        warnings.warn(f"{text}: the scene's are less by {numbers}", stacklevel=2)
    return moved, done


def aligned_or_as_it_is(
    scene: Scene, positions: Positions, tracks: Tracks | None = None
) -> tuple[Scene, Tracks | None, dict[str, Any]]:
    """(the aligned scene, or with a warning this one where that fails; its tracks, which go with it; a
    JSON-able account).
    """
    try:
        scene, done = aligned(scene, positions)
    except FailedError as error:
        warnings.warn(str(error), stacklevel=2)
        return scene, tracks, {"failed": str(error)}
    if tracks is not None:
        tracks = placed(tracks, scene, done.similarity()(tracks.xyz))
    return scene, tracks, done._asdict()


def _offset(positions: np.ndarray) -> np.ndarray:
    """f64[3], whole numbers to be taken off positions f64[M, 3] that lie further from 0 than float32 tells
    apart well, as those of UTM; else 0.
    """
    extent = np.ptp(positions, axis=0).max()
    if np.abs(positions).max() <= FAR * extent:
        return np.zeros(3)
    return np.rint(positions.mean(0))


def _fitted(pose: np.ndarray, truth: np.ndarray, rotations: np.ndarray | None, path: str) -> Similarity:
    centres = pose[:, :3, 3]
    failed = f"the scene was not aligned to {path}"
    if np.ptp(centres, axis=0).max() == 0:
        raise FailedError(f"{failed}: the model puts all cameras at one place")
    on_a_line = any(leaves_a_line(x) < ON_A_LINE for x in (centres, truth))
    if on_a_line and rotations is None:
        raise FailedError(
            f"{failed}: the model puts the cameras on a line, which leaves the turn about it open"
        )
    weights = np.ones(len(centres))
    for _ in range(ROUNDS):
        if on_a_line:
            assert rotations is not None
            turn = np.einsum("f,fij,fkj->ik", weights, rotations, pose[:, :3, :3])
            found = _with_rotation(centres, truth, weights, best_rotation(turn)[0])
            if not found.scale > 0:
                text = "the cameras look another way than they would where they are said to have stood"
                raise FailedError(f"{failed}: {text}")
        else:
            found = align(centres, truth, weights)
        error = np.linalg.norm(found(centres) - truth, axis=-1)
        # Cauchy's weights, whose scale is that of the middle residual.
        spread = max(1.4826 * float(np.median(error)), 1e-9 * float(np.ptp(truth, axis=0).max()))
        weights = 1 / (1 + (error / spread) ** 2)
    return found


def _with_rotation(
    points: np.ndarray, truth: np.ndarray, weights: np.ndarray, rotation: np.ndarray
) -> Similarity:
    """Scale and translation of least squares where the rotation is known."""
    share = weights / weights.sum()
    mean, mean_true = share @ points, share @ truth
    turned, there = (points - mean) @ rotation.T, truth - mean_true
    scale = float((share @ (turned * there).sum(-1)) / (share @ (turned * turned).sum(-1)))
    return Similarity(scale, rotation, mean_true - scale * rotation @ mean)


def _moved(scene: Scene, by: Similarity) -> Scene:
    """The scene in other coordinates, and its unit another."""
    return dataclasses.replace(
        scene,
        cam_from_world=by.of_cameras(scene.cam_from_world).astype(np.float32),
        points=np.stack([by(points) for points in scene.points]).astype(np.float32),
        depth=(by.scale * scene.depth).astype(np.float32),
    )
