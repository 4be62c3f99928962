"""Adding a thing is adding a file: a toy of each, from tests/toys/, goes the whole way as it is."""

import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from fastvggt_jax import Scene, export, from_pretrained, sources
from fastvggt_jax.cli.app import app
from fastvggt_jax.datasets import base as datasets
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import write_random_weights
from pallas_kernels import registered as kernel_registered
from tests.toys import model as toy
from tests.toys.dataset import Walls
from tests.toys.format import XYZ
from tests.toys.kernel import Remembering
from tests.toys.source import SHEET

CONFIG = """
from fastvggt_jax.train import Shape, TrainConfig
from tests.toys.model import Toy
from tests.train.runs import planes

def get_config():
    shape = Shape(scenes=1, frames=2, height=16, width=16)
    few = dict(steps=2, warmup_steps=0, validation_scenes=0, data=planes)
    return TrainConfig(model=Toy(), shapes=(shape,), **few)
"""


@pytest.fixture(autouse=True)
def toys():
    with (
        registry.registered("toy", toy.PATH),
        sources.registered("sheet", SHEET),
        datasets.registered("walls", Walls.build),
        export.registered(XYZ),
    ):
        yield


@pytest.fixture
def weights(tmp_path):
    model = toy.Toy()
    save_params(tmp_path / "toy.safetensors", random_params(model), model, source="random numbers")
    return tmp_path / "toy.safetensors"


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def sheet(folder):
    """Three pictures in one file of the toy source."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 20, 32, 3), np.uint8)
    with open(folder / "pictures.sheet", "wb") as file:
        np.savez(file, **{f"view{i}": picture for i, picture in enumerate(pictures)})
    return folder / "pictures.sheet"


@pytest.mark.every_jax
def test_reconstruct_and_export(weights, tmp_path):
    out = tmp_path / "out"
    report = json.loads(
        run("reconstruct", sheet(tmp_path), "-c", weights, "-o", out, "--format", "xyz,scene", "--json")
    )
    assert report["photographs"] == ["view0", "view1", "view2"] and report["model"]["class"] == "Toy"
    assert report["size"] == {"width": 16, "height": 8, "mode": "crop"}  # the toy's own policy
    assert report["files"] == ["cameras.json", "points.xyz", "scene.json", "scene.npz"]
    lines = (out / "points.xyz").read_text().splitlines()
    assert len(lines) == report["points"]
    scene = Scene.load(out)
    assert export.write(scene, tmp_path / "again", ("xyz", "ply")) == ["points.xyz", "points.ply"]
    run(
        "reconstruct", sheet(tmp_path), "-c", weights, "-o", out, "--overwrite", "-q"
    )  # its file is one of ours


def test_evaluate(weights, tmp_path):
    report = json.loads(run("evaluate", "walls", "-c", weights, "--size", 32, "--dtype", "float32", "--json"))
    (row,) = report["configurations"]
    assert len(row["scenes"]["AUC@30"]) == 2 and np.isfinite(row["summary"]["AbsRel"])


@pytest.mark.every_jax
def test_train_bench_and_convert(weights, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    run("train", tmp_path / "config.py", "--workdir", tmp_path / "run", "-q")
    model, params = from_pretrained(tmp_path / "run" / "weights.safetensors")
    assert isinstance(model, toy.Toy) and set(params["params"]) == {"colours", "depth_head"}
    prediction = jax.jit(model.apply)(params, np.full((1, 2, 16, 16, 3), 51, np.uint8))
    np.testing.assert_allclose(prediction.brightness, [[0.2, 0.2]], rtol=1e-5)  # an output of its own
    rows = run("bench", "--model", "toy", "--frames", 2, "--sparsity", "dense", "--only", "model", "--json")
    row = json.loads(rows)
    assert row["model"] == "toy" and row["size"] == [16, 16] and row["seconds"] > 0


@pytest.mark.slow  # in tests/test_attention.py one serves dense and sparse attention
def test_a_kernel_serves_a_model_that_knows_nothing_of_it(tmp_path):
    write_random_weights(tmp_path / "tiny.safetensors", heads=("camera", "depth"))
    before = Remembering.served
    with kernel_registered(Remembering()):
        options = ["--size", 56, "--sparsity", "0.5", "--block", "16x8", "--format", "xyz", "--json"]
        out = run(
            "reconstruct",
            sheet(tmp_path),
            "-c",
            tmp_path / "tiny.safetensors",
            "-o",
            tmp_path / "o",
            *options,
        )
    assert Remembering.served > before
    assert all(0 < density < 1 for density in json.loads(out)["model"]["density"])
