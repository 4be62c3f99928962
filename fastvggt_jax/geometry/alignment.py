"""Alignment of points by a similarity. Numpy, float64."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Similarity:
    """x -> scale · rotation · x + translation."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, 3]

    def __call__(self, points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """[..., 3] -> f64[..., 3]."""
        return (
            self.scale * np.einsum("...j,ij->...i", np.asarray(points, np.float64), self.rotation)
            + self.translation
        )

    def inverse(self) -> Similarity:
        back = self.rotation.T
        return Similarity(1 / self.scale, back, -(back @ self.translation) / self.scale)

    def after(self, first: Similarity) -> Similarity:
        """x -> self(first(x))."""
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, self(first.translation))

    def of_cameras(self, cam_from_world: Float[np.ndarray, "... 3 4"]) -> Float[np.ndarray, "... 3 4"]:
        """The same cameras in the world that points are brought to; what they see is `scale` times as far."""
        rotation = np.asarray(cam_from_world[..., :3], np.float64) @ self.rotation.T
        translation = (
            self.scale * np.asarray(cam_from_world[..., 3], np.float64) - rotation @ self.translation
        )
        return np.concatenate([rotation, translation[..., None]], -1)


def is_rotation(matrices: np.ndarray) -> np.ndarray | np.bool_:
    """bool[...]: which of f[..., 3, 3] are rotations, to 1 %; numbers that are not finite are none."""
    m = np.asarray(matrices, np.float64)
    near = np.abs(m @ m.swapaxes(-1, -2) - np.eye(3)).max((-2, -1)) < 0.01
    return near & (np.linalg.det(np.where(near[..., None, None], m, 0)) > 0)


def best_rotation(
    matrix: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """The rotation nearest to a matrix, and the singular values, the last one negative where only a
    reflection would be nearer.
    """
    U, S, Vt = np.linalg.svd(matrix)
    sign = np.array([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    return U * sign @ Vt, S * sign


def align(
    points: Float[np.ndarray, "M 3"],
    truth: Float[np.ndarray, "M 3"],
    weights: Float[np.ndarray, " M"] | None = None,
) -> Similarity:
    """The similarity that brings points [M, 3] nearest to the truth's, in the sense of least squares, each
    weighted; never a reflection.

    Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns". Points
    that all coincide keep scale 1.
    """
    points, truth = np.asarray(points, np.float64), np.asarray(truth, np.float64)
    weights = np.ones(len(points)) if weights is None else weights / weights.mean()
    mean, mean_true = (np.einsum("m,mi->i", weights, x) / len(x) for x in (points, truth))
    centred = points - mean
    # einsum and not @: scenes are measured in threads, and BLAS would start threads of its own in each of
    # them.
    rotation, values = best_rotation(np.einsum("m,mi,mj->ij", weights, truth - mean_true, centred))
    spread = np.einsum("m,mi,mi->", weights, centred, centred)
    scale = float(values.sum() / spread) if spread > 0 else 1.0
    return Similarity(scale, rotation, mean_true - scale * rotation @ mean)
