"""Whether a Pi3X that is told the cameras follows them: a tiny one learns from rendered scenes for a few
minutes, and is then asked about scenes that it has not seen, with and without what is known of them.

    python benchmarks/known_cameras.py            # on a CPU, some minutes; prints a JSON line for each row

Errors are of the relative poses of all pairs of views, in degrees: of rotations, and of the directions of
translations. In the last two rows it is told the cameras of another scene, whose photographs it does not
see: once measured against these, and once against those of the photographs. Who follows what is told is near
the former and far from the latter.
"""

import argparse
import json
import tempfile
import time
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax import Conditions, Pi3X, from_pretrained
from fastvggt_jax.evaluate.measures import of_pairs
from fastvggt_jax.evaluate.metrics import pair_errors
from fastvggt_jax.geometry import invert_se3
from fastvggt_jax.train import Shape, TrainConfig, train
from fastvggt_jax.train.data import Batch, render

SHAPE = Shape(scenes=8, frames=4, height=28, width=28)
# Without the metric head, on which no relative pose depends.
MODEL = Pi3X(
    **dict(img_size=28, embed_dim=128, encoder_depth=2, encoder_num_heads=2, depth=4, num_heads=2),
    **dict(head_embed_dim=64, head_depth=1, head_num_heads=1, head_out_dim=64, camera_out_dim=32),
    **dict(inject_after=(1, 3, 5), conv_channels=(16, 16, 16), dtype=jnp.float32),
    heads=("point", "conf", "camera", "conditions"),
)


def pool(batches: int):
    """Data of a training: so many rendered batches, again and again. To render is half of the time."""

    @cache
    def rendered(number: int) -> Batch:
        return render("train", number * SHAPE.scenes, SHAPE, supersampling=1)

    return lambda step, shape: rendered(step % batches)


def held_out(batches: int):
    """Batches of the test split, from which no model has learnt."""
    for number in range(batches):
        yield render("test", number * SHAPE.scenes, SHAPE, supersampling=1)


def rows(batch: Batch):
    """(name, what is told, world_from_cam f32[B, F, 4, 4] that the answer is measured against). Masks choose,
    so that one program serves all.
    """
    truth, own = batch.truth, invert_se3(batch.truth.cam_from_world)
    every = jnp.ones(own.shape[:2], bool)
    none, half = ~every, every & (jnp.arange(SHAPE.frames) % 2 == 0)
    depth = jnp.where(truth.valid, truth.depth, 0)

    def told(poses=none, K=none, depths=none, of=own):
        return Conditions(depth, truth.K, None, of, depth_mask=depths, ray_mask=K, pose_mask=poses)

    yield "nothing", told(), own
    yield "K", told(K=every), own
    yield "cameras", told(every), own
    yield "cameras of every second view", told(half), own
    yield "cameras, K", told(every, every), own
    yield "cameras, K, depth", told(every, every, every), own
    others = jnp.roll(own, 1, 0)
    yield "another scene's cameras, against these", told(every, of=others), others
    yield "another scene's cameras, against its own", told(every, of=others), own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batches", type=int, default=64, help="of 8 rendered scenes, to learn from")
    parser.add_argument("--test", type=int, default=8, help="batches of 8 scenes, to measure on")
    parser.add_argument("--workdir", type=Path, help="keeps the training, which then goes on")
    options = parser.parse_args()
    config = TrainConfig(
        model=MODEL,
        shapes=(SHAPE,),
        steps=options.steps,
        warmup_steps=min(50, options.steps // 2),
        learning_rate=1e-3,
        layer_scale=1.0,  # there are few layers
        data=pool(options.batches),
        log_every=50,
        validation_scenes=0,
    )
    start, cpu = time.perf_counter(), time.process_time()
    spent = lambda: {
        "seconds": round(time.perf_counter() - start),
        "seconds of CPU": round(time.process_time() - cpu),
    }
    batch = config.data(0, SHAPE)
    jax.block_until_ready(batch)
    print(json.dumps({"renderer compiled": spent()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workdir = options.workdir or Path(folder) / "run"
        steps = int(train(config, workdir).step)
        model, params = from_pretrained(workdir / "weights.safetensors", heads=MODEL.heads, dtype="float32")
    print(json.dumps({"steps": steps, "scenes": options.batches * SHAPE.scenes, **spent()}), flush=True)
    run, errors = jax.jit(model.apply), {}
    for batch in held_out(options.test):
        for name, told, against in rows(batch):
            found = invert_se3(run(params, batch.images, told).camera_poses)
            for mine, true in zip(
                *(np.asarray(x)[:, :, :3] for x in (found, invert_se3(against))), strict=True
            ):
                errors.setdefault(name, []).append(pair_errors(mine, true))
    for name, each in errors.items():
        found = of_pairs(np.concatenate(each, 1))
        kept = ("rotation error", "translation error", "AUC@30")
        print(json.dumps({"told": name} | {key: round(found[key], 2) for key in kept}), flush=True)
    print(json.dumps({"scenes": options.test * SHAPE.scenes, **spent()}))


if __name__ == "__main__":
    main()
