"""Formats that other processes write: the same files, and what becomes of their warnings and errors."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from fastvggt_jax.errors import FileError
from fastvggt_jax.export.apart import Apart
from fastvggt_jax.export.base import Export, ExportOptions, check_formats, write_formats
from tests.export.truth import true_scene
from tests.faults.runner import contents

FORMATS = ("cameras", "depth", "ply", "overview", "scene", "colmap", "colmap-text", "splat", "conventions")
OPTIONS = ExportOptions(track_points=50, conf_percentile=10, shared_camera=True)


@pytest.fixture(scope="module")
def apart():
    with Apart(1) as one:
        yield one


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"), "area", 56).scene


def write(scene, folder, begin=None, options=OPTIONS, formats=FORMATS):
    """(files, the report of tracks, warnings)"""
    folder.mkdir()
    export = Export.of(scene, options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_formats(export, folder, check_formats(formats), begin)
    return contents(folder), export.tracks_report(), {str(one.message) for one in caught}


def test_the_files_the_report_and_the_warnings_are_the_same(scene, apart, tmp_path):
    begun = []

    def begin(export, folder, formats):
        left, wait = apart.begin(export, folder, formats)
        begun.append([format.name for format in left])
        return left, wait

    here = write(scene, tmp_path / "here")
    assert write(scene, tmp_path / "apart", begin) == here and here[1]["points"] == 50
    assert begun == [["splat"]]  # of photographs
    spaced = dataclasses.replace(scene, names=tuple(f"a {name}" for name in scene.names))
    found = write(spaced, tmp_path / "spaced", begin, formats=("scene", "colmap-text"))
    assert "names in COLMAP's text hold no spaces" in found[2].pop()


def test_what_is_not_the_saved_scenes_is_written_here(scene, apart, tmp_path):
    formats = check_formats(("ply", "scene"))
    export = Export.of(scene, OPTIONS)
    for other in (
        Export.of(scene, OPTIONS, measured=export.tracks),
        Export.of(scene, ExportOptions(float16=True)),
    ):
        assert apart.begin(other, tmp_path, formats)[0] == formats
    assert apart.begin(export, tmp_path, check_formats("ply"))[0] == check_formats("ply")
    assert not list(tmp_path.iterdir())


def test_an_error_is_that_sentence(scene, apart, tmp_path):
    (tmp_path / "out" / "points.ply").mkdir(parents=True)
    with pytest.raises(FileError, match=r"points\.ply could not be written"):
        write_formats(Export.of(scene, OPTIONS), tmp_path / "out", check_formats(FORMATS), apart.begin)


def test_what_a_killed_process_leaves_is_written_here_and_the_next_one_apart(scene, apart, tmp_path):
    def begin(export, folder, formats):
        found = apart.begin(export, folder, formats)
        for process in multiprocessing.active_children():
            process.kill()
        return found

    here = write(scene, tmp_path / "here")
    assert write(scene, tmp_path / "killed", begin) == here and not multiprocessing.active_children()
    assert write(scene, tmp_path / "next", apart.begin) == here
    assert len(multiprocessing.active_children()) == 1


def test_they_end_with_this_process_however_that_ends(tmp_path):
    script = (
        "import time; from fastvggt_jax.export.apart import Apart\n"
        "if __name__ == '__main__':\n"
        "    pool = Apart(1)._started(); import os; print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True) as running:
        other = int(running.stdout.readline())
        os.kill(running.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while alive(other) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(other)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # ended, if nobody has asked for how
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
