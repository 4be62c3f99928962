"""`fastvggt reconstruct`: whole runs on tiny random models, and what can be wrong, in words."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import VGGT, Pi3X, Scene, Sparsity, pipeline
from fastvggt_jax.cli.app import app
from fastvggt_jax.cli.options import use_compilation_cache
from fastvggt_jax.evaluate import metrics
from fastvggt_jax.io import files
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models.conditions import prepare
from fastvggt_jax.pretrained import BUNDLED
from fastvggt_jax.testing.tiny import tiny_model, write_random_weights
from pallas_kernels import implementation
from pallas_kernels.implementation import Device
from tests.cli.commands import PHOTOS, assert_sentence, fake_predict, reconstruct_args, run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FILES = [
    "cameras.json",
    "depth",
    "overview.jpg",
    "points.ply",
    "scene.glb",
    "scene.json",
    "scene.npz",
    "sparse",
]
WITHOUT_GLB = ["--format", "cameras,depth,ply,overview,scene"]


# ---- whole runs


def test_points_are_chosen_once(weights, tmp_path, monkeypatch):
    """For the files, and then counted."""
    real, calls = Scene.point_indices, []

    def chosen(self, **options):
        calls.append(options)
        return real(self, **options)

    monkeypatch.setattr(Scene, "point_indices", chosen)
    more = ("--format", "ply", "--edge-filter", "0.5", "--json")
    result = run(*reconstruct_args(weights, tmp_path / "out", *more))
    assert result.exit_code == 0 and len(calls) == 1
    assert (
        f"element vertex {json.loads(result.stdout)['points']}\n".encode()
        in (tmp_path / "out" / "points.ply").read_bytes()
    )


def test_photographs_to_files_as_json(weights, tmp_path):
    result = run(*reconstruct_args(weights, tmp_path / "out", "--json"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)  # one object and nothing else
    assert result.stderr == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == report["files"] == FILES
    assert report["photographs"] == ["landscape_101x67.png", "rgba_97x55.png"] and report["skipped"] == []
    assert report["size"] == {"width": 56, "height": 42, "mode": "crop"}
    assert list(report["seconds"]) == ["load photographs", "load weights", "compile", "run", "write"]
    assert all(s >= 0 for s in report["seconds"].values()) and report["peak_memory_bytes"]["host"] > 1e7
    assert report["model"]["heads"] == ["camera", "depth"] and report["model"]["dtype"] == "float32"
    kept = json.loads((tmp_path / "out" / "scene.json").read_text())["run"]  # what `fastvggt report` reads
    assert kept.items() >= report.items() and kept["command"].startswith("fastvggt")
    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text())["images"]
    assert [(c["width"], c["height"]) for c in cameras] == [(101, 67), (97, 55)]
    assert sorted(p.name for p in (tmp_path / "out" / "depth").iterdir()) == [
        f"{name}.{suffix}" for name in ("landscape_101x67.png", "rgba_97x55.png") for suffix in ("npz", "png")
    ]
    ply = (tmp_path / "out" / "points.ply").read_bytes()
    # The second photograph is 28 rows high and padded; a quarter of the points falls below the confidence
    # percentile.
    assert (
        report["points"] == 3 * 56 * (42 + 28) // 4 and f"element vertex {report['points']}\n".encode() in ply
    )


@pytest.mark.slow  # tests/refine/test_queries.py chooses points, the goldens hold the tracker
def test_points_are_followed_by_the_track_head(tracker_weights, tmp_path, monkeypatch):
    made = []
    real = pipeline._followed
    monkeypatch.setattr(pipeline, "_followed", lambda *of: made.append((*of, real(*of))) or made[-1][-1])
    more = ["--tracks", "--max-points", 40, "--format", "colmap", "--json"]
    result = run(*reconstruct_args(tracker_weights, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"]["heads"] == ["camera", "depth", "track"] and report["tracks"] is not None
    ((queries, found, followed),) = made
    assert queries.frames == (0, 1) and followed.xy.shape == (2, 40, 2) and followed.conf.shape == (2, 40)
    assert ((followed.conf >= 0) & (followed.conf <= 1)).all()
    # In their own frames points stay at the centres of their pixels.
    own = np.concatenate([followed.xy[0, :20], followed.xy[1, 20:]])
    np.testing.assert_allclose(own, queries.xy + 0.5, atol=1e-4)
    assert np.abs(followed.xy[1, :20] - own[:20]).max() > 1e-3


def test_tracks_need_their_head_and_a_format_that_has_them(weights, pi3_weights, tracker_weights, tmp_path):
    out = tmp_path / "out"
    match = "--tracks needs a model with a track head, and "
    assert_sentence(run(*reconstruct_args(weights, out, "--tracks")), match, 2, out)
    assert_sentence(run(*reconstruct_args(pi3_weights, out, "--tracks")), match, 2, out)
    assert_sentence(run(*reconstruct_args("mini", out, "--tracks")), "mini has camera, depth, point", 2, out)
    result = run(*reconstruct_args(tracker_weights, out, "--tracks", "--format", "ply"))
    assert_sentence(result, "--tracks is about colmap, colmap-text, nerfstudio, splat, of which none", 2, out)
    assert "✓" not in result.stderr


def test_masks_known_K_and_known_positions(weights, tmp_path):
    photos = sorted(PHOTOS.glob("landscape*.png")) + sorted(PHOTOS.glob("portrait*.png"))
    masks = tmp_path / "masks"
    masks.mkdir()
    for photo in photos[:2]:
        width, height = Image.open(photo).size
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(masks / f"{photo.name}.png")
    sizes = [Image.open(photo).size for photo in photos[:2]]
    images = [
        {"name": photo.name, "width": width, "height": height, "K": [[90, 0, 40], [0, 90, 30], [0, 0, 1]]}
        for photo, (width, height) in zip(photos[:2], sizes, strict=True)
    ]
    known = tmp_path / "K.json"
    known.write_text(json.dumps({"images": [one | {"world_from_cam": np.eye(4).tolist()} for one in images]}))
    more = ["--masks", masks, "--mask-input", "--mask-sky", "--intrinsics", known]
    result = run(*reconstruct_args(weights, tmp_path / "out", *more, photos=photos[:2]))
    assert result.exit_code == 0, result.output
    scene = Scene.load(tmp_path / "out")
    assert set(scene.intrinsics) == {"given"}
    np.testing.assert_allclose(scene.K_original(1)[:2], [[90, 0, 40], [0, 90, 30]], atol=1e-3)
    assert 0.2 < scene.valid.mean() < 0.55  # halves, less padding

    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text())
    for one in cameras["images"]:
        pose = np.array(one["world_from_cam"])
        pose[:3, 3] *= 5
        one["world_from_cam"] = pose.tolist()
    (tmp_path / "there.json").write_text(json.dumps(cameras | {"metric_scale": 1.0}))
    more = ["--align-to", tmp_path / "there.json", "--format", "ply,scene"]
    command = ["export", tmp_path / "out", "-o", tmp_path / "metres", *more]
    moved = CliRunner().invoke(app, [str(one) for one in command])
    assert moved.exit_code == 0 and "aligned to 2 known positions: median residual" in moved.stdout
    there = Scene.load(tmp_path / "metres")
    np.testing.assert_allclose(there.depth, 5 * scene.depth, rtol=1e-3)
    assert there.metric_scale == 1 and scene.metric_scale is None
    wrong = run(*reconstruct_args(weights, tmp_path / "o", "--align-to", "gone.csv", photos=photos[:2]))
    assert wrong.exit_code == 2 and "gone.csv: no such file" in wrong.stderr


@pytest.mark.parametrize(
    "other, words",
    [
        ("--camera-model SIMPLE_RADIAL", "--camera-model SIMPLE_RADIAL has one focal length"),
        (
            "--shared-camera",
            "--shared-camera is one camera, but the intrinsics that were given are of several",
        ),
    ],
)
def test_a_known_K_does_not_become_another_unsaid(weights, tmp_path, monkeypatch, other, words):
    photos = [PHOTOS / "landscape_101x67.png", tmp_path / "a.png"]
    shutil.copy(*photos)
    width, height = Image.open(photos[0]).size
    images = []
    for photo, focal in zip(photos, (90, 95), strict=True):
        K = [[focal, 0, 40], [0, 91, 30], [0, 0, 1]]
        one = {"name": photo.name, "width": width, "height": height, "K": K}
        images.append(one | {"world_from_cam": np.eye(4).tolist()})
    (tmp_path / "K.json").write_text(json.dumps({"images": images}))
    monkeypatch.setattr(pipeline, "predict", None)  # it is said before the model runs
    more = ["--intrinsics", tmp_path / "K.json", *other.split()]
    result = run(*reconstruct_args(weights, tmp_path / "out", *more, photos=photos))
    assert result.exit_code == 2 and words in result.stderr


@pytest.mark.parametrize(
    "options, words",
    [
        ("--depth-original --format ply", "--depth-original is about depth/*.npz, which is not written"),
        ("--copy --format ply", "--copy is about splat/images/* and nerfstudio/"),
        ("--tracks --bundle-adjust", "--tracks follows points by the model, and bundle adjustment by"),
    ],
)
def test_options_that_would_do_nothing_are_refused(weights, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(pipeline, "require", lambda: None)
    result = run(*reconstruct_args(weights, tmp_path / "out", *options.split()))
    assert result.exit_code == 2 and words in result.stderr, result.stderr


def test_a_video(weights, tmp_path, monkeypatch):
    pytest.importorskip("av")
    from tests.sources.test_video import write

    monkeypatch.setattr(pipeline, "predict", fake_predict)
    write(tmp_path / "clip.mp4", np.arange(0, 4, 0.1))
    more = ["--fps", 1, "--format", "cameras,splat"]
    result = run(*reconstruct_args(weights, tmp_path / "out", *more, photos=[tmp_path / "clip.mp4"]))
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out" / "splat" / "images").iterdir()) == [
        f"clip_0000{i}.jpg" for i in range(4)
    ]
    (tmp_path / "list.txt").write_text("clip.mp4\n")  # where it is named does not matter
    more = ["--max-frames", 2, "--format", "cameras"]
    result = run(*reconstruct_args(weights, tmp_path / "b", *more, "--json", photos=[tmp_path / "list.txt"]))
    assert json.loads(result.stdout)["photographs"] == ["clip_00000", "clip_00001"]
    photo = PHOTOS / "landscape_101x67.png"
    result = run(*reconstruct_args(weights, tmp_path / "c", "--fps", 1, photos=[photo]))
    assert result.exit_code == 2 and "--fps is for a video, and none was given" in result.stderr


def test_the_cameras_of_a_colmap_folder_are_compared_with(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "predict", fake_predict)
    photos = (PHOTOS / "landscape_101x67.png", PHOTOS / "rgba_97x55.png")
    more = ["--format", "splat,cameras", "--copy"]
    assert run(*reconstruct_args(weights, tmp_path / "out", *more, photos=photos)).exit_code == 0
    colmap = tmp_path / "out" / "splat"
    report = run(*reconstruct_args(weights, tmp_path / "b", "--format", "cameras", photos=[colmap]))
    assert "rotations 0.00 and directions" in report.stdout and "pairs of 2 photographs" in report.stdout


def test_too_little_space_is_said_before_the_model_runs(weights, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(pipeline, "predict", None)
    result = run(*reconstruct_args(weights, tmp_path / "out"))
    # 37 bytes of each of 2 × 42 × 56 pixels: depth and scene.npz
    assert result.exit_code == 1 and f"the disk of {tmp_path / 'out'} has 0.00 GB left" in result.stderr


def test_other_options_and_one_photograph(weights, tmp_path, without_model):
    more = [
        "--mode",
        "pad",
        "--points-from",
        "point_head",
        "--depth-original",
        *WITHOUT_GLB,
        "--conf-percentile",
        0,
    ]
    more += ["--max-points", 100, "--edge-filter", 50, "--dtype", "bfloat16", "--json", "--float8-scores"]
    result = run(*reconstruct_args(weights, tmp_path / "out", *more, photos=[PHOTOS / "portrait_61x133.png"]))
    report = json.loads(result.stdout)
    assert (
        report["points"] == 100
        and report["files"] == FILES[:4] + FILES[5:7]
        and not (tmp_path / "out" / "scene.glb").exists()
    )
    assert report["model"]["heads"] == ["camera", "depth", "point"] and report["model"]["dtype"] == "bfloat16"
    assert report["model"]["float8_scores"]
    assert [one for one in report["warnings"] if "float8_scores rounds here and makes nothing faster" in one]
    with np.load(tmp_path / "out" / "depth" / "portrait_61x133.png.npz") as npz:
        assert npz["depth"].shape == (133, 61) and npz["valid"].all()


def test_pi3_writes_the_same_files(pi3_weights, tmp_path):
    result = run(*reconstruct_args(pi3_weights, tmp_path / "out", "--json", "--sparsity", 0.5))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES
    assert (
        report["model"]["class"] == "Pi3"
        and report["model"]["heads"] == ["point", "conf", "camera"]
        and len(report["model"]["density"]) == 2
    )
    assert report["size"] == {
        "width": 70,
        "height": 42,
        "mode": "area",
    }  # 56² pixels in the first photograph's proportions
    images = json.loads((tmp_path / "out" / "cameras.json").read_text())["images"]
    assert [image["intrinsics"] for image in images] == report["intrinsics"]
    assert set(report["intrinsics"]) <= {"recovered", "guessed"}
    result = run(*reconstruct_args(pi3_weights, tmp_path / "no", "--points-from", "depth"))
    assert result.exit_code
    assert (
        "--points-from must be 'point_head' for a Pi3, not 'depth'" in result.stderr
        and not (tmp_path / "no").exists()
    )


def two_cameras(photos):
    """A cameras.json's content."""
    images = []
    for x, photo in enumerate(photos):
        width, height = Image.open(photo).size
        pose = np.eye(4)
        pose[0, 3] = 5 * x
        K = [[90, 0, width / 2], [0, 90, height / 2], [0, 0, 1]]
        one = {"name": photo.name, "width": width, "height": height, "K": K}
        images.append(one | {"world_from_cam": pose.tolist()})
    return {"images": images}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_known_cameras_and_depth_are_inputs_of_pi3x(whole, tmp_path, monkeypatch):
    photos = PHOTOS / "landscape_101x67.png", PHOTOS / "rgba_97x55.png"
    weights, cameras, depth = tmp_path / "pi3x.safetensors", tmp_path / "known.json", tmp_path / "depth"
    if whole:
        write_random_weights(weights, "pi3x")
    else:
        model = tiny_model("pi3x")
        save_params(
            weights, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.abstract_params()), model
        )
    cameras.write_text(json.dumps(two_cameras(photos)))
    depth.mkdir()
    np.save(depth / f"{photos[0].name}.npy", np.full((67, 101), 2.0))
    fed, fuse = [], Pi3X.fuse

    def traced(model, params, images, step, points_from, queries, mesh, programs, conditions, bucket):
        fed.append(prepare(conditions, 1, 2, images.pixels.shape[1:3]))
        shapes = jax.eval_shape(model.apply, params, images.pixels[None], conditions)
        zeros = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
        return model.reconstruction(zeros.replace(camera_poses=jnp.tile(jnp.eye(4), (1, 2, 1, 1)))), None

    if whole:
        recorded = lambda self, tokens, one: fuse(self, tokens, fed.append(one) or one)
        monkeypatch.setattr(Pi3X, "fuse", recorded)
    else:
        monkeypatch.setattr(pipeline, "predict", traced)
    more = ["--json", "--format", "cameras,scene", "--cameras", cameras, "--depth", depth]
    result = run(*reconstruct_args(weights, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    report, scene = json.loads(result.stdout), Scene.load(tmp_path / "out")
    assert report["known"] == {
        "cameras": {"file": str(cameras), "use": "input of the model", "photographs": 2},
        "depth": {"file": str(depth), "use": "input of the model", "photographs": 1},
    }
    assert "conditions" in report["model"]["heads"] and report["alignment"] is None
    said = [text for text in report["warnings"] if "of 2 photographs" in text]
    assert said == [f"depth {depth} is of 1 of 2 photographs: the model is told of these alone"]
    assert all(one is not None for one in (fed[0].rays, fed[0].depth, fed[0].world_from_cam))
    assert scene.metric_scale == 1 and set(scene.intrinsics) <= {"recovered", "guessed"}
    cameras.write_text(json.dumps({"images": two_cameras(photos)["images"][1:]}))
    more = ["--json", "--format", "scene", "--cameras", cameras]
    report = json.loads(run(*reconstruct_args(weights, tmp_path / "some", *more)).stdout)
    assert (
        f"cameras {cameras} is of 1 of 2 photographs: the model is told of these alone" in report["warnings"]
    )
    assert report["known"]["cameras"]["photographs"] == 1
    monkeypatch.setattr(pipeline, "predict", None)  # the rest is said before the model runs
    for option, value, words in (
        ("--cameras", "gone.json", "gone.json"),
        ("--devices", "1", "goes into this model on one device only: leave --devices out"),
    ):
        wrong = run(*reconstruct_args(weights, tmp_path / "o", "--depth", depth, option, value))
        assert_sentence(wrong, words, 2, tmp_path / "o")


def test_known_cameras_act_after_a_model_that_does_not_take_them(
    weights, tmp_path, without_model, monkeypatch
):
    photos, cameras = (PHOTOS / "landscape_101x67.png", PHOTOS / "rgba_97x55.png"), tmp_path / "known.json"
    content = two_cameras(photos)
    cameras.write_text(json.dumps(content))
    more = ["--json", "--cameras", cameras, "--intrinsics", cameras, "--format", "cameras,scene"]
    result = run(*reconstruct_args(weights, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    use = {"file": str(cameras), "use": "after the model", "photographs": 2}
    assert json.loads(result.stdout)["known"] == {"cameras": use, "intrinsics": use}
    scene = Scene.load(tmp_path / "out")
    assert set(scene.intrinsics) == {"given"}
    np.testing.assert_allclose(scene.K_original(0)[:2], [[90, 0, 50.5], [0, 90, 33.5]], atol=1e-3)
    monkeypatch.setattr(pipeline, "predict", None)  # the rest is said before the model runs
    standing = [one | {"world_from_cam": np.eye(4).tolist()} for one in content["images"]]
    cameras.write_text(json.dumps({"images": standing}))
    wrong = run(*reconstruct_args(weights, tmp_path / "o", "--cameras", cameras))
    assert_sentence(wrong, f"--cameras {cameras}: all cameras stand at one place", 2, tmp_path / "o")
    cameras.write_text(json.dumps({"images": content["images"][:1]}))
    for option, value, words in (
        ("--cameras", cameras, "names one of the photographs, at least two are needed"),
        ("--depth", tmp_path, "--depth is for a model that takes it as input, such as Pi3X, and"),
    ):
        wrong = run(*reconstruct_args(weights, tmp_path / "o", option, value))
        assert_sentence(wrong, words, 2, tmp_path / "o")


@pytest.mark.slow  # tests/test_extension.py has a sparse run
def test_sparse_attention_reports_its_density(weights, tmp_path):
    more = ["--sparsity", 0.5, "--special-keys", "official", "--sparse-layers", "1-2", "--json"]
    # 112 px, so that two photographs are more than one block of 64 keys
    args = reconstruct_args(weights, tmp_path / "out", *more, "--size", 112)
    density = json.loads(run(*args).stdout)["model"]["density"]
    assert density[0] == density[3] == 1 and 0 < density[1] == density[2] < 1


def test_where_sparse_attention_has_no_kernel_dense_is_taken_and_said(monkeypatch):
    model = VGGT(sparsity=Sparsity(0.5), dtype=jnp.bfloat16)
    assert pipeline._with_fast_attention(model) is model, "XLA's is the faster one on a CPU"
    cards = {"AMD Instinct MI300X": "gfx942", "Tesla V100": "7.0"}
    for kind, capability in cards.items():
        monkeypatch.setattr(implementation, "device_of", lambda *_, c=capability, k=kind: Device("gpu", k, c))
        with pytest.warns(UserWarning, match=f"dense attention was computed, .* compute capability .*{kind}"):
            assert pipeline._with_fast_attention(model).sparsity is None
    monkeypatch.setattr(implementation, "device_of", lambda *_: Device("gpu", "NVIDIA A100", "8.0"))
    assert pipeline._with_fast_attention(model).sparsity is not None


@pytest.mark.slow
def test_in_a_process_of_its_own_with_the_compilation_cache(weights, tmp_path):
    args = reconstruct_args(
        weights,
        tmp_path / "out",
        "--cache-dir",
        tmp_path / "cache",
        photos=[PHOTOS / "landscape_101x67.png"],
    )
    command = [sys.executable, "-m", "fastvggt_jax", *map(str, args)]
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # as users compile; only what is slow is kept
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1 photograph (56x42)" in done.stdout and "peak memory host" in done.stdout
    assert all(
        word in done.stderr for word in ("load photographs", "load weights", "compile", "run", "write")
    )
    assert list((tmp_path / "cache").iterdir())


PARTITIONED = """
import sys
import jax, jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from fastvggt_jax.cli.options import use_compilation_cache
use_compilation_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
double = custom_partitioning(lambda x: 2 * x)
partition = lambda mesh, of, to: (mesh, lambda x: 2 * x, to.sharding, (of[0].sharding,))
double.def_partition(partition=partition, sharding_rule="i -> i")
x = jax.device_put(jnp.arange(4.0), NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data")))
memory = [bytearray(100) for _ in range(int(sys.argv[2]))]  # moves what comes after it
print(jax.jit(lambda x: double(x))(x).sum())
"""


@pytest.mark.slow
def test_a_program_for_several_devices_is_found_in_the_cache(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    for blocks in (
        "1",
        "10007",
    ):  # as cuDNN's attention, what is custom-partitioned stands in the program by its address
        command = [sys.executable, "-c", PARTITIONED, tmp_path, blocks]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.stdout == "12.0\n", done.stderr
    assert (
        len(
            [
                path
                for path in tmp_path.iterdir()
                if path.name.startswith("jit__lambda") and path.name.endswith("-cache")
            ]
        )
        == 1
    )


def test_the_cache_can_be_another_or_none(monkeypatch):
    settings = {}
    monkeypatch.setattr(type(jax.config), "update", lambda self, name, value: settings.update({name: value}))
    for folder, expected in (("here", "here"), ("none", None)):
        use_compilation_cache(folder)
        assert settings["jax_compilation_cache_dir"] == expected
    settings.clear()
    use_compilation_cache(None)  # what JAX_COMPILATION_CACHE_DIR says stays
    assert not settings


def test_the_readmes_demo_finds_the_cameras(tmp_path):
    assert "fastvggt reconstruct --demo -o demo" in README
    result = run("reconstruct", "--demo", "-o", tmp_path / "demo", "--json")
    report = json.loads(result.stdout)
    assert len(report["photographs"]) == 8 and report["size"] == {"width": 224, "height": 224, "mode": "crop"}
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == FILES
    found = json.loads((tmp_path / "demo" / "cameras.json").read_text())["images"]
    true = json.loads((Path(__file__).parents[1] / "golden" / "demo_cameras.json").read_text())
    inverse = lambda poses: np.linalg.inv(np.array(poses, np.float64))[:, :3]
    rotation, translation = metrics.pair_errors(
        inverse([image["world_from_cam"] for image in found]), inverse(true)
    )
    assert np.median(rotation) < 3 and np.median(translation) < 6
    assert "is not empty" in run("reconstruct", "--demo", "-o", tmp_path / "demo").stderr


def test_the_readmes_lines_of_python(weights, tmp_path, monkeypatch):
    """With a model that is smaller still."""
    (tmp_path / "photos").mkdir()
    for name in ("landscape_101x67.png", "rgba_97x55.png"):
        shutil.copy(PHOTOS / name, tmp_path / "photos")
    monkeypatch.setitem(BUNDLED, "mini", BUNDLED["mini"]._replace(path=weights))
    monkeypatch.chdir(tmp_path)
    exec(
        "".join(re.findall(r"```python\n(.*?)```", README, re.S)), {}
    )  # the later block goes on where the first ends
    header = Path("points.ply").read_bytes()[:200]
    assert header.startswith(b"ply\nformat binary_little_endian") and b"element vertex 0\n" not in header


def test_the_demo_has_photographs_and_a_model_of_its_own(tmp_path):
    out = tmp_path / "out"
    assert_sentence(
        run("reconstruct", PHOTOS, "--demo", "-o", out),
        "--demo has photographs and weights of its own",
        2,
        out,
    )
    assert_sentence(run("reconstruct", "-c", "mini", "-o", out), "no photographs were given", 2, out)
    assert_sentence(run("reconstruct", PHOTOS, "-o", out), "--weights is missing", 2, out)


def test_help_is_quick_because_it_leaves_jax_alone():
    heavy = "{'jax', 'flax', 'numpy', 'PIL'}"
    code = f"import sys, fastvggt_jax.cli.app; sys.exit(bool({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert "reconstruct" in run("--help").stdout and "0.1" in run("--version").stdout


# ---- what is said, and what is left


def test_human_and_quiet_output(weights, tmp_path, without_model):
    result = run(*reconstruct_args(weights, tmp_path / "out"))
    assert "2 photographs (56x42)" in result.stdout and "2,940 points" in result.stdout
    result = run(*reconstruct_args(weights, tmp_path / "quiet", "--quiet"))
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(p.name for p in (tmp_path / "quiet").iterdir()) == FILES


def test_points_come_from_the_point_head_when_asked(weights, tmp_path, without_model):
    assert run(*reconstruct_args(weights, tmp_path / "out", "--points-from", "point_head")).exit_code == 0
    body = (tmp_path / "out" / "points.ply").read_bytes().split(b"end_header\n")[1]
    xyz = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("conf", "<f4")]))["xyz"]
    assert len(xyz) and (xyz == 7).all()


def test_skip_bad_goes_on(weights, tmp_path, without_model):
    (tmp_path / "photos").mkdir()
    for name in ("landscape_101x67.png", "portrait_61x133.png"):
        (tmp_path / "photos" / name).write_bytes((PHOTOS / name).read_bytes())
    broken = tmp_path / "photos" / "middle.png"
    broken.write_bytes((PHOTOS / "rgba_97x55.png").read_bytes()[:5000])
    args = reconstruct_args(weights, tmp_path / "out", photos=[tmp_path / "photos"])
    assert_sentence(run(*args), "middle.png is damaged", 2, tmp_path / "out")
    result = run(*args, "--skip-bad", "--json")
    report = json.loads(result.stdout)
    assert report["photographs"] == ["landscape_101x67.png", "portrait_61x133.png"]
    assert report["skipped"][0]["file"] == str(broken)


def test_overwrite_replaces_what_a_run_has_left_and_nothing_else(weights, tmp_path, without_model):
    out = tmp_path / "out"
    args = reconstruct_args(weights, out)
    assert run(*args).exit_code == 0
    before = (out / "points.ply").read_bytes()
    result = run(*args)
    assert result.exit_code == 2 and "not empty; give another one, or --overwrite" in result.stderr
    assert run(*args, "--overwrite", *WITHOUT_GLB, "--conf-percentile", 50).exit_code == 0
    assert (
        sorted(p.name for p in out.iterdir()) == FILES[:4] + FILES[5:7]
        and (out / "points.ply").read_bytes() != before
    )
    (out / "notes.txt").write_text("mine")
    result = run(*args, "--overwrite")
    assert result.exit_code == 2 and "(notes.txt), so --overwrite does not touch it" in result.stderr
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").rename(out / "depth" / "notes.txt")
    result = run(*args, "--overwrite")
    assert result.exit_code == 2 and "(depth/notes.txt)" in result.stderr
    assert (out / "depth" / "notes.txt").read_text() == "mine"


def test_photographs_in_the_output_folder_are_not_replaced(weights, tmp_path, without_model):
    out = tmp_path / "out"
    formats = ("--format", "splat", "--copy")
    assert run(*reconstruct_args(weights, out), *formats).exit_code == 0
    before = {path.name: path.read_bytes() for path in (out / "splat" / "images").iterdir()}
    result = run("reconstruct", out / "splat" / "images", "-c", weights, "-o", out, "--overwrite", *formats)
    assert result.exit_code == 2 and "lies in the --output folder" in result.stderr, result.output
    assert {path.name: path.read_bytes() for path in (out / "splat" / "images").iterdir()} == before


def test_a_full_disk(weights, tmp_path, without_model, monkeypatch):
    real_open = open

    def full(path, mode="r", *args, **kwargs):
        if "x" in mode and ".points.ply" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(files, "open", full, raising=False)
    out = tmp_path / "out"
    assert_sentence(
        run(*reconstruct_args(weights, out)),
        f"the output folder {out} could not be written: no space is left on its disk; nothing",
        1,
        out,
    )


def empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    return ["reconstruct", tmp_path / "empty"]


BAD = {
    "no such photograph": (["reconstruct", "gone.jpg"], "gone.jpg does not exist"),
    "folder without photographs": (empty_folder, "holds no images"),
    "size": (
        ["reconstruct", PHOTOS, "--size", 500],
        "--size must be a positive multiple of the model's patches of 14 pixels, not 500; the nearest is 504",
    ),
    "ratio": (["reconstruct", PHOTOS, "--sparsity", "1.5"], "--sparsity must be dense, or ρ and τ in [0, 1]"),
    "threshold": (["reconstruct", PHOTOS, "--sparsity", ",-0.1"], "not ',-0.1'"),
    "block": (
        ["reconstruct", PHOTOS, "--sparsity", "0.5", "--block", "128,64"],
        "--block must be queries x keys such as 128x64, not '128,64'",
    ),
    "keys of dense attention": (
        ["reconstruct", PHOTOS, "--special-keys", "official"],
        "--special-keys needs a --sparsity that is not dense",
    ),
    "blocks of dense attention": (["reconstruct", PHOTOS, "--block", "64x32"], "--block needs a --sparsity"),
    "layers of dense attention": (["reconstruct", PHOTOS, "--sparse-layers", "1-2"], "--sparse-layers needs"),
    "layers": (
        ["reconstruct", PHOTOS, "--sparsity", 0.5, "--sparse-layers", "4-2"],
        "--sparse-layers must be numbers and ranges such as 0-9,18-23, not '4-2'",
    ),
    "layer that is not there": (
        ["reconstruct", PHOTOS, "--size", 56, "--sparsity", 0.5, "--sparse-layers", "2,9"],
        "the model has layers 0 to 3",
    ),
    "preset of more layers": (
        ["reconstruct", PHOTOS, "--size", 56, "--sparsity", "quick"],
        "names layer 8, the model has layers 0 to 3 (as quick and quickest have them",
    ),
    "percentile": (
        ["reconstruct", PHOTOS, "--conf-percentile", 101],
        "--conf-percentile must be in [0, 100]",
    ),
    "limit": (["reconstruct", PHOTOS, "--max-points", 0], "--max-points must be a whole number, at least 1"),
    "voxel": (["reconstruct", PHOTOS, "--voxel", 0], "--voxel must be above 0"),
    "edges": (["reconstruct", PHOTOS, "--edge-filter", -1], "--edge-filter must be above 0"),
    "points": (
        ["reconstruct", PHOTOS, "--points-from", "sky"],
        "--points-from must be 'depth' or 'point_head'",
    ),
    "format": (["reconstruct", PHOTOS, "--format", "ply,obj"], "there is no format 'obj'; there are cameras"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, weights, tmp_path):
    args, match = BAD[case]
    args = args(tmp_path) if callable(args) else args
    out = tmp_path / "out"
    result = run(*args, "-c", weights, "-o", out)
    assert_sentence(result, match, 2, out)
    assert "✓" not in result.stderr  # it is known before anything is loaded


def test_bad_weightss_are_one_sentence(weights, tmp_path):
    out = tmp_path / "out"
    assert_sentence(run(*reconstruct_args(tmp_path / "gone.safetensors", out)), "gone.safetensors", 2, out)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:100_000])
    assert_sentence(run(*reconstruct_args(cut, out)), "cut short", 2, out)
    assert_sentence(run("info", cut), "cut short", 2, out)
    headless = tmp_path / "headless.safetensors"
    write_random_weights(headless, heads=("camera", "point"))
    assert_sentence(run(*reconstruct_args(headless, out)), "has no depth head; it has camera, point", 2, out)


def test_bad_output_and_missing_extra(weights, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    result = run(*reconstruct_args(weights, tmp_path / "file"))
    assert result.exit_code == 2 and "is a file; give a folder" in result.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    args = reconstruct_args(weights, tmp_path / "out")
    assert_sentence(run(*args, "--format", "glb"), "fastvggt_jax[glb]", 2, tmp_path / "out")
    monkeypatch.setattr(pipeline, "predict", fake_predict)
    result = run(*args)
    assert "no scene.glb: pip install 'fastvggt_jax[glb]'" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES[:4] + FILES[5:]


def test_errors_are_json_when_json_is_asked_for(weights, tmp_path):
    result = run(*reconstruct_args(weights, tmp_path / "out", "--json", photos=["gone.jpg"]))
    assert "gone.jpg does not exist" in json.loads(result.stdout)["error"] and "gone.jpg" in result.stderr


def test_a_bug_keeps_its_traceback(weights, tmp_path, monkeypatch):
    def broken(*args, **how):
        return np.linalg.inv(np.zeros((2, 2)))  # a ValueError, but not one of ours

    monkeypatch.setattr(pipeline, "predict", broken)
    result = run(*reconstruct_args(weights, tmp_path / "out"))
    assert isinstance(result.exception, np.linalg.LinAlgError) and not (tmp_path / "out").exists()
