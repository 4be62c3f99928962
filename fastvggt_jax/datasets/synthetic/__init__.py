"""Procedural scenes with their truth: what the bundled model is trained on and what `evaluate` measures
against.

`sample(split, index)` is a scene, photographed: the same numbers for the same arguments. A scene is a `World`
of primitives (world.py) with procedural materials (texture.py), seen by a ray renderer (render.py) from a
path of cameras (path.py).
"""

from fastvggt_jax.datasets.synthetic.sample import SPLIT_SIZE, SPLITS, Sample, sample, tracks

__all__ = ["SPLITS", "SPLIT_SIZE", "Sample", "sample", "tracks"]
