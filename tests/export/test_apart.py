"""Formats that other processes write: the same files, and what becomes of their warnings and errors."""

import dataclasses
import errno
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from fastvggt_jax.errors import FileError
from fastvggt_jax.export import apart as apart_module
from fastvggt_jax.export.apart import Apart
from fastvggt_jax.export.base import Export, ExportOptions, Format, check_formats, registered, write_formats
from fastvggt_jax.export.tracks import Followed
from fastvggt_jax.io.files import write_file
from fastvggt_jax.io.scenes import DENSE
from fastvggt_jax.scene import Scene
from tests.export.truth import true_scene
from tests.faults.runner import contents

FORMATS = ("cameras", "depth", "ply", "overview", "scene", "colmap", "colmap-text", "splat", "conventions")
OPTIONS = ExportOptions(track_points=50, conf_percentile=10, shared_camera=True)


@pytest.fixture(scope="module")
def apart():
    with Apart() as one:
        yield one


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"), "area", 56).scene


def write(scene, folder, begin=None, options=OPTIONS, formats=FORMATS):
    """(files, the report of tracks, warnings, how many points)"""
    folder.mkdir()
    export = Export.of(scene, options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_formats(export, folder, check_formats(formats), begin)
    return contents(folder), export.tracks_report(), {str(one.message) for one in caught}, export.points


def test_the_files_the_report_and_the_warnings_are_the_same(scene, apart, tmp_path):
    begun = []

    def begin(export, folder, formats):
        left, wait = apart.begin(export, folder, formats)
        begun.append([format.name for format in left])
        return left, wait

    here = write(scene, tmp_path / "here")
    assert write(scene, tmp_path / "apart", begin) == here and here[1]["points"] == 50
    assert begun == [["splat"]]  # of photographs
    odd = dataclasses.replace(
        scene, names=tuple(f"a {name}" for name in scene.names), points=scene.points * 1e30
    )
    few = ("scene", "ply", "overview", "colmap-text")
    here = write(odd, tmp_path / "odd", formats=few)
    assert write(odd, tmp_path / "odd apart", begin, formats=few) == here
    assert any(text.startswith("names in COLMAP's text hold no spaces") for text in here[2])
    assert any(text.startswith("overflow encountered") for text in here[2])
    # Only what is written here has tracks.
    here = write(scene, tmp_path / "tracks", formats=("scene", "ply", "splat"))
    assert write(scene, tmp_path / "tracks apart", begin, formats=("scene", "ply", "splat")) == here


def test_what_a_process_does(scene, tmp_path):
    """It maps the scene and uses its share of the cores."""
    exports = []
    own = Format("own", ("own",), lambda export, folder: exports.append(export), of_saved=True)
    scene.save(tmp_path)
    with registered(own):
        assert apart_module._write_saved(tmp_path, ("own",), OPTIONS).points == len(OPTIONS.cloud(scene))
    (export,) = exports
    assert export.cores == apart_module.CORES and not export.scene.points.flags.writeable


@pytest.mark.parametrize("voxel", [None, 0.2])
def test_points_are_counted_where_they_are_written(scene, apart, tmp_path, monkeypatch, voxel):
    options = ExportOptions(conf_percentile=10, voxel=voxel)
    count = len(options.cloud(scene))
    export = Export.of(scene, options)
    monkeypatch.delattr(Scene, "point_indices")
    write_formats(export, tmp_path, check_formats(("scene", "ply")), apart.begin)
    assert export.points == count


def test_what_is_saved_leaves_the_memory(scene, apart, tmp_path):
    copies = {name: getattr(scene, name).copy() for name in DENSE}
    export = Export.of(dataclasses.replace(scene, **copies), OPTIONS)
    held = [weakref.ref(one) for one in copies.values()]
    held += [weakref.ref(getattr(export.scene, name)) for name in DENSE]
    before = export.scene.points.copy()
    del copies
    left, wait = apart.begin(export, tmp_path, check_formats(("scene", "ply")))
    assert not left and not any(one() is not None for one in held)
    wait()
    np.testing.assert_array_equal(export.scene.points, before)  # should it still be wanted


def faults_of_an_array():
    """Pages that the system has cleared for this process so far."""
    np.ones(100 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_process_keeps_its_memory_for_the_next_scene(apart):
    pool = apart._one()
    _, second, third = [pool.submit(faults_of_an_array).result() for _ in range(3)]
    apart._idle.append(pool)
    assert third - second < 20


def test_what_is_not_the_saved_scenes_is_written_here(scene, apart, tmp_path):
    formats = check_formats(("ply", "scene"))
    export = Export.of(scene, OPTIONS)
    for other in (
        Export.of(scene, OPTIONS, measured=export.tracks),
        Export.of(scene, OPTIONS, followed=Followed(*[np.empty(0)] * len(dataclasses.fields(Followed)))),
        Export.of(scene, ExportOptions(float16=True)),
    ):
        assert apart.begin(other, tmp_path, formats)[0] == formats
    assert apart.begin(export, tmp_path, check_formats("ply"))[0] == check_formats("ply")
    assert not list(tmp_path.iterdir())


def test_an_error_is_that_sentence(scene, apart, tmp_path):
    (tmp_path / "out" / "points.ply").mkdir(parents=True)
    with pytest.raises(FileError, match=r"points\.ply could not be written") as raised:
        write_formats(Export.of(scene, OPTIONS), tmp_path / "out", check_formats(FORMATS), apart.begin)
    assert raised.value.errno == errno.EISDIR  # by which a full disk is told from others


def test_what_other_processes_cannot_know_is_written_here(scene, apart, tmp_path):
    own = Format("own", ("own",), lambda export, folder: write_file(folder / "own", b"1"), of_saved=True)
    with registered(own):
        assert set(write(scene, tmp_path / "own", apart.begin, formats=("scene", "own"))[0]) == {
            "own",
            "scene.npz",
        }
    stretched = dataclasses.replace(scene, cam_from_world=2 * scene.cam_from_world)  # Scene.load takes none
    assert "points.ply" in write(stretched, tmp_path / "stretched", apart.begin, formats=("scene", "ply"))[0]


@pytest.mark.parametrize("error", [BrokenProcessPool, NotImplementedError, BlockingIOError])
def test_all_is_written_here_where_there_is_no_process(scene, tmp_path, monkeypatch, error):
    def submit(*_):
        raise error

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with Apart() as apart:
        assert set(write(scene, tmp_path / "a", apart.begin, formats=("scene", "ply"))[0]) == {
            "points.ply",
            "scene.npz",
        }


def test_a_process_that_is_killed_takes_nothing_along(scene, apart, tmp_path):
    """What it was writing is written here, without what it leaves, and others' scenes go on."""
    here = write(scene, tmp_path / "here")
    assert write(scene, tmp_path / "apart", apart.begin) == here
    (first,) = multiprocessing.active_children()
    os.kill(first.pid, signal.SIGSTOP)

    def begin(export, folder, formats):
        found = apart.begin(export, folder, formats)
        (folder / ".points.ply.0123abcd.tmp").touch()
        assert write(scene, tmp_path / "beside", beside) == here
        return found

    def beside(export, folder, formats):
        found = apart.begin(export, folder, formats)
        first.kill()
        return found

    assert write(scene, tmp_path / "killed", begin) == here
    (second,) = multiprocessing.active_children()
    assert write(scene, tmp_path / "next", apart.begin) == here
    assert multiprocessing.active_children() == [second] != [first]
    blocked = apart._idle[-1].submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT in blocked  # from the first moment on, when it would have ended with a traceback


def test_they_end_with_this_process_however_that_ends(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        "import os, time; from fastvggt_jax.export.apart import Apart\n"
        "if __name__ == '__main__':\n"
        "    pool = Apart()._one(); pool.submit(os.getpid).result(); print(flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        running.kill()
        running.communicate(timeout=20)  # until nobody holds the pipe
