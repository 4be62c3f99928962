"""Folders for trainers: photographs upright beside cameras and points that belong to them."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from fastvggt_jax import Scene, errors, export, load_images
from fastvggt_jax.export import Export, ExportOptions, base
from fastvggt_jax.export.photographs import find_photographs, place_photographs
from fastvggt_jax.sources import Frame, ImagePolicy
from tests.export.colmap_reader import read_colmap
from tests.export.truth import TURNED, VIEWS, true_scene

POINTS = ExportOptions(track_points=2000)


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def folder(true, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    export.write(true.scene, out, ("splat", "nerfstudio", "ply", "cameras", "conventions", "depth"), POINTS)
    return out


# ---- photographs


@pytest.mark.parametrize("where", ["splat", "nerfstudio"])
def test_photographs_lie_upright_beside_the_cameras(true, folder, where):
    photos = sorted((folder / where / "images").iterdir())
    assert [path.name for path in photos] == ["0.png", "1.png", "2.jpg", "3.png", "4.png", "5.png"]
    for i, path in enumerate(photos):
        t = true.scene.transforms[i]
        image = Image.open(path)
        assert image.size == (t.original_width, t.original_height)
        assert image.getexif().get(0x0112, 1) == 1
        assert path.is_symlink() == (i != TURNED)
    upright = ImageOps.exif_transpose(Image.open(true.scene.paths[TURNED]))
    found = np.asarray(Image.open(photos[TURNED]), float)
    assert np.abs(found - np.asarray(upright)).mean() < 3


def test_links_or_copies(true, tmp_path):
    before = {path.name: path.read_bytes() for path in Path(true.scene.paths[0]).parent.iterdir()}
    placed = place_photographs(true.scene, tmp_path / "linked")
    assert os.readlink(tmp_path / "linked" / "0.png") == true.scene.paths[0]
    place_photographs(true.scene, tmp_path / "copied", copy=True)
    for name in placed.names:
        assert (tmp_path / "linked" / name).read_bytes() == (tmp_path / "copied" / name).read_bytes()
        assert not (tmp_path / "copied" / name).is_symlink()
    # Writing once more replaces the link, not what it leads to.
    place_photographs(true.scene, tmp_path / "linked", copy=True)
    assert not (tmp_path / "linked" / "0.png").is_symlink()
    assert {path.name: path.read_bytes() for path in Path(true.scene.paths[0]).parent.iterdir()} == before


def test_a_file_system_without_links_gets_copies(true, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    place_photographs(true.scene, tmp_path)
    assert (tmp_path / "0.png").read_bytes() == Path(true.scene.paths[0]).read_bytes()
    assert not (tmp_path / "0.png").is_symlink() and len(list(tmp_path.iterdir())) == VIEWS


@pytest.mark.parametrize(
    "save, ending",
    [
        (dict(format="TIFF"), ".jpg"),
        (dict(format="WEBP"), ".jpg"),
        (dict(format="BMP"), ".jpg"),
        (dict(format="GIF"), ".jpg"),
        (dict(format="JPEG", mode="CMYK"), ".jpg"),
        (dict(format="PNG", mode="P"), ".jpg"),
        (dict(format="PNG", mode="I;16"), ".jpg"),
        (dict(format="WEBP", mode="RGBA"), ".png"),
        (dict(format="PNG", mode="RGBA"), ".png"),
        (dict(format="PNG", mode="L"), ".png"),
    ],
)
def test_other_files_are_written_in_a_format_that_trainers_read(save, ending, tmp_path):
    mode = save.pop("mode", "RGB")
    values = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2
    rgb = np.stack([values, values[::-1], values[:, ::-1]], -1)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
        rgb = np.stack([values] * 3, -1)
    elif mode == "RGBA":
        image = Image.fromarray(np.concatenate([rgb, np.full((48, 64, 1), 128, np.uint8)], -1))
    else:
        image = Image.fromarray(rgb).convert(mode)
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "photo.png", **save)  # contents decide, not the ending
    images = load_images([tmp_path / "in" / "photo.png"] * 1, ImagePolicy("crop", 56, 14))
    scene = stub(images)
    placed = place_photographs(scene, tmp_path / "out", images.frames)
    assert placed.names == ("photo.png" if ending == ".png" else "photo.png.jpg",)
    found = Image.open(tmp_path / "out" / placed.names[0])
    assert (
        found.size == (64, 48)
        and found.mode in ("L", "RGB", "RGBA")
        and (found.mode == "RGBA") == (mode == "RGBA")
    )
    if mode not in ("L", "P"):
        assert np.abs(np.asarray(found.convert("RGB"), float) - rgb).mean() < 12


def stub(images):
    """A scene of these images that only photographs are wanted of."""
    frames, height, width, _ = images.pixels.shape
    nothing = np.zeros((frames, height, width), np.float32)
    K = np.array([[50, 0, width / 2], [0, 50, height / 2], [0, 0, 1]], np.float32)
    return Scene(
        names=images.names,
        transforms=images.transforms,
        colors=images.pixels,
        valid=nothing > 1,
        K=np.tile(K, (frames, 1, 1)),
        cam_from_world=np.tile(np.eye(4, dtype=np.float32)[:3], (frames, 1, 1)),
        points=np.zeros((frames, height, width, 3), np.float32),
        points_conf=nothing,
        depth=nothing,
        depth_conf=nothing,
        intrinsics=("predicted",) * frames,
        paths=tuple("" if frame is None else str(frame.path) for frame in images.frames),
        white=images.white,
    )


def test_what_has_no_file_is_written_from_what_opens_it_or_stood_in_for(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), np.uint8)
    images = load_images(pixels, ImagePolicy("square", 56, 14))
    scene = stub(images)
    assert images.frames == (None, None)  # what opens an array holds it
    frames = [Frame(partial(Image.fromarray, one)) for one in pixels]
    placed = place_photographs(scene, tmp_path / "opened", frames)
    assert placed.names == ("0000.jpg", "0001.jpg") and placed.transforms == scene.transforms
    assert Image.open(tmp_path / "opened" / "0000.jpg").size == (120, 90)
    with pytest.warns(UserWarning, match="2 photographs have no file, as '0000'"):
        placed = place_photographs(scene, tmp_path / "stand-ins")
    assert placed.names == ("0000.png", "0001.png")
    left, top, right, bottom = images.transforms[0].valid
    shown = np.asarray(Image.open(tmp_path / "stand-ins" / "0000.png"))
    np.testing.assert_array_equal(shown, images.pixels[0, top:bottom, left:right])
    assert (top, bottom) == (7, 49)
    # Its camera is that of these pixels.
    np.testing.assert_allclose(placed.K_original(0), [[50, 0, 28], [0, 50, 21], [0, 0, 1]])
    assert (placed.transforms[0].original_width, placed.transforms[0].original_height) == shown.shape[1::-1]


def test_what_was_said_to_be_white_is_white_here_too(tmp_path):
    """Also for a scene that comes back from its file."""
    grey = np.random.default_rng(0).integers(1000, 4096, (90, 120)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    images = load_images(tmp_path / "a.png", ImagePolicy("square", 56, 14), white=4095)
    scene = stub(images)
    scene.save(tmp_path / "saved")
    for name, one in (("now", scene), ("later", Scene.load(tmp_path / "saved"))):
        place_photographs(one, tmp_path / name)
        found = np.asarray(Image.open(tmp_path / name / "a.png.jpg").convert("L"), float)
        assert abs(found.mean() - grey.mean() / 4095 * 255) < 2


def test_a_photograph_that_became_a_pipe_is_not_waited_for(tmp_path):
    scene = stub(load_images(np.zeros((1, 90, 120, 3), np.uint8), ImagePolicy("square", 56, 14)))
    os.mkfifo(tmp_path / "a.png")
    scene = dataclasses.replace(scene, paths=(str(tmp_path / "a.png"),))
    with pytest.raises(errors.MissingError, match="a.png is no longer there"):
        place_photographs(scene, tmp_path / "out")


def test_what_is_transparent_in_grey_of_16_bits_is_so_here(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (90, 120)).astype(np.uint16)
    grey[:40] = 7
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=7)
    place_photographs(stub(load_images(tmp_path / "a.png", ImagePolicy("square", 56, 14))), tmp_path / "out")
    found = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(found[..., 3], np.where(grey == 7, 0, 255))
    np.testing.assert_array_equal(found[..., 0], grey // 257)


def test_what_is_too_wide_for_a_jpeg_becomes_a_png(tmp_path):
    Image.fromarray(np.zeros((20, 66000), np.uint16)).save(tmp_path / "a.png")
    place_photographs(stub(load_images(tmp_path / "a.png", ImagePolicy("crop", 56, 14))), tmp_path / "out")
    assert Image.open(tmp_path / "out" / "a.png").mode == "RGB"


def test_pillows_own_limit_is_not_ours(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (120, 90)).save(tmp_path / "a.jpg")
    place_photographs(stub(load_images(tmp_path / "a.jpg", ImagePolicy("square", 56, 14))), tmp_path / "out")
    assert (tmp_path / "out" / "a.jpg").is_symlink() and not recwarn.list


def test_a_stand_in_of_which_the_model_saw_no_pixel_is_a_sentence(tmp_path):
    scene = stub(load_images(np.zeros((5000, 1, 3), np.uint8), ImagePolicy("square", 56, 14)))
    with pytest.raises(errors.ImageError, match="0000 has no file, and the model has seen no whole pixel"):
        place_photographs(scene, tmp_path / "out")


def test_names_that_are_too_long_for_files_are_in_no_folder(tmp_path):
    scene = stub(load_images(np.zeros((1, 90, 120, 3), np.uint8), ImagePolicy("square", 56, 14)))
    with pytest.raises(errors.MissingError, match="holds no zzz"):
        find_photographs(dataclasses.replace(scene, names=("z" * 300 + ".jpg",)), tmp_path)


def test_a_photograph_on_its_head_is_turned_too(tmp_path):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24] = 255  # in the file above, seen below
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.jpg", exif=exif)
    images = load_images(tmp_path / "in", ImagePolicy("crop", 56, 14))
    place_photographs(stub(images), tmp_path / "out", images.frames)
    found = np.asarray(Image.open(tmp_path / "out" / "a.jpg"))
    assert found[:20].max() < 30 and found[-20:].min() > 225


def test_a_splatting_folder_of_stand_ins_has_their_names_and_cameras(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), np.uint8)
    scene = stub(load_images(pixels, ImagePolicy("square", 56, 14)))
    with pytest.warns(UserWarning):
        export.write(scene, tmp_path, ("splat",))
    model = read_colmap(tmp_path / "splat" / "sparse" / "0")
    assert [image.name for image in model.images.values()] == [b"0000.png", b"0001.png"]
    assert Image.open(tmp_path / "splat" / "images" / "0000.png").size == model.cameras[1][1:3] == (56, 42)
    np.testing.assert_allclose(model.cameras[1][3], (50, 50, 28, 21))


def test_photographs_that_are_gone_damaged_or_others(tmp_path):
    for i in range(2):
        Image.new("RGB", (64, 48), (i, 0, 0)).save(tmp_path / f"{i}.png")
    scene = stub(load_images(tmp_path, ImagePolicy("crop", 56, 14)))
    (tmp_path / "1.png").rename(tmp_path / "moved.png")
    with pytest.raises(errors.MissingError, match="1.png is no longer there: give photos, the folder"):
        place_photographs(scene, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(errors.MissingError, match="there holds no 0.png"):
        find_photographs(scene, tmp_path / "there")
    (tmp_path / "1.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(errors.ImageError, match=r"1\.png is damaged"):
        place_photographs(scene, tmp_path / "out")
    Image.new("RGB", (48, 64)).save(tmp_path / "1.png")
    with pytest.raises(errors.ImageError, match=r"1\.png has 48x64 pixels, but had 64x48"):
        place_photographs(scene, tmp_path / "out")


def test_names_never_collide(tmp_path):
    paths = []
    for name in ("l/a.png", "r/a.png", "r/A.jpg", "r/a b\u2603.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (len(paths), 0, 0)).save(path)
        paths.append(path)
    images = load_images(paths, ImagePolicy("crop", 56, 14))
    placed = place_photographs(stub(images), tmp_path / "out", images.frames)
    assert len({name.casefold() for name in placed.names}) == 4
    for name, path in zip(placed.names, paths, strict=True):
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()


# ---- what lies beside them


def test_the_splatting_folder_holds_a_model_of_its_photographs(true, folder):
    model = read_colmap(folder / "splat" / "sparse" / "0")
    names = [image.name.decode() for image in model.images.values()]
    assert names == sorted(path.name for path in (folder / "splat" / "images").iterdir())
    assert len(model.points) == 2000 and {camera[0] for camera in model.cameras.values()} == {1}
    for i, image in model.images.items():
        _, width, height, (fx, fy, cx, cy) = model.cameras[image.camera]
        assert Image.open(folder / "splat" / "images" / image.name.decode()).size == (width, height)
        np.testing.assert_allclose([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], true.K[i - 1], atol=1e-4)


def test_a_reader_of_nerfstudios_schema_finds_the_truth(true, folder):
    content = json.loads((folder / "nerfstudio" / "transforms.json").read_text())
    assert content["camera_model"] == "OPENCV" and "applied_transform" not in content
    header, body = (folder / "nerfstudio" / content["ply_file_path"]).read_bytes().split(b"end_header\n")
    vertex = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("conf", "<f4")])
    points = np.frombuffer(body, vertex)
    assert len(points) == 2000 and b"property uchar red" in header
    seen = 0
    for i, frame in enumerate(content["frames"]):
        image = Image.open(folder / "nerfstudio" / frame["file_path"])
        assert image.size == (frame["w"], frame["h"])
        K = [[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]]
        np.testing.assert_allclose(K, true.K[i], atol=1e-4)
        # Cameras look along -z, y up.
        pose = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        np.testing.assert_allclose(np.linalg.inv(pose)[:3], true.scene.cam_from_world[i], atol=1e-5)
        cam = (points["xyz"] - pose[:3, 3]) @ pose[:3, :3]
        uv = cam[:, :2] / cam[:, 2:] * (frame["fl_x"], frame["fl_y"]) + (frame["cx"], frame["cy"])
        inside = ((uv > 0) & (uv < image.size)).all(-1) & (cam[:, 2] > 0)
        shown = true.points_at(i, uv[inside])
        near = np.linalg.norm(shown - points["xyz"][inside], axis=-1) < 1e-3
        assert near.mean() > 0.5  # the rest is hidden there
        colors = np.asarray(image.convert("RGB"))[tuple(uv[inside][near].astype(int).T[::-1])]
        assert np.abs(colors.astype(float) - points["rgb"][inside][near]).mean() < 20
        seen += near.sum()
    assert seen > 3 * len(points)


def test_plyfile_and_trimesh_find_the_same_points(true, folder, tmp_path):
    cloud = true.scene.point_cloud()
    plyfile = pytest.importorskip("plyfile")
    vertices = plyfile.PlyData.read(folder / "points.ply")["vertex"]
    np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), cloud.xyz)
    np.testing.assert_array_equal(np.stack([vertices[c] for c in ("red", "green", "blue")], -1), cloud.rgb)
    trimesh = pytest.importorskip("trimesh")
    np.testing.assert_allclose(trimesh.load(folder / "points.ply").vertices, cloud.xyz, atol=1e-6)
    export.write(true.scene, tmp_path, ("glb",))
    found = trimesh.load_scene(tmp_path / "scene.glb")
    np.testing.assert_allclose(found.geometry["points"].vertices * (1, -1, -1), cloud.xyz, atol=1e-4)


def test_a_trainer_of_points_reads_the_splatting_folder(folder):
    """Coloured points, all grey at first, become the photographs: the error falls by half in 300 steps.

    It knows the folder alone: cameras, points and pictures must belong to one another for that.
    """
    model = read_colmap(folder / "splat" / "sparse" / "0")
    xyz = jnp.asarray([point.xyz for point in model.points.values()][::2], jnp.float32)
    images, cameras = [], []
    for image in model.images.values():
        picture = Image.open(folder / "splat" / "images" / image.name.decode()).convert("RGB")
        pixels = np.asarray(picture, np.float32)[6::12, 6::12].reshape(-1, 3) / 255
        _, width, height, (fx, fy, cx, cy) = model.cameras[image.camera]
        at = np.stack(np.meshgrid(np.arange(6, width, 12), np.arange(6, height, 12)), -1).reshape(-1, 2) + 0.5
        images.append(pixels[:80])
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        cameras.append((K @ image.cam_from_world(), at[:80]))
    of_cameras = [jnp.asarray(np.stack(part), jnp.float32) for part in zip(*cameras, strict=True)]
    target = jnp.asarray(np.stack(images))

    def render(rgb, camera, at):
        """Points near a pixel, the nearer to the eye the more, give it its colour."""
        seen = xyz @ camera[:, :3].T + camera[:, 3]
        uv, z = seen[:, :2] / seen[:, 2:], seen[:, 2]
        near = -((at[:, None] - uv) ** 2).sum(-1) / 18 - 6 * z
        return jax.nn.softmax(jnp.where(z > 0, near, -jnp.inf), -1) @ rgb

    def loss(rgb):
        return jnp.abs(jax.vmap(render, (None, 0, 0))(rgb, *of_cameras) - target).mean()

    @jax.jit
    def train(rgb):
        def step(rgb, _):
            value, slope = jax.value_and_grad(loss)(rgb)
            return rgb - 0.01 * jnp.sign(slope), value

        return jax.lax.scan(step, rgb, None, 300)

    _, values = train(jnp.full(xyz.shape, 0.5))
    assert values[-1] < values[0] / 2


# ---- who says what there is


def test_cameras_json_names_the_files_of_each_photograph(true, folder):
    for i, image in enumerate(json.loads((folder / "cameras.json").read_text())["images"]):
        assert image["files"].pop("photograph") == true.scene.paths[i]
        assert set(image["files"]) == {"depth", "depth_picture", "splat", "nerfstudio"}
        assert all((folder / path).is_file() for path in image["files"].values())
        assert image["files"]["splat"] == f"splat/images/{i}.{'jpg' if i == TURNED else 'png'}"


def test_scene_json_says_what_is_there_and_in_which_convention(folder):
    content = json.loads((folder / "scene.json").read_text())
    assert set(content["formats"]) == {"cameras", "splat", "nerfstudio", "ply", "depth"}
    for name, entry in content["formats"].items():
        assert all(list(folder.glob(pattern)) for pattern in entry["files"]), name
        assert "OpenCV" in entry["about"] or name == "cameras"
    assert "OpenGL" in content["formats"]["nerfstudio"]["about"] and "metric_scale" in content


def test_every_format_says_what_it_is():
    for format in base.all_formats():
        assert format.about, format.name


def test_one_scene_stands_in_all_files_that_are_written_together(true):
    made = Export.of(true.scene, dataclasses.replace(POINTS, shared_camera=True))
    assert made.scene.intrinsics == ("shared",) * VIEWS and made.tracks is made.tracks
    assert Export.of(true.scene, POINTS).scene is true.scene
