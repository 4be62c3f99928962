"""`fastvggt view`: what its widgets leave of the points, its ports, and both pages in a real browser."""

import contextlib
import dataclasses
import io
import socket
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import export
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import InputError, TargetError
from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.seeing.clouds import cloud_of, clouds
from fastvggt_jax.seeing.result import Result
from fastvggt_jax.seeing.viewer import PORT, Viewer, free_port
from fastvggt_jax.testing.browser import chromium
from tests.export.truth import VIEWS, true_scene
from tests.seeing.test_report import refused


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Confidences that differ, and a masked quarter of the first photograph."""
    scene = true_scene(tmp_path_factory.mktemp("photos")).scene
    conf = np.random.default_rng(0).permutation(scene.depth.size).reshape(scene.depth.shape)
    valid = scene.valid.copy()
    valid[0, :56, :56] = False
    return dataclasses.replace(scene, points_conf=conf.astype(np.float32), valid=valid)


@pytest.fixture(scope="module")
def saved(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "<out>"
    export.write(scene, folder, ("cameras", "scene", "conventions"))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@contextlib.contextmanager
def taken_port(port=0):
    with socket.socket() as one:
        one.bind(("127.0.0.1", port))
        one.listen()
        yield one.getsockname()[1]


@contextlib.contextmanager
def browser():
    """A page of a real Chromium, skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = chromium(started)
        if found is None:
            pytest.skip("there is no Chromium")
        page = found.new_page(viewport={"width": 800, "height": 600})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        found.close()


