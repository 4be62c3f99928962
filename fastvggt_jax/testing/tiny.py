"""Every model in tiny, for tests and for whoever tries a program without its weights."""

from pathlib import Path
from typing import Any

from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.models.base import Model
from fastvggt_jax.testing.random_weights import random_params

_BACKBONE = dict(img_size=98, embed_dim=64, encoder_depth=2, encoder_num_heads=2, num_heads=2)
TINY: dict[str, dict[str, Any]] = {  # by the names of the registry
    "vggt": dict(
        **_BACKBONE,
        depth=4,
        taps=(0, 1, 2, 3),
        camera_trunk_depth=1,
        camera_num_heads=2,
        dpt_features=32,
        dpt_level_channels=(16, 32, 32, 32),
        heads=("camera", "depth", "point"),
    ),
    "pi3": dict(
        **_BACKBONE,
        depth=2,
        head_embed_dim=64,
        head_depth=1,
        head_num_heads=2,
        head_out_dim=64,
        camera_out_dim=32,
    ),
}


def tiny_model(name: str = "vggt", **fields: Any) -> Model:
    """The model of that name in the registry with the numbers of TINY, changed by `fields`."""
    return registry.find(name)(**{**TINY[name], **fields})


def write_random_weights(path: Path, model_name: str = "vggt", *, seed: int = 0, **fields: Any) -> None:
    """Writes a native weight file of `tiny_model(model_name, **fields)` with `random_params`."""
    model, source = tiny_model(model_name, **fields), f"random numbers, seed {seed}"
    save_params(path, random_params(model, seed), model, source=source, license="none needed")
