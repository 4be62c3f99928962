"""`fastvggt analyze`: its files, and what is said of wrong input before a model is loaded."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import pretrained
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import InputError
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.testing.tiny import tiny_model
from tests.seeing.test_report import refused


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Arguments: two photographs and weights of π³, whose special tokens are no camera's."""
    folder = tmp_path_factory.mktemp("given")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i}.png")
    model, rng = tiny_model("pi3"), np.random.default_rng(1)  # numpy's numbers, which need no compiling
    draw = lambda spec: jnp.asarray(0.1 * rng.normal(size=spec.shape), jnp.float32)
    params = jax.tree.map(draw, model.abstract_params())
    save_params(folder / "pi3.safetensors", params, model, source="random numbers", license="none needed")
    return [folder / "0.png", folder / "1.png", "-c", folder / "pi3.safetensors", "--size", 56]


def run(*arguments):
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


def test_figures_and_numbers(given, tmp_path):
    out = tmp_path / "out"
    result = run(
        *given, "-o", out, "--patch", "1,30,5", "--sparsity", "0.5", "--block", "8x4", "--layers", "1"
    )
    assert result.exit_code == 0, result.output
    report = json.loads((out / "analysis.json").read_text())
    assert report["patch"] == {"frame": 1, "row": 0, "column": 2} and report["layers"] == [1]
    assert {match["frame"] for match in report["matches"][0]} == {0}
    assert set(report["pairs"]) == {f"{a} to {b}" for a in ("special", "patch") for b in ("special", "patch")}
    with np.load(out / "analysis.npz") as arrays:
        assert arrays["row"].sum(-1) == pytest.approx(1, abs=1e-5) and arrays["kept"].any()
    for name in ("layers", "maps", "matches", "kept"):
        with Image.open(out / f"{name}.png") as image:
            assert np.asarray(image).std() > 5
    assert run(*given, "-o", out).exit_code == 2  # nothing of it is lost
    assert (out / "kept.png").exists()


def test_wrong_input(given, tmp_path):
    out = ("-o", tmp_path / "out")
    refused(run(*given, *out, "--patch", "0,56,1"), "--patch 0,56,1", "56x56 pixels")
    refused(run(*given, *out, "--patch", "0,1"), "--patch", "FRAME,X,Y")
    refused(run(*given, *out, "--views", "2,x"), "--views", "2,4,8")
    refused(run(*given, *out, "--layers", "99"), "--layers", "99")
    assert not (tmp_path / "out").exists()


def test_kernels_have_names_where_their_times_are_asked_for(given, tmp_path, monkeypatch):
    flags = []

    def loading(*arguments, **more):
        flags.append(os.environ.get("XLA_FLAGS", "").split())
        raise InputError("enough")

    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=there")
    monkeypatch.setattr(pretrained, "from_pretrained", loading)
    for more in ((), ("--views", "2")):
        run(*given, "-o", tmp_path / "out", *more)
    assert flags == [
        ["--xla_dump_to=there"],
        ["--xla_dump_to=there", "--xla_gpu_enable_command_buffer="],
    ]
