"""Where pictures come from, and how they are sized for a model."""

from fastvggt_jax.sources.base import Frame, Source, register, registered
from fastvggt_jax.sources.images import Images, load_images
from fastvggt_jax.sources.sizing import ImagePolicy, ImageTransform
from fastvggt_jax.sources.video import Video

__all__ = [
    "Frame",
    "ImagePolicy",
    "ImageTransform",
    "Images",
    "Source",
    "Video",
    "load_images",
    "register",
    "registered",
]
