"""Training: it learns, stops, goes on as if it had not stopped, and says what is wrong."""

import dataclasses
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

from fastvggt_jax import VGGT, Pi3, checkpoint, from_pretrained, geometry
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.tensors import open_safetensors
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models.losses.vggt import normalise
from fastvggt_jax.testing.tiny import TINY
from fastvggt_jax.train import Shape, TrainConfig, TrainingFailed, loop, train
from fastvggt_jax.train import state as training
from fastvggt_jax.train.data import Batch, render
from fastvggt_jax.train.optimizer import learning_rates, make_optimizer

ROOT = Path(__file__).parents[1]
SMALL = dict(
    embed_dim=32, encoder_depth=1, encoder_num_heads=1, num_heads=1, camera_num_heads=1, camera_iterations=2
)
SMALL |= dict(img_size=28, dpt_features=16, dpt_level_channels=(8, 8, 8, 8))
MODEL = VGGT(**{**TINY, **SMALL, "heads": ("camera", "depth")}, dtype=jnp.float32)
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
    depth = (2 + slope[0] * np.linspace(-1, 1, W) + slope[1] * np.linspace(-1, 1, H)[:, None])[
        ..., None
    ].astype(np.float32)
    points = geometry.unproject_depth(depth, K, cam_from_world)
    truth = normalise(cam_from_world, K, jnp.asarray(depth), points, jnp.ones((B, F, H, W), bool))
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


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing has interrupted: its folder."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(config(save_every=40), folder, quiet=True)
    return folder


def test_a_batch_is_learnt_by_heart(tmp_path):
    once = dict(steps=250, warmup_steps=30, log_every=250, save_every=250, validation_scenes=0)
    train(config(model=MODEL, **once), tmp_path, quiet=True)
    model, params = from_pretrained(tmp_path / "weights.safetensors")
    assert model.config() == MODEL.config()
    batch, exact = same(0, SHAPE), config(model=model.clone(dtype=jnp.float32))
    error = lambda parts: (
        parts["translation"] + parts["rotation"] + parts["field of view"] + parts["depth error"]
    )
    start = training.initial_params(MODEL, 0, 0.1)
    errors = [
        error(jax.jit(training.loss_of, static_argnums=0)(exact, p, batch)[1])
        for p in (start, params["params"])
    ]
    assert errors[1] < errors[0] / 100, errors


def test_pi3_learns_by_its_own_loss_and_is_read_from_a_weight_file(tmp_path):
    pi3 = config(model=PI3, steps=60, warmup_steps=6, learning_rate=1e-2, save_every=60, validation_scenes=0)
    train(pi3, tmp_path / "run", quiet=True)
    first, *_, last = records(tmp_path / "run")
    assert last["loss"] < first["loss"] / 4
    assert all(
        last[name] < first[name]
        for name in ("point error", "normal", "confidence", "rotation", "translation")
    )
    weights = str(tmp_path / "run" / "weights.safetensors")
    model, params = from_pretrained(weights)
    assert model.config() == PI3.config()
    jax.tree.map(
        np.testing.assert_array_equal,
        training.first_params(dataclasses.replace(pi3, init=weights)),
        params["params"],
    )
    text = str(jax.make_jaxpr(lambda p: training.loss_of(pi3, p, same(0, SHAPE)))(params["params"]))
    assert text.count("remat") >= 5  # the encoder's blocks, the pairs, the three frame decoders
    with pytest.raises(WeightsError, match="init: .*weights.safetensors holds a Pi3, not a VGGT"):
        train(config(init=weights), tmp_path / "other", quiet=True)
    with pytest.raises(ValueError, match="query_points=2 must be 0: π³ has no track head"):
        config(model=PI3, query_points=2)
    with pytest.raises(ValueError, match="pairs=1 must be 0: π³'s loss is of pairs"):
        config(model=PI3, pairs=1)


def test_what_is_recorded(straight):
    assert [record["step"] for record in records(straight)] == list(range(1, 41))
    assert [record["step"] for record in records(straight, "validation")] == [20, 40]
    assert losses(straight)[-1] < losses(straight)[0] / 3
    assert {path.name for path in straight.iterdir()} >= {
        "best.safetensors",
        "weights.safetensors",
        "model.json",
    }
    assert list((straight / "tensorboard").glob("events.*"))


