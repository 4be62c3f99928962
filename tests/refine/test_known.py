"""Known cameras: K and positions that are true bring the truth back, and what does not fit is said."""

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from fastvggt_jax import Scene, export
from fastvggt_jax.errors import InputError, MissingError
from fastvggt_jax.export import ExportOptions
from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.io.colmap import read_model
from fastvggt_jax.io.scenes import write_cameras
from fastvggt_jax.refine.alignment import _moved, aligned_or_as_it_is, aligned_to
from fastvggt_jax.refine.intrinsics import with_intrinsics
from fastvggt_jax.refine.positions import known_positions
from fastvggt_jax.refine.sky import without_sky
from tests.export.truth import true_scene

TURN = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
AWAY = Similarity(0.25, TURN, np.array([3.0, -2, 7]))  # what a model's world may be of the true one


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    """Of true cameras and depth."""
    return true_scene(tmp_path_factory.mktemp("truth"), "crop").scene


@pytest.fixture
def cameras(scene, tmp_path):
    write_cameras(scene, tmp_path / "cameras.json")
    return str(tmp_path / "cameras.json")


def assert_same(one, other, atol=1e-4):
    for field in ("K", "cam_from_world", "depth"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-5, atol=atol)
    at = other.valid
    np.testing.assert_allclose(one.points[at], other.points[at], rtol=1e-4, atol=atol)


# ---- K


def zoomed(scene, factor):
    """With focal lengths that are wrong by a factor, and depth that goes with them."""
    K = np.stack([scene.K_original(i) * [[factor], [factor], [1]] for i in range(len(scene.names))])
    K[:, :2, 2] /= factor  # the principal point stays
    text = [",".join(map(str, (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))) for k in K]
    assert len(set(text)) > 1
    images = [
        {"name": n, "K": k.tolist(), "width": t.original_width, "height": t.original_height}
        for n, k, t in zip(scene.names, K, scene.transforms, strict=True)
    ]
    return [one | {"world_from_cam": np.eye(4).tolist()} for one in images]


def test_a_known_K_puts_every_point_back_where_it_is_seen_and_as_large(scene, cameras, tmp_path):
    (tmp_path / "wrong.json").write_text(json.dumps({"images": zoomed(scene, 1.5)}))
    wrong = with_intrinsics(scene, str(tmp_path / "wrong.json"))
    np.testing.assert_allclose(wrong.depth, 1.5 * scene.depth, rtol=1e-5)
    back = with_intrinsics(wrong, cameras)
    assert_same(back, scene)
    assert set(back.intrinsics) == {"given"}
    for one in (wrong, back):  # every point is seen at its pixel, and a surface is as wide as before
        for i in range(len(scene.names)):
            local = one.points[i] @ one.cam_from_world[i, :, :3].T + one.cam_from_world[i, :, 3]
            at = scene.valid[i]
            seen = (local / local[..., 2:])[at] @ one.K[i].T
            v, u = np.nonzero(at)
            np.testing.assert_allclose(seen[:, :2], np.stack([u, v], -1) + 0.5, atol=2e-2)
            np.testing.assert_allclose(local[..., 2][at], one.depth[i][at], rtol=1e-4)
    widths = [one.depth[0, 0, 0] / one.K[0, 0, 0] for one in (wrong, back)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=1e-5)


@pytest.mark.parametrize("form", ["colmap", "colmap-text"])
def test_a_K_comes_from_a_colmap_model(scene, form, tmp_path):
    export.write(scene, tmp_path, (form,), ExportOptions(track_points=50))
    (tmp_path / "wrong.json").write_text(json.dumps({"images": zoomed(scene, 0.8)}))
    wrong = with_intrinsics(scene, str(tmp_path / "wrong.json"))
    assert_same(with_intrinsics(wrong, str(tmp_path)), scene)
    poses = {one.name: one.cam_from_world for one in read_model(tmp_path)}
    for name, pose in zip(scene.names, scene.cam_from_world, strict=True):
        np.testing.assert_allclose(poses[name], pose, atol=1e-6)


