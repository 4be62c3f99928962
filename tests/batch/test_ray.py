"""Batches by Ray on the CPU (extra `ray`): the files of one by one, workers that die, killed runs."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fastvggt_jax import pipeline
from fastvggt_jax.batch.run import run
from fastvggt_jax.errors import Error
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import write_random_weights
from tests.faults.runner import ROOT, contents, result_files
from tests.toys import model as toy

SCENES = 40


def make(folder, count):
    rng = np.random.default_rng(0)
    for i in range(count):
        scene = folder / f"s{i:02}"
        scene.mkdir(parents=True)
        for k in range(1 + i % 4):
            Image.fromarray(rng.integers(0, 256, (42, 56, 3), np.uint8)).save(scene / f"{k}.png")
    return folder


def with_toy(once: str = "", always: str = "", marks: str = "") -> None:
    """In each worker: the toy model, and scenes that end their worker."""
    jax.config.update("jax_platforms", "cpu")
    if "toy" not in registry.names():
        registry.MODELS.register("toy", toy.PATH)
    real = pipeline.compute

    def compute(loaded, *more, **how):
        name = loaded.settings.output.name
        if name == always or (name == once and not os.path.exists(marks)):
            Path(marks).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(loaded, *more, **how)

    pipeline.compute = compute


@pytest.fixture
def settings(tmp_path):
    with registry.registered("toy", toy.PATH):
        weights = tmp_path / "toy.safetensors"
        save_params(weights, random_params(toy.Toy()), toy.Toy())
        yield pipeline.Settings(
            photos=(), weights=str(weights), output=tmp_path / "out", formats=("ply", "depth"), mode="pad"
        )


@pytest.mark.slow
def test_two_workers_write_what_one_by_one_does_and_a_worker_that_dies_takes_one_scene_along(
    settings, tmp_path, monkeypatch
):
    pytest.importorskip("ray")
    scenes, events = make(tmp_path / "scenes", SCENES), []
    expected = {}
    for scene in sorted(scenes.iterdir()):
        one = pipeline.Settings(
            **vars(settings) | dict(photos=(str(scene),), output=tmp_path / "r" / scene.name)
        )
        pipeline.reconstruct(one, lambda name: pytest.MonkeyPatch.context())
        expected[scene.name] = contents(one.output)
    monkeypatch.setattr(pipeline, "compute", pipeline.compute)  # `prepare` is called here too
    monkeypatch.setattr(registry.MODELS, "register", lambda *of: None)
    prepare = functools.partial(with_toy, once="s07", always="s13", marks=str(tmp_path / "died"))
    end = run([f"{scenes}/*"], settings, events.append, workers=2, prepare=prepare)
    assert (end["done"], end["failed"]) == (SCENES - 1, 1)
    (wrong,) = [event for event in events if event["event"] == "failed"]
    assert wrong["scene"] == "s13" and "died twice, the second time with nothing else to do" in wrong["error"]
    assert Counter(event["scene"] for event in events if "scene" in event) == dict.fromkeys(expected, 1)
    del expected["s13"]
    out = settings.output
    assert {one.name: contents(one) for one in out.iterdir() if one.is_dir()} == expected


def meeting(folder: str) -> None:
    """In each worker: no scene is computed before two workers are about to compute one."""
    with_toy()
    real = pipeline.compute

    def compute(loaded, *more, **how):
        (Path(folder) / str(os.getpid())).touch()
        end = time.monotonic() + 60
        while len(os.listdir(folder)) < 2:
            if time.monotonic() > end:
                raise Error("the other worker has nothing to do")
            time.sleep(0.05)
        return real(loaded, *more, **how)

    pipeline.compute = compute


@pytest.mark.slow
def test_two_workers_share_two_scenes(settings, tmp_path, monkeypatch):
    """The first one does not take both, to load the second while it computes."""
    pytest.importorskip("ray")
    monkeypatch.setattr(pipeline, "compute", pipeline.compute)
    monkeypatch.setattr(registry.MODELS, "register", lambda *of: None)
    scenes, events = make(tmp_path / "scenes", 2), []
    (tmp_path / "here").mkdir()
    prepare = functools.partial(meeting, str(tmp_path / "here"))
    end = run([f"{scenes}/*"], settings, events.append, workers=2, prepare=prepare)
    assert end["done"] == 2, [event.get("error") for event in events]


@pytest.mark.faults
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_batch_of_forty_killed_five_times(tmp_path, workers):
    """At random moments, by SIGKILL."""
    if workers:
        pytest.importorskip("ray")
    scenes, weights = make(tmp_path / "scenes", SCENES), tmp_path / "tiny.safetensors"
    write_random_weights(weights)
    command = [
        sys.executable,
        "-m",
        "fastvggt_jax",
        "batch",
        f"{scenes}/*",
        "-c",
        str(weights),
        "--size",
        "56",
    ]
    command += ["--format", "ply,depth", "--json", "-o"]
    whole = subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    end = json.loads(whole.stdout.splitlines()[-1])
    out, rng, kept, killed = tmp_path / "out", random.Random(0), {}, 0
    while killed < 5:
        process = subprocess.Popen(
            [*command, str(out), *workers], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        time.sleep(rng.uniform(2, 8 + end["seconds"] / 4))
        killed += process.poll() is None
        process.kill()
        process.communicate()
        there = {one.name: one.stat().st_ino for one in out.glob("s*")}
        assert kept.items() <= there.items(), "what was there is there, and was not made again"
        kept = there
        for name in there:
            assert result_files(out / name) == result_files(tmp_path / "whole" / name)
    last = subprocess.run([*command, str(out), *workers], cwd=ROOT, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    lines = [json.loads(line) for line in last.stdout.splitlines()]
    assert lines[-1]["done"] + lines[-1]["finished"] == SCENES and lines[-1]["failed"] == 0
    assert kept.items() <= {one.name: one.stat().st_ino for one in out.glob("s*")}.items()
    assert sorted(os.listdir(out)) == ["batch.jsonl", *(f"s{i:02}" for i in range(SCENES))]
    for one in out.glob("s*"):
        assert result_files(one) == result_files(tmp_path / "whole" / one.name)
