"""`fastvggt evaluate all`: tables of what is there, published rows beside ours; protocols and the gallery."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax.cli.app import app
from fastvggt_jax.datasets.base import PAIRS, SCENES, Options, load_dataset
from fastvggt_jax.evaluate.ablations import Configuration
from fastvggt_jax.evaluate.gallery import ranked
from fastvggt_jax.evaluate.plot import measured_panels
from fastvggt_jax.evaluate.protocols import rules_for
from fastvggt_jax.evaluate.published import COMPARABLE, PUBLISHED, published_for
from fastvggt_jax.evaluate.report import COLUMNS, comparison, encode, report, table
from fastvggt_jax.evaluate.runner import Result
from fastvggt_jax.evaluate.suite import TABLES
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.testing.random_weights import random_params
from tests.datasets import layouts
from tests.datasets.test_layouts import scene
from tests.toys import model as toy


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    with registry.registered("toy", toy.PATH):
        save_params(path, random_params(toy.Toy()), toy.Toy())
        yield path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three of the data sets, one scene or two of each."""
    root = tmp_path_factory.mktemp("data")
    ten, two = scene(10), scene(2)
    layouts.realestate10k(root / "realestate10k", ten)
    layouts.realestate10k(root / "realestate10k", ten._replace(poses=ten.poses[::-1]), "ffff")
    layouts.sintel(root / "sintel", two)
    layouts.eth3d(root / "eth3d", scene(6))
    return root


