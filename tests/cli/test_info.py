"""`fastvggt info`: what weights hold, and what a reconstruction needs."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import pretrained
from fastvggt_jax.cli.info import in_words
from fastvggt_jax.errors import InputError
from fastvggt_jax.models import base
from fastvggt_jax.models.memory import needed_bytes
from fastvggt_jax.pretrained import from_pretrained
from tests.cli.commands import run


def test_info(weights):
    report = json.loads(run("info", weights, "--json").stdout)
    assert report["model"] == "VGGT" and report["config"]["heads"] == ["camera", "depth", "point"]
    assert report["parameters"] == sum(report["parameters_by_part"].values()) > 1e6
    assert set(report["parameters_by_part"]) == {"aggregator", "camera_head", "depth_head", "point_head"}
    text = run("info", weights).stdout
    assert "random numbers" in text and f"{report['parameters']:,}" in text


@pytest.mark.slow
def test_info_says_what_a_reconstruction_needs(weights, monkeypatch):
    monkeypatch.setattr(base, "BLOCKS_CHUNK", 1)
    result = run("info", weights, "--views", 3, "--size", "70x56", "--json")
    assert result.exit_code == 0, result.output
    three = json.loads(result.stdout)["forecast"]
    assert three["seconds"] > 0
    # A program of that many views needs what was said.
    model, params = from_pretrained(weights, heads=("camera", "depth"), dtype="float32")
    images = jax.ShapeDtypeStruct((1, 3, 56, 70, 3), jnp.uint8)
    needs = [
        needed_bytes(jax.jit(one.apply).lower(params, images).compile())
        for one in (model, model.clone(low_memory=True))
    ]
    assert needs == [three["needs_bytes"], three["low_memory_bytes"]] and needs[0] != needs[1]
    said = in_words(three | {"limit_bytes": 2**33, "device": "GPU"})
    assert said.startswith(
        "3 photographs of 70x56 pixels need 0.0 GiB of the 8.0 GiB that there are on this GPU"
    )


def test_what_info_is_asked_wrongly_is_one_sentence(weights):
    for options, words in (
        (["--size", "70x56"], "--size is about --views"),
        (["--views", 0], "--views must be a whole number, at least 1"),
        (["--views", 2, "--size", "70"], "--size must be pixels such as 518x392, not '70'"),
        (["--views", 2, "--size", "71x56"], "--size must be a positive multiple"),
    ):
        wrong = run("info", weights, *options)
        assert wrong.exit_code == 2 and words in wrong.stderr, wrong.stderr


@pytest.mark.parametrize("config", ["{oops", "[" * 100_000, '{"x": ' * 100_000])
def test_info_on_a_damaged_config(tmp_path, config):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "w.safetensors", {"config": config})
    result = run("info", tmp_path / "w.safetensors")
    assert result.exit_code == 2 and "config that is no JSON" in result.stderr


def test_info_says_what_a_stranger_has_written_without_its_escapes(tmp_path):
    from safetensors.numpy import save_file

    escape = "\x1b]0;own\x07"
    metadata = {"file": "nowhere", "bytes": "7", escape: escape, "config": json.dumps({escape: escape})}
    save_file({escape: np.zeros(1, np.float32)}, tmp_path / "w.safetensors", metadata)
    text = run("info", tmp_path / "w.safetensors").stdout
    assert "\x1b" not in text and text.count("own") == 5 and "nowhere" not in text
    assert str(tmp_path / "w.safetensors") in text


def test_memory_is_taken_before_weights_are_converted_which_asks_for_the_device(weights, monkeypatch):
    share, taken = "XLA_PYTHON_CLIENT_MEM_FRACTION", []

    def weight_file(name):
        taken.append(os.environ.get(share))
        raise InputError("enough")

    monkeypatch.setenv(share, "")
    monkeypatch.delenv(share)
    monkeypatch.setattr(pretrained, "weight_file", weight_file)
    run("info", "facebook/VGGT-1B", "--views", 2)
    assert taken == ["0.93"]
