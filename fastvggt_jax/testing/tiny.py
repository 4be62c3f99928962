"""A tiny VGGT of random weights."""

from pathlib import Path
from typing import Any

from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.testing.random_weights import random_params

TINY = dict(
    img_size=98,
    embed_dim=64,
    encoder_depth=2,
    encoder_num_heads=2,
    depth=4,
    num_heads=2,
    taps=(0, 1, 2, 3),
    camera_trunk_depth=1,
    camera_num_heads=2,
    dpt_features=32,
    dpt_level_channels=(16, 32, 32, 32),
    heads=("camera", "depth", "point"),
)


def write_random_checkpoint(path: Path, seed: int = 0, **fields: Any) -> None:
    """Write a native weight file of a VGGT of the numbers TINY, changed by `fields`."""
    model = VGGT(**{**TINY, **fields})
    save_params(
        path, random_params(model, seed), model, source=f"random numbers, seed {seed}", license="none needed"
    )