def test_all_tables_of_what_is_there(weights, root, tmp_path):
    out = tmp_path / "out"
    asked = ["all", "--root", root, "-c", weights, "-o", out, "--batch", 1, "--size", 56, "--no-plot"]
    done = run(*asked)
    assert done.exit_code == 0, (done.output, done.exception)
    assert sorted(path.name for path in out.iterdir()) == ["eth3d", "realestate10k", "sintel"]
    assert "not in" in done.stderr and "co3dv2, tanksandtemples, 7scenes" in done.stderr
    found = {
        name: json.loads((out / name / "evaluation.json").read_text())
        for name in ("eth3d", "realestate10k", "sintel")
    }
    re10k = found["realestate10k"]
    assert re10k["protocol"]["name"] == "pi3-2025-08" and re10k["protocol"]["relative_pose"] == "j from i"
    assert re10k["dataset"]["frames"].keys() == {"000c3ab189999a83", "ffff"}
    assert "of this copy" in re10k["dataset"]["frame_list"]
    assert re10k["dataset"]["resolution"] == {"56x4": 2}, "what the model sees, --size in the place of 512"
    for name, numbers in re10k["dataset"]["frames"].items():
        assert re10k["dataset"]["photographs"][name] == [f"{i:04}.png" for i in numbers]
    assert found["sintel"]["dataset"]["photographs"] == {"alley_2": ["frame_0001.png", "frame_0002.png"]}
    assert re10k["model"]["image_policy"] == {"mode": "wide", "size": 512, "patch": 4}
    assert re10k["model"]["points_from"] == "depth" and len(re10k["configurations"][0]["seconds"]) == 2
    assert found["eth3d"]["protocol"]["icp_reach"] == 0.1
    assert {"Acc mean", "NC median", "point clouds"} <= found["eth3d"]["configurations"][0]["summary"].keys()
    gone = found["eth3d"]["dataset"]["left_out"]
    assert gone[0]["reason"] == f"the folder {root / 'eth3d' / 'delivery_area'} is missing"
    assert len(gone) == 12 and "12 of 13 scenes are left out" in done.stderr
    sintel = found["sintel"]["configurations"][0]["summary"]
    assert {"trajectory ATE", "RPE rotation", "AbsRel, scale", "delta, scale&shift"} <= sintel.keys()
    assert "[VGGT" not in done.stdout and "To be compared" not in done.stdout, "at another size"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    again = run(*asked, "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["sintel"] == found["sintel"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}, "nothing was done twice"
    newer = tmp_path / weights.name
    shutil.copyfile(weights, newer)
    changed = [*(str(a) for a in asked)]
    changed[changed.index(str(weights))] = str(newer)
    moved = [*(str(a) for a in asked)]
    moved[moved.index(str(root))] = str(tmp_path / "moved")
    (tmp_path / "moved").symlink_to(root)
    for other in ([*asked, "--sparsity", "0.5"], [*asked, "--size", 112], changed, moved):
        done = run(*other)
        assert done.exit_code == 2 and done.stderr.count("is of another evaluation") == 3, other


def test_one_of_all_data_sets_that_is_damaged_does_not_end_the_others(weights, root, tmp_path):
    for name in ("eth3d", "sintel"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "co3dv2").mkdir()  # without annotations
    shutil.copytree(root / "realestate10k", tmp_path / "realestate10k")
    for path in (tmp_path / "realestate10k").rglob("*.png"):
        path.write_bytes(b"damaged")
    asked = ["all", "--root", tmp_path, "-c", weights, "-o", tmp_path / "out", "--size", 56, "--no-plot"]
    done = run(*asked, "--json")
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), (done.output, done.exception)
    assert "2 of 4 tables could not be made: co3dv2, realestate10k" in done.stderr
    assert "co3dv2: root" in done.stderr and "none of the 2 scenes of realestate10k" in done.stderr
    found = json.loads(done.stdout)
    assert "AbsRel, scale" in found["sintel"]["configurations"][0]["summary"]
    assert "none of the 2 scenes" in found["realestate10k"]["error"] and "error" in found["co3dv2"]
    shutil.rmtree(tmp_path / "co3dv2")
    shutil.copytree(root / "realestate10k", tmp_path / "realestate10k", dirs_exist_ok=True)
    mended = run(*asked, "--json")
    assert mended.exit_code == 0, mended.output
    again = json.loads(mended.stdout)
    assert len(again["realestate10k"]["dataset"]["scenes"]) == 2 and again["sintel"] == found["sintel"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["all"], "--root must be given, a folder that holds some of the folders realestate10k, co3dv2"),
        (["all", "--root", "."], "holds none of them"),
        (["all", "--root", "ROOT", "--views", 3], "--views cannot be chosen of the data set all"),
        (
            ["realestate10k", "--root", "ROOT/realestate10k", "--protocol", "x"],
            "--protocol must be one of ours, pi3",
        ),
        (
            ["realestate10k", "--root", "ROOT/realestate10k", "--protocol", "vggt-co3d"],
            "is for co3dv2, not for",
        ),
        (
            ["synthetic", "--protocol", "pi3-2025-08"],
            "is for the data sets of papers, not for synthetic: take ours",
        ),
        (
            ["eth3d", "--root", "ROOT/eth3d", "--stride", 0],
            "--stride must be a whole number, at least 1, not 0",
        ),
        (
            ["eth3d", "--root", "ROOT/eth3d", "--gallery"],
            "--gallery needs a folder to write gallery.png into",
        ),
        (["eth3d", "--root", "ROOT/eth3d", "--points-from", "sky"], "--points-from must be"),
        (["eth3d", "--root", "ROOT/eth3d", "--frames", "no.json"], "no.json"),
    ],
)
def test_bad_input_is_one_sentence(weights, root, arguments, sentence):
    done = run("-c", weights, *(str(a).replace("ROOT", str(root)) for a in arguments))
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), (done.output, done.exception)
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_gallery_shows_the_worst_and_the_best_scene(weights, root, tmp_path):
    asked = ["realestate10k", "--root", root / "realestate10k", "-c", weights, "-o", tmp_path / "out"]
    done = run(*asked, "--gallery", "--size", 56)
    assert done.exit_code == 0, (done.output, done.exception)
    with Image.open(tmp_path / "out" / "gallery.png") as picture:
        assert picture.width > 500 and np.asarray(picture.convert("L")).std() > 5
    report = {
        "dataset": {"scenes": ["a", "b", "c", "d"]},
        "configurations": [{"scenes": {"AUC@30": [50, 10, None, 70]}}],
    }
    assert ranked(report) == ("AUC@30", {"worst": "b", "median": "a", "best": "d"})
    report["configurations"] = [{"scenes": {"point clouds": [0.5, 0.1, 0.7, 0.2]}}]
    assert ranked(report) == ("point clouds", {"worst": "c", "median": "d", "best": "b"})
    report = {"dataset": {"scenes": ["a"]}, "configurations": [{"scenes": {"AbsRel": [1.0]}}]}
    assert ranked(report) == ("AbsRel", {"worst": "a"})
    report["configurations"][0]["scenes"] = {"point clouds": [None], "AbsRel": [1.0]}
    assert ranked(report)[0] == "AbsRel", "where all are not finite there is no worst"