def test_one_K_in_numbers_is_for_photographs_of_one_size(scene, tmp_path):
    first = scene.transforms[0]
    same = dataclasses.replace(scene, transforms=(first,) * len(scene.names))
    (tmp_path / "K.txt").write_text("100 110\n 50 40\n")
    for given in ("100,110,50,40", str(tmp_path / "K.txt")):
        found = with_intrinsics(same, given)
        np.testing.assert_allclose(
            found.K_original(2), [[100, 0, 50], [0, 110, 40], [0, 0, 1]], rtol=1e-5, atol=1e-4
        )
    with pytest.raises(InputError, match="are of one camera, but the photographs have .* sizes"):
        with_intrinsics(scene, "100,110,50,40")


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda images: images.pop(), r"has no .*; it has "),
        (lambda images: images[0].update(width=9), "has 9x.* pixels there, and .* here"),
        (lambda images: images[0].update(K=[[0, 0, 1], [0, 5, 1], [0, 0, 1]]), "focal lengths of 0.001 to"),
        (lambda images: images[0].update(K=[1, 2]), r"a K must be \[\[fx, 0, cx\]"),
        (lambda images: images[0].update(K=[[5, 0, 1], [0, 5, 1], [0, 0, 0]]), "a K must be"),
        (lambda images: images[0].update(K=[[5, 0, 1], [2, 5, 1], [0, 0, 1]]), "a K must be"),
        (lambda images: images[0].update(K=[[10**400, 0, 1], [0, 5, 1], [0, 0, 1]]), "a K must be"),
        (lambda images: images[0].update(K=[[1e300, 0, 1], [0, 5, 1], [0, 0, 1]]), "a K must be"),
        (lambda images: images[0].update(K=[[1e-300, 0, 1], [0, 5, 1], [0, 0, 1]]), "a K must be"),
        (lambda images: images[0].update(K=[[5, 0, 1e300], [0, 5, 1], [0, 0, 1]]), "a K must be"),
        (lambda images: images[0].pop("K"), "is no cameras.json: 'K' is missing"),
    ],
)
def test_a_K_that_does_not_fit_is_a_sentence(scene, cameras, change, match, tmp_path):
    content = json.loads(Path(cameras).read_text())
    change(content["images"])
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=match) as raised:
        with_intrinsics(scene, str(tmp_path / "bad.json"))
    assert raised.value.argument == "intrinsics" and "bad.json" in str(raised.value)


