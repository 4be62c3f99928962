"""Files: what is in them, seen by other readers than our own, and what is left when writing fails."""

import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fastvggt_jax import export, geometry
from fastvggt_jax.errors import FileError, TargetError
from fastvggt_jax.export import Export, ExportOptions, overview
from fastvggt_jax.export.base import check_formats, write_formats
from fastvggt_jax.export.depth import file_stems
from fastvggt_jax.export.glb import frusta
from fastvggt_jax.export.tracks import CHUNK_VIEWS, THREADS
from fastvggt_jax.io import files
from fastvggt_jax.io.colors import colorize
from fastvggt_jax.scene import PointCloud, Scene
from fastvggt_jax.sources import ImageTransform
from tests.export.truth import true_scene

F, H, W = 3, 28, 42
OLD = "old, by fastvggt_jax"
DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Photographs of 60x60 that were resized to 30x30, cropped by one row above and below, and padded."""
    rng = np.random.default_rng(0)
    t = ImageTransform(60, 60, W, H, 0.5, 0.5, 6.0, -1.0)
    pose_enc = np.concatenate([rng.normal(size=(F, 7)), np.full((F, 2), 1.0)], -1)
    cam_from_world, K = geometry.decode_pose(pose_enc, H, W)
    depth = rng.uniform(1, 4, (F, H, W)).astype(np.float32)
    return Scene(
        names=("0.jpg", "1.jpg", "2.jpg"),
        transforms=(t,) * F,
        colors=rng.integers(0, 256, (F, H, W, 3), np.uint8),
        valid=np.broadcast_to(t.valid_mask(), (F, H, W)),
        K=np.asarray(K),
        cam_from_world=np.asarray(cam_from_world),
        points=np.asarray(geometry.unproject_depth(depth[..., None], K, cam_from_world)),
        points_conf=depth + 1,
        depth=depth,
        depth_conf=depth + 1,
        intrinsics=("predicted", "recovered", "guessed"),
    )


# ---- cameras.json


def test_cameras_json_projects_points_onto_the_original_photographs(scene, tmp_path):
    export.write_cameras(scene, tmp_path / "cameras.json")
    content = json.loads((tmp_path / "cameras.json").read_text())
    assert content["format"] == "fastvggt_jax cameras" and content["format_version"] == 1
    assert "OpenCV" in content["conventions"]["axes"]
    assert [image["name"] for image in content["images"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [image["intrinsics"] for image in content["images"]] == ["predicted", "recovered", "guessed"]
    v, u = 9, 20
    for i, image in enumerate(content["images"]):
        assert (image["width"], image["height"]) == (60, 60)
        in_cam = np.linalg.inv(image["world_from_cam"]) @ [*scene.points[i, v, u], 1]
        np.testing.assert_allclose(in_cam[2], scene.depth[i, v, u], rtol=1e-4)
        pixel = np.array(image["K"]) @ in_cam[:3]
        model = image["model"]
        back = pixel[:2] / pixel[2] * model["scale"] + model["offset"]
        np.testing.assert_allclose(
            back, [u, v], atol=1e-3
        )  # upstream's unprojection goes through integer pixels
        assert (model["width"], model["height"], model["valid"]) == (W, H, [6, 0, 36, 28])


# ---- depth


def test_depth_in_model_pixels(scene, tmp_path):
    paths = export.write_depth(scene, tmp_path / "depth")
    assert [p.name for p in paths] == ["0.jpg.npz", "1.jpg.npz", "2.jpg.npz"]
    for i, path in enumerate(paths):
        with np.load(path) as npz:
            np.testing.assert_array_equal(npz["valid"], scene.transforms[i].valid_mask())
            np.testing.assert_array_equal(npz["depth"][npz["valid"]], scene.depth[i][npz["valid"]])
            assert np.isnan(npz["depth"][~npz["valid"]]).all()
            np.testing.assert_array_equal(npz["conf"], scene.depth_conf[i])
            np.testing.assert_array_equal(npz["K"], scene.K[i])
            np.testing.assert_array_equal(npz["cam_from_world"], scene.cam_from_world[i])


def test_depth_in_original_pixels(scene, tmp_path):
    path = export.write_depth(scene, tmp_path, original=True)[0]
    with np.load(path) as npz:
        assert npz["depth"].shape == npz["conf"].shape == npz["valid"].shape == (60, 60)
        assert np.isnan(npz["depth"][:2]).all() and np.isnan(npz["depth"][-2:]).all()  # cut off by the crop
        assert npz["valid"][2:-2].all() and np.isfinite(npz["depth"][2:-2]).all()
        assert npz["depth"].dtype == np.float32
        np.testing.assert_allclose(
            npz["conf"][2:-2], npz["depth"][2:-2] + 1, rtol=1e-5
        )  # as the fixture has it
        np.testing.assert_allclose(npz["K"], scene.K_original(0))
    assert Image.open(path.with_suffix(".png")).size == (60, 60)


def test_float16_is_half_the_bytes_and_rounds(scene, tmp_path):
    folders = tmp_path / "float32", tmp_path / "float16"
    for folder, float16 in zip(folders, (False, True), strict=True):
        export.write(scene, folder, ("depth", "scene"), ExportOptions(float16=float16))
    with np.load(folders[1] / "depth" / "0.jpg.npz") as npz:
        assert npz["depth"].dtype == npz["conf"].dtype == np.float16 and npz["valid"].any()
        np.testing.assert_array_equal(npz["depth"][npz["valid"]], scene.depth[0][npz["valid"]].astype("f2"))
        assert np.isnan(npz["depth"][~npz["valid"]]).all() and npz["K"].dtype == np.float64
    one, half = (Scene.load(folder) for folder in folders)
    for name in ("points", "points_conf", "depth", "depth_conf"):
        assert getattr(half, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(half, name), getattr(one, name).astype("f2"))
    np.testing.assert_array_equal(half.K, one.K)
    assert (folders[1] / "scene.npz").stat().st_size < 0.65 * (folders[0] / "scene.npz").stat().st_size


def test_numbers_beyond_float16_stay_as_they_are(scene, tmp_path):
    depth = scene.depth.copy()
    depth[1, 10, 20] = 70_000
    far = dataclasses.replace(scene, depth=depth)
    with pytest.warns(UserWarning, match="stay float32: numbers in it are beyond float16's largest") as said:
        export.write(far, tmp_path, ("depth", "scene"), ExportOptions(float16=True))
    texts = sorted(str(warning.message).split(" in ")[0] for warning in said)
    assert texts == ["1.jpg.npz", "depth"]
    np.testing.assert_array_equal(Scene.load(tmp_path).depth, depth)
    with np.load(tmp_path / "depth" / "1.jpg.npz") as npz:
        assert npz["depth"].dtype == np.float32 and npz["conf"].dtype == np.float16
        assert npz["depth"][10, 20] == 70_000


def test_depth_picture_is_lighter_where_nearer_on_one_scale(scene, tmp_path):
    export.write_depth(scene, tmp_path)
    light, depth = [], []
    for i in range(F):
        picture = Image.open(tmp_path / f"{i}.jpg.png")
        mask = scene.transforms[i].valid_mask()
        assert (np.asarray(picture)[~mask] == 0).all()
        light.append(np.asarray(picture.convert("L"))[mask].astype(int))
        depth.append(scene.depth[i][mask])
    order = np.argsort(np.concatenate(depth))
    assert (np.diff(np.concatenate(light)[order]) <= 1).all() and np.ptp(light) > 150
    assert float(picture.text["near"]) < float(picture.text["far"])


def test_depth_pictures_are_black_where_nothing_is(scene, tmp_path):
    sky = np.zeros((H, W), bool)
    sky[: H // 2] = True
    depth = np.where(sky, 1e3, scene.depth)
    half = dataclasses.replace(
        scene, depth=depth, depth_conf=np.where(sky, 1, np.full_like(depth, 2)), conf_floor=1.1
    )
    export.write_depth(half, tmp_path)
    pictures = [Image.open(tmp_path / f"{i}.jpg.png") for i in range(F)]
    assert all((np.asarray(picture)[sky] == 0).all() for picture in pictures)
    assert float(pictures[0].text["far"]) < 5  # the sky takes no part in the scale of colours
    assert (
        np.load(tmp_path / "0.jpg.npz")["depth"][sky & half.valid[0]] == 1e3
    ).all()  # the numbers are the model's


def test_what_a_photographs_files_begin_with():
    assert file_stems(("a.jpg", "b")) == ["a.jpg", "b"]
    assert file_stems(("a.jpg", "a.png", "A.PNG")) == ["a.jpg", "a.png", "A.PNG_2"]
    assert file_stems(("l/0.jpg", "r/0.jpg", "r\\0.jpg")) == ["l_0.jpg", "r_0.jpg", "r_0.jpg_2"]
    assert file_stems(("a.jpg",) * 3) == ["a.jpg", "a.jpg_2", "a.jpg_3"]
    assert file_stems(("../x.jpg", "/y.jpg")) == ["x.jpg", "y.jpg"]
    long, other = "ä" * 120 + "1.jpg", "ä" * 120 + "2.jpg"  # 245 bytes each
    assert len(set(file_stems((long, other)))) == 2 and file_stems((long,)) == file_stems((long, other))[:1]
    assert all(len(stem.encode()) <= 240 for stem in file_stems((long, other)))


def test_colours_grow_lighter_and_clip():
    ramp = colorize(np.linspace(0, 1, 100)).astype(int) @ (299, 587, 114)
    assert (np.diff(ramp) > 0).all()
    np.testing.assert_array_equal(colorize(np.array([-5.0, 7.0])), colorize(np.array([0.0, 1.0])))


# ---- points.ply, scene.glb


def test_ply_bytes(tmp_path):
    xyz, rgb = np.float32([[1, 2, 3], [-4, 5.5, 6]]), np.uint8([[1, 2, 3], [255, 0, 9]])
    cloud = PointCloud(xyz, rgb, np.float32([7, 8]))
    export.write_ply(cloud, tmp_path / "new" / "points.ply")
    header, body = (tmp_path / "new" / "points.ply").read_bytes().split(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n") and b"element vertex 2\n" in header
    expected = b"".join(
        np.array(xyz, "<f4").tobytes() + bytes(rgb) + np.array(conf, "<f4").tobytes()
        for xyz, rgb, conf in zip(cloud.xyz, cloud.rgb, cloud.conf, strict=True)
    )
    assert body == expected


def test_ply_is_read_by_another_program(scene, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    cloud = scene.point_cloud()
    export.write_ply(cloud, tmp_path / "points.ply")
    read = trimesh.load(tmp_path / "points.ply")
    np.testing.assert_array_equal(read.vertices, cloud.xyz)
    np.testing.assert_array_equal(read.colors[:, :3], cloud.rgb)


def test_an_empty_cloud_can_be_written(scene, tmp_path):
    empty = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
    export.write_ply(empty, tmp_path / "points.ply")
    assert b"element vertex 0\n" in (tmp_path / "points.ply").read_bytes()
    if pytest.importorskip("trimesh"):
        export.write_glb(scene, tmp_path / "scene.glb", cloud=empty)
        assert (tmp_path / "scene.glb").stat().st_size > 0


def test_glb_holds_points_and_cameras_in_opengl_axes(scene, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    cloud = scene.point_cloud(max_points=100)
    export.write_glb(scene, tmp_path / "scene.glb", cloud=cloud)
    nodes = trimesh.load_scene(tmp_path / "scene.glb").geometry
    np.testing.assert_allclose(nodes["points"].vertices, cloud.xyz * (1, -1, -1), rtol=1e-6)
    np.testing.assert_array_equal(nodes["points"].colors[:, :3], cloud.rgb)
    lines = np.unique(np.round(nodes["cameras"].vertices, 4), axis=0)
    centres = scene.world_from_cam[:, :3, 3] * (1, -1, -1)
    assert len(lines) == 5 * F
    assert all(np.abs(lines - centre).max(-1).min() < 1e-3 for centre in centres)
    export.write_glb(scene, tmp_path / "all.glb")
    assert len(trimesh.load_scene(tmp_path / "all.glb").geometry["points"].vertices) == len(
        scene.point_cloud()
    )


def test_frusta_end_at_the_corners_of_the_photograph(scene):
    for i, (centre, *corners) in enumerate(frusta(scene, 2.0)):
        np.testing.assert_allclose(centre, scene.world_from_cam[i, :3, 3], atol=1e-6)
        in_cam = np.array(corners) @ scene.cam_from_world[i, :, :3].T + scene.cam_from_world[i, :, 3]
        np.testing.assert_allclose(in_cam[:, 2], 2.0, rtol=1e-4)
        pixels = in_cam @ scene.K[i].T / 2
        left, top, right, bottom = scene.transforms[i].valid
        expected = [[left, top], [right, top], [right, bottom], [left, bottom]]
        np.testing.assert_allclose(pixels[:, :2], expected, atol=1e-2)


def test_glb_without_trimesh_names_the_extra(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"fastvggt_jax\[glb\]"):
        export.write_glb(scene, tmp_path / "scene.glb")
    assert not list(tmp_path.iterdir())


def test_exports_import_no_optional_package():
    extras = "{'trimesh', 'matplotlib', 'torch'}"
    code = f"import sys, fastvggt_jax.export as e; sys.exit(bool({extras} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- when writing fails


def test_a_full_disk_leaves_the_old_file_and_nothing_else(scene, tmp_path, monkeypatch):
    target = tmp_path / "points.ply"
    target.write_text("old")
    real_open = open

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[: len(data) // 2])
            raise DISK_FULL

    monkeypatch.setattr(
        "builtins.open", lambda p, mode="r": Full(p, mode) if "x" in mode else real_open(p, mode)
    )
    with pytest.raises(
        FileError, match="points.ply could not be written: no space is left on its disk"
    ) as caught:
        export.write_ply(scene.point_cloud(), target)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["points.ply"] and target.read_text() == "old"


def test_output_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with files.output_folder(out) as folder:
        (folder / "a.txt").write_text("new")
        assert not out.exists()
    assert (out / "a.txt").read_text() == "new"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_output_folder_vanishes_on_failure_and_the_old_one_stays(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text(OLD)
    with (
        pytest.raises(
            FileError, match="out could not be written: no space is left on its disk; nothing was left"
        ),
        files.output_folder(out, overwrite=True, ours=["a.txt"]) as folder,
    ):
        (folder / "a.txt").write_text("half")
        raise DISK_FULL
    assert (out / "a.txt").read_text() == OLD and [p.name for p in tmp_path.iterdir()] == ["out"]
    with files.output_folder(out, overwrite=True, ours=["a.txt"]) as folder:
        (folder / "b.txt").write_text("new")
    assert [p.name for p in out.iterdir()] == ["b.txt"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_output_folder_puts_the_old_one_back_when_the_rename_fails(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text(OLD)
    real_rename = os.rename

    def rename(source, target):
        if os.fspath(target) == os.fspath(out) and not (os.path.exists(os.path.join(source, "a.txt"))):
            raise DISK_FULL
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "_exchanged", lambda a, b: False)  # a system without it
    with (
        pytest.raises(FileError, match="no space is left"),
        files.output_folder(out, overwrite=True, ours=["a.txt"]),
    ):
        pass
    assert (out / "a.txt").read_text() == OLD and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_output_folder_refuses_what_it_would_lose(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    with files.output_folder(out):  # an empty one will do
        pass
    (out / "cameras.json").write_text(OLD)
    with pytest.raises(TargetError, match="out is not empty; give another one, or overwrite"):
        files.check_output_folder(out)
    (out / "holiday.jpg").write_text("precious")
    with pytest.raises(TargetError, match=r"not written here \(holiday\.jpg\)"):
        files.check_output_folder(out, overwrite=True, ours=["cameras.json"])
    (out / "holiday.jpg").rename(out / "points.ply")
    with pytest.raises(
        TargetError, match=r"not written here \(cameras\.json\)"
    ):  # named like ours, but without our name in it
        (out / "cameras.json").write_text("{}")
        files.check_output_folder(out, overwrite=True, ours=["cameras.json", "points.ply"])
    (out / "points.ply").rename(out / "holiday.jpg")
    with pytest.raises(TargetError, match="is a file; give a folder"):
        files.check_output_folder(out / "holiday.jpg")
    with pytest.raises(TargetError, match="mount point"):
        files.check_output_folder("/", overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["cameras.json", "holiday.jpg"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(TargetError, match=r"new/out cannot be made: no permission to write in .*"):
        files.check_output_folder(tmp_path / "new" / "out")


def test_a_folder_that_cannot_be_made_is_named_as_the_user_did(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    with pytest.raises(TargetError) as caught, files.output_folder(out):
        pass
    assert str(caught.value) == f"the output folder {out} cannot be made: {out.parent} is a file"


# ---- overview.jpg


def test_the_overview_paints_near_points_over_far_ones():
    xyz = np.array([[0, 0, 2], [0, 0, 1], [0, 0, 3], [0, 0, -1]], np.float32)
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    pixels = overview.paint(np.eye(3, 4), PointCloud(xyz, rgb, np.ones(4)))
    row, column = overview.HEIGHT // 2, overview.WIDTH // 2
    assert pixels[row, column].tolist() == [0, 255, 0]
    painted = (pixels != overview.BACKGROUND).any(-1)
    assert painted.sum() == overview.SPLAT**2  # what is behind the camera is nowhere


def test_the_overview_shows_the_part_of_a_square_that_is_in_the_picture():
    corner, size = [], np.array([overview.WIDTH, overview.HEIGHT])
    for k, off in enumerate(range(-overview.SPLAT - 1, 2)):
        along = 50 + 20 * k
        corner += [(off, along), (along, off), (size[0] + off, along), (along, size[1] + off)]
    xy = (np.array(corner) + 0.5 - size / 2) / overview.FOCAL
    rgb = np.random.default_rng(0).integers(0, 256, (len(xy), 3), np.uint8)
    cloud = PointCloud(np.column_stack([xy, np.ones(len(xy))]), rgb, np.ones(len(xy)))
    expected = np.full((*size[::-1], 3), overview.BACKGROUND, np.uint8)
    for (u, v), color in zip(corner, rgb, strict=True):
        rows, columns = (slice(max(x, 0), max(x + overview.SPLAT, 0)) for x in (v, u))
        expected[rows, columns] = color
    np.testing.assert_array_equal(overview.paint(np.eye(3, 4), cloud), expected)


def test_where_the_world_begins_is_nothing_to_the_overview(scene):
    far = np.array([30, -20, 10], np.float32)
    cloud, moved = scene.point_cloud(), scene.cam_from_world.copy()
    moved[:, :, 3] -= moved[:, :, :3] @ far
    moved = dataclasses.replace(scene, cam_from_world=moved, points=scene.points + far)
    view = overview.viewpoint(scene, cloud, frusta(scene, 0.3))
    other = overview.viewpoint(moved, moved.point_cloud(), frusta(moved, 0.3))
    np.testing.assert_allclose(other[:, :3], view[:, :3], atol=1e-4)
    np.testing.assert_allclose(other[:, 3] + other[:, :3] @ far, view[:, 3], atol=1e-2)


def test_the_overview_has_all_cameras_and_most_points_in_sight(scene):
    cloud, cameras = scene.point_cloud(), frusta(scene, 0.3)
    view = overview.viewpoint(scene, cloud, cameras)
    assert np.allclose(view[:, :3] @ view[:, :3].T, np.eye(3), atol=1e-6) and np.linalg.det(view[:, :3]) > 0
    for points, share in ((cameras.reshape(-1, 3), 1.0), (cloud.xyz, 0.85)):
        uv, z = overview.project(view, points)
        assert (
            (uv >= 0).all(-1) & (uv < (overview.WIDTH, overview.HEIGHT)).all(-1) & (z > 0)
        ).mean() >= share


@pytest.mark.parametrize("points", [True, False])
def test_the_overview_is_written_without_points_too(scene, tmp_path, points):
    nothing = PointCloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0))
    export.write_overview(scene, tmp_path / "overview.jpg", cloud=scene.point_cloud() if points else nothing)
    page = Image.open(tmp_path / "overview.jpg")
    tile = round(overview.WIDTH / overview.COLUMNS * H / W)
    assert page.size == (overview.WIDTH, 2 * tile + overview.HEIGHT)


def test_a_camera_that_the_eye_stands_in_is_not_drawn(scene, tmp_path, monkeypatch):
    corners = [[-0.2, -0.2, 1], [0.2, -0.2, 1], [0.2, 0.2, 1], [-0.2, 0.2, 1]]
    nothing = PointCloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0))
    monkeypatch.setattr(overview, "viewpoint", lambda *_: np.eye(3, 4))

    def drawn(z: float) -> bool:
        monkeypatch.setattr(overview, "frusta", lambda *_: np.array([[[0, 0, z], *corners]]))
        return bool((np.asarray(overview._view(scene, nothing)) != overview.BACKGROUND).any())

    assert drawn(0.5) and not drawn(-0.5)


def test_the_overview_draws_the_cameras_that_are_before_the_eye(scene, tmp_path, monkeypatch):
    nothing = PointCloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0))

    def drawn() -> int:
        export.write_overview(scene, tmp_path / "overview.jpg", cloud=nothing)
        view = np.asarray(Image.open(tmp_path / "overview.jpg"))[-overview.HEIGHT :].astype(int)
        return int((np.abs(view - overview.BACKGROUND).max(-1) > 60).sum())

    assert drawn() > 300
    eye = overview.viewpoint(scene, nothing, frusta(scene, 0.05))
    monkeypatch.setattr(overview, "viewpoint", lambda *_: np.diag([1.0, -1, -1]) @ eye)  # half a turn about x
    assert drawn() == 0


@pytest.mark.parametrize("name", ["depth", "ply", "overview", "glb", "scene", "colmap"])
def test_an_export_takes_no_more_memory_than_the_scene_has(name, tmp_path):
    """Nothing that grows with the square of the photographs, and no copies of all of them."""
    if name == "glb":
        pytest.importorskip("trimesh")
    true = true_scene(tmp_path / "photos", "area", 140).scene
    many = 20
    arrays = {
        field.name: np.concatenate([getattr(true, field.name)] * many)
        for field in dataclasses.fields(true)
        if isinstance(getattr(true, field.name), np.ndarray)
    }
    names = tuple(f"{i}.png" for i in range(many * len(true.names)))
    rest = {"transforms": true.transforms * many, "intrinsics": true.intrinsics * many, "paths": ()}
    scene = dataclasses.replace(true, names=names, **arrays, **rest)
    made = Export.of(scene, ExportOptions(conf_percentile=25, max_points=100_000, track_points=10_000))
    write_formats(made, tmp_path / "warm", check_formats(name))
    made = dataclasses.replace(made)  # without what it has kept
    tracemalloc.start()
    try:
        write_formats(made, tmp_path / "out", check_formats(name))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    chunk = THREADS * CHUNK_VIEWS * 16 if name == "colmap" else 0  # points of all views at a time
    assert peak < sum(array.nbytes for array in arrays.values()) + chunk
