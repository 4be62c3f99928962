"""Training: it learns, stops, goes on as if it had not stopped, and says what is wrong."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

from fastvggt_jax import VGGT, from_pretrained, geometry, pretrained
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.tensors import open_safetensors
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.pretrained import Bundled
from fastvggt_jax.train import Shape, TrainingFailed, loop, train
from fastvggt_jax.train import state as training
from fastvggt_jax.train.data import Batch, render
from fastvggt_jax.train.loop import compiled
from fastvggt_jax.train.metrics import Metrics
from fastvggt_jax.train.optimizer import learning_rates, make_optimizer
from pallas_kernels import Implementation, registered
from tests.toys.model import PATH, Toy
from tests.train.runs import (
    CAMERAS,
    GOOD,
    MODEL,
    PI3,
    ROOT,
    SHAPE,
    TOY,
    at_step,
    compiled_once,
    config,
    losses,
    planes,
    records,
    same,
    start_once,
    wait_for,
)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Runs of the same model on the same kinds of batches share their program and their start."""
    first_params = loop.first_params
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compiled", compiled_once)
        start = lambda config: first_params(config) if config.init else start_once(config.model, config.seed)
        patch.setattr(loop, "first_params", start)
        with registry.registered("toy", PATH):
            yield


@pytest.fixture(
    scope="module", params=[TOY, pytest.param(CAMERAS, marks=pytest.mark.slow)], ids=["toy", "vggt"]
)
def straight(request, few_programs, tmp_path_factory):
    """A run that nothing has interrupted: its model and its folder."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(config(model=request.param, save_every=40), folder, quiet=True)
    return request.param, folder


@pytest.mark.slow
def test_a_batch_is_learnt_by_heart(tmp_path):
    once = dict(steps=200, warmup_steps=20, log_every=200, save_every=200, validation_scenes=0)
    train(config(model=MODEL, **once), tmp_path, quiet=True)
    model, params = from_pretrained(tmp_path / "weights.safetensors")
    assert model.config() == MODEL.config()
    batch, exact = same(0, SHAPE), config(model=model.clone(dtype=jnp.float32))
    parts_of = jax.jit(lambda params: training.loss_of(exact, params, batch)[1])
    error = lambda parts: (
        parts["translation"] + parts["rotation"] + parts["field of view"] + parts["depth error"]
    )
    errors = [error(parts_of(p)) for p in (start_once(MODEL), params["params"])]
    assert errors[1] < errors[0] / 100, errors


@pytest.mark.slow
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


def test_what_is_recorded(straight):
    model, straight = straight
    assert [record["step"] for record in records(straight)] == list(range(1, 41))
    assert [record["step"] for record in records(straight, "validation")] == [20, 40]
    fall = 2 if model is TOY else 3  # the toy sees colours alone
    assert losses(straight)[-1] < losses(straight)[0] / fall
    assert {path.name for path in straight.iterdir()} >= {
        "best.safetensors",
        "weights.safetensors",
        "model.json",
    }
    assert list((straight / "tensorboard").glob("events.*"))


def test_a_run_that_was_killed_or_asked_to_stop_goes_on_as_if_it_had_not(straight, tmp_path):
    model, straight = straight
    code = (
        "import os, signal, sys; from tests.train.runs import *; from fastvggt_jax.train import train\n"
        "from fastvggt_jax.models import registry; registry.register('toy', 'tests.toys.model:Toy')\n"
        f"model = {'TOY' if model is TOY else 'CAMERAS'}\n"
        "data = at_step(6, lambda: killed(Path(sys.argv[1])))\n"
        "train(config(model=model, data=data), sys.argv[1], quiet=True)"
    )
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(losses(folder)) == 6 and [path.name for path in (folder / "last").iterdir()] == ["4"]
    asked = at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    state = train(config(model=model, data=asked), folder, quiet=True)
    assert state.step == 10 and losses(folder) == losses(straight)[:10]
    asked = at_step(12, lambda: os.kill(os.getpid(), signal.SIGINT))
    state = train(config(model=model, data=asked), folder, quiet=True)
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
        train(config(model=TOY, data=data, log_every=3), tmp_path / "run", quiet=True)
    assert sorted(path.name for path in (tmp_path / "run" / "last").iterdir()) == ["4"]


def test_a_gradient_that_is_not_finite_is_not_saved_either(tmp_path, monkeypatch):
    real = training.loss_of

    def steep(*args):  # a finite loss whose derivative is infinite
        total, parts = real(*args)
        return total + jnp.sqrt(0 * total), parts

    monkeypatch.setattr(training, "loss_of", steep)
    monkeypatch.setattr(loop, "compiled", compiled)
    with pytest.raises(
        TrainingFailed, match="the loss or gradient of step 1 is not finite; there is no checkpoint before it"
    ):
        train(config(model=TOY, save_every=1), tmp_path / "run", quiet=True)


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full() -> None:  # no more files of over 20 kB, once the first checkpoint is there
        wait_for(folder / "last" / "4")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    folder, wide = tmp_path / "run", TOY.clone(width=1024)  # 24 kB of weights
    try:
        with pytest.raises(
            TrainingFailed, match=r"could not be written in .*run: .*; the last good checkpoint is .*last/4"
        ):
            train(config(model=wide, data=at_step(6, full), validate_every=4), folder, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    asked = at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    state = train(config(model=wide, data=asked), folder, quiet=True)
    assert state.step == 6 and [record["step"] for record in records(folder)] == list(range(1, 7))


def test_a_second_training_in_one_folder_is_refused(tmp_path):
    folder, said = tmp_path / "run", []

    def second() -> None:
        code = (
            "import sys; from tests.train.runs import *; from fastvggt_jax.train import train\n"
            "from fastvggt_jax.models import registry; registry.register('toy', 'tests.toys.model:Toy')\n"
            "train(config(model=TOY), sys.argv[1], quiet=True)"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
        said.append(done.stderr)

    train(config(model=TOY, steps=9, data=at_step(6, second)), folder, quiet=True)
    assert f"another program is writing the folder {folder}" in said[0].splitlines()[-1]
    assert len(losses(folder)) == 9
    train(config(model=TOY, steps=10), folder, quiet=True)  # and not after the first one's end


def damage(folder) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_records_that_are_damaged_are_named_and_left_out(tmp_path):
    good = {"step": 1, "kind": "validation", "loss": 2.0}
    lines = [good, good | {"loss": float("nan")}, good | {"loss": -float("inf")}, good | {"kind": "x"}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "[" * 100_000 + "\n" + '{"step'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.warns(
        UserWarning, match=r"metrics.jsonl is damaged in line 2, 3, 4, 5, 6, which is left out"
    ):
        metrics = Metrics(tmp_path, 1, quiet=True)
    assert metrics.best == 2.0 and not metrics.validated(2, {"loss": 3.0})
    assert metrics.validated(3, {"loss": 1.0})
    metrics.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [1, 2, 3]


def test_a_run_goes_on_from_whatever_is_whole(straight, tmp_path):
    model, straight = straight
    folder = tmp_path / "run"
    stopping = lambda step: at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(config(model=model, data=stopping(11)), folder, quiet=True)
    assert {path.name for path in (folder / "last").iterdir()} == {"8", "12"}
    damage(folder / "last" / "12")
    (folder / "model.json").write_text('{"config": [1]}')
    with pytest.warns() as said:
        state = train(config(model=model, data=stopping(12)), folder, quiet=True)
    texts = [str(one.message) for one in said]
    assert any("last/12 is damaged and left out" in text for text in texts), texts
    assert any("model.json is damaged; it is written anew" in text for text in texts), texts
    assert state.step == 13 and losses(folder) == losses(straight)[:13]
    assert (folder / "damaged-12").is_dir() and (folder / "last" / "13").is_dir()
    damage(folder / "last")
    with pytest.raises(WeightsError, match="last/13 does not fit this configuration: .* or is it damaged?"):
        train(config(model=model), folder, quiet=True)


# ---- of cameras alone


def gradient(model: VGGT, params, batch: Batch):
    return jax.jit(jax.grad(lambda p: training.loss_of(config(model=model), p, batch)[0]))(params)


@pytest.mark.slow
def test_recomputing_changes_no_gradient():
    params = start_once(CAMERAS)
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
    before = start_once(TOY, 5)
    save_params(
        tmp_path / "start.safetensors",
        {"params": before},
        TOY,
        source="the official weights",
        license="CC BY-NC 4.0",
    )
    monkeypatch.setitem(
        pretrained.BUNDLED, "start", Bundled(tmp_path / "start.safetensors", (1, 1))
    )  # as mini
    wanted = config(
        model=TOY,
        init="start",
        frozen=("colours/*",),
        steps=3,
        warmup_steps=0,
        ema_decay=None,
        weights_dtype="bfloat16",
    )
    state = train(wanted, tmp_path / "run", quiet=True)
    old, new = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (before, state.params))
    for name in old:
        stays = name.startswith("colours/")
        assert (np.array_equal(old[name], new[name])) == stays or not np.asarray(old[name]).any(), name
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    trained = sum(x.size for name, x in old.items() if not name.startswith("colours/"))
    assert sum(x.size for x in moments) == 2 * trained  # none are kept of what is frozen
    written = open_safetensors(tmp_path / "run" / "weights.safetensors")
    metadata = written.metadata()
    assert {written.get_slice(name).get_dtype() for name in written.keys()} == {"BF16"}
    assert "3 steps from the official weights" in metadata["source"] and metadata["license"] == "CC BY-NC 4.0"


@pytest.mark.slow
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
    loss = jax.jit(lambda batch: training.loss_of(run, params["params"], batch)[0])
    means = [loss(planes(-first, SHAPE)) for first in (0, 2)]
    np.testing.assert_allclose(records(tmp_path, "validation")[0]["loss"], np.mean(means), rtol=1e-4)


@pytest.mark.parametrize("in_threads", [True, False])
def test_programs_compile_one_after_the_other_where_a_kernel_wants_it(in_threads, monkeypatch):
    compiling, most = [], []

    class OneAtATime(Implementation):
        name, dtypes, compiles_in_threads = "one at a time", ("float32",), False

    def lower(*_):
        compiling.append(None)
        time.sleep(0.1)
        most.append(len(compiling))
        compiling.pop()
        return SimpleNamespace(compile=lambda: None)

    for make in ("make_step", "make_evaluation"):
        monkeypatch.setattr(loop, make, lambda *_: SimpleNamespace(lower=lower))
    monkeypatch.setattr(loop, "render", lambda split, first, shape, **_: planes.__wrapped__(first, shape))
    model = TOY.clone(dtype=jnp.bfloat16 if in_threads else jnp.float32)
    shapes = (SHAPE, dataclasses.replace(SHAPE, frames=1))
    with registered(OneAtATime()):
        compiled(config(model=model, shapes=shapes, data=None), training.make_mesh())
    assert len(most) == 3 and (max(most) > 1) == in_threads


def test_gradients_are_clipped_and_matrices_alone_decay():
    run = config(weight_decay=0.1, clip_norm=0.5)
    shapes = {"qkv/kernel": (4, 12), "qkv/bias": (12,), "norm1/scale": (4,), "ls1/gamma": (4,)}
    shapes |= {"camera_token": (1, 2, 1, 4), "pos_embed": (1, 5, 4)}
    filled = lambda value: flax.traverse_util.unflatten_dict(
        {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}, sep="/"
    )
    optimizer, ones = make_optimizer(run, filled(1.0)), filled(1.0)
    first_update = jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(ones), ones))
    updates, _ = first_update(filled(0.0))
    for name, update in flax.traverse_util.flatten_dict(updates, sep="/").items():
        assert np.asarray(update).any() == name.endswith("/kernel"), name
    _, state = first_update(filled(10.0))
    np.testing.assert_allclose(optax.tree.norm(optax.tree.get(state, "mu")), (1 - run.beta1) * 0.5, rtol=1e-4)


def test_weights_are_averaged_with_a_memory_that_grows():
    mesh, run = training.make_mesh(), config(model=TOY)
    state = jax.device_put(training.start(run, start_once(TOY)), training.state_sharding(run, mesh))
    step, _ = compiled_once(run, mesh)
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
    run = partial(config, model=Toy())
    one, other = run(), run(steps=90, learning_rate=1e-5, warmup_steps=3, final_learning_rate=1e-6)
    assert lower(one) == lower(other) != lower(run(weight_decay=0.5))


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    rates = learning_rates(config(steps=105, warmup_steps=5, learning_rate=1e-2, final_learning_rate=1e-4))
    np.testing.assert_allclose(rates[:6], np.arange(6) * 2e-3, rtol=1e-6)
    np.testing.assert_allclose(rates[55], (1e-2 + 1e-4) / 2, rtol=1e-5)  # halfway
    assert len(rates) == 105 and (np.diff(rates[5:]) < 0).all() and 1e-4 < rates[-1] < 1.1e-4


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    code = (
        "from tests.train.test_train import *\n"
        "from jax.sharding import Mesh, AxisType\n"
        "shape = Shape(8, 2, 28, 28)\n"
        "def run(devices, shard_params):\n"
        "    c = config(model=CAMERAS, shapes=(shape,), shard_params=shard_params, weight_decay=0.1)\n"
        "    mesh = Mesh(np.array(jax.devices()[:devices]), (training.AXIS,), axis_types=(AxisType.Auto,))\n"
        "    state = training.start(c, start_once(CAMERAS))\n"
        "    state = jax.device_put(state, training.state_sharding(c, mesh))\n"
        "    step, found = training.make_step(c, mesh), []\n"
        "    for i in range(2):\n"
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


@pytest.mark.slow
def test_a_rendered_batch_agrees_with_itself():
    shape = Shape(scenes=2, frames=4, height=28, width=42)
    batch = render("train", 3, shape, query_points=6, supersampling=1)
    truth, valid = batch.truth, np.asarray(batch.truth.valid)
    assert batch.images.shape == (2, 4, 28, 42, 3) and valid.mean() > 0.3
    cam_from_world, K = truth.cam_from_world, geometry.move_origin(truth.K, -0.5)
    points = np.asarray(geometry.unproject_depth(truth.depth[..., None], K, cam_from_world))
    np.testing.assert_allclose(points[valid], np.asarray(truth.points)[valid], atol=1e-3)
    for b in range(2):  # the queries' points, seen from all views
        u, v = np.asarray(batch.query_points[b], int).T
        at = (
            np.einsum("fij,qj->fqi", cam_from_world[b, :, :, :3], truth.points[b, 0, v, u])
            + cam_from_world[b, :, None, :, 3]
        )
        pixels = np.einsum("fij,fqj->fqi", K[b], at / at[..., 2:])[..., :2]
        seen = np.asarray(truth.visible[b])
        assert seen[0].any() and seen[1:].any()
        np.testing.assert_allclose(pixels[seen], np.asarray(truth.tracks[b])[seen], atol=0.05)
    other = render("train", 5, shape, query_points=6, supersampling=1)
    assert all(np.abs(other.images[b] - batch.images[c]).mean() > 0.02 for b in range(2) for c in range(2))


def test_an_interrupted_command_saves_and_says_so(tmp_path, monkeypatch, capfd):
    path, folder = tmp_path / "interrupted.py", tmp_path / "run"
    interrupting = GOOD.format(
        "model=TOY, data=at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT)), steps=5, warmup_steps=0"
    )
    path.write_text("import os, signal\nfrom tests.train.runs import at_step\n" + interrupting)
    command = ["train", str(path), "--workdir", str(folder)]
    done = CliRunner().invoke(app, [*command, "--minutes", "0"])
    assert (
        done.exit_code == 2 and "minutes must be greater than 0, not 0" in done.stderr and not folder.exists()
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


def test_it_may_take_a_gpus_memory_unless_the_user_has_said_how_much(tmp_path, monkeypatch):
    path, share = tmp_path / "once.py", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    path.write_text(
        f"import os\nassert os.environ['{share}']  # before a configuration can start JAX's backend\n"
        + GOOD.format("model=TOY, steps=1, warmup_steps=0, validation_scenes=0")
    )
    for given, taken in (("", "0.93"), ("0.5", "0.5")):
        monkeypatch.setenv(share, given)
        if not given:
            monkeypatch.delenv(share)
        done = CliRunner().invoke(app, ["train", str(path), "--workdir", str(tmp_path / "run")])
        assert done.exit_code == 0 and os.environ[share] == taken


def test_a_folder_of_another_model_or_of_something_else_is_refused(straight, tmp_path):
    model, straight = straight
    wide = config(model=model.clone(embed_dim=64))
    with pytest.raises(WeightsError, match=r"the training of another model: embed_dim=.* \(here 64\)"):
        train(wide, straight, quiet=True)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(WeightsError, match="holds something else than a training run"):
        train(config(model=model), tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / "holiday.jpg").unlink()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.json").write_text("{}")
    with pytest.raises(WeightsError, match="a model.json that no training run has written"):
        train(config(model=model), tmp_path / "theirs", quiet=True)
    with pytest.raises(
        WeightsError, match=r"weights.safetensors holds another model: embed_dim=.* \(here 64\)"
    ):
        train(
            dataclasses.replace(wide, init=str(straight / "weights.safetensors")),
            tmp_path / "new",
            quiet=True,
        )
    with pytest.raises(
        WeightsError,
        match=r"last/40 does not fit this configuration: was it .* ema_decay or frozen, or is it damaged\?$",
    ):
        train(config(model=model, ema_decay=None, steps=80), straight, quiet=True)
