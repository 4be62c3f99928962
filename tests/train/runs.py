"""Small runs that tests of training share: models, batches and what was recorded."""

import dataclasses
import functools
import json
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax import Pi3, geometry
from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.testing.tiny import tiny_model
from fastvggt_jax.train import Shape, TrainConfig
from fastvggt_jax.train.data import Batch
from fastvggt_jax.train.loop import compiled
from fastvggt_jax.train.state import initial_params
from tests.toys.model import Toy

ROOT = Path(__file__).parents[2]
SMALL = dict(
    embed_dim=32, encoder_depth=1, encoder_num_heads=1, num_heads=1, camera_num_heads=1, camera_iterations=2
)
SMALL |= dict(img_size=28, dpt_features=16, dpt_level_channels=(8, 8, 8, 8))
MODEL = tiny_model("vggt", **SMALL, heads=("camera", "depth"), dtype=jnp.float32)
CAMERAS = MODEL.clone(heads=("camera",))  # compiles and runs in a third of the time
PI3 = Pi3(
    **{
        name: SMALL[name]
        for name in ("img_size", "embed_dim", "encoder_depth", "encoder_num_heads", "num_heads")
    },
    **dict(depth=1, head_embed_dim=32, head_depth=1, head_num_heads=1, head_out_dim=32, camera_out_dim=16),
    dtype=jnp.float32,
    remat=True,
)
TOY = Toy(width=64)  # compiles at once: for what is the loop's own
SHAPE = Shape(scenes=2, frames=2, height=28, width=28)


@functools.cache
def planes(step: int, shape: Shape) -> Batch:
    """Views of tilted planes, without rendering: noise for images, the same for the same step."""
    rng = np.random.default_rng(step % 2**32)
    B, F, H, W = shape.scenes, shape.frames, shape.height, shape.width
    pose = np.concatenate(
        [rng.normal(0, 0.3, (B, F, 3)), rng.normal(0, 0.1, (B, F, 3)), np.ones((B, F, 3))], -1
    )
    cam_from_world, K = geometry.decode_pose(pose, H, W)
    slope = rng.normal(0, 0.3, (2, B, F, 1, 1))
    depth = (2 + slope[0] * np.linspace(-1, 1, W) + slope[1] * np.linspace(-1, 1, H)[:, None]).astype(
        np.float32
    )
    points = geometry.unproject_depth(depth[..., None], K, cam_from_world)
    truth = Truth(cam_from_world, K, jnp.asarray(depth), points, jnp.ones((B, F, H, W), bool))
    return Batch(images=jnp.asarray(rng.random((B, F, H, W, 3)), jnp.float32), query_points=None, truth=truth)


def same(step: int, shape: Shape) -> Batch:
    """The batch that is learnt by heart, and one like it to validate with."""
    return planes(min(step, 0), shape)


def config(**fields) -> TrainConfig:
    """Most runs are of one program, which is compiled once (conftest.py)."""
    defaults = dict(
        model=CAMERAS,
        shapes=(SHAPE,),
        steps=40,
        warmup_steps=5,
        learning_rate=3e-3,
        weight_decay=0.0,
        data=same,
    )
    defaults |= dict(log_every=1, save_every=4, validate_every=20, validation_scenes=2)
    return TrainConfig(**{**defaults, **fields})


# what the program of a step does not depend on
SCHEDULE = dict(steps=2, warmup_steps=1, learning_rate=1.0, final_learning_rate=1.0, seed=0, init=None)
SCHEDULE |= dict(first_scene=0, log_every=1, save_every=1, validate_every=1, validation_scenes=0, data=None)
PROGRAMS, STARTS = {}, {}


def compiled_once(config: TrainConfig, mesh):
    """As `loop.compiled`, of batches that are given."""
    key = repr(dataclasses.replace(config, weights_dtype="float32", **SCHEDULE))
    if config.data is None or key not in PROGRAMS:
        PROGRAMS[key] = compiled(config, mesh)
    return PROGRAMS[key]


def start_once(model, seed: int = 0):
    """As `state.initial_params`; a step uses up what it is given."""
    if (model, seed) not in STARTS:
        STARTS[model, seed] = jax.device_get(initial_params(model, seed, 0.1))
    return jax.tree.map(jnp.array, STARTS[model, seed])


def records(folder: Path, kind: str = "train") -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)


def killed(folder: Path) -> None:
    """In the middle of a step, when the first checkpoint is whole."""
    wait_for(folder / "last" / "4")
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(at: int, act):
    """Data that does something before the batch of a step is given."""

    def data(step: int, shape: Shape) -> Batch:
        if step == at:
            act()
        return same(step, shape)

    return data


# a configuration's file, of which `config` takes further fields
GOOD = """
import jax.numpy as jnp
from fastvggt_jax import Sparsity
from tests.train.runs import CAMERAS, MODEL, SHAPE, TOY, Shape, config
def get_config():
    return config({})
"""