def test_a_run_that_was_killed_or_asked_to_stop_goes_on_as_if_it_had_not(straight, tmp_path):
    code = (
        "import os, signal, sys; from tests.test_train import *\n"
        "train(config(data=at_step(6, lambda: killed(Path(sys.argv[1])))), sys.argv[1], quiet=True)"
    )
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(losses(folder)) == 6 and [path.name for path in (folder / "last").iterdir()] == ["4"]
    state = train(config(data=at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))), folder, quiet=True)
    assert state.step == 10 and losses(folder) == losses(straight)[:10]
    state = train(config(data=at_step(12, lambda: os.kill(os.getpid(), signal.SIGINT))), folder, quiet=True)
    assert state.step == 13 and losses(folder) == losses(straight)[:13]
    assert [record["step"] for record in records(folder)] == list(range(1, 14))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    def data(step, shape):
        batch = same(step, shape)
        return batch.replace(images=batch.images * (jnp.nan if step == 5 else 1))

    with pytest.raises(
        TrainingFailed,
        match=r"step 6 is not finite; the last good checkpoint is .*last/4; .*lower learning_rate than 0.003",
    ):
        train(config(data=data, log_every=3), tmp_path / "run", quiet=True)
    assert sorted(path.name for path in (tmp_path / "run" / "last").iterdir()) == ["4"]


def test_a_gradient_that_is_not_finite_is_not_saved_either(tmp_path, monkeypatch):
    real = training.loss_of

    def steep(*args):  # a finite loss whose derivative is infinite
        total, parts = real(*args)
        return total + jnp.sqrt(0 * total), parts

    monkeypatch.setattr(training, "loss_of", steep)
    with pytest.raises(
        TrainingFailed, match="the loss or gradient of step 1 is not finite; there is no checkpoint before it"
    ):
        train(config(save_every=1), tmp_path / "run", quiet=True)


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full() -> None:  # no more files of over 20 kB, once the first checkpoint is there
        wait_for(folder / "last" / "4")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    folder = tmp_path / "run"
    try:
        with pytest.raises(
            TrainingFailed, match=r"could not be written in .*run: .*; the last good checkpoint is .*last/4"
        ):
            train(config(data=at_step(6, full), validate_every=4), folder, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state = train(config(data=at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))), folder, quiet=True)
    assert state.step == 6 and [record["step"] for record in records(folder)] == list(range(1, 7))


# ---- of cameras alone


def gradient(model: VGGT, params, batch: Batch):
    return jax.jit(jax.grad(lambda p: training.loss_of(config(model=model), p, batch)[0]))(params)


def test_recomputing_changes_no_gradient():
    params = training.initial_params(CAMERAS, 0, 0.1)
    kept, again = (
        gradient(model, params, planes(3, SHAPE)) for model in (CAMERAS, CAMERAS.clone(remat=True))
    )
    text = str(
        jax.make_jaxpr(
            lambda p: training.loss_of(config(model=CAMERAS.clone(remat=True)), p, planes(3, SHAPE))
        )(params)
    )
    assert text.count("remat") >= 2  # the encoder's blocks and the pairs
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(a).max()))


def test_training_goes_on_from_a_weight_file_and_leaves_what_is_frozen(tmp_path, monkeypatch):
    before = training.initial_params(CAMERAS, 5, 0.1)
    save_params(
        tmp_path / "start.safetensors",
        {"params": before},
        CAMERAS,
        source="the official weights",
        license="CC BY-NC 4.0",
    )
    monkeypatch.setitem(checkpoint.BUNDLED, "start", tmp_path / "start.safetensors")  # as mini
    frozen = ("aggregator/patch_embed/*", "camera_head/trunk/*")
    cameras = config(
        model=CAMERAS,
        init="start",
        frozen=frozen,
        steps=3,
        warmup_steps=0,
        ema_decay=None,
        weights_dtype="bfloat16",
    )
    state = train(cameras, tmp_path / "run", quiet=True)
    old, new = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (before, state.params))
    for name in old:
        stays = name.startswith(("aggregator/patch_embed/", "camera_head/trunk/"))
        assert (np.array_equal(old[name], new[name])) == stays or not np.asarray(old[name]).any(), name
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    trained = sum(
        x.size
        for name, x in old.items()
        if not name.startswith(("aggregator/patch_embed/", "camera_head/trunk/"))
    )
    assert sum(x.size for x in moments) == 2 * trained  # none are kept of what is frozen
    written = open_safetensors(tmp_path / "run" / "weights.safetensors")
    metadata = written.metadata()
    assert {written.get_slice(name).get_dtype() for name in written.keys()} == {"BF16"}
    assert "3 steps from the official weights" in metadata["source"] and metadata["license"] == "CC BY-NC 4.0"