def test_no_such_intrinsics(scene, tmp_path):
    with pytest.raises(MissingError, match="no such file, and not fx,fy,cx,cy"):
        with_intrinsics(scene, "gone.json")
    (tmp_path / "prose.txt").write_text("a camera")
    with pytest.raises(InputError, match="must hold fx,fy,cx,cy"):
        with_intrinsics(scene, str(tmp_path / "prose.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="holds no COLMAP model"):
        with_intrinsics(scene, str(tmp_path / "empty"))


# ---- positions


def test_positions_bring_the_scene_back_also_where_one_is_wrong(scene, cameras, tmp_path):
    moved = _moved(scene, AWAY)
    back, done = aligned_to(moved, cameras)
    assert_same(back, scene)
    assert done.photographs == len(scene.names) and done.residual < 1e-5
    np.testing.assert_allclose(done.scale, 4, rtol=1e-5)
    content = json.loads(Path(cameras).read_text())
    content["images"][1]["world_from_cam"][0][3] += 100.0
    content["metric_scale"] = 2.5
    (tmp_path / "one_wrong.json").write_text(json.dumps(content))
    back, done = aligned_to(moved, str(tmp_path / "one_wrong.json"))
    assert_same(back, scene, atol=1e-3)
    assert done.residual < 1e-3 and 99 < done.largest < 101 and back.metric_scale == 2.5
    del content["metric_scale"]  # what the scene knows of its own unit stays true
    path = tmp_path / "no_unit.json"
    path.write_text(json.dumps(content))
    metres, done = aligned_to(dataclasses.replace(moved, metric_scale=3.0), str(path))
    np.testing.assert_allclose(metres.metric_scale * done.scale, 3)


def table(scene, header, rows):
    return header + "\n" + "\n".join(f"{n},{','.join(map(repr, map(float, row)))}" for n, row in rows)


def test_a_table_of_metres(scene, tmp_path):
    centres = scene.world_from_cam[:, :3, 3].astype(float)
    path = tmp_path / "gps.csv"
    path.write_text(table(scene, "name,x,y,z", zip(scene.names, centres, strict=True)))
    back, done = aligned_to(_moved(scene, AWAY), str(path))
    assert_same(back, scene)
    assert back.metric_scale == 1 and done.origin is None


def test_a_table_of_the_globe_becomes_metres_east_north_and_up(scene, tmp_path):
    """Around (0°, 0°, 0 m) a degree of latitude is 110,574.4 m (WGS 84), one of longitude 111,319.5 m."""
    centres = scene.world_from_cam[:, :3, 3].astype(float)
    centres -= centres[0]
    places = np.stack([centres[:, 1] / 110574.276, centres[:, 0] / 111319.491, centres[:, 2]], -1)
    path = tmp_path / "gps.csv"
    path.write_text(table(scene, "image, Lat, Lon, Alt", zip(scene.names, places, strict=True)))
    back, done = aligned_to(_moved(scene, AWAY), str(path))
    np.testing.assert_allclose(back.world_from_cam[:, :3, 3], centres, atol=2e-3)
    assert done.origin == (0, 0, 0) and done.residual < 1e-3 and back.metric_scale == 1


def test_positions_on_a_line_need_rotations(scene, cameras, tmp_path):
    pose = scene.cam_from_world.copy()
    for i in range(len(pose)):  # centres on a line
        pose[i, :, 3] = -pose[i, :, :3] @ [i, 0, 0]
    line = dataclasses.replace(scene, cam_from_world=pose)
    write_cameras(line, tmp_path / "line.json")
    back, _ = aligned_to(_moved(line, AWAY), str(tmp_path / "line.json"))
    np.testing.assert_allclose(back.cam_from_world, line.cam_from_world, atol=1e-4)
    centres = line.world_from_cam[:, :3, 3]
    (tmp_path / "line.csv").write_text(table(scene, "name,x,y,z", zip(scene.names, centres, strict=True)))
    with pytest.raises(InputError, match="on a line, which leaves the turn about it open"):
        aligned_to(_moved(line, AWAY), str(tmp_path / "line.csv"))


def test_cameras_that_contradict_the_positions_stay_with_a_warning(scene, tmp_path):
    """Two cameras, said to have stood the other way round."""
    two = dataclasses.replace(
        scene, **{k: getattr(scene, k)[:2] for k in ("names", "transforms", "colors", "valid", "K")},
        **{k: getattr(scene, k)[:2] for k in ("cam_from_world", "points", "points_conf", "depth")},
        depth_conf=scene.depth_conf[:2], intrinsics=scene.intrinsics[:2], paths=(),
    )  # fmt: skip
    write_cameras(two, tmp_path / "cameras.json")
    content = json.loads((tmp_path / "cameras.json").read_text())
    first, second = (one["world_from_cam"] for one in content["images"])
    for row, other in zip(first[:3], second[:3], strict=True):
        row[3], other[3] = other[3], row[3]
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="was not aligned .* look another way"):
        same, _, done = aligned_or_as_it_is(two, known_positions(str(tmp_path / "swapped.json"), two.names))
    assert same is two and "failed" in done


@pytest.mark.parametrize(
    "text, match",
    [
        ("name,x,y,z\n{0},1,2,3\n{0},1,2,4\n{1},1,2,3", "line 3: .* is there twice"),
        ("name,x,y,z\n{0},1e300,2,3\n{1},1,2,3", "line 2: .* has no three numbers within 1e.09"),
        ("name,lat,lon,alt\n{0},500,2,3\n{1},1,2,3", "line 2: .* within 90, 360, 1e.09"),
        ("name,x,y,z,X\n{0},1,2,3,4\n{1},1,2,3,5", "has two columns x"),
        ("x,y,z,name\n1,2,3\n4,5,6,{0}\n7,8,9,{1}", "line 2 names no photograph"),
        ("name,x,y,z\n\n{0},1,2,3\n\n{1},1,2,high", "line 5: .* has no three numbers"),
        ("name,x,y,z\n" + "a" * 200_000 + ",1,2,3", "is no table"),
    ],
)
def test_places_that_are_none_are_a_sentence(scene, text, match, tmp_path):
    test_positions_that_tell_nothing_are_a_sentence(scene, text, match, tmp_path)


def test_positions_far_from_0_are_taken_nearer_and_that_is_said(scene, tmp_path):
    """As those of UTM: float32 tells half a metre apart there."""
    offset = np.array([500_000.0, 5_400_000.0, 120.0])
    centres = scene.world_from_cam[:, :3, 3].astype(np.float64)
    rows = [f"{n},{x},{y},{z}" for n, (x, y, z) in zip(scene.names, centres + offset, strict=True)]
    (tmp_path / "utm.csv").write_text("\n".join(["name,x,y,z", *rows]))
    away = _moved(scene, AWAY)
    with pytest.warns(
        UserWarning, match="so far from 0 that float32 is too coarse there: the scene's are less by"
    ):
        found, done = aligned_to(away, str(tmp_path / "utm.csv"))
    np.testing.assert_allclose(
        found.world_from_cam[:, :3, 3].astype(np.float64) + done.offset, centres + offset, atol=1e-3
    )
    assert done.largest < 1e-3
    # What was taken off, and what brought the scene there, stand beside it.
    export.write(found, tmp_path / "out", ("cameras", "conventions", "scene"))
    for name in ("cameras.json", "scene.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["offset"] == list(done.offset)
    assert Scene.load(tmp_path / "out").offset == done.offset == found.offset
    before, after = (s.points[s.valid][::997] for s in (away, found))
    np.testing.assert_allclose(done.similarity()(before), after, atol=1e-3)


def test_a_cameras_json_of_an_aligned_scene_has_its_offset_and_its_origin(scene, tmp_path):
    there = dataclasses.replace(scene, offset=(500_000.0, 5_400_000.0, 0.0), origin=(48.0, 11.0, 500.0))
    write_cameras(there, tmp_path / "cameras.json")
    with pytest.warns(UserWarning, match="so far from 0"):
        found, done = aligned_to(_moved(scene, AWAY), str(tmp_path / "cameras.json"))
    assert found.origin == there.origin and max(np.abs(np.subtract(found.offset, there.offset))) < 100
    absolute = found.world_from_cam[:, :3, 3].astype(np.float64) + found.offset
    np.testing.assert_allclose(absolute, scene.world_from_cam[:, :3, 3] + np.array(there.offset), atol=1e-2)
    content = json.loads((tmp_path / "cameras.json").read_text())
    (tmp_path / "wrong.json").write_text(json.dumps(content | {"offset": [1, "2", 3]}))
    with pytest.raises(InputError, match="offset=.* must be three numbers"):
        aligned_to(scene, str(tmp_path / "wrong.json"))


def test_a_colmap_model_says_where_cameras_stood(scene, tmp_path):
    export.write(scene, tmp_path, ("colmap",), ExportOptions(track_points=100))
    found, done = aligned_to(_moved(scene, AWAY), str(tmp_path))
    assert_same(found, scene, atol=2e-3)
    assert done.photographs == len(scene.names) and done.offset == (0, 0, 0)


def test_a_table_may_begin_with_a_mark(scene, tmp_path):
    rows = [f"{n},{i},{i * i},{i % 3}" for i, n in enumerate(scene.names)]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join(["name,x,y,z", *rows]).encode())
    assert known_positions(str(tmp_path / "a.csv"), scene.names).names == list(scene.names)


@pytest.mark.parametrize(
    "field, value, match",
    [
        ("world_from_cam", "x", "no 4x4 matrix of a rotation"),
        ("world_from_cam", {"a": 1}, "no 4x4 matrix of a rotation"),
        ("world_from_cam", [[1, 2], [3]], "no 4x4 matrix of a rotation"),
        ("world_from_cam", (2 * np.eye(4)).tolist(), "no 4x4 matrix of a rotation"),
        ("world_from_cam", (np.eye(4) + 1e300 * np.eye(4, k=3)).tolist(), "no 4x4 matrix of a rotation"),
        ("name", ["a"], "is no name"),
        ("name", 3, "is no name"),
        ("metric_scale", -1, "metric_scale=-1 must be above 0"),
        ("metric_scale", "x", "metric_scale='x' must be above 0"),
        ("metric_scale", 10**400, "metric_scale=1000.* must be above 0 and at most 1e.09"),
        ("world_from_cam", [[10**400, 0, 0, 0], *np.eye(4)[1:].tolist()], "no 4x4 matrix of a rotation"),
        ("world_from_cam", [*np.eye(4)[:3].tolist(), [1, 2, 3, 1]], "no 4x4 matrix of a rotation"),
    ],
)
@pytest.mark.parametrize("argument", ["align_to", "intrinsics"])
def test_cameras_that_are_none_are_a_sentence(scene, cameras, tmp_path, field, value, match, argument):
    content = json.loads(Path(cameras).read_text())
    (content if field == "metric_scale" else content["images"][1])[field] = value
    (tmp_path / "bad.json").write_text(json.dumps(content))
    read = aligned_to if argument == "align_to" else with_intrinsics
    if field == "world_from_cam" and argument == "intrinsics":
        return  # which reads none
    with pytest.raises(InputError, match=match) as raised:
        read(scene, str(tmp_path / "bad.json"))
    assert raised.value.argument == argument


@pytest.mark.parametrize("argument", ["align_to", "intrinsics"])
def test_a_photograph_that_is_named_twice_is_a_sentence(scene, cameras, tmp_path, argument):
    content = json.loads(Path(cameras).read_text())
    content["images"].append(content["images"][0])
    (tmp_path / "twice.json").write_text(json.dumps(content))
    read = aligned_to if argument == "align_to" else with_intrinsics
    with pytest.raises(InputError, match="twice.json names 0.png twice"):
        read(scene, str(tmp_path / "twice.json"))


@pytest.mark.parametrize("argument", ["align_to", "intrinsics"])
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "\udcff", "9" * 5000])
def test_a_file_that_is_no_cameras_is_a_sentence(scene, tmp_path, argument, text):
    (tmp_path / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    read = aligned_to if argument == "align_to" else with_intrinsics
    with pytest.raises(InputError, match="bad.json is no ") as raised:
        read(scene, str(tmp_path / "bad.json"))
    assert raised.value.argument == argument


def test_many_photographs_are_looked_through_once(scene, tmp_path):
    """In time that grows as their number."""
    one = {"K": np.eye(3).tolist(), "width": 1, "height": 1, "world_from_cam": np.eye(4).tolist()}
    many = [one | {"name": f"no {i}.jpg"} for i in range(30_000)]
    (tmp_path / "many.json").write_text(json.dumps({"images": many}))
    start = time.process_time()
    with pytest.raises(InputError, match="names 0 of the photographs"):
        aligned_to(scene, str(tmp_path / "many.json"))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("argument", ["align_to", "intrinsics"])
def test_two_photographs_are_not_one(scene, cameras, tmp_path, argument):
    """Which of them is meant, by its name without folders?"""
    other = dataclasses.replace(scene, names=("a/0.png", "b/0.png", *scene.names[2:]))
    read = aligned_to if argument == "align_to" else with_intrinsics
    with pytest.raises(InputError, match="has one 0.png, which may be a/0.png or b/0.png") as raised:
        read(other, cameras)
    assert raised.value.argument == argument


def test_nothing_is_no_place_to_align_to(scene):
    with pytest.raises(
        InputError, match="align_to must be a cameras.json, or a table of positions, not empty"
    ):
        aligned_to(scene, "")


def test_pipes_and_nothing_are_no_intrinsics(scene, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is no regular file"):
        with_intrinsics(scene, str(tmp_path / "pipe"))
    with pytest.raises(InputError, match="intrinsics must be fx,fy,cx,cy, a file or a folder, not empty"):
        with_intrinsics(scene, " ")


@pytest.mark.parametrize(
    "text, match",
    [
        ("name,x,y\na,1,2", "name,x,y,z or name,latitude,longitude,altitude"),
        ("", "a table whose first line names its columns"),
        ("name,x,y,z\nholiday.jpg,1,2,3", "names 0 of the photographs, at least two .*; it has holiday.jpg"),
        ("name,x,y,z\n{0},1,2,high\n{1},1,2,3", "line 2: .* has no three numbers within"),
        ("name,x,y,z\n{0},1,2,3\n{1},1,2,3", "all cameras stand at one place"),
    ],
)
def test_positions_that_tell_nothing_are_a_sentence(scene, text, match, tmp_path):
    path = tmp_path / "gps.csv"
    path.write_text(text.format(*scene.names))
    with pytest.raises(InputError, match=match) as raised:
        aligned_to(scene, str(path))
    assert raised.value.argument == "align_to" and "gps.csv" in str(raised.value)


# ---- sky


def test_sky_hangs_together_with_the_upper_edge(scene):
    conf = np.full_like(scene.depth_conf, 5.0)
    conf[:, :20, :60] = conf[:, 20:30, 30:60] = 0.5  # sky
    conf[:, 60:70, 10:20] = 0.5  # something dark on the ground
    clear = without_sky(dataclasses.replace(scene, depth_conf=conf, conf_floor=1.0))
    lost = scene.valid & ~clear.valid
    expected = np.zeros_like(lost)
    expected[:, :20, :60] = expected[:, 20:30, 30:60] = True
    np.testing.assert_array_equal(lost, expected & scene.valid)
