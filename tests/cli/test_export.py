"""`fastvggt export`: a saved scene in more formats, and nothing of the user's lost."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fastvggt_jax import Scene, export
from fastvggt_jax.cli.app import app
from fastvggt_jax.export import write_cameras
from fastvggt_jax.export.base import check_formats, write_formats
from fastvggt_jax.export.lenses import with_K
from tests.export.colmap_reader import read_colmap
from tests.export.truth import VIEWS, true_scene


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def saved(true, tmp_path):
    """As reconstruct leaves it."""
    export.write(true.scene, tmp_path / "out", ("cameras", "ply", "scene", "conventions"))
    return tmp_path / "out"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def tree(folder: Path) -> dict:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def refused(result, *words):
    assert result.exit_code != 0 and result.exception.__class__ is SystemExit
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line, line


def test_more_formats_come_into_the_same_folder(saved):
    (saved / "notes.txt").write_text("mine")
    before = tree(saved)
    result = run("export", saved, "--format", "colmap,splat,depth", "--max-points", 500, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["files"] == ["cameras.json", "depth", "scene.json", "sparse", "splat"]
    assert report["tracks"]["points"] == 500 and report["tracks"]["mean_length"] > 4
    after = tree(saved)
    for name in ("points.ply", "scene.npz", "notes.txt"):
        assert after[name] == before[name]
    assert len(read_colmap(saved / "sparse" / "0").points) == 500
    images = json.loads(after["cameras.json"])["images"]
    assert all((saved / image["files"]["splat"]).exists() for image in images)
    assert set(json.loads(after["scene.json"])["formats"]) == {
        *("cameras", "ply", "scene", "depth", "colmap", "splat")
    }
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []
    # A second call knows of the files of the first.
    assert run("export", saved, "--format", "nerfstudio").exit_code == 0
    files = json.loads((saved / "cameras.json").read_text())["images"][0]["files"]
    assert {"splat", "nerfstudio", "depth"} <= set(files)


def test_what_is_there_is_replaced_only_on_request(saved):
    assert run("export", saved, "--format", "colmap", "--max-points", 100).exit_code == 0
    before = tree(saved)
    refused(
        run("export", saved, "--format", "depth,colmap"), "holds sparse/0/cameras.bin already", "--overwrite"
    )
    assert tree(saved) == before
    again = run("export", saved, "--format", "colmap", "--max-points", 50, "--overwrite")
    assert again.exit_code == 0 and "50 points with tracks" in again.stdout
    assert len(read_colmap(saved / "sparse" / "0").points) == 50


def test_a_new_folder(saved, tmp_path):
    before = tree(saved)
    result = run("export", saved, "--format", "colmap,scene", "-o", tmp_path / "new", "--shared-camera")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "cameras.json",
        "scene.json",
        "scene.npz",
        "sparse",
    ]
    assert Scene.load(tmp_path / "new").intrinsics == ("shared",) * VIEWS
    assert tree(saved) == before
    refused(run("export", saved, "--format", "ply", "-o", tmp_path / "new"), "is not empty", "--overwrite")
    assert run("export", saved, "--format", "ply", "-o", tmp_path / "new", "--overwrite", "-q").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "cameras.json",
        "points.ply",
        "scene.json",
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--format", "colmap", "--shared-camera"], ["--shared-camera", "a new output folder"]),
        (
            ["--format", "colmap", "--camera-model", "SIMPLE_RADIAL"],
            ["--camera-model", "a new output folder"],
        ),
        (["--format", "obj"], ["no format 'obj'", "colmap"]),
        (["--format", "colmap", "--max-points", "0"], ["--max-points must be"]),
        (["--format", "splat", "--photos", "nowhere"], ["--photos nowhere holds no 0.png"]),
        (["--format", "colmap", "-o", "file"], ["file is a file; give a folder"]),
    ],
)
def test_what_is_wrong_is_one_sentence_and_changes_nothing(saved, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    scene = Scene.load(saved)
    K = np.stack([scene.K_original(i) for i in range(VIEWS)])
    K[2, 0, 0] *= 1.1  # of one camera, and of one focal length, they are not
    with_K(scene, K, scene.intrinsics).save(saved)
    before = tree(tmp_path)
    refused(run("export", saved, *options), *words)
    assert tree(tmp_path) == before


def test_a_shared_camera_stays_one_in_the_folders_other_files(true, tmp_path):
    K = np.stack([true.scene.K_original(i) for i in range(VIEWS)])
    K[2, [0, 1], [0, 1]] *= 1.1
    scene = with_K(true.scene, K, true.scene.intrinsics)
    options = export.ExportOptions(shared_camera=True, track_points=50)
    made = export.Export.of(scene, options)
    write_formats(made, tmp_path, check_formats(("cameras", "colmap", "scene")))
    assert run("export", tmp_path, "--format", "splat", "--shared-camera").exit_code == 0
    models = [read_colmap(tmp_path / inside / "sparse" / "0").cameras for inside in (".", "splat")]
    assert models[0] == models[1] and len(models[0]) < VIEWS
    assert (
        run("export", tmp_path, "--format", "splat", "--overwrite").exit_code == 0
    )  # it is one all the same
    assert read_colmap(tmp_path / "splat" / "sparse" / "0").cameras == models[0]


@pytest.mark.parametrize("where", [".", "sub", "link"])
def test_the_scenes_own_folder_is_no_output(saved, where, tmp_path):
    """It would be replaced by what is written, and the scene be gone."""
    before = tree(saved)
    if where == "sub":
        shutil.move(saved, tmp_path / "sub" / "out")
        (tmp_path / "sub" / "cameras.json").write_bytes(before["cameras.json"])
        out, saved = tmp_path / "sub", tmp_path / "sub" / "out"
    elif where == "link":
        (tmp_path / "link").symlink_to(saved)
        out = tmp_path / "link"
    else:
        out = saved
    words = ("lies in the --output folder", "which is replaced")
    refused(run("export", saved, "--format", "ply", "-o", out, "--overwrite"), *words)
    assert tree(saved) == before


def test_files_of_the_users_that_are_named_like_ours_are_kept(saved, tmp_path):
    out = tmp_path / "new"
    wanted = ("export", saved, "--format", "depth,splat", "-o", out, "--overwrite")
    assert run(*wanted).exit_code == 0
    assert run(*wanted).exit_code == 0  # all of it is known again
    for name in ("splat/images/thesis.docx", "depth/own.npz"):
        (out / name).write_text("mine")
        refused(run(*wanted), f"not written here ({name})")
        (out / name).unlink()
    assert run(*wanted).exit_code == 0


@pytest.mark.parametrize("way", ["splat", "splat/images", "points.ply/x"])
def test_what_is_in_the_way_is_named_before_anything_changes(saved, way):
    if way == "points.ply/x":
        (saved / "points.ply").unlink()
    (saved / way).parent.mkdir(exist_ok=True)
    (saved / way).write_text("mine")
    before = tree(saved)
    named = f"{saved / way.removesuffix('/x')} is in the way"
    refused(run("export", saved, "--format", "ply,splat", "--overwrite"), named)
    assert tree(saved) == before


def test_what_a_killed_export_has_left_is_named(saved):
    left = saved.parent / f".{saved.name}.0123abcd.tmp"
    left.mkdir()
    result = run("export", saved, "--format", "depth")
    assert result.exit_code == 0 and f"has left {left}" in result.stderr
    assert left.is_dir()


def test_a_name_reaches_the_terminal_without_its_escapes(true, tmp_path):
    scene = dataclasses.replace(true.scene, names=("\x1b]0;own\x07.png", *true.scene.names[1:]))
    scene.save(tmp_path / "out")
    result = run("export", tmp_path / "out", "--format", "splat")
    assert result.exit_code == 0 and "\x1b]0" not in result.stderr + result.stdout


def test_a_folder_without_a_scene(tmp_path):
    refused(run("export", tmp_path, "--format", "ply"), "scene.npz: no such file", str(tmp_path))
    refused(run("export", tmp_path / "none", "--format", "ply"), "scene.npz: no such file")


def test_photographs_that_have_moved(true, tmp_path):
    shutil.copytree(Path(true.scene.paths[0]).parent, tmp_path / "then")
    moved = true_scene(tmp_path / "then")
    moved.scene.save(tmp_path / "out")
    (tmp_path / "then").rename(tmp_path / "now")
    before = tree(tmp_path)
    refused(run("export", tmp_path / "out", "--format", "splat"), "0.png is no longer there: give --photos")
    assert tree(tmp_path) == before
    result = run("export", tmp_path / "out", "--format", "splat", "--photos", tmp_path / "now")
    assert result.exit_code == 0, result.output
    assert os.readlink(tmp_path / "out" / "splat" / "images" / "0.png") == str(tmp_path / "now" / "0.png")


def test_nothing_changes_when_writing_fails(saved, monkeypatch):
    from fastvggt_jax.export import colmap

    def full(*_):
        raise OSError(28, "No space left on device")

    before = tree(saved)
    monkeypatch.setattr(colmap, "_points3D_bin", lambda *_: iter([b"some", full()]))
    result = run("export", saved, "--format", "colmap,ply", "--overwrite")
    refused(result, "no space is left")
    assert result.exit_code == 1 and tree(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_bundle_adjustment(saved, tmp_path, monkeypatch):
    pytest.importorskip("pycolmap")
    args = ("export", saved, "--format", "colmap,scene", "--bundle-adjust")
    refused(run(*args), "--bundle-adjust gives other cameras")
    result = run(*args, "-o", tmp_path / "new", "--json")
    report = json.loads(result.stdout)["bundle_adjustment"]
    assert "failed" in report or report["after"] < report["before"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(run(*args, "-o", tmp_path / "none"), "--bundle-adjust needs pycolmap: pip install", "[colmap]")
    assert not (tmp_path / "none").exists()


def test_adjusted_tracks_go_where_the_scene_goes(tmp_path):
    pytest.importorskip("pycolmap")
    true = true_scene(tmp_path / "photos", "area", 140)
    write_cameras(true.scene, tmp_path / "there.json")
    K = np.stack([true.scene.K_original(i) for i in range(VIEWS)])
    K[:, [0, 1], [0, 1]] *= 1.05
    off = with_K(true.scene, K, true.scene.intrinsics)
    away = dataclasses.replace(
        off,
        points=0.5 * off.points,
        depth=0.5 * off.depth,
        cam_from_world=np.concatenate([off.cam_from_world[..., :3], 0.5 * off.cam_from_world[..., 3:]], -1),
    )
    export.write(away, tmp_path / "out", ("cameras", "scene"))
    more = ("--bundle-adjust", "--align-to", tmp_path / "there.json", "-o", tmp_path / "new", "--json")
    result = run("export", tmp_path / "out", "--format", "colmap,scene", *more)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["bundle_adjustment"]["after"] < report["bundle_adjustment"]["before"]
    assert report["alignment"]["scale"] == pytest.approx(2, rel=0.03)
    model = read_colmap(tmp_path / "new" / "sparse" / "0")
    assert len(model.points) == report["bundle_adjustment"]["points"] == report["tracks"]["points"]
    off = []
    for image in model.images.values():
        xyz = np.array([model.points[number].xyz for number in image.points])
        pose, (_, _, _, (fx, fy, cx, cy)) = image.cam_from_world(), model.cameras[image.camera]
        cam = xyz @ pose[:, :3].T + pose[:, 3]
        seen = cam[:, :2] / cam[:, 2:] * (fx, fy) + (cx, cy)
        off.append(np.linalg.norm(seen - image.xy, axis=-1))
    assert 1e-4 < np.median(np.concatenate(off)) < 0.2
    options = ("--bundle-adjust", "-o", tmp_path / "b", "--max-points", 50)
    fewer = run("export", tmp_path / "out", "--format", "colmap", *options)
    assert fewer.exit_code == 0 and len(read_colmap(tmp_path / "b" / "sparse" / "0").points) == 50


def test_the_loaded_scene_is_written_as_the_first_one_would_be(true, saved, tmp_path):
    export.write(true.scene, tmp_path / "direct", ("colmap",), export.ExportOptions(conf_percentile=25))
    assert run("export", saved, "--format", "colmap").exit_code == 0
    assert tree(saved / "sparse") == tree(tmp_path / "direct" / "sparse")
    model = read_colmap(saved / "sparse" / "0")
    np.testing.assert_allclose(model.images[1].cam_from_world(), true.scene.cam_from_world[0], atol=1e-6)
