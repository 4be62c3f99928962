"""What a data set gives: photographs, and what is true of them."""

from __future__ import annotations

import flax.struct
import jax

Array = jax.Array


@flax.struct.dataclass
class Truth:
    """What B scenes of F photographs really look like, in any coordinates and any unit; numpy or jax arrays.

    Attributes:
      cam_from_world: f32[B, F, 3, 4], OpenCV axes.
      K: f32[B, F, 3, 3] in pixels, the outer corner of the first one being (0, 0).
      depth: f32[B, F, H, W] along the camera's z. points: f32[B, F, H, W, 3] in the world. valid: bool[B, F,
        H, W], where these are known; elsewhere they are any finite number.
      tracks: f32[B, F, Q, 2], where the points to track are in each view, in the tracker's pixels, the centre
        of the first one being (0, 0). visible: bool[B, F, Q]. None without such points.
    """

    cam_from_world: Array
    K: Array
    depth: Array
    points: Array
    valid: Array
    tracks: Array | None = None
    visible: Array | None = None
