"""`fastvggt batch` in this process, with a toy model: the files of `reconstruct`, failures, killed runs."""

import gc
import json
import os
import signal
import sys
import threading
import warnings
import weakref
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import pipeline, programs
from fastvggt_jax.batch import run as batch_run
from fastvggt_jax.batch import work as batch_work
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import FileError, InputError
from fastvggt_jax.export.apart import Apart
from fastvggt_jax.export.base import Format, registered
from fastvggt_jax.export.conventions import read_run
from fastvggt_jax.io import files
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import registry
from fastvggt_jax.sequence import Joined, Piece
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import tiny_model
from tests.faults.runner import contents, result_files
from tests.toys import model as toy

OPTIONS = ["--format", "ply,cameras", "--mode", "pad"]
SIZES = {"a": 1, "b": 3, "c": 2, "d": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    with registry.registered("toy", toy.PATH):
        save_params(path, random_params(toy.Toy()), toy.Toy())
        yield path


def make(folder, sizes=SIZES):
    rng = np.random.default_rng(0)
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Four, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "scenes")


@pytest.fixture(scope="module")
def expected(weights, tmp_path_factory):
    """What `reconstruct` writes of each, one by one."""
    folder = tmp_path_factory.mktemp("one_by_one")
    scenes, out = make(folder / "scenes"), folder / "out"
    for name in SIZES:
        ended = run("reconstruct", scenes / name, "-c", weights, "-o", out / name, *OPTIONS)
        assert ended.exit_code == 0, ended.output
    return results(out)


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def batch(weights, *more, scenes=("scenes/*",), out="out"):
    """(exit code, the lines of JSON, what was said)"""
    ended = run("batch", *scenes, "-c", weights, "-o", out, *OPTIONS, "--json", *more)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.exit_code, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


def said(lines, kind):
    return [line["scene"] for line in lines if line.get("event") == kind]


def refused(weights, words, *more, **how):
    code, lines, stderr = batch(weights, *more, **how)
    assert code in (1, 2) and words in stderr and list(lines[-1]) == ["error"], stderr


def results(out=Path("out")):
    """The files of each scene, less photographs' folders and by what command it was made."""
    here = str(out.absolute().parent).encode()
    found = {path.name: result_files(path) for path in out.iterdir() if path.is_dir()}
    return {name: {f: data.replace(here, b"") for f, data in files.items()} for name, files in found.items()}


def test_a_bucket_is_one_program_for_several_numbers_of_views(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "scenes", {"a": 5, "b": 6, "c": 3})
    assert batch(weights, out="one_by_one")[0] == 0
    compiled, real = [], programs._compiled
    monkeypatch.setattr(programs, "_compiled", lambda *of: compiled.append(of[2].shape[1]) or real(*of))
    assert batch(weights, "--bucket")[0] == 0
    assert compiled == [6, 3] and results() == results(Path("one_by_one"))
    # What is filled up may be what does not fit: then as many as there are.
    monkeypatch.setattr(programs, "fits", lambda program: "[1,6," not in str(program.as_text()[:3000]))
    ended = run("reconstruct", "scenes/a", "-c", weights, "-o", "a", "--bucket", *OPTIONS)
    assert ended.exit_code == 0 and compiled[2:] == [6, 6, 5], ended.output
    assert contents(Path("a"))["points.ply"] == contents(Path("out/a"))["points.ply"]


