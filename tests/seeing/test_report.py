"""`fastvggt report`: one page that says what is in a result, compares it, and fetches nothing."""

import dataclasses
import io
import json
import os
import re
from base64 import b64decode
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import Scene, export
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import TargetError
from fastvggt_jax.export.cameras import written_in
from fastvggt_jax.export.conventions import keep_run, read_run
from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.io.files import write_file
from fastvggt_jax.seeing.report import page
from fastvggt_jax.seeing.result import (
    Result,
    brought_to,
    camera_errors,
    cameras_of,
    depth_errors,
    read_result,
    truth_of,
)
from tests.export.truth import VIEWS, true_scene

RUN = {
    "command": "fastvggt reconstruct 'a <b>' -o out",
    "version": "0.1.0",
    "day": "2026-01-02",
    "model": {"class": "VGGT", "parameters": 12345, "heads": [], "density": [1, 0.25]},
    "seconds": {"compile": 3.0, "run": 1.5},
    "peak_memory_bytes": {"device": None, "host": 2**31},
    "warnings": ["K is a guess of <script>x</script>"],
    "skipped": [{"file": "z.jpg", "reason": "z.jpg is damaged"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def saved(true, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "out"
    export.write(true.scene, folder, ("cameras", "scene", "conventions"))
    keep_run(folder, RUN)
    return folder


@pytest.fixture(scope="module")
def moved(true, tmp_path_factory):
    """The same in another world, one camera turned by 10 degrees, depth twice as far but for one view."""
    scene = true.scene
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    poses = Similarity(2.0, turn, np.array([1.0, 2, 3])).of_cameras(scene.cam_from_world)
    angle = np.deg2rad(10)
    about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    poses[1] = about_y @ poses[1]
    depth = 2 * scene.depth
    depth[3] *= 1.1
    other = dataclasses.replace(scene, cam_from_world=poses.astype(np.float32), depth=depth)
    folder = tmp_path_factory.mktemp("moved") / "out"
    export.write(other, folder, ("cameras", "scene", "conventions"))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result, *words):
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    (line,) = result.stderr.splitlines()
    for word in words:
        assert str(word) in line, line


class Sources(HTMLParser):
    """Whatever a page would fetch, and its elements."""

    def __init__(self, text):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]


def test_a_page_by_itself_says_what_the_run_said(saved, tmp_path):
    result = run("report", saved, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text()
    sources = Sources(text)
    assert len(sources.found) == 3 * VIEWS and all(one.startswith("data:image/jpeg") for one in sources.found)
    assert "url(" not in text and "script" not in sources.tags and "link" not in sources.tags
    assert "fastvggt reconstruct &#x27;a &lt;b&gt;&#x27; -o out" in text and "z.jpg is damaged" in text
    assert "&lt;script&gt;" in text and "12,345" in text
    assert "layer 1: 25.0%" in text and "mean 62.5%" in text
    assert re.search(r"run, s</td><td class=\"n\">1.5<", text) and re.search(r"host, GiB</td>.*?>2<", text)
    assert sources.tags.count("polygon") == VIEWS and sources.tags.count("circle") > 200
    for name in ("photograph", "depth", "confidence"):
        assert text.count(f'alt="{name}"') == VIEWS
    with Image.open(io.BytesIO(b64decode(sources.found[0].split(",")[1]))) as image:
        assert image.size == (112, 112) and np.asarray(image).std() > 10


def test_exports_keep_what_is_known_of_the_run(saved, tmp_path):
    export.write(Scene.load(saved), saved, ("conventions",))
    assert read_run(saved) == json.loads(json.dumps(RUN))


def test_errors_of_cameras_and_depth_are_those_put_in(true, saved, moved, tmp_path):
    scene, other = true.scene, read_result(moved).scene
    from_result, from_file = cameras_of(other, scene), truth_of(str(moved), scene)
    np.testing.assert_allclose(list(from_result.values()), list(from_file.values()), atol=1e-5)
    errors = camera_errors(scene, from_result)
    # Of the 15 pairs, 5 have the turned camera.
    assert errors["rotation, degrees"] < 0.01 and errors["photographs"] == VIEWS
    assert errors["AUC@5, %"] == pytest.approx(100 * 10 / 15, abs=0.1)
    depths = depth_errors(scene, other)
    assert depths[0] == pytest.approx(0, abs=1e-6) and depths[3] == pytest.approx(1 - 1 / 1.1, abs=1e-3)
    for others in ((0, 2, 3, 4, 5), (0, 3)):  # two leave the turn about their line to the cameras' axes
        back = brought_to(scene, {i: from_result[i] for i in others})
        assert back.scale == pytest.approx(0.5, rel=1e-4)
        brought = back.of_cameras(np.stack(list(from_result.values())))
        np.testing.assert_allclose(brought[0], scene.cam_from_world[0], atol=1e-3)
    result = run(
        "report", saved, "--against", moved, "--truth", moved / "cameras.json", "-o", tmp_path / "a.html"
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "a.html").read_text()
    assert Sources(text).tags.count("polygon") == 3 * VIEWS and "66.67" in text
    assert "depth differs by 9.1%" in text


def test_a_result_of_before_runs_were_kept(moved):
    text = page(read_result(moved), most=2)
    assert text.count("Not known") == 3 and "2 of 6, evenly chosen" in text and text.count("<figure>") == 2


def test_what_is_no_result_is_said_in_a_sentence(saved, moved, true, tmp_path):
    refused(run("report", tmp_path / "none"), tmp_path / "none", "is not there")
    refused(run("report", tmp_path), tmp_path, "holds no scene.npz")
    refused(run("report", saved / "scene.npz"), "is a file", "folder")
    page = tmp_path / "page.html"
    page.write_text("mine")
    refused(run("report", saved, "-o", page), page, "--overwrite")
    refused(run("report", saved, "-o", page, "--overwrite"), page, "no page of HTML, so --overwrite")
    assert page.read_text() == "mine" and "report.html" in written_in(saved)  # which overwrite may replace
    scene = (saved / "scene.npz").read_bytes()
    refused(run("report", saved, "-o", saved / "scene.npz", "--overwrite"), "no page of HTML")
    assert (saved / "scene.npz").read_bytes() == scene
    refused(run("report", saved, "-o", tmp_path), "is a folder", "--output")
    refused(
        run("report", saved, "-o", tmp_path / "b", "--truth", tmp_path / "no.json"), "no.json", "no such file"
    )
    rows = "".join(f"{name},{i},{i * i},1\n" for i, name in enumerate(true.scene.names))
    (tmp_path / "t.csv").write_text("name,x,y,z\n" + rows)
    refused(
        run("report", saved, "-o", tmp_path / "b", "--truth", tmp_path / "t.csv"),
        "--truth",
        "positions alone",
    )
    others = dataclasses.replace(true.scene, names=tuple(f"other{i}.png" for i in range(VIEWS)))
    others.save(tmp_path / "others")
    refused(
        run("report", saved, "-o", tmp_path / "b", "--against", tmp_path / "others"),
        "--against",
        "other photographs",
    )
    one = dataclasses.replace(others, names=(true.scene.names[2], *others.names[1:]))
    one.save(tmp_path / "one")
    refused(
        run("report", saved, "-o", tmp_path / "b", "--against", tmp_path / "one"), f"has 1 of the {VIEWS} "
    )
    true.scene.save(tmp_path / "pieces" / "piece-1")
    refused(run("report", tmp_path / "pieces"), "holds a scene in 1 pieces: name one, such as", "piece-1")
    refused(run("report", saved, "-o", tmp_path / "b", "--photographs", 0), "--photographs", "0")
    newer = json.loads((moved / "scene.json").read_text()) | {"format_version": 2}
    (tmp_path / "others" / "scene.json").write_text(json.dumps(newer))
    refused(run("report", tmp_path / "others"), "version 2", "upgrade")
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_is_not_replaced(saved, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(run("report", saved, "-o", pipe, "--overwrite"), pipe, "a pipe or a device")
    with pytest.raises(TargetError, match="a pipe or a device"):
        write_file(pipe, b"mine")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_what_others_have_made_of_the_run(saved):
    """Of a scene.json that was edited: what is of another kind is not known, and is no reason to fail."""
    scene = read_result(saved).scene
    wrong = {"seconds": 3, "warnings": 5, "skipped": 5, "size": None, "command": ["a"], "points": True}
    wrong |= {"model": {"heads": 5, "parameters": "x", "density": ["a"]}}
    wrong |= {"peak_memory_bytes": {"host": "x", "device": 2**30}}
    text = page(Result(saved, scene, wrong), most=1)
    assert "peak memory of the device, GiB" in text and "peak memory of the host" not in text
    assert "Not known" not in page(Result(saved, scene, wrong | {"skipped": [1, {"reason": 5}]}), most=1)


def test_a_page_starts_no_device(saved):
    """On a GPU JAX would take most of its memory, for a page that needs none."""
    result = read_result(saved)
    with jax.transfer_guard("disallow"):
        page(result, against=result, most=2)


def test_a_scene_without_points(true, tmp_path):
    nothing = dataclasses.replace(true.scene, valid=np.zeros_like(true.scene.valid))
    text = page(Result(tmp_path, nothing, {}))
    assert "nothing is valid" in text and "<circle" not in text and text.count("<polygon") == VIEWS
