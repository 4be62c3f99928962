"""Folders and files that appear whole or not at all, whatever happens meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from fastvggt_jax.errors import FileError, TargetError
from fastvggt_jax.io import files
from fastvggt_jax.io.files import check_output_folder, check_space, held, leftovers, new_file, output_folder

ROOT = Path(__file__).parents[2]
OURS = ("mark.json", "*.ply", "depth/*.npz")


def fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "mark.json").write_text(f"fastvggt_jax {text}")
    (folder / "points.ply").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def kept_beside(error: TargetError, out: Path) -> Path:
    (found,) = [path for path in out.parent.iterdir() if path.name.startswith(f"{out.name}.")]
    assert str(found) in str(error)
    return found


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed"])
def out(request, tmp_path, monkeypatch):
    """With the system's exchange of names, and on a system that has none."""
    if not request.param:
        monkeypatch.setattr(files, "_exchanged", lambda a, b: False)
    return tmp_path / "out"


def test_an_old_result_is_replaced(out):
    fill(out, "old")
    with output_folder(out, overwrite=True, ours=OURS) as folder:
        fill(folder, "new")
        assert contents(out)["points.ply"] == "old"
    assert contents(out)["points.ply"] == "new" and os.listdir(out.parent) == ["out"]


def test_of_two_runs_into_one_new_folder_the_second_is_kept_beside_the_first(out):
    with pytest.raises(TargetError, match="is not empty") as raised, output_folder(out) as late:
        with output_folder(out) as early:
            fill(early, "early")
        (out / "notes.txt").write_text("the user's")
        fill(late, "late")
    assert contents(out) == {
        "mark.json": "fastvggt_jax early",
        "notes.txt": "the user's",
        "points.ply": "early",
    }
    assert contents(kept_beside(raised.value, out))["points.ply"] == "late"
    assert len(os.listdir(out.parent)) == 2


def test_a_file_that_comes_while_an_old_result_is_replaced_is_kept(out):
    fill(out, "old")
    replace = output_folder(out, overwrite=True, ours=OURS)
    with pytest.raises(TargetError, match=r"not written here \(notes.txt\)") as raised, replace as folder:
        fill(folder, "new")
        (out / "notes.txt").write_text("the user's")
    assert contents(out)["notes.txt"] == "the user's" and contents(out)["points.ply"] == "old"
    assert contents(kept_beside(raised.value, out))["points.ply"] == "new"


def test_a_file_that_comes_in_the_very_last_moment_is_kept(out, monkeypatch):
    fill(out, "old")
    exchange = files._exchange

    def late(a, b):
        if not (out / "notes.txt").exists() and not (a / "notes.txt").exists():
            (out / "notes.txt").write_text("the user's")
        exchange(a, b)

    monkeypatch.setattr(files, "_exchange", late)
    replace = output_folder(out, overwrite=True, ours=OURS)
    with pytest.raises(TargetError, match=r"not written here \(notes.txt\)") as raised, replace as folder:
        fill(folder, "new")
    assert contents(out)["notes.txt"] == "the user's" and contents(out)["points.ply"] == "old"
    assert contents(kept_beside(raised.value, out))["points.ply"] == "new"


def test_a_folder_that_is_filled_in_the_very_last_moment_is_kept(out, monkeypatch):
    rename = os.rename

    def late(a, b):
        if Path(b) == out and not out.exists():
            fill(out, "the user's")
        rename(a, b)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(TargetError, match="filled meanwhile") as raised, output_folder(out) as folder:
        fill(folder, "new")
    assert contents(out)["points.ply"] == "the user's"
    assert contents(kept_beside(raised.value, out))["points.ply"] == "new"


def test_an_error_leaves_what_was_there_and_nothing_else(out):
    fill(out, "old")
    with pytest.raises(ZeroDivisionError), output_folder(out, overwrite=True, ours=OURS) as folder:
        fill(folder, "new")
        raise ZeroDivisionError
    assert contents(out)["points.ply"] == "old" and os.listdir(out.parent) == ["out"]
    with pytest.raises(ZeroDivisionError), output_folder(out / "a" / "b"):
        raise ZeroDivisionError
    assert sorted(os.listdir(out)) == ["mark.json", "points.ply"]


@pytest.mark.parametrize("where, function", [(shutil, "rmtree"), (Path, "mkdir")])
def test_a_signal_while_a_temporary_folder_comes_or_goes_leaves_none(where, function, out, monkeypatch):
    fill(out, "old")
    real = getattr(where, function)

    def end(number, _):
        raise SystemExit(128 + number)

    def hit(path, *arguments, **how):
        if where is Path:
            real(path, *arguments, **how)
        os.kill(os.getpid(), signal.SIGTERM)
        if where is shutil:
            real(path, *arguments, **how)

    monkeypatch.setattr(where, function, hit)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit), output_folder(out, overwrite=True, ours=OURS) as folder:
            fill(folder, "new")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert contents(out)["points.ply"] == ("new" if where is shutil else "old")
    assert os.listdir(out.parent) == ["out"]


def test_a_pattern_stands_for_no_folder(out):
    fill(out, "old")
    (out / "depth" / "mine").mkdir(parents=True)
    for name in ("depth/0.npz", "depth/mine/work.npz"):
        (out / name).write_text("")
    with pytest.raises(TargetError, match=r"not written here \(depth/mine/work.npz\)"):
        check_output_folder(out, overwrite=True, ours=OURS)
    (out / "depth" / "mine" / "work.npz").unlink()
    (out / "depth" / "mine").rmdir()
    check_output_folder(out, overwrite=True, ours=OURS)