def test_a_bucket_that_fails_while_it_runs_is_not_compiled_for_each_scene(weights, tmp_path, monkeypatch):
    """What is filled up is as many as there are then; what is not is what takes less memory."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "scenes", {"a": 5, "b": 5, "c": 4, "d": 4})
    assert batch(weights, out="one_by_one")[0] == 0
    compiled, real, run_one = [], programs._compiled, jax.stages.Compiled.__call__
    failures = [4]

    def call(self, *given):
        count = given[1].shape[1]
        if count == 6 or (count in failures and not failures.remove(count)):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes.")
        return run_one(self, *given)

    def note(*of):
        compiled.append((of[2].shape[1], of[4].low_memory))
        return real(*of)

    monkeypatch.setattr(programs, "_compiled", note)
    monkeypatch.setattr(jax.stages.Compiled, "__call__", call)
    assert batch(weights, "--bucket")[0] == 0
    assert compiled == [(6, False), (5, False), (4, False), (4, True)]
    assert results() == results(Path("one_by_one"))


def test_a_bucket_is_refused_where_it_cannot_be(weights, scenes, monkeypatch):
    ended = run("reconstruct", "scenes/a", "-c", weights, "-o", "a", "--bucket", "--devices", "1")
    assert "bucket and devices were both given" in ended.stderr and not Path("a").exists()
    monkeypatch.setattr(toy.Toy, "takes_frames", False)
    refused(weights, "bucket is for models that are told how many frames count, and a Toy is not", "--bucket")
    ladder = [programs.bucket_of(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 33, 64, 65, 128, 129, 1000)]
    assert ladder == [1, 2, 3, 4, 6, 8, 12, 16, 48, 64, 80, 128, 160, 1024]


def test_the_files_are_those_of_reconstruct_and_the_largest_first(weights, scenes, expected, monkeypatch):
    compiled, loads = [], []
    real, load_model = programs._compiled, pipeline.load_model
    monkeypatch.setattr(programs, "_compiled", lambda *of: compiled.append(of[2].shape[1]) or real(*of))
    monkeypatch.setattr(pipeline, "load_model", lambda *of: loads.append(1) or load_model(*of))
    code, lines, stderr = batch(weights)
    assert code == 0 and stderr == ""
    assert results() == expected
    assert said(lines, "done") == ["b", "c", "d", "a"]
    assert compiled == [3, 2, 1] and loads == [1], "a program for each number of views, and one model"
    assert lines[0]["scenes"] == 4 and lines[0]["views"] == 8
    assert {name: lines[-1][name] for name in ("event", "done", "failed", "finished", "views")} == {
        "event": "end",
        "done": 4,
        "failed": 0,
        "finished": 0,
        "views": 8,
    }
    done = next(line for line in lines if line.get("scene") == "c")
    assert list(done["seconds"]) == ["load photographs", "compile", "run", "write"]
    assert done["photographs"] == ["0.png", "1.png"] and done["warnings"] == []
    # Once more: there is nothing to do, and no model is needed.
    code, lines, _ = batch(weights)
    assert code == 0 and sorted(said(lines, "finished")) == list("abcd") and loads == [1]
    assert lines[-1]["done"] == 0 and lines[-1]["finished"] == 4


def test_a_scene_that_fails_is_said_and_stops_no_other(weights, scenes, expected, monkeypatch):
    (scenes / "b" / "1.png").write_bytes(b"no image")
    (scenes / "empty").mkdir()
    real = pipeline.compute

    def compute(loaded, *more, **how):
        if loaded.settings.output.name == "c":
            raise TypeError("a bug")
        return real(loaded, *more, **how)

    monkeypatch.setattr(pipeline, "compute", compute)
    code, lines, stderr = batch(weights, scenes=("scenes/*", "gone"))
    assert code == 1 and sorted(said(lines, "done")) == ["a", "d"]
    errors = {line["scene"]: line["error"] for line in lines if line.get("event") == "failed"}
    assert "1.png is damaged or not an image" in errors["b"] and "gone does not exist" in errors["gone"]
    assert "empty holds no images" in errors["empty"] and "TypeError: a bug" in errors["c"]
    bug = next(line for line in lines if line.get("scene") == "c")
    assert "Traceback" in bug["traceback"] and lines[-1]["failed"] == 4
    assert results() == {name: expected[name] for name in "ad"} and sorted(os.listdir("out")) == [
        "a",
        "batch.jsonl",
        "d",
    ]
    # In words, and those that failed are tried again.
    ended = run("batch", "scenes/*", "-c", weights, "-o", "out", *OPTIONS)
    assert ended.exit_code == 1 and "error b: " in ended.stderr and "error empty: " in ended.stderr
    assert "0 scenes done, 3 failed, 2 were finished before; 0 photographs" in ended.stdout
    monkeypatch.setattr(pipeline, "compute", real)
    assert said(batch(weights)[1], "done") == ["c"]


class Killed(BaseException):
    """As SIGKILL: nothing is cleaned up after it."""


def kill(patch, where, name, well, done):
    """The call after so many that go well ends everything, before it has done anything or when it has."""
    real, calls = getattr(where, name), []

    def call(*of, **how):
        calls.append(1)
        if len(calls) <= well:
            return real(*of, **how)
        patch.setattr(files.shutil, "rmtree", lambda *of, **how: None)
        if done:
            real(*of, **how)
        raise Killed

    patch.setattr(where, name, call)


@pytest.mark.parametrize(
    "where, name, done",
    [
        (pipeline, "load", False),
        (pipeline, "compute", False),
        (pipeline, "write_formats", True),
        (files, "_put_in_place", False),
        (files, "_put_in_place", True),
        (batch_run._Record, "__call__", False),
    ],
)
def test_a_run_that_was_killed_goes_on(weights, scenes, expected, monkeypatch, where, name, done):
    """At the first scene and at a later one: nothing is lost, nothing is done twice, nothing is left."""
    placed = Counter()
    place = files._put_in_place
    monkeypatch.setattr(files, "_put_in_place", lambda *of: (place(*of), placed.update([of[1].name])))
    for well in (0, 2):
        with monkeypatch.context() as patch:
            kill(patch, where, name, well, done)
            with pytest.raises(Killed):
                run("batch", "scenes/*", "-c", weights, "-o", "out", *OPTIONS)
        halves = [path for path in os.listdir("out") if path.startswith(".")]
        assert len(halves) == (name == "write_formats" or (name == "_put_in_place" and not done))
        assert {one: found for one, found in results().items() if one not in halves} == {
            one: expected[one] for one in placed
        }
    code, lines, stderr = batch(weights)
    assert code == 0 and stderr == "" and results() == expected
    assert placed == dict.fromkeys(SIZES, 1), placed
    for name, count in SIZES.items():  # how it was made is with what was made, whenever that was
        made = read_run(Path("out") / name)
        assert (made["scene"], len(made["photographs"])) == (name, count)
        assert "command" in made and made["seconds"]["write"] >= 0
    assert set(os.listdir("out")) == {*SIZES, "batch.jsonl"}


def test_a_signal_lets_what_is_being_written_end(weights, scenes, expected, monkeypatch):
    real, calls = pipeline.compute, []

    def compute(*of, **how):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*of, **how)

    monkeypatch.setattr(pipeline, "compute", compute)
    ended = run("batch", "scenes/*", "-c", weights, "-o", "out", *OPTIONS)
    assert ended.exit_code == 128 + signal.SIGTERM and "Traceback" not in ended.stderr
    assert results() == {"b": expected["b"]} and sorted(os.listdir("out")) == ["b", "batch.jsonl"]


def test_what_the_user_had_is_refused_and_stays(weights, scenes, expected):
    mine = Path("out/c/notes.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refused(weights, "out/c is not empty; give another one")
    refused(weights, "out/c holds what was not written here (notes.txt), so --overwrite", "--overwrite")
    assert (
        mine.read_text() == "mine"
        and os.listdir("out/c") == ["notes.txt"]
        and not results()["c"].keys() - {"notes.txt"}
    )
    mine.rename("notes.txt")
    assert batch(weights)[0] == 0 and results() == expected
    refused(weights, "holds another batch (export differ)", "--conf-percentile", "50")
    Path("index.jsonl").write_text(json.dumps({"scene": "scenes/a", "name": "b"}))
    refused(weights, f"out/b is of {scenes / 'b'} with no options, not of", scenes=("index.jsonl",))
    assert results() == expected
    code, lines, _ = batch(weights, "--conf-percentile", "50", "--overwrite")
    assert code == 0 and sorted(said(lines, "done")) == list("abcd") and results() != expected
    Path("out/batch.jsonl").write_text("mine\n")
    refused(weights, "batch.jsonl is not of a batch of fastvggt; move it")
    Path("file").write_text("")
    refused(weights, "file is a file; give a folder", out="file")


def test_an_overwriting_run_that_was_killed_goes_on_without_the_old_results(
    weights, scenes, expected, monkeypatch
):
    assert batch(weights, "--conf-percentile", "50")[0] == 0
    old, real = results(), pipeline.load

    def load(settings, *more):
        if settings.output.name == "d":
            raise KeyboardInterrupt
        return real(settings, *more)

    monkeypatch.setattr(pipeline, "load", load)
    assert run("batch", "scenes/*", "-c", weights, "-o", "out", *OPTIONS, "--overwrite").exit_code == 130
    monkeypatch.setattr(pipeline, "load", real)
    now = results()
    assert now["a"] == old["a"] and now["d"] == old["d"] and now["b"] == expected["b"]
    code, lines, _ = batch(weights)
    assert code == 0 and "a" in said(lines, "done") and said(lines, "finished")[0] == "b"
    assert results() == expected


def test_two_batches_do_not_write_one_folder(weights, scenes):
    Path("out").mkdir()
    with files.held("out"):
        refused(weights, "another program is writing the folder")


def test_options_of_a_scene_and_of_videos(weights, scenes):
    pytest.importorskip("av")
    from tests.sources.test_video import write

    write(scenes / "clip.mp4", np.arange(0, 4, 0.1))
    lines = [{"scene": "scenes/clip.mp4", "fps": 1}, {"scene": "scenes/a", "intrinsics": "20,20,15,10"}]
    Path("i.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, lines, _ = batch(weights, "--max-frames", "3", scenes=("i.jsonl",))
    done = {line["scene"]: line for line in lines if line.get("event") == "done"}
    assert code == 0 and len(done["clip"]["photographs"]) == 3 and done["a"]["intrinsics"] == ["given"]
    refused(weights, "--fps is for a video, and none was given", "--fps", "1", scenes=("scenes/a",), out="o")


@pytest.mark.parametrize(
    "more, words",
    [
        (["--size", "17"], "--size must be a positive multiple"),
        (["--ray", "nowhere"], "--ray must be auto, local, HOST:PORT or ray://HOST:PORT, not 'nowhere'"),
        (["--ray", "localhost:1"], "--ray localhost:1 does not answer"),
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--format", "plyy"], "there is no format 'plyy'; there are cameras, depth"),
        (["--tracks"], "--tracks needs a model with a track head, and "),
        (["-c", "gone.safetensors"], "gone.safetensors: no such weight file"),
        (["--intrinsics", "gone.json"], "--intrinsics gone.json: no such file, and not fx,fy,cx,cy"),
        (["--intrinsics", "index.jsonl"], "index.jsonl must hold fx,fy,cx,cy, or be a cameras.json"),
        (["index.jsonl"], "depth is for a model that takes it as input, such as Pi3X"),
    ],
)
def test_what_is_wrong_whatever_the_scene_ends_it_in_one_sentence_before_the_first(
    weights, scenes, monkeypatch, more, words
):
    if more[0] in ("--ray", "--workers"):
        pytest.importorskip("ray")
    monkeypatch.setattr(pipeline, "load", None)
    Path("index.jsonl").write_text(json.dumps({"scene": "more", "depth": "depths"}))
    refused(weights, words, *more)
    assert not Path("out").exists()


def test_the_model_is_told_what_is_known_of_a_scene(scenes, monkeypatch):
    """... of each its own, and the weights for that are loaded."""
    model, told = tiny_model("pi3x"), {}
    monkeypatch.setattr(pipeline, "read_model", lambda weights: model)
    monkeypatch.setattr(pipeline, "load_model", lambda settings, plan: (plan.heads, {}))

    def compute(loaded, heads, *_, **__):
        told[loaded.settings.output.name] = loaded.conditions
        assert "conditions" in heads
        raise InputError("enough")

    monkeypatch.setattr(pipeline, "compute", compute)
    one = {"name": "0.png", "width": 30, "height": 20, "K": [[20, 0, 15], [0, 20, 10], [0, 0, 1]]}
    cameras = {"images": [one | {"world_from_cam": np.eye(4).tolist()}]}
    Path("known.json").write_text(json.dumps(cameras))
    lines = [{"scene": "scenes/a", "cameras": "known.json"}, {"scene": "scenes/b"}]
    Path("index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, lines, _ = batch("pi3x", scenes=("index.jsonl",))
    assert [line["error"] for line in lines if line.get("event") == "failed"] == ["enough"] * 2
    assert told["a"].world_from_cam.shape == (1, 1, 4, 4) and told["b"] is None


def test_without_ray_workers_need_their_extra(weights, scenes, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(weights, "--workers needs Ray: pip install 'fastvggt_jax[ray]'", "--workers", "2")


def test_warnings_are_those_of_their_scene(weights, scenes, monkeypatch):
    real = {name: getattr(pipeline, name) for name in ("load", "write")}

    def warned(name):
        def function(first, *more):
            settings = first if name == "load" else first.settings
            warnings.warn(f"{name} of {settings.output.name}", stacklevel=2)
            return real[name](first, *more)

        return function

    for name in real:
        monkeypatch.setattr(pipeline, name, warned(name))
    lines = batch(weights)[1]
    for line in lines:
        if line.get("event") == "done":
            assert line["warnings"] == [f"load of {line['scene']}", f"write of {line['scene']}"]
    assert len(said(lines, "done")) == 4


def test_processes_that_write_write_the_same(weights, scenes, monkeypatch):
    formats = ("--format", "ply,cameras,scene,colmap")
    code, lines, _ = batch(weights, *formats, out="alone")
    assert code == 0 and len(said(lines, "done")) == 4
    monkeypatch.setattr(batch_work, "good_writers", lambda: 2)
    results_of, held = {}, []
    real_scene, real_begin = pipeline.to_scene, Apart.begin

    def to_scene(found, images):
        results_of[threading.get_ident()] = weakref.ref(found.points)
        return real_scene(found, images)

    def begin(*arguments):
        begun = real_begin(*arguments)
        held.append(results_of[threading.get_ident()]() is not None)
        return begun

    monkeypatch.setattr(pipeline, "to_scene", to_scene)
    monkeypatch.setattr(Apart, "begin", begin)
    assert batch(weights, *formats)[0] == 0
    assert results() == results(Path("alone"))
    assert held == [False] * 4  # what the model has found is on the disk alone


@pytest.mark.parametrize("writers", [1, 2])
def test_a_scene_that_fails_leaves_nothing_in_the_memory(weights, scenes, monkeypatch, writers):
    """Nor on the disk, where a removed file that is mapped still takes its room."""
    exports = []

    def fail(export, folder):
        exports.append(weakref.ref(export))
        raise FileError("the disk is full")

    monkeypatch.setattr(batch_work, "good_writers", lambda: writers)
    gc.disable()
    try:
        with registered(Format("own", ("own",), fail)):
            code, lines, _ = batch(weights, "--format", "own,scene,ply", scenes=("scenes/b",))
        assert code == 1 and said(lines, "failed") == ["b"]
        assert [one() for one in exports] == [None]
    finally:
        gc.enable()


def test_a_scene_in_pieces_is_finished_too(weights, scenes, monkeypatch):
    """Its cameras are in the pieces' folders."""
    run_all = pipeline.run_all

    def apart(*arguments, **more):
        found, density, _ = run_all(*arguments, **more)
        ((frames, whole),) = found.pieces
        some = lambda at: jax.tree.map(lambda x: x[:, at], whole)
        pieces = [Piece(frames[at], some(at)) for at in (slice(1), slice(1, None))]
        return Joined(pieces, [None], [], [False]), density, [frames[:1], frames[1:]]

    monkeypatch.setattr(pipeline, "run_all", apart)
    code, lines, _ = batch(weights, scenes=("scenes/b",))
    assert code == 0 and said(lines, "done") == ["b"]
    assert sorted(path.name for path in Path("out/b").iterdir()) == ["piece-1", "piece-2"]
    code, lines, _ = batch(weights, scenes=("scenes/b",))
    assert code == 0 and said(lines, "finished") == ["b"] and not said(lines, "done")


