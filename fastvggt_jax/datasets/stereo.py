"""A real stereo pair with measured depth: the motorcycle of Middlebury 2014, which scikit-image ships. Needs
the extra `evaluate`.

D. Scharstein et al., "High-resolution stereo datasets with subpixel-accurate ground truth", GCPR 2014.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from fastvggt_jax.evaluate.runner import predictor
from fastvggt_jax.sources import load_images


def motorcycle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The left and the right photograph, u8[500, 741, 3], and the left one's disparity in pixels f32[500,
    741], inf where unknown.
    """
    if importlib.util.find_spec("skimage") is None:
        raise ModuleNotFoundError(
            "the stereo pair comes with scikit-image: pip install 'fastvggt_jax[evaluate]'"
        )
    import skimage.data

    return skimage.data.stereo_motorcycle()


def rank_correlation(depth: np.ndarray, disparity: np.ndarray) -> tuple[float, int]:
    """Spearman's ρ between 1 / depth and the disparity over the pixels [H, W] where both are known, and how
    many these are.

    It is 1 for every depth that orders the pixels as they are: neither the unit nor an offset of the
      disparity counts.
    """
    known = np.isfinite(disparity) & (disparity > 0) & np.isfinite(depth) & (depth > 0)
    if known.sum() < 2:
        raise ValueError("the model gives hardly any pixel of the stereo pair a depth: damaged weights?")
    return float(spearmanr(1 / depth[known].astype(np.float64), disparity[known]).statistic), int(known.sum())


def evaluate_pair(
    model: nn.Module,
    params: Mapping,
    left: np.ndarray,
    right: np.ndarray,
    disparity: np.ndarray,
    size: int | None = None,
) -> dict:
    """A pair as the model sizes photographs (`load_images`), the left one first, measured in the left one's
    own pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("left.png", "right.png")]
        for file, pixels in zip(files, (left, right), strict=True):
            Image.fromarray(pixels).save(file)
        size = model.image_size if size is None else size
        images = load_images(files, mode=model.image_mode, size=size, patch_size=model.patch_size)
    found, density = predictor(model, params)(images.pixels[None])
    depth = images.transforms[0].map_to_original(np.asarray(found.depth[0, 0]))
    correlation, pixels = rank_correlation(depth, disparity)
    return {
        "rank correlation": correlation,
        "pixels": pixels,
        "share of pixels": pixels / disparity.size,
        "size": {"width": images.pixels.shape[2], "height": images.pixels.shape[1], "mode": model.image_mode},
        "effective sparsity": 0.0 if density is None else 1 - float(np.mean(jax.device_get(density))),
    }
