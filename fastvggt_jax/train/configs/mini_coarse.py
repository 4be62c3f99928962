"""How the training of the bundled model begins: on views of 112×112 pixels, four times as many scenes in the
same time as at 224×224.
"""

import dataclasses

from fastvggt_jax.train import Shape, TrainConfig
from fastvggt_jax.train.configs import mini


def get_config() -> TrainConfig:
    return dataclasses.replace(mini.get_config(), shapes=(Shape(scenes=64, frames=8, height=112, width=112),))
