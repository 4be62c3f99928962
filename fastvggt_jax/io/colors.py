"""A colour map of our own, so that pictures need no plotting library."""

import numpy as np

# From far to near: dark indigo over blue, teal and green to light sand; every step is lighter than the one
# before.
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


_STEPS = 2048  # of less than one of eight bits
_TABLE = np.concatenate([colorize(np.linspace(0, 1, _STEPS)), np.zeros((1, 3), np.uint8)])  # black at last


class DepthColors:
    """One scale of colours for depth maps f32[..., H, W] that are NaN where nothing is known: logarithmic,
    2nd to 98th percentile.
    """

    def __init__(self, depths: np.ndarray) -> None:
        known = depths[np.isfinite(depths)]
        near, far = np.percentile(known, [2, 98]) if known.size else (1.0, 1.0)
        self.near, self.far = float(near), float(far)

    def __call__(self, depth: np.ndarray) -> np.ndarray:
        """u8[..., H, W, 3]: light near, dark far; black where depth is NaN."""
        tiny = float(np.finfo(np.float32).tiny)
        log_near, log_far = np.log(max(self.near, tiny)), np.log(max(self.far, tiny))
        known = np.isfinite(depth)
        logs = np.log(np.maximum(depth, tiny), where=known, out=np.full_like(depth, log_far))
        shares = np.clip((log_far - logs) / max(log_far - log_near, 1e-6), 0, 1)
        steps = np.rint(shares * (_STEPS - 1)).astype(np.int16)
        return np.take(_TABLE, np.where(known, steps, np.int16(_STEPS)), axis=0)