def test_a_run_renders_its_own_scenes_of_every_kind_and_validates_on_others(tmp_path, monkeypatch):
    rendered = []

    def render(split, first, shape, **_):
        rendered.append((split, first, shape))
        return planes.__wrapped__(
            -first if split == "validation" else first, shape
        )  # traced, when shapes are asked for

    monkeypatch.setattr(loop, "render", render)
    other = Shape(scenes=1, frames=3, height=28, width=28)
    run = config(
        data=None,
        shapes=(SHAPE, other),
        steps=6,
        warmup_steps=1,
        validate_every=6,
        validation_scenes=4,
        first_scene=70,
    )
    kinds = [run.shape_of(step) for step in range(6)]
    assert set(kinds) == {SHAPE, other}
    train(run, tmp_path, quiet=True)
    trained = [("train", 70 + 2 * step, kind) for step, kind in enumerate(kinds)]
    assert rendered[-8:] == [*trained, ("validation", 0, SHAPE), ("validation", 2, SHAPE)]
    assert all(np.isfinite(losses(tmp_path))) and len(losses(tmp_path)) == 6
    _, params = from_pretrained(tmp_path / "weights.safetensors")
    means = [training.loss_of(run, params["params"], planes(-first, SHAPE))[0] for first in (0, 2)]
    np.testing.assert_allclose(records(tmp_path, "validation")[0]["loss"], np.mean(means), rtol=1e-4)


def test_gradients_are_clipped_and_matrices_alone_decay():
    run = config(weight_decay=0.1, clip_norm=0.5)
    filled = lambda value: jax.tree.map(
        lambda x: np.full(x.shape, value, np.float32), CAMERAS.abstract_params()["params"]
    )
    optimizer, ones = make_optimizer(run, filled(1.0)), filled(1.0)
    first_update = jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(ones), ones))
    updates, _ = first_update(filled(0.0))
    for name, update in flax.traverse_util.flatten_dict(updates, sep="/").items():
        assert np.asarray(update).any() == name.endswith("/kernel"), name
    _, state = first_update(filled(10.0))
    np.testing.assert_allclose(optax.tree.norm(optax.tree.get(state, "mu")), (1 - run.beta1) * 0.5, rtol=1e-4)


def test_weights_are_averaged_with_a_memory_that_grows():
    mesh, run = training.make_mesh(), config()
    state, step = training.start(run, training.initial_params(CAMERAS, 0, 0.1)), training.make_step(run, mesh)
    average = jax.device_get(state.params)
    for i in range(2):
        state, _ = step(state, planes(0, SHAPE), np.float32(3e-3))
        decay = (1 + i) / (10 + i)
        average = jax.tree.map(
            lambda a, p, d=decay: d * a + (1 - d) * p, average, jax.device_get(state.params)
        )
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), jax.device_get(state.weights()), average
    )


def test_another_schedule_is_the_same_program():
    """A run that goes on with another length or learning rate need not be compiled anew."""
    mesh, batch = training.make_mesh(), planes(0, SHAPE)
    lower = lambda c: (
        training.make_step(c, mesh).lower(training.abstract_state(c), batch, np.float32(0)).as_text()
    )
    one, other = config(), config(steps=90, learning_rate=1e-5, warmup_steps=3, final_learning_rate=1e-6)
    assert lower(one) == lower(other) != lower(config(weight_decay=0.5))


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    rates = learning_rates(config(steps=105, warmup_steps=5, learning_rate=1e-2, final_learning_rate=1e-4))
    np.testing.assert_allclose(rates[:6], np.arange(6) * 2e-3, rtol=1e-6)
    np.testing.assert_allclose(rates[55], (1e-2 + 1e-4) / 2, rtol=1e-5)  # halfway
    assert len(rates) == 105 and (np.diff(rates[5:]) < 0).all() and 1e-4 < rates[-1] < 1.1e-4


