"""Configurations in upstream's words describe the models that they are of, and no others."""

import json

import pytest

import convert.pi3
import convert.vggt
from convert.official import fields_of
from fastvggt_jax import VGGT, Pi3
from fastvggt_jax.errors import InputError
from tests.parity.goldens import FOLDER


def model_of(cls, config):
    rules = {VGGT: convert.vggt, Pi3: convert.pi3}[cls]
    return cls.from_config(fields_of(config, cls, rules.OFFICIAL))


@pytest.mark.parametrize("cls, name", [(VGGT, "vggt_1b"), (Pi3, "pi3")])
def test_the_defaults_are_the_released_model(cls, name):
    assert model_of(cls, json.loads((FOLDER / f"{name}.config.json").read_text())["config"]) == cls()


@pytest.mark.parametrize("model", [VGGT(depth=4, taps=(0, 1, 2, 3), heads=("depth",)), Pi3(depth=3)])
def test_our_own_words_are_read_too(model):
    assert model_of(type(model), model.config()) == model


@pytest.mark.parametrize(
    "config, message",
    [
        ({"aggregator": {"rope_freq": 50}}, "rope_freq=50"),
        ({"aggregator": {"aa_order": ["global", "frame"]}}, "aa_order.*only.*supported"),
        ({"camera_head": {"dim_in": 1024}}, "camera_head.dim_in=1024 .must be twice embed_dim"),
        ({"aggregator": {"depht": 3}}, "aggregator.depht"),
    ],
)
def test_what_is_no_vggt_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        model_of(VGGT, config)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("decoder", "depth", 35, "decoder.depth=35 .must be an even number"),
        ("decoder", "qk_norm", False, "decoder.qk_norm=False .only True is supported"),
        ("conf_decoder", "depth", 4, "conf_decoder.depth=4 .must be 5, like the other places of head_depth"),
        ("camera_decoder", "in_dim", 1024, "camera_decoder.in_dim=1024 .must be twice embed_dim"),
        ("decoder", "windows", 2, "unknown key decoder.windows"),
        ("decoder", "depth", "x", "decoder.depth='x' .must be an even number"),
        ("decoder", "depth", None, "decoder.depth=None .must be an even number"),
        ("decoder", "depth", [1], "decoder.depth=.1. .must be an even number"),
    ],
)
def test_what_is_no_pi3_is_refused(section, key, value, message):
    config = json.loads((FOLDER / "pi3.config.json").read_text())["config"]
    with pytest.raises(InputError, match=message):
        model_of(Pi3, config | {section: config[section] | {key: value}})
