"""Configurations in upstream's words describe the models that they are of, and no others."""

import json

import pytest

import convert.pi3
import convert.pi3x
import convert.vggt
from convert.official import fields_of
from fastvggt_jax import VGGT, Pi3, Pi3X
from fastvggt_jax.errors import InputError
from tests.parity.goldens import FOLDER


def model_of(cls, config):
    rules = {VGGT: convert.vggt, Pi3: convert.pi3, Pi3X: convert.pi3x}[cls]
    return cls.from_config(fields_of(config, cls, rules.TABLE.official))


@pytest.mark.parametrize("cls, name", [(VGGT, "vggt_1b"), (Pi3, "pi3"), (Pi3X, "pi3x")])
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


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("pose_inject", "after_blocks", "x", "inject_after='x' is wrong"),
        (
            "conf_head",
            "dim_upsample",
            [256, 128, 32],
            "conf_head.dim_upsample=.256, 128, 32. .must be .256, 1",
        ),
        ("point_head", "hidden_factor", 4, "point_head.hidden_factor=4 .only 2 is supported"),
        ("depth_encoder", "depth", 12, "depth_encoder.depth=12 .must be 24, like the other places"),
        ("depth_encoder", "layernorm_eps", 1e-5, "depth_encoder.layernorm_eps=1e-05 .only 1e-06"),
    ],
)
def test_what_is_no_pi3x_is_refused(section, key, value, message):
    config = json.loads((FOLDER / "pi3x.config.json").read_text())["config"]
    with pytest.raises(InputError, match=message):
        model_of(Pi3X, config | {section: config[section] | {key: value}})
