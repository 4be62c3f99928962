"""`fastvggt evaluate`: report, table and plot of a data set, and what is wrong in one sentence."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import errors
from fastvggt_jax.cli.app import app
from fastvggt_jax.datasets.base import registered
from fastvggt_jax.datasets.stereo import Stereo
from fastvggt_jax.evaluate import plot, task
from fastvggt_jax.evaluate.report import baseline_table, table
from fastvggt_jax.evaluate.task import ablations_of
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.testing.random_weights import random_params
from tests.toys import model as toy
from tests.toys.dataset import Walls


class Unmeasured(Walls):
    metrics = ()


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


@pytest.fixture(autouse=True)
def toys():
    with registry.registered("toy", toy.PATH), registered("walls", Walls.build):
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    with registry.registered("toy", toy.PATH):
        save_params(path, random_params(toy.Toy()), toy.Toy())
    return path


def test_views_may_take_a_gpus_memory_unless_the_user_has_said_how_much(weights, monkeypatch):
    share = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    for given, taken in (("", "0.93"), ("0.5", "0.5")):
        monkeypatch.setenv(share, given)
        if not given:
            monkeypatch.delenv(share)
        assert run("walls", "-c", weights, "--scenes", 1).exit_code == 0
        assert os.environ[share] == taken


@pytest.mark.slow
def test_a_random_model_the_whole_way(tiny, tmp_path):
    """Dense and sparse: a model of tiny VGGT's size reconstructs nothing, and says how much it left out."""
    model, params = tiny
    save_params(tmp_path / "tiny.safetensors", params, model)
    asked = ["walls", "-c", tmp_path / "tiny.safetensors", "--size", 28, "-o", tmp_path / "out"]
    sparse = ["--sparsity", "dense", "--sparsity", "0.9,0.1", "--block", "2x2"]
    done = run(*asked, *sparse, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    report = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == report
    seen = {"scenes": ["wall 0", "wall 1"], "batch": 2, "resolution": {"28x28": 2}}
    assert report["dataset"] == {"name": "walls", "views": 3} | seen
    assert report["model"]["class"] == "VGGT" and report["model"]["dtype"] == "float32"
    assert report["model"]["file"] == "tiny.safetensors" and report["block"] == [2, 2]
    dense, sparse = report["configurations"]
    assert dense["label"] == "dense" and dense["density"] is None
    assert dense["summary"]["effective sparsity"] == 0
    assert 0.3 < sparse["summary"]["effective sparsity"] < 0.9 and len(sparse["density"]) == 4
    assert dense["summary"]["AUC@30"] < 90 and dense["summary"]["point error"] > 1
    assert sparse["summary"]["point error"] != dense["summary"]["point error"]
    assert set(dense["summary"]) <= set(report["definitions"])
    assert "rank correlation" not in report["definitions"], "what was not measured is not explained"
    with Image.open(tmp_path / "out" / "quality.png") as picture:
        assert picture.width > 1000
    again = run(*asked)
    assert again.exit_code != 0 and "is not empty" in again.stderr
    for lines in (
        table(report["configurations"]).splitlines()[1:],
        baseline_table(report["configurations"]).splitlines()[2:],
    ):
        assert len({len(line) for line in lines}) == 1 and lines[-1].startswith("ρ and τ: ρ 0.9 τ 0.1")


def test_depth_alone_has_a_table_and_a_plot_too(weights, tmp_path):
    y, x = np.mgrid[:60, :100]
    image = np.repeat((x + y)[..., None], 3, -1).astype(np.uint8)

    def build(options):
        return Stereo(image, image, 10.0 + x, options.size)

    with registered("pair", build):
        done = run("pair", "-c", weights, "--size", 40, "-o", tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    heads = done.stdout.splitlines()[0]
    assert "rank ρ" in heads and "AUC" not in heads and "6,000" in done.stdout
    assert len(done.stdout.splitlines()) == 2, "no table of baselines without cameras"
    assert (tmp_path / "out" / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_plot_is_said_and_the_numbers_are_kept(weights, tmp_path):
    with registered("unmeasured", Unmeasured.build):
        done = run("unmeasured", "-c", weights, "-o", tmp_path / "out", "--plot")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "quality.png" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]
    with pytest.raises(errors.InputError, match="nothing to plot: none of AUC@30, AbsRel"):
        plot.write_plot([{"family": "dense", "summary": {}}], "title", tmp_path / "p.png")


def test_ablations_count_the_patches_that_the_model_sees():
    """Special keys as released are the same where the patches fill whole blocks: 3 views of 3 × 4 here."""
    for block, asked in (((8, 12), False), ((8, 8), True)):
        families = {run.family for run in ablations_of(toy.Toy(), Walls(), block, None)}
        assert ("special keys as released" in families) == asked and "random blocks" in families


def test_ablations_count_the_patches_of_the_first_scene_that_can_be_read():
    class Damaged(Walls):
        def __getitem__(self, number):
            if number == 0:
                raise errors.SceneError("no photographs", scene="wall 0")
            return super().__getitem__(number)

    whole, damaged = (
        ablations_of(toy.Toy(), data, (8, 8), ["random blocks"]) for data in (Walls(), Damaged())
    )
    assert damaged == whole
    with pytest.raises(errors.SceneError, match="no photographs"):
        ablations_of(toy.Toy(), Damaged(scenes=1), (8, 8), None)


def test_an_interrupted_evaluation_reports_its_scenes_so_far(weights, tmp_path, monkeypatch):
    calls, predictor = [], task.predictor

    def interrupted(net, params, *how):
        predict = predictor(net, params)

        def once(images):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return predict(images)

        return once

    monkeypatch.setattr(task, "predictor", interrupted)
    done = run("walls", "-c", weights, "--scenes", 3, "--batch", 1, "-o", tmp_path / "out")
    assert done.exit_code == 130 and "this is of the first 1 of 3 scenes" in done.stderr
    assert "AUC@30" in done.stdout
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["dataset"]["scenes"] == ["wall 0"]
    assert [len(row["scenes"]["AUC@30"]) for row in report["configurations"]] == [1]
    assert "the same command goes on" in done.stderr
    done = run("walls", "-c", weights, "--scenes", 3, "--batch", 1, "-o", tmp_path / "out")
    assert done.exit_code == 0 and len(calls) == 4  # the second scene, again, and the third


def without_seconds(text):
    """The report but for what a clock says."""
    found = json.loads(text)
    for row in found["configurations"]:
        assert len(row.pop("seconds")) == len(found["dataset"]["scenes"])
    return found


def test_an_evaluation_that_was_killed_goes_on(weights, tmp_path, monkeypatch):
    asked = ["walls", "-c", weights, "--scenes", 4, "--batch", 1, "--sparsity", "dense", "--json"]
    straight = run(*asked, "-o", tmp_path / "straight")
    predictor, calls = task.predictor, []

    def killed(net, params, *how):
        predict = predictor(net, params)

        def once(images):
            calls.append(1)
            if len(calls) == 3:
                raise SystemExit(143)  # as SIGTERM does
            return predict(images)

        return once

    so_far, out = tmp_path / "out.so-far.jsonl", tmp_path / "out"
    monkeypatch.setattr(task, "predictor", killed)
    assert run(*asked, "-o", out).exit_code == 143 and not out.exists()
    assert len(so_far.read_text().splitlines()) == 3  # of what, and two scenes
    other = run(*asked[:-1], "--size", 20, "-o", out)
    assert other.exit_code == 2 and f"{so_far} is of another evaluation (options differ" in other.stderr
    so_far.write_bytes(so_far.read_bytes()[:-9])  # as if killed while it wrote
    calls[:] = [1] * 3
    done = run(*asked, "-o", out)
    assert done.exit_code == 0 and "1 scenes were measured before" in done.stderr and len(calls) == 6
    assert without_seconds(done.stdout) == without_seconds(straight.stdout)
    written = [(folder / "evaluation.json").read_text() for folder in (out, tmp_path / "straight")]
    assert without_seconds(written[0]) == without_seconds(written[1]) == without_seconds(done.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "straight"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["sintetic"], "there is no data set 'sintetic'; there are synthetic, stereo"),
        (["synthetic", "--scenes", 0], "--scenes must be at least 1, not 0"),
        (["synthetic", "--views", 1], "--views must be at least 2, not 1"),
        (["synthetic", "--first", -1], "--first must be at least 0, not -1"),
        (["synthetic", "--first", 99999999999], "the last one is number 2147483647"),
        (["synthetic", "--batch", 0], "--batch must be at least 1, not 0"),
        (["walls", "--first", 3], "--first cannot be chosen of the data set walls"),
        (["walls", "--size", 18], "--size must be a positive multiple of the model's patches of 4 pixels"),
        (["walls", "--sparsity", "most"], "--sparsity must be dense, or"),
        (["walls", "--family", "noise"], "--family must be one of dense, ρ and τ"),
        (["walls", "--block", "64x32"], "--block needs a --sparsity that is not dense"),
        (["walls", "--block", "128,64"], "--block must be queries x keys such as 128x64"),
        (["walls", "--plot"], "--plot needs a folder to write quality.png into: give -o"),
        (["walls", "-c", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_sentence(weights, arguments, sentence):
    done = run(*([] if "-c" in arguments else ["-c", weights]), *arguments)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    assert sentence in done.stderr and "Traceback" not in done.output and len(done.stderr.splitlines()) == 1


def test_a_missing_extra_is_named(weights, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.ExtraError, match=r"pip install 'fastvggt_jax\[plot\]'"):
        plot.require_matplotlib()
    done = run("walls", "-c", weights, "--plot")
    assert done.exit_code == 2 and "plotting needs matplotlib" in done.stderr


def test_the_plot_has_a_line_a_family_in_order_of_sparsity(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, label, **style: drawn.append((label, list(x), list(y)))
    )
    metric = lambda sparsity, value: {"effective sparsity": sparsity, "AUC@30": value, "AbsRel": value}
    rows = [{"family": "dense", "summary": metric(0, 9)}]
    rows += [{"family": "a", "summary": metric(0.5, 7)}, {"family": "a", "summary": metric(0.2, 8)}]
    plot.write_plot(rows, "title", tmp_path / "p.png")
    assert drawn == [("a", [20, 50], [8, 7])] * 2, "a panel for each metric that was measured"
    drawn.clear()
    timed = [row | {"seconds": [second, second + 2]} for row, second in zip(rows, (5, 2, 3), strict=True)]
    plot.write_plot(timed, "title", tmp_path / "p.png")
    assert drawn[2:] == [("dense", [6], [9]), ("a", [3, 4], [7, 8])] * 2, "quality against time"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
