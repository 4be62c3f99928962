"""A colour map of our own, so that pictures need no plotting library."""

import numpy as np

# From far to near: dark indigo over blue, teal and green to light sand; every step is lighter than the one before.
_ANCHORS = np.array(
    [
        (24, 16, 64),
        (56, 52, 140),
        (44, 104, 170),
        (38, 150, 150),
        (92, 190, 110),
        (190, 210, 80),
        (250, 205, 90),
        (255, 240, 190),
    ],
    np.float32,
)


def colorize(values: np.ndarray) -> np.ndarray:
    """u8[..., 3] of values in [0, 1] (clipped): 0 dark, 1 light."""
    at = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(values, at, _ANCHORS[:, c]) for c in range(3)], -1).round().astype(np.uint8)
