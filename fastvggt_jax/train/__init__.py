"""Training of VGGT, π³ or Pi3X on scenes whose truth is known: from scratch, or on from converted weights.

`train(config, workdir)` runs what a `TrainConfig` describes; `fastvggt train CONFIG.py --workdir DIR` is the
command.
"""

from fastvggt_jax.train.config import Shape, TrainConfig, load_config
from fastvggt_jax.train.loop import TrainingFailed, train

__all__ = ["Shape", "TrainConfig", "TrainingFailed", "load_config", "train"]