def test_eight_devices_compute_what_one_does():
    code = (
        "from tests.test_train import *\n"
        "from jax.sharding import Mesh, AxisType\n"
        "shape = Shape(8, 2, 28, 28)\n"
        "def run(devices, shard_params):\n"
        "    c = config(model=CAMERAS, shapes=(shape,), shard_params=shard_params, weight_decay=0.1)\n"
        "    mesh = Mesh(np.array(jax.devices()[:devices]), (training.AXIS,), axis_types=(AxisType.Auto,))\n"
        "    state = jax.device_put(training.start(c, training.initial_params(CAMERAS, 0, 0.1)), training.state_sharding(c, mesh))\n"
        "    step, found = training.make_step(c, mesh), []\n"
        "    for i in range(3):\n"
        "        batch = jax.device_put(planes(i, shape), training.along_scenes(mesh))\n"
        "        assert len(batch.images.sharding.device_set) == devices\n"
        "        state, metrics = step(state, batch, np.float32(1e-3))\n"
        "        found.append(float(metrics['loss']))\n"
        "    kernel = state.params['aggregator']['global_blocks']['mlp']['fc1']['kernel']\n"
        "    return found, kernel.addressable_shards[0].data.size / kernel.size\n"
        "dense = MODEL.clone(heads=('depth',), frames_chunk=1)\n"
        "forward = jax.jit(dense.apply, in_shardings=(None, training.along_scenes(training.make_mesh())))\n"
        "images = jax.ShapeDtypeStruct((8, 2, 28, 28, 3), jnp.float32)\n"
        "text = forward.lower(dense.abstract_params(), images).compile().as_text()\n"
        "print(json.dumps([run(1, False), run(8, True), text.count('all-gather')]))"
    )
    environment = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert not done.returncode, done.stderr
    (one, whole), (spread, share), gathered = json.loads(done.stdout.splitlines()[-1])
    assert (whole, share) == (1, 1 / 8)
    np.testing.assert_allclose(spread, one, rtol=1e-4)
    assert not gathered  # each device computes the heads of its own scenes


def test_a_rendered_batch_agrees_with_itself():
    shape = Shape(scenes=2, frames=4, height=28, width=42)
    batch = render("train", 3, shape, query_points=6, supersampling=1)
    truth, valid = batch.truth, np.asarray(batch.truth.valid)
    assert batch.images.shape == (2, 4, 28, 42, 3) and valid.mean() > 0.3
    cam_from_world, K = geometry.decode_pose(truth.pose_enc, 28, 42)
    points = np.asarray(geometry.unproject_depth(truth.depth, K, cam_from_world))
    np.testing.assert_allclose(points[valid], np.asarray(truth.world_points)[valid], atol=1e-3)
    for b in range(2):  # the queries' points, seen from all views
        u, v = np.asarray(batch.query_points[b], int).T
        at = (
            np.einsum("fij,qj->fqi", cam_from_world[b, :, :, :3], truth.world_points[b, 0, v, u])
            + cam_from_world[b, :, None, :, 3]
        )
        pixels = np.einsum("fij,fqj->fqi", K[b], at / at[..., 2:])[..., :2]
        seen = np.asarray(truth.visible[b])
        assert seen[0].any() and seen[1:].any()
        np.testing.assert_allclose(pixels[seen], np.asarray(truth.tracks[b])[seen], atol=0.05)
    other = render("train", 5, shape, query_points=6, supersampling=1)
    assert all(np.abs(other.images[b] - batch.images[c]).mean() > 0.02 for b in range(2) for c in range(2))


# ---- bad input

GOOD = """
import jax.numpy as jnp
from fastvggt_jax import Sparsity
from tests.test_train import MODEL, SHAPE, Shape, config
def get_config():
    return config({})
"""