def test_overwriting_one_scene_keeps_what_is_known_of_the_others(weights, scenes):
    assert batch(weights)[0] == 0
    code, lines, _ = batch(weights, "--overwrite", scenes=("scenes/a",))
    assert code == 0 and said(lines, "done") == ["a"]
    code, lines, _ = batch(weights)
    assert code == 0 and sorted(said(lines, "finished")) == list("abcd")
    # Of other settings nothing is known of the others any more.
    assert batch(weights, "--overwrite", "--conf-percentile", 50, scenes=("scenes/a",))[0] == 0
    refused(weights, "out/b", "--conf-percentile", 50)


def test_cameras_and_depth_are_of_one_scene(weights, scenes):
    for option in ("--cameras", "--depth", "--align-to"):
        assert run("batch", "scenes/*", "-c", weights, "-o", "out", option, "x.json").exit_code == 2
    Path("index.jsonl").write_text(json.dumps({"scene": "scenes/b", "cameras": "gone.json"}))
    code, lines, _ = batch(weights, scenes=("index.jsonl",))
    assert code == 1 and "gone.json" in lines[1]["error"]


def test_the_process_that_has_workers_takes_no_gpu(weights, scenes, monkeypatch):
    """Not even where it converts weights, for which a model's shapes are found."""
    platforms, before = [], jax.config.jax_platforms

    def run_all(*arguments, **more):
        platforms.append(jax.config.jax_platforms)
        return {"event": "end", "done": 0, "failed": 0, "finished": 0, "views": 0, "seconds": 0.0}

    monkeypatch.setattr(batch_run, "run", run_all)
    try:
        jax.config.update("jax_platforms", None)
        for more in ((), ("--workers", 2)):
            assert run("batch", "scenes/*", "-c", weights, "-o", "out", *more).exit_code == 0
    finally:
        jax.config.update("jax_platforms", before)
    assert platforms == [None, "cpu"]