def colors_in(page, **clip) -> int:
    """How many different colours a screenshot has."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


def test_a_beginning_of_the_points_is_an_even_choice(scene):
    cloud = cloud_of(scene)
    unmasked = int(scene.valid.sum())
    assert len(cloud) > unmasked and len(cloud.chosen()) == unmasked
    masked = cloud.chosen(masks=False)
    assert len(masked) == len(cloud) and set(cloud.frame[cloud.masked]) >= {0}
    assert abs(len(cloud.chosen(80.0)) - 0.2 * unmasked) < 0.01 * unmasked
    threshold = np.percentile(scene.points_conf[scene.valid], 80)
    assert len(cloud.chosen(80.0)) == pytest.approx(
        (scene.points_conf[scene.valid] >= threshold).sum(), abs=3
    )
    first = cloud.chosen(most=1000)
    assert len(first) == 1000 and np.bincount(cloud.frame[first]).min() > 80
    assert set(cloud.frame[cloud.chosen(frame=2)]) == {2}
    assert len(cloud_of(scene, 500)) == 500
    floor = dataclasses.replace(scene, conf_floor=float(np.median(scene.points_conf)))
    assert len(cloud_of(floor).chosen(1.0)) == pytest.approx(0.5 * unmasked, rel=0.05)  # sky goes at once


def test_a_second_result_stands_beside_the_first(scene, tmp_path):
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    other = Similarity(3.0, turn, np.array([5.0, 1, 2]))
    moved = dataclasses.replace(
        scene,
        cam_from_world=other.of_cameras(scene.cam_from_world).astype(np.float32),
        points=other(scene.points).astype(np.float32),
    )
    one, two = clouds([Result(tmp_path, scene, {}), Result(tmp_path, moved, {})])
    shift = (two.xyz - one.xyz).astype(np.float64)
    np.testing.assert_allclose(shift, np.tile(shift.mean(0), (len(shift), 1)), atol=1e-3)
    np.testing.assert_allclose(
        two.world_from_cam[:, :3, 3] - one.world_from_cam[:, :3, 3], shift[:VIEWS], atol=1e-3
    )
    right = one.world_from_cam[:, :3, 0].mean(0)
    assert shift.mean(0) @ right > 0.9 * np.linalg.norm(shift.mean(0)) * np.linalg.norm(right)


def test_ports(saved):
    with taken_port() as port:
        refused(run("view", saved, "--port", port), f"port {port} is in use")
        with pytest.raises(TargetError, match="in use"):
            free_port("127.0.0.1", port)
    with contextlib.suppress(OSError), taken_port(PORT):
        assert free_port("127.0.0.1") > PORT
    for port in (99999, 0, -1):
        refused(run("view", saved, "--port", port), f"--port must be from 1 to 65535, not {port}")
    refused(run("view", saved, "--host", ""), "--host has no name")  # all interfaces, for a socket
    refused(run("view", saved, "--host", "203.0.113.7"), "--host 203.0.113.7 is no address")
    with pytest.raises(InputError):
        free_port("no.such.host.invalid")


def test_addresses_of_version_6(scene, tmp_path):
    with contextlib.suppress(OSError, InputError):  # where the system has none
        free_port("::1")
        viewer = Viewer(clouds([Result(tmp_path, scene, {})], 100), host="::1")
        viewer.stop()
        assert viewer.url == f"http://[::1]:{viewer.port}"


def test_bad_input(saved, tmp_path, scene, monkeypatch):
    refused(run("view", tmp_path), tmp_path, "holds no scene.npz")
    refused(run("view", saved, "--share-static", tmp_path), "--share-static", "is a folder")
    refused(run("view", saved, "--share-static", tmp_path / "a.html", "--port", 1), "--port")
    page = tmp_path / "mine.html"
    page.write_text("mine")
    refused(run("view", saved, "--share-static", page, "--overwrite"), "no page of HTML")
    assert page.read_text() == "mine"
    others = dataclasses.replace(scene, names=tuple(f"other{i}.png" for i in range(VIEWS)))
    others.save(tmp_path / "others")
    refused(run("view", saved, tmp_path / "others", "--port", 1), "other is of other photographs")
    refused(run("view", saved, "--max-points", 0), "--max-points")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(run("view", saved), "fastvggt_jax[view]")
    nothing = dataclasses.replace(
        scene, points=np.full_like(scene.points, np.nan), valid=np.zeros_like(scene.valid)
    )
    nothing.save(tmp_path / "nothing")
    result = run("view", tmp_path / "nothing", "--share-static", tmp_path / "n.html")
    assert result.exit_code == 0 and "no point to show" in result.stderr
    assert '"count": 0' in (tmp_path / "n.html").read_text()


@pytest.mark.slow
def test_the_static_page_in_a_browser(saved, tmp_path):
    path = tmp_path / "page.html"
    result = run("view", saved, "--share-static", path, "--max-points", 20000)
    assert result.exit_code == 0, result.output
    assert "<out>" not in path.read_text()
    with browser() as page:
        page.goto(path.as_uri())
        page.wait_for_function("window.view && view.clouds[0].drawn > 0")
        assert all(one.startswith(("file:", "data:")) for one in page.asked)
        page.locator("#cameras").uncheck()
        drawn = colors_in(page, x=320, y=0, width=480, height=500)  # beside the panel, above the photographs
        assert drawn > 100
        page.locator("#cameras").check()
        before = page.evaluate("view.clouds[0].drawn")
        page.locator("#confidence").fill("90")
        after = page.evaluate("view.clouds[0].drawn")
        unmasked = before / 0.75
        assert after == pytest.approx(0.1 * unmasked, rel=0.02) and f"{after:,} points" in page.inner_text(
            "#drawn"
        )
        page.locator("#masks").uncheck()
        assert page.evaluate("view.clouds[0].drawn") > after
        place = page.evaluate(
            "view.onScreen(view.pose(view.clouds[0].cameras[1]).centre.map("
            "(x, i) => x + 0.02 * view.data.size * view.pose(view.clouds[0].cameras[1]).forward[i]))"
        )
        page.mouse.click(*place)
        centre = page.evaluate("view.pose(view.clouds[0].cameras[1]).centre")
        others = page.evaluate("view.clouds[0].cameras.map(c => view.pose(c).centre)")
        moved = page.evaluate("view.eye.position")
        assert moved == centre or moved in others  # of two that overlap the nearer one
        page.locator("#strip img").nth(4).click()
        assert page.evaluate("view.eye.position") == others[4] and page.input_value("#frame") == "4"


@pytest.fixture
def viewer(scene, tmp_path):
    viewer = Viewer(clouds([Result(tmp_path, scene, {})]))
    yield viewer
    viewer.stop()


def test_widgets_say_how_many_points_are_drawn(viewer):
    cloud = viewer.clouds[0]
    assert viewer.url.startswith("http://127.0.0.1:") and viewer.drawn.value == f"{len(cloud.chosen(25)):,}"
    viewer.masks.value = False
    viewer.alone.value = True
    viewer.frame.value = 3
    wait_for(lambda: viewer.drawn.value == f"{len(cloud.chosen(25, frame=3, masks=False)):,}")
    viewer.alone.value, viewer.masks.value, viewer.level.value = False, True, 1
    wait_for(lambda: viewer.drawn.value == f"{len(cloud.chosen(25, most=-(-len(cloud) // 2))):,}")
    viewer.size.value, viewer.cameras.value = 3.0, False
    wait_for(lambda: not viewer.frusta[0][0].visible)
    wait_for(lambda: viewer.name.value == cloud.scene.names[3])
    photograph = viewer.image.image
    viewer.picture.value = "both"
    wait_for(lambda: not np.array_equal(viewer.image.image, photograph))


@pytest.mark.slow
def test_the_viewer_in_a_browser(viewer):
    cloud = viewer.clouds[0]
    with browser() as page:
        page.goto(viewer.url)
        wait_for(lambda: viewer.server.get_clients(), 20)
        (client,) = viewer.server.get_clients().values()
        viewer.cameras.value = False  # whose photographs have colours too
        drawn = lambda: colors_in(page, x=0, y=150, width=450, height=400)
        wait_for(lambda: drawn() > 100, 20)
        viewer.points[0].visible = False
        wait_for(lambda: drawn() < 20, 20)  # so it was the points
        viewer.points[0].visible = viewer.cameras.value = True
        assert page.locator(".tabler-icon-share").count() == 0  # it would let others in
        page.locator("input[value='25']:visible").first.fill("90")
        page.keyboard.press("Enter")
        wait_for(lambda: viewer.drawn.value == f"{len(cloud.chosen(90)):,}")
        wait_for(lambda: page.locator(f"input[value='{viewer.drawn.value}']").count() == 1)
        viewer.frame.value = 2
        page.get_by_role("button", name="look through this frame").click()
        at = lambda i: np.allclose(client.camera.position, cloud.world_from_cam[i, :3, 3], atol=1e-3)
        wait_for(lambda: at(2))
        viewer.look_through(0, 2, back=0.3 * cloud.size)
        time.sleep(1)
        place = seen_at(client, cloud.world_from_cam[2] @ (0, 0, 0.02 * cloud.size, 1))
        page.mouse.click(*place)
        wait_for(lambda: at(2))


def seen_at(client, point) -> tuple[float, float]:
    """Where a client of 800x600 pixels sees a point."""
    from viser.transforms import SO3

    x, y, z = SO3(client.camera.wxyz).inverse() @ (point[:3] - client.camera.position)
    focal = 300 / np.tan(client.camera.fov / 2)
    return 400 + focal * x / z, 300 + focal * y / z


def wait_for(true, seconds=8.0):
    """The server's callbacks have threads of their own."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.05)
