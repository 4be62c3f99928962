"""Photographs with known cameras: the layout of cameras.json, and what is wrong with a copy of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import errors
from fastvggt_jax.cli.app import app
from fastvggt_jax.datasets.base import Options, load_dataset
from fastvggt_jax.evaluate.metrics import pair_errors
from fastvggt_jax.evaluate.runner import evaluate
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.sources import ImagePolicy, load_images
from fastvggt_jax.testing.random_weights import random_params
from tests.evaluate.test_metrics import some_cameras
from tests.toys import model as toy

SHARED = Path(__file__).parents[2].parent / "shared" / "real"


def write(root, counts=(("castle", 5), ("fox", 2))):
    """Scenes of that many photographs; the cameras of each, f64[F, 3, 4]."""
    found = {}
    for name, count in counts:
        poses = found[name] = some_cameras(count, seed=count)
        (root / name / "images").mkdir(parents=True)
        images = []
        for i, pose in enumerate(poses):
            Image.new("RGB", (40, 32), (40 * i, 90, 9)).save(root / name / "images" / f"{i:03}.png")
            whole = np.concatenate([pose, [[0, 0, 0, 1]]])
            one = {"name": f"{i:03}.png", "width": 40, "height": 32, "K": np.diag([50, 50, 1.0]).tolist()}
            images.append(one | {"world_from_cam": np.linalg.inv(whole).tolist()})
        (root / name / "cameras.json").write_text(json.dumps({"images": images}))
    return found


def change(root, folder, **what):
    path = root / folder / "cameras.json"
    content = json.loads(path.read_text())
    content["images"][1] |= what
    path.write_text(json.dumps(content))


def test_runs_of_photographs_and_their_cameras(tmp_path):
    true = write(tmp_path)
    data = load_dataset("real", Options(root=tmp_path, views=2))
    assert data.scenes == ("castle 0-1", "castle 2-3", "fox 0-1") and data.describe()["views"] == 2
    sample = data[1]
    np.testing.assert_allclose(sample.truth.cam_from_world, true["castle"][2:4], atol=1e-12)
    assert [path.name for path in sample.images] == ["002.png", "003.png"]
    assert load_images(sample.images).pixels[1, 9, 9, 0] == 120
    with pytest.raises(IndexError):
        data[3]
    whole = load_dataset("real", Options(root=tmp_path / "castle", views=9))
    assert whole.scenes == ("castle 0-4",), "fewer photographs are taken whole"
    assert pair_errors(whole[0].truth.cam_from_world, true["castle"])[0].max() < 1e-6
    one = load_dataset("real", Options(root=tmp_path, first=1, scenes=1, views=2))
    assert one.scenes == ("castle 2-3",)


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({}, errors.InputError, "root must be given for the data set real"),
        ({"root": Path("nowhere")}, errors.MissingError, "root nowhere is no folder"),
        ({"root": True}, errors.MissingError, "holds no cameras.json, and no folder with one"),
        ({"root": False, "views": 1}, errors.InputError, "views must be at least 2, not 1"),
        ({"root": False, "first": 9}, errors.InputError, "first must be below 2, the number of scenes"),
        ({"root": False, "first": -1}, errors.InputError, "first must be at least 0"),
        ({"root": False, "scenes": 0}, errors.InputError, "scenes must be at least 1"),
    ],
)
def test_a_root_that_is_none(tmp_path, options, error, sentence):
    write(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    if isinstance(options.get("root"), bool):
        options = options | {"root": tmp_path / ("empty" if options["root"] else "full")}
    with pytest.raises(error, match=sentence):
        load_dataset("real", Options(**options))


@pytest.mark.parametrize(
    "what, sentence",
    [
        ({"world_from_cam": np.full((4, 4), np.nan).tolist()}, "camera of its view 1 is not finite"),
        ({"world_from_cam": (2 * np.eye(4)).tolist()}, "is no rotation and translation"),
        ({"world_from_cam": [1, 2]}, "must be 4x4"),
        ({"name": "gone.png"}, "gone.png is missing"),
    ],
)
def test_a_scene_that_cannot_be_measured_is_left_out_named_and_counted(tmp_path, what, sentence):
    write(tmp_path / "root", counts=(("castle", 3), ("fox", 3), ("one", 1)))
    change(tmp_path / "root", "fox", **what)
    with pytest.raises(errors.SceneError, match=sentence) as error:
        load_dataset("real", Options(root=tmp_path / "root"))[1]
    assert error.value.scene == "fox 0-2"
    with registry.registered("toy", toy.PATH):
        save_params(tmp_path / "toy.safetensors", random_params(toy.Toy()), toy.Toy())
        asked = ["evaluate", "real", "-c", str(tmp_path / "toy.safetensors"), "--batch", "1"]
        asked += ["-o", str(tmp_path / "out"), "--root", str(tmp_path / "root")]
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, (done.output, done.exception)
        assert "2 of 3 scenes are left out, and in no number" in done.stderr
        assert f"fox 0-2: {sentence}".split()[-1] in done.stderr
        assert "one 0-0: it has 1 view, and 2 are compared" in done.stderr
        found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert found["dataset"]["scenes"] == ["castle 0-2"]
        assert [one["scene"] for one in found["dataset"]["left_out"]] == ["fox 0-2", "one 0-0"]
        assert [len(values) for values in found["configurations"][0]["scenes"].values()] == [1] * len(
            found["configurations"][0]["scenes"]
        )
        assert not (tmp_path / "out.so-far.jsonl").exists(), "what is left out is done, too"
        change(tmp_path / "root", "castle", name="gone.png")
        done = CliRunner().invoke(app, [*asked, "--overwrite"])
        assert done.exit_code == 2 and "none of the 3 scenes of real can be measured" in done.stderr


@pytest.mark.parametrize("batch", [1, 4])
def test_scenes_that_were_left_out_are_measured_alone_once_they_are_mended(tmp_path, batch):
    write(tmp_path / "root", counts=(("castle", 3), ("fox", 3), ("lund", 3), ("one", 1)))
    write(tmp_path / "mended", counts=(("castle", 3), ("fox", 3), ("lund", 3), ("one", 2)))
    mend = lambda *names: [
        shutil.copytree(tmp_path / "mended" / name, tmp_path / "root" / name, dirs_exist_ok=True)
        for name in names
    ]
    for name in ("fox", "lund"):
        change(tmp_path / "root", name, name="gone.png")
    out = tmp_path / "out"
    with registry.registered("toy", toy.PATH):
        save_params(tmp_path / "toy.safetensors", random_params(toy.Toy()), toy.Toy())
        asked = ["evaluate", "real", "-c", str(tmp_path / "toy.safetensors"), "--batch", str(batch)]
        asked += ["-o", str(out), "--root", str(tmp_path / "root"), "--no-plot"]

        def again(*more):
            done = CliRunner().invoke(app, [*asked, *more])
            assert done.exit_code == 0, (done.output, done.exception)
            assert not (tmp_path / "out.so-far.jsonl").exists()
            found = json.loads((out / "evaluation.json").read_text())
            row = found["configurations"][0]
            seen = zip(found["dataset"]["scenes"], row["scenes"]["AUC@30"], row["seconds"], strict=True)
            return {name: numbers for name, *numbers in seen}, found["dataset"].get("left_out", [])

        first, left_out = again()
        assert [*first] == ["castle 0-2"] and len(left_out) == 3
        assert again() == (first, left_out), "not one of them is mended"
        mend("castle", "fox")
        change(tmp_path / "root", "castle", name="gone.png")  # would be missed, if it were looked at
        second, left_out = again()
        assert [*second] == ["castle 0-2", "fox 0-2"] and second["castle 0-2"] == first["castle 0-2"]
        assert [one["scene"] for one in left_out] == ["lund 0-2", "one 0-0"]
        fresh, left_out = again("--overwrite")
        assert [*fresh] == ["fox 0-2"] and len(left_out) == 3, "all is measured again"
        (out / "measured.jsonl").unlink()
        mend("castle", "lund", "one")
        whole, left_out = again()
        assert [*whole] == ["castle 0-2", "fox 0-2", "lund 0-2", "one 0-1"] and not left_out
        assert [path.name for path in out.iterdir()] == ["evaluation.json"]
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 2 and "is not empty" in done.stderr, "there is nothing to go on with"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs are not in the project")
def test_the_photographs_here():
    data = load_dataset("real", Options(root=SHARED))
    assert {name.split()[0] for name in data.scenes} >= {"castle-p30", "dtu-scan37", "fox", "lund-door"}
    for number in range(len(data)):
        sample = data[number]
        assert 8 <= len(sample.images) == len(sample.truth.cam_from_world) <= 12


def test_a_photograph_that_is_damaged_leaves_its_scene_out(tmp_path):
    true = write(tmp_path, counts=(("castle", 3), ("fox", 3)))
    (tmp_path / "castle" / "images" / "001.png").write_bytes(b"no photograph")
    data, policy = load_dataset("real", Options(root=tmp_path)), ImagePolicy("crop", 40, 4)
    counted = []

    def predict(images):
        poses = true["fox"][None].astype(np.float32)
        depth = np.ones(images.shape[:4], np.float32)
        return Reconstruction(poses, None, depth, depth, np.zeros((*depth.shape, 3), np.float32), depth), None

    result = evaluate({"x": predict}, policy, data, advance=counted.append)["x"]
    assert result.scenes == ["fox 0-2"] and result.summary()["AUC@30"] == 100 and counted == [1, 1]
    ((number, name, why),) = result.left_out
    assert (number, name, result.seen) == (0, "castle 0-2", 2) and "001.png is damaged or not an image" in why