def test_of_two_that_hold_a_folder_the_second_is_refused_even_at_the_same_instant(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_is_being_written", lambda path: False)  # whatever was seen a moment ago
    with held(tmp_path), pytest.raises(TargetError, match="another program is writing"), held(tmp_path):
        pass
    with held(tmp_path):  # and now it is free
        pass


# The calls that change a name, and as many of each as there are.
STEPS = [("_exchanged", n) for n in (1,)] + [("rename", n) for n in (1, 2, 3)] + [("rmtree", 1)]


@pytest.mark.parametrize("name, when", STEPS)
def test_an_interruption_between_any_two_steps_loses_nothing(tmp_path, monkeypatch, name, when):
    """A KeyboardInterrupt out of the n-th call."""
    out = tmp_path / "out"
    fill(out, "old")
    calls = 0
    if name == "rename":
        monkeypatch.setattr(files, "_exchanged", lambda a, b: False)

    def interrupted(real):
        def call(*arguments, **how):
            nonlocal calls
            calls += 1
            if calls == when:
                raise KeyboardInterrupt
            return real(*arguments, **how)

        return call

    module = {"rename": os, "rmtree": shutil}.get(name, files)
    monkeypatch.setattr(module, name, interrupted(getattr(module, name)))
    with pytest.raises(KeyboardInterrupt), output_folder(out, overwrite=True, ours=OURS) as folder:
        fill(folder, "new")
    assert calls >= when
    kept = [contents(path)["points.ply"] for path in (out, *leftovers(out)) if path.exists()]
    assert "old" in kept or contents(out)["points.ply"] == "new"
    assert contents(out)["points.ply"] in ("old", "new") and len(contents(out)) == 2


KILLED = """
import os, signal, sys
from fastvggt_jax.io import files
out, how = sys.argv[1:]
if how == "renamed":
    files._exchanged = lambda a, b: False
    rename, calls = os.rename, []
    def killed(a, b):
        calls.append(a)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(a, b)
    os.rename = killed
with files.output_folder(out, overwrite=True, ours=("mark.json", "*.ply")) as folder:
    (folder / "mark.json").write_text("fastvggt_jax new")
    (folder / "points.ply").write_text("new")
    if how == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["writing", "renamed"])
def test_what_a_killed_run_has_left_is_named_by_the_next(tmp_path, how):
    out = tmp_path / "out"
    fill(out, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), how], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    found = leftovers(out)
    assert found and {path.name for path in found} | {"out"} >= set(os.listdir(tmp_path))
    if how == "renamed":
        assert "old" in [contents(path)["points.ply"] for path in found], "nothing is lost"
    with pytest.warns(UserWarning) as caught:
        check_output_folder(out, overwrite=True, ours=OURS)
    assert all(str(path) in str(caught[0].message) for path in found)


def test_what_another_run_is_writing_is_no_leftover(tmp_path):
    with output_folder(tmp_path / "out") as folder:
        assert folder.exists() and leftovers(tmp_path / "out") == []
    with new_file(tmp_path / "a.safetensors") as file:
        assert Path(file.name).exists() and leftovers(tmp_path / "a.safetensors") == []
    (tmp_path / ".a.safetensors.0123abcd.tmp").write_text("")
    assert [path.name for path in leftovers(tmp_path / "a.safetensors")] == [".a.safetensors.0123abcd.tmp"]
    assert leftovers(tmp_path / "gone" / "out") == []


def test_signals_wait_while_folders_change_places(tmp_path):
    order = []
    before = signal.signal(signal.SIGTERM, lambda *_: order.append("signal"))
    try:
        with files._signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            order.append("done")
        assert order == ["done", "signal"]
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- what is known beforehand


@pytest.mark.parametrize("length", [242, 250, 255])
def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path, length):
    out = tmp_path / ("ö" * (length // 2) + "o" * (length % 2))
    for overwrite in (False, True):
        with output_folder(out, overwrite=overwrite, ours=OURS) as folder:
            fill(folder, "new")
    assert contents(out)["points.ply"] == "new"
    with new_file(tmp_path / ("a" * length)) as file:
        file.write(b"x")
    assert len(os.listdir(tmp_path)) == 2


def test_what_cannot_be_made_is_said_beforehand(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for name, match in {
        "file": "is a file; give a folder",
        "file/out": "cannot be made: .*file is a file",
        "file/a/b": "cannot be made: .*file is a file",
        "": "has no name",
        ".": "is the current folder",
        "..": "is the current folder, or holds it",
        "a" * 256: "(longer than 255 bytes|too long)",
        "a/" + "b" * 256 + "/c": "(longer than 255 bytes|too long)",
    }.items():
        with pytest.raises((TargetError, FileError), match=match) as raised:
            check_output_folder(name)
        assert raised.value.argument == "output", name
    assert os.listdir(tmp_path) == ["file"]


def test_too_little_space_is_said_beforehand(tmp_path):
    check_space(tmp_path / "new" / "out", 1000)
    with pytest.raises(FileError, match=r"has [0-9.]+ GB left, and 1000000000.00 GB are needed") as raised:
        check_space(tmp_path / "new" / "out", 10**18)
    assert raised.value.argument == "output"


def test_no_warning_where_nothing_was_left(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_output_folder(tmp_path / "out")
