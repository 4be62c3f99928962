"""Where pictures come from, and how they are sized for a model."""

from fastvggt_jax.sources.photographs import Images, load_images
from fastvggt_jax.sources.sizing import ImagePolicy, ImageTransform

__all__ = ["ImagePolicy", "ImageTransform", "Images", "load_images"]
