"""Models on eight simulated devices beside one: what `test_sharding.py` runs in a process of its own, as
`python -m tests.eight_devices CASE[,CASE...] ARGUMENTS`, which prints what each found as a line of JSON.
"""

import contextlib
import dataclasses
import gc
import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fastvggt_jax import Conditions, Pi3X, Sparsity
from fastvggt_jax.errors import InputError
from fastvggt_jax.evaluate.runner import evaluate, predictor
from fastvggt_jax.models import registry
from fastvggt_jax.pipeline import Settings, reconstruct
from fastvggt_jax.pretrained import BUNDLED, from_pretrained
from fastvggt_jax.sharding import frames_mesh
from fastvggt_jax.sources import ImagePolicy
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import tiny_model
from fastvggt_jax.train import Shape, loop, train
from fastvggt_jax.train import state as training
from pallas_kernels.implementation import is_sharded
from tests import shapes_once
from tests.toys.dataset import Walls
from tests.toys.model import PATH, Toy
from tests.train.runs import CAMERAS, MODEL, PI3, config, planes

VGGT = CAMERAS.clone(num_heads=4)
SPARSE = dict(block=(4, 4))  # of four patches a frame


def mesh_of(kind: AxisType = AxisType.Auto, **axes: int) -> jax.sharding.Mesh:
    count = int(np.prod(list(axes.values())))
    kinds = (kind,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=jax.devices()[:count])


def photographs(scenes: int, frames: int, side: int = 28) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (scenes, frames, side, side, 3), np.uint8)