@pytest.mark.parametrize(
    "text, overrides, sentence",
    [
        (GOOD.format("learning_ratio=1"), [], "learning_ratio"),
        (
            GOOD.format(""),
            ["learning_ratio=1"],
            "learning_ratio cannot be set; what can: steps, learning_rate",
        ),
        (GOOD.format(""), ["steps"], "'steps' must be field=value"),
        (GOOD.format(""), ["steps=many"], "steps=many must be a whole number"),
        (GOOD.format(""), ["learning_rate=fast"], "learning_rate=fast must be a number"),
        (GOOD.format(""), ["shard_params=maybe"], "shard_params=maybe must be true or false"),
        (GOOD.format(""), ["seed=-1"], "seed=-1 must be at least 0"),
        (GOOD.format(""), ["frozen=decoder/*"], "no parameter is named like 'decoder/.'"),
        (GOOD.format("weights_dtype='int8'"), [], "weights_dtype='int8' must be"),
        (GOOD.format(""), ["steps=0"], "steps=0 must be greater than 0"),
        (GOOD.format("shapes=()"), [], "shapes is empty"),
        (
            GOOD.format("frozen=('decoder/*',)"),
            [],
            "no parameter is named like 'decoder/.'; names are such as aggregator/",
        ),
        (GOOD.format("query_points=3"), [], "query_points=3 does not fit the heads camera:"),
        ("def get_config(: pass", [], "invalid syntax"),
        ("x = 1", [], "has no get_config"),
        ("def get_config(): return {}['x']", [], "wrong.py is no configuration that works: KeyError: 'x'"),
        (GOOD.format(""), ["learning_rate=nan"], "learning_rate=nan must be greater than 0"),
        (
            GOOD.format(""),
            ["first_scene=99999999999"],
            "first_scene=99999999999 and 40 steps lead beyond the last scene",
        ),
        (GOOD.format("steps=10.5"), [], "steps=10.5 must be a whole number"),
        (GOOD.format("learning_rate='fast'"), [], "learning_rate='fast' must be a number"),
        (GOOD.format("shard_params=1"), [], "shard_params=1 must be True or False"),
        (GOOD.format("init=3"), [], "init=3 must be a text or None"),
        (GOOD.format("data=5"), [], "data=5 must be a function or None"),
        (GOOD.format("shapes=SHAPE"), [], r"shapes=Shape\(.*\) must be a tuple of Shape"),
        (GOOD.format("shapes=(Shape(2.0, 2, 28, 28),)"), [], "scenes=2.0 must be a whole number"),
        (GOOD.format("model='vggt'"), [], "model='vggt' must be a VGGT or a Pi3"),
        (
            GOOD.format("model=MODEL.clone(sparsity=Sparsity(0.5))"),
            [],
            "must be None: block-sparse attention has no gradient",
        ),
    ],
)
def test_a_wrong_configuration_gets_a_sentence(tmp_path, text, overrides, sentence):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    arguments = ["train", str(path), "--workdir", str(tmp_path / "run"), "--quiet"]
    done = CliRunner().invoke(app, [*arguments, *(x for override in overrides for x in ("--set", override))])
    assert done.exit_code == 2 and re.search(sentence, done.stderr) and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_an_interrupted_command_saves_and_says_so(tmp_path, monkeypatch, capfd):
    path, folder = tmp_path / "interrupted.py", tmp_path / "run"
    interrupting = GOOD.format(
        "data=at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT)), steps=5, warmup_steps=0"
    )
    path.write_text("import os, signal\nfrom tests.test_train import at_step\n" + interrupting)
    command = ["train", str(path), "--workdir", str(folder)]
    done = CliRunner().invoke(app, [*command, "--minutes", "0"])
    assert (
        done.exit_code == 2
        and "--minutes must be greater than 0, not 0" in done.stderr
        and not folder.exists()
    )
    real = loop.compiled
    monkeypatch.setattr(loop, "compiled", lambda *args: os.kill(os.getpid(), signal.SIGINT) or real(*args))
    done = CliRunner().invoke(app, command)
    assert (
        done.exit_code == 130
        and "stopped before the first step" in done.stdout
        and not (folder / "weights.safetensors").exists()
    )
    assert "interrupted: ends after this step" in capfd.readouterr().err
    monkeypatch.setattr(loop, "compiled", real)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130 and "stopped after 4 of 5 steps" in done.stdout
    done = CliRunner().invoke(app, [*command, "--set", f"init={folder / 'weights.safetensors'}"])
    assert (
        not done.exit_code
        and "stopped after 5 of 5" in done.stdout
        and "init is not read again" in done.stdout
    )


def test_a_folder_of_another_model_or_of_something_else_is_refused(straight, tmp_path):
    wide = config(model=CAMERAS.clone(embed_dim=64))
    with pytest.raises(WeightsError, match=r"the training of another model: embed_dim=32 \(here 64\)"):
        train(wide, straight, quiet=True)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(WeightsError, match="holds something else than a training run"):
        train(config(), tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / "holiday.jpg").unlink()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.json").write_text("{}")
    with pytest.raises(WeightsError, match="a model.json that no training run has written"):
        train(config(), tmp_path / "theirs", quiet=True)
    with pytest.raises(
        WeightsError, match=r"weights.safetensors holds another model: embed_dim=32 \(here 64\)"
    ):
        train(
            dataclasses.replace(wide, init=str(straight / "weights.safetensors")),
            tmp_path / "new",
            quiet=True,
        )
    with pytest.raises(
        WeightsError, match=r"last/40 does not fit this configuration: was it .* ema_decay or frozen\?$"
    ):
        train(config(ema_decay=None, steps=80), straight, quiet=True)


def test_every_step_has_its_own_scenes_and_its_kind_of_batch():
    kinds = (Shape(4, 2, 28, 28, weight=3), Shape(2, 4, 28, 42, weight=1))
    mixed = config(shapes=kinds, first_scene=1000)
    drawn = [mixed.shape_of(step) for step in range(2000)]
    assert abs(drawn.count(kinds[0]) / 2000 - 0.75) < 0.03
    assert drawn == [config(shapes=kinds).shape_of(step) for step in range(2000)]
    used = [
        scene
        for step in range(50)
        for scene in range(mixed.first_scene_of(step), mixed.first_scene_of(step) + drawn[step].scenes)
    ]
    assert len(set(used)) == len(used) and min(used) == 1000
