"""The bundled model: a small VGGT, trained from random numbers on procedural scenes alone."""

import jax.numpy as jnp

from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.train import Shape, TrainConfig

MINI = VGGT(
    img_size=224,
    embed_dim=256,
    encoder_depth=4,
    encoder_num_heads=4,
    depth=6,
    num_heads=4,
    taps=(1, 2, 4, 5),
    camera_trunk_depth=1,
    camera_num_heads=8,
    dpt_features=64,
    dpt_level_channels=(64, 96, 128, 128),
    heads=("camera", "depth", "point"),
    dtype=jnp.bfloat16,
    frames_chunk=1 << 20,  # all at once: there is memory
    remat=True,  # so narrow a model is faster computed again than fetched from memory
)


def get_config() -> TrainConfig:
    return TrainConfig(
        model=MINI,
        shapes=(  # for one card
            Shape(scenes=8, frames=8, height=224, width=224, weight=5),
            Shape(scenes=16, frames=4, height=224, width=224, weight=2),
            Shape(scenes=8, frames=8, height=168, width=224, weight=2),
            Shape(scenes=4, frames=16, height=224, width=224, weight=1),
        ),
        steps=20_000,
        learning_rate=5e-4,
        warmup_steps=500,
        loss_weights={"background": 0.05, "pairs": 5.0},  # background: sky
        supersampling=1,  # with 2, half of the time would go into rays
        weights_dtype="bfloat16",
    )