def difference(found, expected) -> float:
    """The largest of all arrays, relative to the largest number of the array."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    worst = 0.0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape and np.isfinite(other).all() and np.abs(other).max() > 0
        worst = max(worst, float(np.abs(one - other).max() / np.abs(other).max()))
    return worst


def equal(model, mesh, images, *args) -> dict:
    """The prediction on the mesh, which is set, beside that on one device."""
    params = random_params(model)
    expected = jax.jit(model.apply)(params, images, *args)
    with jax.set_mesh(mesh):
        found = jax.jit(model.apply)(params, images, *args)
    density = [] if found.density is None else np.asarray(expected.density).tolist()
    leaf = jax.tree.leaves(found)[0].sharding.spec
    return {"error": difference(found, expected), "density": density, "spec": [*leaf]}


def plan() -> dict:
    """Scenes along one axis and frames that do not divide along another; a layer of each kind."""
    sparsity = Sparsity(0.5, frame_layers=(0,), layers=(1, 2), **SPARSE)
    model = MODEL.clone(num_heads=4, frames_chunk=1, sparsity=sparsity)
    return equal(model, mesh_of(scenes=2, frames=4), photographs(2, 5))


def fewer_frames_than_devices() -> dict:
    """And fewer heads; τ, which keeps another share of each head; the released rule for special keys."""
    sparsity = Sparsity(cdf_threshold=0.5, special_keys="official", block=(4, 3))
    return equal(VGGT.clone(num_heads=2, sparsity=sparsity), mesh_of(frames=8), photographs(1, 3))


def heads_that_do_not_divide() -> dict:
    """Four over three devices, of π³, on explicit axes."""
    sparsity = Sparsity(0.5, cdf_threshold=0.4, order="hilbert", **SPARSE)
    return equal(
        PI3.clone(num_heads=4, depth=2, sparsity=sparsity),
        mesh_of(AxisType.Explicit, frames=3),
        photographs(1, 5, 42),
    )


def program() -> dict:
    """Images that lie on a mesh, where none is set; and what the program sends."""
    model, images, mesh = VGGT.clone(remat=True), photographs(1, 4), frames_mesh(4)
    params = random_params(model)
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec(None, "frames")))
    compiled = jax.jit(model.apply).lower(params, spread).compile()
    found = compiled(params, spread)
    sent = {}
    for name in ("all-to-all", "all-gather", "all-reduce", "collective-permute"):
        lines = [line for line in compiled.as_text().splitlines() if re.search(rf" {name}(-start)?\(", line)]
        shapes = [re.findall(r"\[([\d,]+)\]", line.split(f" {name}")[0]) for line in lines]
        sent[name] = [int(np.prod([int(n) for n in one[-1].split(",")])) * len(one) for one in shapes]
    keys = 4 * (1 + model.num_register_tokens + 4) * model.embed_dim
    return {
        "error": difference(found, jax.jit(model.apply)(params, images)),
        "spec": [*found.pose_enc.sharding.spec],
        "sent": sent,
        "keys": keys,
        "camera tokens": 4 * 2 * model.embed_dim,
    }


def gradient(model=VGGT, scenes: int = 1, frames: int = 3, devices: int = 2) -> dict:
    """Of the training loss, relative to its length."""
    batch, params = planes(0, Shape(scenes, frames, 28, 28)), random_params(model)

    def loss(params):
        return model.loss(model.apply(params, batch.images), batch.truth)[0]

    expected = jax.jit(jax.grad(loss))(params)
    with jax.set_mesh(frames_mesh(devices)):
        found = jax.jit(jax.grad(lambda params: loss(params)))(params)
    length = lambda tree: float(np.sqrt(sum(np.square(np.asarray(x)).sum() for x in jax.tree.leaves(tree))))
    away = jax.tree.map(lambda one, other: np.asarray(one) - np.asarray(other), found, expected)
    return {"error": length(away) / length(expected), "length": length(expected)}


def gradient_of_pi3() -> dict:
    return gradient(PI3.clone(num_heads=2), frames=3, devices=2)


def compiled_training() -> dict:
    """Whether what a step and a validation of rendered batches compute is known to lie on several devices,
    where they are compiled before there are batches.
    """
    seen = []

    class Seeing(Toy):
        @classmethod
        def loss(cls, prediction, truth, **weights):
            seen.append(is_sharded(prediction.depth))
            return super().loss(prediction, truth, **weights)

    loop.render = lambda split, first, shape, **_: planes.__wrapped__(first, shape)
    loop.compiled(config(model=Seeing(), shapes=(Shape(8, 1, 4, 4),), data=None), training.make_mesh())
    return {"seen": seen}


def training_starts() -> dict:
    """Bytes that have come to lie on the first device when the state was made and at the first step, over
    those of the state.
    """
    there, sizes = [], []
    state_of = loop.start

    def lie_there() -> int:
        shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])

    def start(*args):
        state = state_of(*args)
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
        there.append(lie_there())
        return state

    def data(step, shape):
        there.append(lie_there())
        return planes(step, shape)

    loop.start = start
    wide = dict(model=Toy(width=1 << 14), shapes=(Shape(8, 1, 4, 4),), shard_params=True, data=data)
    run = config(**wide, steps=1, warmup_steps=0, validation_scenes=0)
    gc.collect()  # what other cases have left
    before = lie_there()
    with registry.registered("toy", PATH), tempfile.TemporaryDirectory() as folder:
        train(run, folder, quiet=True)
    return {"share": [(n - before) / sizes[0] for n in there]}


def pi3x() -> dict:
    """Its metric token attends to the frames of all devices; three frames on two, which do not divide."""
    model = tiny_model("pi3x", dtype=jnp.float32, heads=("point", "conf", "camera", "metric"))
    found = equal(model, mesh_of(frames=2), photographs(1, 3))
    try:
        with jax.set_mesh(mesh_of(frames=2)):
            given = Conditions(K=np.tile(np.eye(3, dtype=np.float32), (1, 3, 1, 1)))
            model = model.clone(heads=Pi3X.heads)
            jax.eval_shape(model.apply, model.abstract_params(), photographs(1, 3), given)
    except InputError as error:
        found["refused"] = str(error)
    return found


def tracks() -> dict:
    fields = dict(track_corr_levels=2, track_corr_radius=1, track_features=16, track_iterations=1)
    fields |= dict(track_hidden=32, track_depth=1, track_num_heads=2, track_num_virtual=4)
    model = MODEL.clone(num_heads=4, heads=("depth", "track"), low_memory=True, frames_chunk=1, **fields)
    points = np.random.default_rng(1).uniform(3, 24, (1, 4, 2)).astype(np.float32)
    return equal(model, mesh_of(frames=2), photographs(1, 3), points)


def reconstructed(folder: str, devices: str | None = None) -> dict:
    """The report of the pipeline on three photographs, shared among devices."""
    views = sorted(str(path) for path in (BUNDLED["mini"].path.parent / "views").iterdir())[:3]
    settings = Settings(tuple(views), "mini", Path(folder), formats=("cameras", "depth"), size=112)
    settings = dataclasses.replace(settings, devices=devices and int(devices))
    return reconstruct(settings, lambda name: contextlib.nullcontext())


def host(number: str, address: str, folder: str) -> dict:
    """One of two hosts, of two devices each."""
    jax.distributed.initialize(address, 2, int(number))
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    return reconstructed(folder, "4")


def refusals() -> dict:
    """The sentences of what cannot be."""
    said = {}
    params = VGGT.abstract_params()

    def refused(name, run):
        try:
            run()
            said[name] = None
        except InputError as error:
            said[name] = error.text

    def on(mesh, images):
        with jax.set_mesh(mesh):
            jax.eval_shape(VGGT.apply, params, images)

    def intermediates():
        with jax.set_mesh(frames_mesh(2)):
            apply = lambda *args: VGGT.apply(*args, mutable=["intermediates"])
            jax.eval_shape(apply, params, photographs(1, 2))

    refused("too many", lambda: frames_mesh(9))
    refused("none", lambda: frames_mesh(0))
    refused("other axes", lambda: on(mesh_of(AxisType.Explicit, data=2), photographs(2, 2)))
    refused("other axes, not explicit", lambda: on(mesh_of(data=2), photographs(2, 2)))
    refused("scenes", lambda: on(mesh_of(scenes=2, frames=2), photographs(3, 2)))
    refused("intermediates", intermediates)
    refused("parameters", lambda: from_pretrained("mini", mesh=mesh_of(data=2)))
    return said


def evaluated() -> dict:
    """Eight scenes at a time, one on each device, and two that are left, beside one at a time on one."""
    model = VGGT.clone(heads=("camera", "depth"))
    predict = predictor(model.clone(sparsity=Sparsity(0.5, 0.9, **SPARSE)), random_params(model))
    both, where, data = [], [], Walls(scenes=10, shape=(28, 28))

    def seen(images):
        where.append(len(images.sharding.device_set))
        return predict(images)

    for batch in (8, 1):
        found = evaluate({"x": seen}, ImagePolicy("crop", 28, 14), data, batch=batch)
        both.append(found["x"].report()["summary"])
    error = max(abs(both[0][name] - value) / max(1, abs(value)) for name, value in both[1].items())
    return {"error": error, "devices": sorted(set(where)), "sparsity": both[0]["effective sparsity"]}


if __name__ == "__main__":
    shapes_once.install()
    for case in sys.argv[1].split(","):
        print(json.dumps(globals()[case](*sys.argv[2:])), flush=True)
