"""`fastvggt analyze --drop`: what a scene changes by without the attention of some global layers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from fastvggt_jax.analyze.dropped import Change, _differences, _scaled, without_layers
from fastvggt_jax.cli.app import app
from fastvggt_jax.evaluate.metrics import pair_errors
from fastvggt_jax.sparsity import Sparsity
from fastvggt_jax.testing.tiny import tiny_model
from tests.seeing.test_report import refused

VIEWS = "fastvggt_jax/bundled/views"


@pytest.mark.parametrize("name", ("vggt", "pi3", "pi3x"))
def test_only_the_attention_of_these_layers_is_left_out(name):
    model = tiny_model(name)
    params = jax.tree.map(lambda spec: np.ones(spec.shape, np.float32), model.abstract_params())
    kept = np.ones(model.depth, np.float32)
    kept[1] = 0
    changed = {}
    for path, x in jax.tree_util.tree_leaves_with_path(_scaled(params, kept)):
        if not np.asarray(x).all():
            changed[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(x)
    assert {path.split("/global_blocks/")[-1] for path in changed} == {"attn/proj/kernel", "attn/proj/bias"}
    assert len(changed) == 2 and not any(x[1].any() for x in changed.values())
    assert all(np.delete(x, 1, 0).all() for x in changed.values())


def test_changes_are_those_put_in():
    rng = np.random.default_rng(0)
    angle = np.deg2rad(6)
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    poses = np.concatenate([np.tile(np.eye(3), (3, 1, 1)), rng.normal(size=(3, 3, 1))], -1)
    other = poses.copy()
    other[0] = about_z @ other[0]
    whole = {"poses": poses, "depth": rng.uniform(1, 2, (3, 8, 8)), "surface": np.ones((3, 8, 8))}
    whole["surface"][2] = 0
    some = {"poses": other, "depth": 3 * whole["depth"]}  # a scale is no change
    some["depth"][1] *= 1.2
    some["depth"][2] = 9.0  # sky counts for nothing
    rotation, direction, depth = _differences(some, whole)
    assert rotation == pytest.approx(6) and direction > 0
    assert depth == pytest.approx((1 - 1 / 1.2) / 2)  # half of it, by what the other half is scaled to
    assert _differences(whole, whole) == pytest.approx((0, 0, 0))
    one = {name: x[:1] for name, x in whole.items()}
    assert _differences(one, one) == (None, None, 0.0)


@pytest.mark.slow
def test_the_model_without_a_layer(tiny):
    model, params = tiny
    images = np.random.default_rng(0).integers(0, 255, (1, 3, 56, 56, 3), np.uint8)
    changes = without_layers(model, params, images)
    assert [change.layers for change in changes[:4]] == [(0,), (1,), (2,), (3,)]
    assert [change.within_frames for change in changes[4:]] == [False] * 3 + [True] * 3
    assert {change.group: change.layers for change in changes[4:]} == {
        "first": (0, 1),
        "middle": (1, 2),
        "last": (2, 3),
    }
    # The same by hand: a layer whose values are zero attends to nothing.
    values = jax.tree.map(np.array, params)
    blocks = values["params"]["aggregator"]["global_blocks"]["attn"]
    width = blocks["proj"]["kernel"].shape[-1]
    blocks["qkv"]["kernel"][2, :, 2 * width :] = 0
    blocks["qkv"]["bias"][2, 2 * width :] = 0
    blocks["proj"]["bias"][2] = 0
    run = jax.jit(lambda model, params: model.reconstruction(model.apply(params, images)), static_argnums=0)
    cameras = lambda *of: np.asarray(run(*of).cam_from_world[0])
    rotation, direction = pair_errors(cameras(model, values), cameras(model, params))
    assert changes[2].rotation == pytest.approx(np.median(rotation), abs=1e-2) and changes[2].rotation > 0.1
    assert changes[2].direction == pytest.approx(np.median(direction), abs=1e-2)
    within = model.clone(sparsity=Sparsity(frame_layers=(1, 2)))
    rotation, _ = pair_errors(cameras(within, params), cameras(model, params))
    assert changes[8].rotation == pytest.approx(np.median(rotation), abs=1e-2)
    assert all(change.depth > 1e-4 for change in changes)


def test_a_figure_of_one_view_and_of_several(tmp_path):
    changes = [Change((0,), "", False, 1.0, 2.0, 0.1), Change((1,), "", False, 3.0, 4.0, 0.2)]
    changes += [Change((0, 1), "first", within, 5.0, 6.0, 0.3) for within in (False, True)]
    for some in (changes, [dataclasses.replace(one, rotation=None, direction=None) for one in changes]):
        figures = pytest.importorskip("matplotlib.figure")
        figure = figures.Figure()
        from fastvggt_jax.analyze.figures import _dropped

        _dropped(figure, some)
        left, right = figure.axes
        assert len(right.lines) == 1 and right.lines[0].get_ydata().tolist() == [10.0, 20.0]
        assert len(left.lines) == 2 * (some is changes) and len(right.collections) == 2


@pytest.mark.slow  # a run of the whole command
def test_the_command(tmp_path):
    out = tmp_path / "out"
    arguments = ["--demo", "--size", "56", "--layers", "2,2,0", "--drop", "--sparsity", "0.5"]
    arguments += ["--views", "2,1,2"]
    result = CliRunner().invoke(app, ["analyze", *arguments, "-o", str(out)])
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.iterdir()}
    assert names == {"analysis.json", "analysis.npz"} | {
        f"{name}.png" for name in ("layers", "maps", "matches", "kept", "dropped", "runtime")
    }
    report = json.loads((out / "analysis.json").read_text())
    assert report["layers"] == [0, 2] and [row["views"] for row in report["runtime"]] == [1, 2]
    assert len(report["dropped"]) == 6 + 2 * 3 and report["dropped"][-1]["group"] == "last"


def test_bad_input_before_anything_is_computed(tmp_path):
    run = lambda *arguments: CliRunner().invoke(app, ["analyze", *arguments, "-o", str(tmp_path / "out")])
    refused(run("--demo", "--patch", "a,b,c"), "--patch must be FRAME,X,Y such as 0,100,80, not 'a,b,c'")
    refused(run("--demo", "--views", "9"), "--views has 9, there are 1 to 8")
    refused(run("--demo", VIEWS), "--demo has photographs and weights of its own")
    refused(run("--demo", "--block", "64x32"), "--block needs a --sparsity that is not dense, such as")
    refused(run("--demo", "--sparsity", "quick"), "frame_layers", "the model has layers 0 to 5")
    assert not (tmp_path / "out").exists()
