"""`fastvggt bench`: what is measured, and what is wrong with its options. Rows run in this process."""

import json
import os
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from fastvggt_jax import bench, programs
from fastvggt_jax.cli.app import app
from fastvggt_jax.cli.options import take_gpu_memory
from fastvggt_jax.errors import InputError

TINY = dict(img_size=28, embed_dim=32, encoder_depth=1, encoder_num_heads=1, num_heads=1)
HEADS = dict(head_embed_dim=32, head_depth=1, head_num_heads=1, head_out_dim=32, camera_out_dim=32)
CONFIGS = {
    "vggt": TINY | dict(depth=4, taps=[0, 1, 2, 3], dpt_features=16),
    "pi3": TINY | dict(depth=2, **HEADS),
    "pi3x": TINY
    | HEADS
    | dict(depth=2, conv_channels=[16, 16, 16], metric_embed_dim=32, metric_depth=1, metric_num_heads=1)
    | dict(metric_out_dim=16, inject_after=[1]),
}


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--config", "gone.json"], "gone.json: no such file"),
        (["--size", 50], "--size must be a positive multiple of the model's patches of 14 pixels, not 50"),
        (["--sparsity", "foo"], "--sparsity must be dense, or"),
        (["--sparsity", "1.5"], "not '1.5'"),
        (["--block", "64x32", "--sparsity", "dense"], "--block needs a --sparsity that is not dense"),
        (["--block", "128,64"], "--block must be queries x keys such as 128x64"),
        (["--frames", 0], "--frames must be at least 1"),
        (["--heads", "nose"], "VGGT has no nose; it has camera, depth, point, track"),
        (["--conditions"], "--conditions are for a model that takes them, such as pi3x, and vggt does not"),
        (["--model", "pi3x", "--conditions", "--devices", 2], "--conditions are taken on one device"),
        (["--model", "maxi"], "there is no --model 'maxi'; there are vggt, pi3"),
        (["--dtype", "nonsense"], "--dtype must be float32 or bfloat16 or float16, not 'nonsense'"),
        (
            ["--param-dtype", "int8"],
            "--param-dtype must be float32 or bfloat16 or float16 or compute, not 'int8'",
        ),
        (["--kernels", "cuda"], "--kernels has no cuda; there are mosaic_sm90, triton, xla, reference"),
        (["--memory-limit", 15], "--memory-limit needs an NVIDIA GPU"),
    ],
)
def test_what_is_wrong_with_its_options_is_one_sentence(options, message, monkeypatch):
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    result = run(*options)
    assert result.exit_code == 2 and message in result.stderr, result.output


@pytest.mark.slow  # tests/test_extension.py measures a toy
@pytest.mark.parametrize("name, heads", [("vggt", "depth"), ("pi3", "point"), ("pi3x", "point")])
def test_models_dense_and_sparse(name, heads, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda what, case: bench.MEASURES[what](case))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    options = [
        "--model",
        name,
        "--config",
        tmp_path / "config.json",
        "--size",
        28,
        "--frames",
        2,
        "--repeats",
        1,
    ]
    options += ["--sparsity", "dense", "--sparsity", "0.75", "--heads", heads, "--only", "model"]
    options += ["--conditions", "--profile"] if name == "pi3x" else []
    result = run(*options, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["model"], row["frames"], row["sparsity"]) for row in rows] == [
        (name, 2, "dense"),
        (name, 2, "0.75"),
    ]
    if name == "pi3x":
        assert {"conditions", "point head"} <= set(rows[0]["parts"]) and rows[0]["conditions"]
    assert all(row["ms_per_frame"] == 500 * row["seconds"] > 0 and row["needs_gib"] > 0 for row in rows)


def test_what_runs_is_what_was_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "run", lambda what, case: asked.append(case) or {"frames": 1})
    options = ["--float8-scores", "--low-memory", "--devices", 2, "--size", 28, "--height", 14, "--json"]
    assert run("--frames", 1, "--sparsity", "0.5", "--only", "model", *options).exit_code == 0
    (case,) = asked
    assert case.build().float8_scores and case.low_memory
    assert (case.devices, case.side, case.height) == (2, 28, 14)


