"""Errors of a whole camera path, as `evo` (github.com/MichaelGrupp/evo) and the Tanks & Temples tables define
them. Numpy, float64.

Cameras: `cam_from_world` [F, 3, 4], OpenCV axes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import procrustes

from fastvggt_jax.evaluate.metrics import ate
from fastvggt_jax.geometry.alignment import align


def trajectory_errors(
    cam_from_world: Float[np.ndarray, "F 3 4"], truth: Float[np.ndarray, "F 3 4"]
) -> dict[str, float]:
    """ "ATE" and "RPE translation" in the truth's unit, "RPE rotation" in degrees: evo's APE of translations
    and RPE of each two frames that follow one another, root mean squares, after alignment of the whole path
    by a similarity (`align=True, correct_scale=True`).

    RPE is of inv(inv(G_i) G_{i+1}) · inv(P_i) P_{i+1}, where G and P are true and predicted world_from_cam.
    """
    R, centres = world_from_cam(cam_from_world)
    R_true, centres_true = world_from_cam(truth)
    similarity = align(centres, centres_true)
    step, turn = _steps(similarity.rotation @ R, similarity(centres))
    step_true, turn_true = _steps(R_true, centres_true)
    # The length of a translation does not change with the frame that it is given in.
    translation = np.linalg.norm(step - step_true, axis=-1)
    chord = np.linalg.norm(turn - turn_true, axis=(-2, -1)) / 8**0.5  # sin(angle / 2)
    rotation = np.rad2deg(2 * np.arcsin(np.minimum(chord, 1)))
    return {
        "ATE": ate(cam_from_world, truth),
        "RPE translation": _rms(translation),
        "RPE rotation": _rms(rotation),
    }


def procrustes_ate(cam_from_world: Float[np.ndarray, "F 3 4"], truth: Float[np.ndarray, "F 3 4"]) -> float:
    """ATE of the Tanks & Temples tables (FlowMap's flowmap/misc/ate.py, MASt3R-SfM §5.1): both sets of camera
    centres are centred and brought to length 1, the prediction is rotated, mirrored if need be, and scaled as
    fits best; the root mean square over all 3F numbers.

    Without a unit, and falling as 1/√F: relative to the path's size it is this times √(3F). 1/√(3F), as wrong
    as can be, where all centres coincide.
    """
    centres, centres_true = world_from_cam(cam_from_world)[1], world_from_cam(truth)[1]
    if min(np.ptp(centres, 0).max(), np.ptp(centres_true, 0).max()) == 0:
        return float(1 / np.sqrt(centres.size))
    return float(np.sqrt(procrustes(centres_true, centres)[2] / centres.size))


def world_from_cam(cam_from_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations f64[F, 3, 3] and camera centres f64[F, 3]."""
    poses = np.asarray(cam_from_world, np.float64)
    R = poses[:, :, :3].swapaxes(1, 2)
    return R, -np.einsum("fij,fj->fi", R, poses[:, :, 3])


def _steps(R: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame to the next one, in the first one's axes: f64[F - 1, 3], f64[F - 1, 3, 3]."""
    back = R[:-1].swapaxes(1, 2)
    return np.einsum("fij,fj->fi", back, np.diff(centres, axis=0)), back @ R[1:]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if len(values) else 0.0
