"""Commands that are interrupted leave what was there, or the whole new result, and name what is left."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import pipeline
from fastvggt_jax.cli.app import app
from fastvggt_jax.io import tensors
from fastvggt_jax.io.files import leftovers
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.testing.random_weights import random_params
from tests import make_checkpoint
from tests.faults.runner import ROOT, contents, fastvggt, interrupted, result_files
from tests.toys import model as toy

GOLDEN = Path(__file__).parents[1] / "golden"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    with registry.registered("toy", toy.PATH):
        save_params(path, random_params(toy.Toy()), toy.Toy())
        yield path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Shells start what runs in the background with Ctrl-C switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("moment", ["load_images", "predict", "write_formats"])
def test_signals_end_a_reconstruction_and_leave_the_old_result(
    weights, photos, tmp_path, monkeypatch, number, moment
):
    out = tmp_path / "out"
    command = [
        "reconstruct",
        str(photos),
        "-c",
        str(weights),
        "-o",
        str(out),
        "--format",
        "ply",
        "--overwrite",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    before = contents(out)
    real = getattr(pipeline, moment)

    def hit(*arguments, **named):
        result = real(*arguments, **named)
        os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(pipeline, moment, hit)
    handlers = [signal.getsignal(one) for one in ENDING]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 128 + number and "Traceback" not in ended.stderr
    assert contents(out) == before and sorted(os.listdir(tmp_path)) == ["out", "photos"]
    assert [signal.getsignal(one) for one in ENDING] == handlers


@pytest.mark.parametrize("number", ENDING)
def test_signals_end_a_conversion_and_leave_nothing(tmp_path, monkeypatch, number):
    config = GOLDEN / "vggt_tiny.config.json"
    make_checkpoint.write_checkpoint(
        make_checkpoint.load_manifest(GOLDEN / "vggt_tiny.manifest.json"), tmp_path / "official.safetensors"
    )
    real, out = tensors._write_tensor, tmp_path / "native.safetensors"

    def hit(*arguments):
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(tensors, "_write_tensor", hit)
    command = ["convert", str(tmp_path / "official.safetensors"), str(out), "--config", str(config)]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 128 + number and "Traceback" not in ended.stderr, ended.output
    assert os.listdir(tmp_path) == ["official.safetensors"]


@pytest.mark.parametrize(
    "when, code_then", [("before", -signal.SIGINT), ("as it is made", 130), ("after", 0)]
)
def test_ctrl_c_around_the_command_is_no_traceback(when, code_then, tmp_path):
    """While its modules are imported, while typer looks at its options, and while JAX cleans up after it."""
    code = "import atexit, os, signal, sys; sys.argv = ['fastvggt', '--version']\n"
    code += "def hit(*_): os.kill(os.getpid(), signal.SIGINT)\n"
    if when == "before":
        code += "find = lambda name, *_: hit() if name.startswith('fastvggt_jax.cli') else None\n"
        code += "sys.meta_path.insert(0, type('Hit', (), {'find_spec': find}))\n"
    elif when == "as it is made":
        code += "import typer.main; typer.main.get_command = hit\n"
    else:
        code += "atexit.register(hit)\n"
    code += "from fastvggt_jax.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not ended.stderr and ended.returncode == code_then, ended


LOST = """
import gc, os, signal, sys, time
from fastvggt_jax import __main__, pretrained
def collected(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), {number})
def slow(*_):
    gc.callbacks.append(collected)
    gc.collect()
    for _ in range(200):
        time.sleep(0.1)
pretrained.weight_file = slow
sys.argv = ["fastvggt", "info", "mini"]
__main__.main()
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_comes_while_garbage_is_collected_is_not_lost(number):
    """Python ignores what a callback of the collector raises."""
    code, started = LOST.format(number=int(number)), time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 128 + number and time.monotonic() - started < 15
    assert "Traceback" not in ended.stderr and "ignored" not in ended.stderr


@pytest.mark.faults
def test_a_reconstruction_of_sixty_photographs_interrupted_at_random(tmp_path):
    """20 random moments, each of four signals, over an old result."""
    views = tmp_path / "views"
    views.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(views / f"{i}.png")
    out = tmp_path / "result" / "out"
    command = ["reconstruct", views, "-c", "mini", "-o", out, "--size", 56, "--overwrite"]
    command += ["--format", "depth,ply,overview,scene"]
    assert fastvggt(*command, "--conf-percentile", 50).code == 0
    before = result_files(out)
    shutil.copytree(out, tmp_path / "old", symlinks=True)
    assert fastvggt(*command).code == 0
    after = result_files(out)
    assert before != after
    seconds, ends, seed = 12.0, [], random.Random(0)
    for _ in range(20):
        for number in (*ENDING, signal.SIGKILL):
            ended = interrupted(number, seed.uniform(0.1, seconds), *command)
            ends.append(ended.code)
            assert ended.code in (0, 128 + number, -number) and "Traceback" not in ended.stderr, ended
            assert result_files(out) in (before, after), "the old result or the new one, whole"
            shutil.rmtree(out)
            shutil.copytree(tmp_path / "old", out, symlinks=True)
            left = set(out.parent.iterdir()) - {out}
            assert left == set(leftovers(out)) and (not left or number == signal.SIGKILL)
            for path in left:
                shutil.rmtree(path)
    assert all({128 + number, -number} & set(ends) for number in (*ENDING, signal.SIGKILL)), ends