def test_a_row_that_fails_is_said_and_the_others_are_measured(monkeypatch):
    def half(what, case):
        if case.frames == 1:
            raise bench.FailedError("1 frames, dense: RuntimeError: boom")
        return dict(
            frames=2,
            sparsity="dense",
            seconds=1.0,
            ms_per_frame=500.0,
            compile_seconds=2.0,
            needs_gib=3.0,
            peak_gib=4.0,
        )

    monkeypatch.setattr(bench, "run", half)
    result = run("--frames", 1, "--frames", 2, "--sparsity", "dense", "--only", "model", "--size", 28)
    assert result.exit_code == 1
    assert "boom" in result.stdout and "500.00" in result.stdout.splitlines()[-1]


def test_a_process_that_is_killed_is_a_row_that_fails(monkeypatch):
    """And a row of a whole model may have as much of a GPU's memory as `reconstruct` takes."""
    given = []

    def killed(command, *, env, **how):
        given.append(env.get("XLA_PYTHON_CLIENT_MEM_FRACTION"))
        return subprocess.CompletedProcess(command, -9, "", "")

    monkeypatch.setattr(bench.subprocess, "run", killed)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "")  # and back, whatever is set
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    result = run("--frames", 3, "--sparsity", "dense", "--sparsity", "0.5", "--size", 28)
    assert result.exit_code == 1 and given[2] is None
    take_gpu_memory()
    assert given[:2] == [os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]] * 2
    text = "its process was ended by signal 9, as by a system whose memory runs out"
    assert result.stdout.count(text) == 3
    monkeypatch.setattr(bench.shutil, "which", lambda name: name)
    monkeypatch.setattr(bench, "_gpu_memory_gib", lambda: 80.0)
    run("--frames", 1, "--sparsity", "dense", "--size", 28, "--memory-limit", 20)
    assert given[3:] == ["0.2500", "0.2500"]
    assert "--memory-limit must be above 0 GiB, not 0.0" in run("--memory-limit", 0).stderr


def test_a_row_says_what_it_is_of(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["vggt"]))
    how = dict(config=str(tmp_path / "config.json"), frames=2, size=28, height=42, repeats=1, block="64x32")
    case = bench.Case(**how, sparsity="0.5", dtype="float32", param_dtype="bfloat16")
    said = case.account(case.build())
    assert said.keys() >= {"device", "jax", "fastvggt_jax", "commit"}
    with pytest.raises(InputError, match="names layer 8, the model has layers 0 to 3"):
        bench.Case(**how, sparsity="quick")
    assert (said["size"], said["heads"]) == ([28, 42], ["camera", "depth", "point"])
    assert (said["block"], said["dtype"], said["param_dtype"]) == ("64x32", "float32", "bfloat16")
    row = bench.measure_attention(case)
    assert row["tokens"] == 2 * (5 + 2 * 3) and row["size"] == [28, 42] and row["ours"] > 0


def test_what_does_not_fit_is_measured_with_less_memory(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["pi3"]))
    answers = [False, True]
    monkeypatch.setattr(programs, "fits", lambda program: answers.pop(0))
    how = dict(model="pi3", config=str(tmp_path / "config.json"), size=28, repeats=0, heads=("camera",))
    assert bench.measure(bench.Case(**how, dtype="float32"))["low_memory"] and len(answers) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_row_is_of_the_commit_that_its_code_is_of(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    path = tmp_path / "environment" / "bench.py"
    path.parent.mkdir()
    path.write_text("1")
    monkeypatch.setattr(bench, "__file__", str(path))
    assert bench._commit() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another's, in whose folder we are installed")
    assert bench._commit() is None
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    head = git("rev-parse", "--short", "HEAD").stdout.decode().strip()
    assert bench._commit() == head
    path.write_text("2")
    assert bench._commit() == f"{head}+"


@pytest.mark.slow  # a process of its own; tests/test_sharding.py holds the devices to one
def test_views_shared_among_devices_of_another_height(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["vggt"]))
    options = [
        "--config",
        tmp_path / "config.json",
        "--size",
        28,
        "--height",
        14,
        "--frames",
        3,
        "--heads",
        "camera",
    ]
    options += ["--sparsity", "dense", "--only", "model", "--repeats", 1, "--devices"]
    row = json.loads(run(*options, 2, "--low-memory", "--json").stdout)
    assert (row["devices"], row["size"], row["low_memory"]) == (2, [28, 14], True)
    refused = run(*options, 3)
    assert refused.exit_code == 1 and "devices=3 is more than there are: 2" in refused.stdout
