"""A converted VGGT or π³ inside an NNX program: flax.nnx.bridge wraps the linen module.

python examples/nnx.py mini photo1.jpg photo2.jpg
"""

from __future__ import annotations

import sys
from typing import Any

import jax
from flax import nnx

import fastvggt_jax as fv


class Reconstructor(nnx.Module):
    """Any of our models as an NNX module, with its parameters as nnx.Param."""

    def __init__(self, model: Any, params: dict[str, Any]) -> None:
        self.model = nnx.bridge.ToNNX(model)
        # What its lazy_init does, without computing numbers that are thrown away.
        for name, values in params["params"].items():
            setattr(self.model, name, nnx.data(jax.tree.map(nnx.Param, values)))

    def __call__(self, images: jax.Array) -> Any:
        return self.model(images)


def main(name: str, photos: list[str]) -> None:
    model, params = fv.from_pretrained(name)
    images = fv.load_images(photos, model.image_policy)
    reconstructor = Reconstructor(model, params)
    prediction = nnx.jit(lambda module, pixels: module(pixels))(reconstructor, images.pixels[None])
    scene = fv.to_scene(prediction, images)
    print(f"{len(scene.point_cloud(conf_percentile=25)):,} points")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