@pytest.mark.parametrize(
    "options, shown",
    [
        ({}, True),
        ({"stride": 5}, True),
        ({"stride": 3}, False),
        ({"size": 56}, False),
        ({"protocol": "ours"}, False),
    ],
)
def test_published_rows_are_shown_where_numbers_can_be_compared(options, shown, root):
    data = load_dataset("eth3d", Options(root=root / "eth3d", **options))
    given = dict(batch=1, block=(1, 1), version="0", rules=rules_for(data, options.get("protocol")))
    runs = [Configuration("dense", "dense", None)]
    empty = Result(pairs=[np.zeros((2, 0))], baselines=[np.zeros(0)])
    found = report({}, data, runs, {runs[0].label: empty}, options=options, **given)
    lines = comparison(found)
    assert bool(found["published"]) == bool(lines) == shown
    assert not shown or "To be compared with: π³'s own table" in lines[1]


def test_a_metric_that_is_not_finite_is_null_in_the_report(root):
    data = load_dataset("eth3d", Options(root=root / "eth3d"))
    bad = Result(["a", "b"], [np.zeros((2, 0))] * 2, [np.zeros(0)] * 2, seconds=[1.0, 1.0])
    bad.metrics = [{"point clouds": np.nan, "NC mean": 0.5}, {"point clouds": 1.0, "NC mean": 0.5}]
    runs, how = [Configuration("dense", "dense", None)], dict(batch=1, block=(1, 1), version="0", options={})
    found = report({}, data, runs, {"dense": bad}, rules=rules_for(data), **how)
    row = json.loads(encode(found))["configurations"][0]
    assert row["summary"]["point clouds"] is None and row["scenes"]["point clouds"] == [None, 1.0]
    assert row["summary"]["NC mean"] == 0.5 and "dense" in table(found["configurations"], found["published"])
    assert not measured_panels(found["configurations"]), "of one scene it is not known"


def test_published_rows_stand_beside_ours():
    rows = published_for("tanksandtemples", views=50, protocol="pi3-2025-08")
    assert [row.model for row in rows][:2] == ["VGGT dense", "VGGT S25"] and len(rows) == 8
    assert rows[4].values == {"RRA@5": 85.4, "RTA@5": 84.6, "normalised ATE": 0.015, "seconds": 2.1}
    assert len(published_for("tanksandtemples", views=None)) == 8 and not published_for(
        "tanksandtemples", views=7
    )
    assert published_for("co3dv2", protocol="vggt-co3d")[0].values == {"AUC@30": 89.49}
    for name, all_rows in PUBLISHED.items():
        assert all(set(row.values) <= set(COLUMNS) for row in all_rows) and name in COMPARABLE
    assert {one.dataset for one in TABLES} == set(COMPARABLE)
    ours = {"label": "dense", "seconds": [1.0, 3.0], "summary": {"RRA@5": 80.0, "RTA@5": 7.0, "AUC@30": 9.0}}
    shown = table([ours], [{"label": row.label, **row._asdict()} for row in rows]).splitlines()
    assert len(shown) == 10 and len({len(line) for line in shown}) == 1
    assert shown[0].split() == ["RRA@5", "RTA@5", "AUC@30", "s/scene"]
    assert shown[1].split() == ["dense", "80.0", "7.0", "9.0", "2.000"]
    assert shown[2].split()[-3:] == ["84.8", "81.5", "1.500"], "what was not published is blank"


def test_means_are_over_what_the_protocol_says():
    pairs = lambda *errors: np.array([errors, errors], float)
    result = Result(
        scenes=["apple/a", "apple/b", "ball/c"],
        pairs=[pairs(1, 1), pairs(9, 9), pairs(1, 9, 9, 9)],
        baselines=[np.zeros(2)] * 3,
        metrics=[
            {"RRA@5": 100.0, "AbsRel, scale": 0.1, "valid pixels": 100},
            {"RRA@5": 0.0, "AbsRel, scale": 0.4, "valid pixels": 300},
            {"RRA@5": 25.0},
        ],
        seconds=[0.0] * 3,
    )
    assert result.summary(PAIRS)["RRA@5"] == pytest.approx(100 * 3 / 8)
    assert result.summary(SCENES)["RRA@5"] == pytest.approx(125 / 3)
    assert result.summary("categories")["RRA@5"] == pytest.approx((50 + 25) / 2)
    assert result.summary(SCENES)["AbsRel, scale"] == pytest.approx((0.1 * 100 + 0.4 * 300) / 400)
    assert result.summary(SCENES)["valid pixels"] == 200
